"""Small cells and small trained models that the tests share.

``adata`` is made anew for each test, which may change it. The models are trained once a session: tests read them only.
"""

import signal

import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

torch.set_num_threads(1)  # the models are tiny, and pytest-xdist runs several processes


@pytest.fixture
def adata():
    """300 cells x 40 genes; columns batch (3), sex (2), chem (3), cell_type (3), age, pct, size_factor, pseudotime."""
    return make_adata()


@pytest.fixture(scope="session")
def model():
    """Negative binomial, batch key, 4 latents, 3 epochs. Read only."""
    return make_model(make_adata())


@pytest.fixture(scope="session")
def full_model():
    """Zero-inflated, with a batch, labels, two categorical and two continuous covariates. Read only."""
    return make_model(make_adata(), setup=EVERYTHING, gene_likelihood="zinb")


@pytest.fixture
def interrupts():
    """Ctrl-C as Python has it: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
