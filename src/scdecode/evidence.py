"""How likely a model finds cells: the evidence lower bound, the reconstruction error and the marginal likelihood.

These functions are the methods of the same names of :class:`scdecode.SCVI`; names, arguments, signs and results are
those of scvi-tools. What is drawn is drawn from a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Normal

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import IndicesLike, Seed
from scdecode.arguments import refuse_loaders
from scdecode.asked import TILE_BYTES, Computing, OnCells, choose, computing, minibatches_of
from scdecode.cells import Cells
from scdecode.classification import SemiSupervisedElbo
from scdecode.draws import draw_normal
from scdecode.encoding import BATCH_SIZE, stays_sparse
from scdecode.errors import LARGEST_DRAWS, InputError, check_integer
from scdecode.kernels.rows import Gatherer
from scdecode.kernels.threads import own_threads
from scdecode.minibatches import Minibatch, SparseMinibatch, gather, rows_of
from scdecode.vae import VAE


@checked
def get_elbo(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    batch_size: int | None = None,
    dataloader: None = None,
    return_mean: bool = True,
    data_loader_kwargs: None = None,
    *,
    seed: Seed = 0,
    device: str = "cpu",
    **kwargs: Any,
) -> Tensor:
    """The evidence lower bound of cells, in nats a cell, at one draw from the posterior of each; higher is better.

    It is minus what the history calls ``elbo``: -log p(x | z, l) and the divergences from the priors, there as here
    with their full weight. For a model with cell types it is the bound that such a model is trained with.

    Parameters
    ----------
    adata
        Cells; by default those that the model was made of.
    indices
        Positions or a mask of the cells wanted; by default all.
    batch_size
        Cells that are made dense at once.
    return_mean
        Whether to average over cells.
    seed
        Of the draws.
    device
        Where to compute.
    dataloader, data_loader_kwargs, **kwargs
        Of scvi-tools, and not offered.

    Returns
    -------
    torch.Tensor
        Of no dimension, or ``(n,)`` without the mean; float32.
    """
    given = {"dataloader": dataloader, "data_loader_kwargs": data_loader_kwargs}
    reconstruction, kl = _bounds("get_elbo", model, adata, indices, batch_size, {**given, **kwargs}, seed, device)
    return _over_cells(-(reconstruction + kl), return_mean)


@checked
def get_reconstruction_error(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    batch_size: int | None = None,
    dataloader: None = None,
    return_mean: bool = True,
    data_loader_kwargs: None = None,
    *,
    seed: Seed = 0,
    device: str = "cpu",
    **kwargs: Any,
) -> dict[str, Tensor]:
    """-log p(x | z, l) of cells, in nats a cell, at one draw from the posterior of each; lower is better.

    Parameters
    ----------
    adata, indices, batch_size, return_mean, seed, device, dataloader, data_loader_kwargs, **kwargs
        As for :meth:`get_elbo`.

    Returns
    -------
    dict of str to torch.Tensor
        One entry, ``"reconstruction_loss"``: of no dimension, or ``(n,)`` without the mean; float32.
    """
    given = {"dataloader": dataloader, "data_loader_kwargs": data_loader_kwargs}
    place = "get_reconstruction_error"
    reconstruction, _ = _bounds(place, model, adata, indices, batch_size, {**given, **kwargs}, seed, device)
    return {"reconstruction_loss": _over_cells(reconstruction, return_mean)}


@checked
def get_marginal_ll(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    n_mc_samples: int = 1000,
    batch_size: int | None = None,
    return_mean: bool = True,
    dataloader: None = None,
    data_loader_kwargs: None = None,
    *,
    n_mc_samples_per_pass: int | None = None,
    seed: Seed = 0,
    device: str = "cpu",
    **kwargs: Any,
) -> np.float64 | Tensor:
    """The log marginal likelihood log p(x) of cells, in nats a cell, by importance sampling; higher is better.

    The mean of p(x | z, l) p(z) p(l) / (q(z | x) q(l | x)) over draws from the posterior, as a logarithm. It comes near
    log p(x) from below as the draws become more.

    Parameters
    ----------
    adata, indices, batch_size, return_mean, seed, device, dataloader, data_loader_kwargs, **kwargs
        As for :meth:`get_elbo`.
    n_mc_samples
        Draws for each cell.
    n_mc_samples_per_pass
        Draws that are decoded at once; by default as many as fit the processor's cache.

    Returns
    -------
    numpy.float64 or torch.Tensor
        The mean over cells, or ``(n,)`` float32.

    Notes
    -----
    For ``latent_distribution="ln"`` the densities are those of z before its softmax, which is what is drawn. scvi-tools
    1.4 takes them at the softmax, where they weigh nothing, and gives other numbers. For a ``SCANVI`` it is p(x) of the
    scVI in it, with its prior of z; scvi-tools counts the terms of z1 twice there.
    """
    refuse_loaders("get_marginal_ll", kwargs, dataloader=dataloader, data_loader_kwargs=data_loader_kwargs)
    check_integer("n_mc_samples", n_mc_samples, 1, LARGEST_DRAWS)
    fitting = max(TILE_BYTES // (4 * model.vae.n_genes * 128), 1)
    at_once = fitting if n_mc_samples_per_pass is None else n_mc_samples_per_pass
    check_integer("n_mc_samples_per_pass", at_once, 1, LARGEST_DRAWS)
    cells = choose(model, adata, indices).cells
    parts = []
    with computing(model.vae, device, seed) as here, _gathering(here, cells) as gatherer:
        for minibatch in _minibatches(cells, batch_size, here.device, gatherer):
            weights = _log_weights(here.network, minibatch, n_mc_samples, at_once, here.generator)
            parts.append((torch.logsumexp(weights, dim=0) - math.log(n_mc_samples)).cpu())
    found = torch.cat(parts)
    if not return_mean:
        return found
    _check_any(found)
    return np.float64(found.double().mean().item())


@contextmanager
def _gathering(here: Computing[Any], cells: Cells) -> Iterator[Gatherer | None]:
    """What gathers cells as sparse as they are where compiled loops take them, or else None; inside ``computing``."""
    vae = here.network if isinstance(here.network, VAE) else here.network.vae
    if not stays_sparse(vae, len(cells), here.device):
        yield None
        return
    with own_threads():
        yield Gatherer(cells.counts)


def _minibatches(
    cells: Cells, batch_size: int | None, device: torch.device, gatherer: Gatherer | None
) -> Iterator[Minibatch | SparseMinibatch]:
    """The cells in order, some at a time."""
    if gatherer is None:
        yield from minibatches_of(cells, batch_size, device)
        return
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    check_integer("batch_size", batch_size, minimum=1)
    for rows in rows_of(np.arange(len(cells)), batch_size, lone=True):
        yield gather(cells, rows, device, gatherer)


def _log_weights(
    vae: VAE, cells: Minibatch | SparseMinibatch, n_samples: int, at_once: int, generator: torch.Generator
) -> Tensor:
    """Log importance weights of draws from the posterior of cells, ``(n_samples, n)``."""
    posterior = vae.encode(cells)
    standard = Normal(torch.zeros_like(posterior.loc), 1.0, validate_args=False)
    log_library, library, library_prior = cells.library_n1.log(), None, None
    if vae.config.learns_library:
        library, batch = vae.encode_library(cells), cells.codes_nc[:, :1]
        sd = vae.library_log_variance[batch].sqrt()
        library_prior = Normal(vae.library_log_mean[batch], sd, validate_args=False)
    weights = torch.empty(n_samples, len(cells), device=cells.library_n1.device)
    for start in range(0, n_samples, at_once):
        draws = slice(start, min(start + at_once, n_samples))
        n = draws.stop - draws.start
        z = draw_normal(posterior, generator, n)
        weights[draws] = (standard.log_prob(z) - posterior.log_prob(z)).sum(-1)
        if library is not None and library_prior is not None:
            log_library = draw_normal(library, generator, n)
            weights[draws] += (library_prior.log_prob(log_library) - library.log_prob(log_library)).sum(-1)
        if isinstance(cells, SparseMinibatch):
            for draw, latent in enumerate(vae.to_latent(z)):
                own = log_library if log_library.ndim == 2 else log_library[draw]
                weights[start + draw] -= vae.fused_loss(cells, latent, own)
            continue
        output = vae.decode(vae.to_latent(z), cells.codes_nc, cells.continuous_nd)
        weights[draws] += vae.likelihood(output, log_library, cells.codes_nc).log_prob(cells.x_ng).sum(-1)
    return weights


def _bounds(
    place: str,
    model: OnCells,
    adata: AnnData | None,
    indices: Any,
    batch_size: int | None,
    given: dict[str, Any],
    seed: Seed,
    device: str,
) -> tuple[Tensor, Tensor]:
    """The reconstruction error and the divergences of each cell, ``(n,)`` each, on the CPU."""
    refuse_loaders(place, given)
    cells = choose(model, adata, indices).cells
    reconstruction, kl = [], []
    with computing(model._network(), device, seed) as here, _gathering(here, cells) as gatherer:
        for minibatch in _minibatches(cells, batch_size, here.device, gatherer):
            elbo = here.network.elbo(minibatch, here.generator)
            if isinstance(elbo, SemiSupervisedElbo):  # scvi-tools counts the terms of z1 among the reconstruction
                reconstruction.append((elbo.reconstruction + elbo.latent).cpu())
                kl.append((elbo.kl_z2 + elbo.kl_y + elbo.kl_l).cpu())
            else:
                reconstruction.append(elbo.reconstruction.cpu())
                kl.append((elbo.kl_z + elbo.kl_l).cpu())
    return torch.cat(reconstruction), torch.cat(kl)


def _over_cells(values_n: Tensor, mean: bool) -> Tensor:
    if not mean:
        return values_n
    _check_any(values_n)
    return values_n.double().mean().float()


def _check_any(values_n: Tensor) -> None:
    if len(values_n) == 0:
        raise InputError("indices: they choose no cell, and there is no mean over none")
