"""Cells to latents: the posterior, its mean, or draws from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdecode.cells import Cells
from scdecode.config import ModelConfig
from scdecode.draws import even_normals
from scdecode.errors import check_integer
from scdecode.minibatches import gather, rows_of
from scdecode.vae import VAE, evaluating

BATCH_SIZE = 256
"""Cells that are made dense at once."""

_MEAN_DRAWS = 5000  # for the mean of a logistic normal, which has no closed form


@dataclass(frozen=True, eq=False)
class Posterior:
    """The normal posterior q(z | x) of each cell; for ``latent_distribution="ln"`` that of z before its softmax."""

    mean_nk: Tensor  # (n, k) float32
    variance_nk: Tensor  # (n, k) float32


@torch.no_grad()
def encode(
    vae: VAE,
    cells: Cells,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
) -> Posterior:
    """The posterior of each cell, some cells at a time.

    Parameters
    ----------
    vae
        On the CPU, where it is left; whatever mode it is in, it encodes in evaluation mode.
    cells
        In the model's genes and codes.
    rows
        Positions of the cells to encode; by default all.
    batch_size
        Cells that are made dense at once.
    device
        Where to compute.
    """
    check_integer("batch_size", batch_size, minimum=1)
    device = torch.device(device)
    means, variances = [], []
    vae.to(device)
    try:
        for some in rows_of(np.arange(len(cells)) if rows is None else rows, batch_size, lone=True):
            with evaluating(vae):
                posterior = vae.encode(gather(cells, some, device))
            means.append(posterior.mean.cpu())
            variances.append(posterior.variance.cpu())
    finally:
        vae.to("cpu")
    return Posterior(torch.cat(means), torch.cat(variances))


def latent_mean(posterior: Posterior, config: ModelConfig, *, n_draws: int = _MEAN_DRAWS, seed: int = 0) -> np.ndarray:
    """The posterior mean of each cell's latent point, ``(n, k)`` float32.

    For ``"ln"`` it is the mean of ``n_draws`` draws of the softmax: the softmax of the mean is another point.
    """
    if config.latent_distribution == "normal":
        return posterior.mean_nk.numpy()
    check_integer("mc_samples", n_draws, minimum=1)
    total = torch.zeros_like(posterior.mean_nk)
    sd_nk = posterior.variance_nk.sqrt()
    for noise_k in even_normals(n_draws, sd_nk.shape[1], seed):  # a cell's mean does not depend on those beside it
        total += torch.softmax(posterior.mean_nk + sd_nk * noise_k, dim=-1)
    return (total / n_draws).numpy()


def latent_draws(posterior: Posterior, config: ModelConfig, n_samples: int, *, seed: int = 0) -> np.ndarray:
    """Draws from the posterior of each cell's latent point, ``(n_samples, n, k)`` float32."""
    check_integer("n_samples", n_samples, minimum=1)
    generator = torch.Generator().manual_seed(seed)
    shape = (n_samples, *posterior.mean_nk.shape)
    draws = posterior.mean_nk + posterior.variance_nk.sqrt() * torch.randn(shape, generator=generator)
    return (draws if config.latent_distribution == "normal" else torch.softmax(draws, dim=-1)).numpy()
