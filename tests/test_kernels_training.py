"""Training with the kernels takes the steps of plain torch; where Numba fails, it is plain torch."""

import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import kernels, training
from scdecode.errors import TrainingWarning
from scdecode.kernels import compiling
from scdecode.kernels.adam import KernelAdam

MODELS = {
    "nb": {"gene_likelihood": "nb"},
    "zinb": {"gene_likelihood": "zinb"},
    "poisson": {"gene_likelihood": "poisson"},
    "two layers, layer norm": {"n_layers": 2, "use_layer_norm": "both", "use_batch_norm": "none"},
    "by batch": {"dispersion": "gene-batch"},
    "by label": {"dispersion": "gene-label", "setup": EVERYTHING},
    "by cell": {"dispersion": "gene-cell", "gene_likelihood": "zinb"},
    "learned library": {"use_observed_lib_size": False},
    "size factor": {"setup": {"batch_key": "batch", "size_factor_key": "size_factor"}},
    "logistic normal": {"latent_distribution": "ln"},
}


def ten_steps(monkeypatch, options, *, plain):
    with monkeypatch.context() as patch:
        if plain:
            patch.setattr(training, "usable", lambda: False)
        model = make_model(make_adata(), epochs=5, train={"batch_size": 128}, **options)
    return model.history_table, {name: value.clone() for name, value in model.vae.state_dict().items()}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_steps_are_those_of_plain_torch(monkeypatch, options):
    table, weights = ten_steps(monkeypatch, options, plain=False)
    plain_table, plain_weights = ten_steps(monkeypatch, options, plain=True)
    columns = [name for name in table if name != "seconds"]
    np.testing.assert_allclose(table[columns].to_numpy(float), plain_table[columns].to_numpy(float), rtol=1e-5)
    for name, value in weights.items():
        assert value.is_contiguous(), name
        # batch normalisation takes the bias before it away again: its gradient is rounding, and so is what it learns
        loose = 1e-3 if name.endswith(".linear.bias") else 1e-5
        torch.testing.assert_close(value, plain_weights[name], rtol=1e-5, atol=loose, msg=lambda m, n=name: f"{n}: {m}")


def test_sparse_minibatches_are_taken(monkeypatch):
    made, gather = [], training.gather

    def look(*arguments):
        made.append(gather(*arguments))
        return made[-1]

    monkeypatch.setattr(training, "gather", look)
    make_model(make_adata(), epochs=1)
    assert {type(one).__name__ for one in made} == {"SparseMinibatch"}
    made.clear()
    make_model(make_adata(), epochs=1, gene_likelihood="normal")
    assert {type(one).__name__ for one in made} == {"Minibatch"}


def test_without_numba_there_is_one_warning_and_plain_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "scdecode.kernels.compiling", None)  # as if importing it failed
    kernels.usable.cache_clear()
    try:
        with pytest.warns(TrainingWarning, match="plain torch, several times slower"):
            make_model(make_adata(), epochs=1)
        make_model(make_adata(), epochs=1)  # a second warning would be an error
    finally:
        kernels.usable.cache_clear()


@pytest.fixture
def asked_anew():
    """As if nobody had asked yet whether the loops can be compiled."""
    kernels.usable.cache_clear()
    yield
    kernels.usable.cache_clear()


def test_the_loops_are_compiled_once_and_nothing_is_asked_again(monkeypatch, asked_anew):
    calls = []
    monkeypatch.setattr(compiling, "compile_all", lambda: calls.append(1))
    assert kernels.usable() and kernels.usable()
    make_model(make_adata(), epochs=1)
    assert calls == [1]


def test_what_the_warning_says(monkeypatch, asked_anew):
    def fail():
        raise OSError("no such processor")

    monkeypatch.setattr(compiling, "compile_all", fail)
    with pytest.warns(TrainingWarning) as caught:
        assert not kernels.usable()
    (one,) = caught
    assert "(OSError: no such processor)" in str(one.message)
    assert "in plain torch, several times slower" in str(one.message)
    assert not kernels.usable()  # a second warning would be an error


def test_compiling_says_so_and_takes_no_random_number(monkeypatch):
    told = []

    @contextmanager
    def note(text, *, after):
        told.append(text)
        yield

    monkeypatch.setattr(compiling, "notice", note)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.no_grad():
        compiling.compile_all()
    assert len(told) == 1 and "compiling" in told[0]
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_importing_scdecode_imports_no_numba():
    code = f"import sys, {sd.__name__}, scdecode.model; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_adam_is_that_of_torch():
    torch.manual_seed(0)
    shapes = [(3,), (17, 5), (40_000,), (2, 3)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    ours[1].data = ours[1].detach().t().contiguous().t()
    options = {"lr": 1e-2, "eps": 0.01, "weight_decay": 1e-2}
    one, other = KernelAdam(ours, **options), torch.optim.Adam(theirs, **options)
    for _ in range(5):
        for a, b in zip(ours[:3], theirs[:3], strict=True):  # the last has no gradient
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert one.state_dict()["state"].keys() == other.state_dict()["state"].keys()


def test_damaged_files_of_numba_mean_plain_torch(monkeypatch):
    def damaged():
        raise EOFError("Ran out of input")

    from scdecode.kernels import compiling

    monkeypatch.setattr(compiling, "compile_all", damaged)
    kernels.usable.cache_clear()
    try:
        with pytest.warns(TrainingWarning, match=r"EOFError: Ran out of input.*delete .*__pycache__"):
            assert not kernels.usable()
    finally:
        kernels.usable.cache_clear()
