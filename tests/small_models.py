"""Small cells and small models for the tests; the fixtures of ``conftest.py`` are made of them."""

import numpy as np
import pandas as pd

import scdecode as sd

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
