"""The same cells and options in both packages: a model that scvi-tools trained, and ours with its weights."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData

import scdecode as sd
from scdecode.formats.scvi_names import to_ours
from scdecode.reference import make_reference

N_CELLS, N_GENES = 200, 30
BATCHES = [10, 2, 9]  # numbers: their order as numbers, 2, 9, 10, is not that of their names

SETUPS = {
    "plain": {},
    "batch": {"batch_key": "donor"},
    "covariates": {
        "batch_key": "donor",
        "categorical_covariate_keys": ["sex", "chem"],
        "continuous_covariate_keys": ["age", "pct"],
    },
    "labels": {"batch_key": "donor", "labels_key": "cell_type", "categorical_covariate_keys": ["chem"]},
    "factor": {"batch_key": "donor", "size_factor_key": "factor", "continuous_covariate_keys": ["age"]},
}

CASES = {
    "zinb, no conditions": ("plain", {}),
    "nb, batch": ("batch", {"gene_likelihood": "nb"}),
    "nb, covariates, two layers": ("covariates", {"gene_likelihood": "nb", "n_layers": 2, "encode_covariates": True}),
    "zinb, covariates, shallow": ("covariates", {"n_layers": 2, "deeply_inject_covariates": False}),
    "nb, gene-batch, learned library": (
        "batch",
        {"gene_likelihood": "nb", "dispersion": "gene-batch", "use_observed_lib_size": False},
    ),
    "zinb, gene-label": ("labels", {"dispersion": "gene-label"}),
    "zinb, gene-cell, layer norm": ("batch", {"dispersion": "gene-cell", "use_layer_norm": "both"}),
    "nb, size factor": ("factor", {"gene_likelihood": "nb"}),
    "poisson, ln, embedding": (
        "covariates",
        {"gene_likelihood": "poisson", "latent_distribution": "ln", "batch_representation": "embedding"},
    ),
    "normal, no batch norm": ("batch", {"gene_likelihood": "normal", "use_batch_norm": "none"}),
}


@dataclass(frozen=True, eq=False)
class Pair:
    """One model in both packages."""

    adata: AnnData
    ours: sd.SCVI
    theirs: scvi.model.SCVI

    @property
    def module(self):
        """scvi-tools' network, in evaluation mode."""
        return self.theirs.module.eval()

    def tensors(self, rows):
        """Cells as scvi-tools' network takes them; its data loader makes them."""
        (tensors,) = self.theirs._make_data_loader(self.adata, indices=rows, batch_size=len(rows))
        return tensors

    def their_codes(self, names, level):
        """scvi-tools' codes of the names of one condition, ``(n, 1)``, from its own registry."""
        registry = self.theirs.adata_manager.get_state_registry
        field = {"donor": "batch", "cell_type": "labels"}.get(level)
        if field is not None:
            known = registry(field).categorical_mapping
        else:
            known = registry("extra_categorical_covs").mappings[level]
        codes = {str(name): code for code, name in enumerate(known)}
        return torch.tensor([[codes[name]] for name in names])


def make_cells(seed=0):
    """Cells with every kind of condition, the levels in no particular order."""
    rng = np.random.default_rng(seed)
    programs = rng.gamma(0.8, size=(3, N_GENES)) + 0.05
    kind = rng.integers(0, 3, N_CELLS)
    batch = rng.integers(0, 3, N_CELLS)
    rate = programs[kind] * np.exp(rng.normal(0, 0.4, (3, N_GENES)))[batch] * rng.gamma(3, 1 / 3, (N_CELLS, N_GENES))
    counts = rng.poisson(rate / rate.sum(1, keepdims=True) * rng.lognormal(4.5, 0.5, (N_CELLS, 1)))
    counts[:, 0] += 1  # no empty cell
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(N_CELLS)])
    obs["donor"] = np.array(BATCHES)[batch]
    obs["cell_type"] = np.array(["NK", "B", "T"])[kind]
    obs["sex"] = rng.choice(["male", "female"], N_CELLS)
    obs["chem"] = rng.choice(["v3", "v1", "v2"], N_CELLS)
    obs["age"] = rng.normal(size=N_CELLS)
    obs["pct"] = rng.random(N_CELLS)
    obs["factor"] = counts.sum(1) / counts.sum(1).mean()
    return AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)]))


def make_pair(case, *, epochs=3):
    """Train scvi-tools' model for some steps and copy its weights into ours."""
    setup, options = CASES[case]
    options = {"n_hidden": 16, "n_latent": 4} | options
    adata = make_cells()
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, **SETUPS[setup])
    theirs = scvi.model.SCVI(adata, **options)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    theirs.train(max_epochs=epochs, batch_size=25, train_size=1.0, plan_kwargs={"lr": 0.02}, **quiet)

    sd.SCVI.setup_anndata(adata, **SETUPS[setup])
    ours = sd.SCVI(adata, **options)
    state, _ = to_ours(theirs.module.state_dict(), ours.config)
    ours.vae.load_state_dict(state)
    ours._reference = make_reference(ours.vae, ours._cells, np.arange(N_CELLS), seed=0)
    ours._trained = True
    return Pair(adata, ours, theirs)
