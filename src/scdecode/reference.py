"""Training cells in the latent space that travel with the model: for support, for pictures, for drawing cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scdecode._utils.notebook import Shown
from scdecode.cells import Cells
from scdecode.encoding import encode, latent_mean
from scdecode.errors import CountsError
from scdecode.vae import VAE

MAX_REFERENCE = 20_000
"""Cells that are kept, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class Reference(Shown):
    """Latents of up to :data:`MAX_REFERENCE` training cells, with their conditions."""

    latent_rk: np.ndarray  # (r, k) float32: the posterior mean of the latent point
    # the rest is there or not together: where latent points alone were attached, it is not
    mean_rk: np.ndarray | None = None  # (r, k) float32: the posterior mean of z; not latent_rk only for "ln"
    variance_rk: np.ndarray | None = None  # (r, k) float32: the posterior variance of z
    codes_rc: np.ndarray | None = None  # (r, c) int64: batch, each categorical covariate, label
    continuous_rd: np.ndarray | None = None  # (r, d) float32
    library_r: np.ndarray | None = None  # (r,) float32: total counts, or the size factor


def make_reference(vae: VAE, cells: Cells, train: np.ndarray, seed: int) -> Reference:
    """Encode the training cells, or a random choice of them where there are too many.

    Parameters
    ----------
    vae
        The trained network.
    cells
        All cells.
    train
        Positions of the training cells.
    seed
        Of the choice.
    """
    if vae.config.use_observed_lib_size and not vae.config.use_size_factor:
        train = train[cells.library_n[train] > 0]  # of one without counts, nothing can be generated
    if len(train) == 0:
        raise CountsError("reference: none of the cells has counts in the model's genes, expected at least one")
    rows = _choose(train, seed)
    posterior = encode(vae, cells, rows=rows)
    library_n = cells.library_n if cells.size_factor_n is None else cells.size_factor_n
    return Reference(
        latent_rk=latent_mean(posterior, vae.config),
        mean_rk=posterior.mean_nk.numpy(),
        variance_rk=posterior.variance_nk.numpy(),
        codes_rc=cells.codes_nc[rows],
        continuous_rd=cells.continuous_nd[rows],
        library_r=library_n[rows],
    )


def reference_of_latents(latent_nk: np.ndarray, seed: int = 0) -> Reference:
    """Latent points of training cells of which nothing else is known, or a random choice of them."""
    return Reference(latent_rk=latent_nk[_choose(np.arange(len(latent_nk)), seed)])


def _choose(rows: np.ndarray, seed: int) -> np.ndarray:
    if len(rows) > MAX_REFERENCE:
        rows = np.random.default_rng([seed, 2]).choice(rows, MAX_REFERENCE, replace=False)
    return np.sort(rows)
