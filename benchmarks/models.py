"""Both packages' models of the same cells, trained for one epoch: how well does not matter to their speed."""

from __future__ import annotations

import warnings

import numpy as np
import peer
import scvi
from anndata import AnnData

import scdecode as sd


def train_ours(cells: AnnData) -> sd.SCVI:
    """A model of scdecode; points outside its cells are decoded without a word here."""
    warnings.simplefilter("ignore", sd.errors.SupportWarning)
    sd.SCVI.setup_anndata(cells, batch_key="batch")
    model = sd.SCVI(cells, gene_likelihood="nb")
    model.train(1, device="cpu", progress=False)
    return model


def train_theirs(cells: AnnData) -> scvi.model.SCVI:
    """A model of scvi-tools, in evaluation mode."""
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    peer.train(model, 1)
    model.module.eval()
    return model


def points_near(model: sd.SCVI, n_points: int) -> np.ndarray:
    """Points near the cells of a model, ``(n, k)`` float32."""
    rng = np.random.default_rng(0)
    latent = model.reference_latents()
    noise = rng.normal(0, 0.1 * latent.std(), (n_points, latent.shape[1]))
    return (latent[rng.integers(0, len(latent), n_points)] + noise).astype(np.float32)
