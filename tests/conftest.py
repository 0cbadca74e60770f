"""Small cells and small trained models that the tests share.

``adata`` is made anew for each test, which may change it. The models are trained once a session: tests read them only.
"""

import numpy as np
import pandas as pd
import pytest
import torch

import scdecode as sd

torch.set_num_threads(1)  # the models are tiny, and pytest-xdist runs several processes

EVERYTHING = {
    "batch_key": "batch",
    "labels_key": "cell_type",
    "categorical_covariate_keys": ["sex", "chem"],
    "continuous_covariate_keys": ["age", "pct"],
}
"""A setup with every kind of condition."""


def make_adata(n_cells=300, n_genes=40, seed=0):
    """Simulated cells of three batches, with columns of every kind of condition; no cell is empty."""
    adata = sd.datasets.simulate_branching(n_cells, n_genes, n_batches=3, truth_layers=False, seed=seed)
    rng = np.random.default_rng([seed, 1])
    adata.obs["sex"] = pd.Categorical(rng.choice(["female", "male"], n_cells))
    adata.obs["chem"] = pd.Categorical(rng.choice(["v1", "v2", "v3"], n_cells, p=[0.5, 0.3, 0.2]))
    adata.obs["age"] = rng.uniform(20, 80, n_cells).round()
    adata.obs["pct"] = rng.beta(2, 30, n_cells)
    adata.obs["cell_type"] = adata.obs["branch"].astype("category")
    total_n = np.asarray(adata.X.sum(axis=1)).reshape(-1)
    adata.obs["size_factor"] = total_n / total_n.mean()
    return adata


def make_model(adata, *, setup=None, epochs=3, train=None, **options):
    """A small model of ``adata``, trained for ``epochs`` (0: not trained)."""
    sd.SCVI.setup_anndata(adata, **({"batch_key": "batch"} if setup is None else setup))
    model = sd.SCVI(adata, **{"n_latent": 4, "n_hidden": 16, "gene_likelihood": "nb"} | options)
    if epochs:
        model.train(epochs, device="cpu", progress=False, **(train or {}))
    return model


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
