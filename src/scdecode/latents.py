"""Cells to latents, library sizes and batch embeddings: the methods that encode.

These functions are the methods of the same names of :class:`scdecode.SCVI`.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import torch
from anndata import AnnData
from torch.distributions import LogNormal

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import IndicesLike, Seed
from scdecode._utils.names import NamedNormal
from scdecode.arguments import refuse_loaders
from scdecode.asked import OnCells, cell_names, cells_for, computing, encode_with_library
from scdecode.devices import choose_device
from scdecode.encoding import BATCH_SIZE, Posterior, encode, latent_draws, latent_mean
from scdecode.errors import InputError


@checked
def posterior(
    model: OnCells,
    adata: AnnData | None = None,
    *,
    indices: IndicesLike | None = None,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    layer: str | None = None,
    use_raw: bool | None = None,
) -> NamedNormal:
    """The posterior q(z | x) of each cell: a torch ``Normal`` of shape ``(n, k)`` that knows the cells' names.

    :meth:`decode` takes it as points with a spread. For ``latent_distribution="ln"`` it is that of z before its
    softmax, and :meth:`get_latent_representation` gives latent points.

    Its ``names`` are those of the cells. If it stands beside a Series or a DataFrame, such as a pseudotime, a batch or
    weights, the names of both must be the same in the same order; anything else is an error.

    Parameters
    ----------
    adata
        Cells; genes may be in another order and there may be more of them. By default the cells of training.
    indices
        Positions or a mask of the cells wanted; by default all.
    batch_size
        Cells that are made dense at once.
    device
        Where to compute.
    layer, use_raw
        Where the counts of ``adata`` are: a layer, or ``adata.raw`` (``layer="raw"`` means it, too); by default where
        those of the training cells were.

    Raises
    ------
    CountsError, ConditionError, InputError
        For genes that are missing, values that are no counts, unknown categories, missing columns.
    """
    found = _posterior(model, adata, indices, batch_size, device, layer, use_raw)
    return NamedNormal(found.mean_nk, found.variance_nk.sqrt(), cell_names(model, adata, indices))


@overload
def get_latent_representation(
    model: OnCells,
    adata: AnnData | None = ...,
    indices: Any = ...,
    give_mean: bool = ...,
    mc_samples: int = ...,
    batch_size: int | None = ...,
    return_dist: Literal[False] = ...,
    dataloader: None = ...,
    *,
    n_samples: int | None = ...,
    seed: Seed = ...,
    device: str = ...,
    layer: str | None = ...,
    use_raw: bool | None = ...,
    **data_loader_kwargs: Any,
) -> np.ndarray: ...


@overload
def get_latent_representation(
    model: OnCells,
    adata: AnnData | None = ...,
    indices: Any = ...,
    give_mean: bool = ...,
    mc_samples: int = ...,
    batch_size: int | None = ...,
    *,
    return_dist: Literal[True],
    dataloader: None = ...,
    n_samples: int | None = ...,
    seed: Seed = ...,
    device: str = ...,
    layer: str | None = ...,
    use_raw: bool | None = ...,
    **data_loader_kwargs: Any,
) -> tuple[np.ndarray, np.ndarray]: ...


@checked
def get_latent_representation(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    give_mean: bool = True,
    mc_samples: int = 5000,
    batch_size: int | None = None,
    return_dist: bool = False,
    dataloader: None = None,
    *,
    n_samples: int | None = None,
    seed: Seed = 0,
    device: str = "cpu",
    layer: str | None = None,
    use_raw: bool | None = None,
    **data_loader_kwargs: Any,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Latent points of cells, ``(n, k)`` float32.

    Parameters
    ----------
    adata, indices, batch_size, device, layer, use_raw
        As for :meth:`posterior`.
    give_mean
        The posterior mean; otherwise a draw from the posterior.
    mc_samples
        Draws for the mean of ``latent_distribution="ln"``, which has no closed form.
    return_dist
        Whether to return the mean and the variance of the posterior, each ``(n, k)``; for ``"ln"`` those of z before
        its softmax.
    n_samples
        Draw that many points of each cell: ``(n_samples, n, k)``.
    seed
        Of the draws.
    dataloader, **data_loader_kwargs
        Of scvi-tools, and not offered.
    """
    refuse_loaders("get_latent_representation", data_loader_kwargs, dataloader=dataloader)
    found = _posterior(model, adata, indices, BATCH_SIZE if batch_size is None else batch_size, device, layer, use_raw)
    if return_dist:
        return found.mean_nk.numpy(), found.variance_nk.numpy()
    if n_samples is not None:
        return latent_draws(found, model.config, n_samples, seed=seed)
    if give_mean:
        return latent_mean(found, model.config, n_draws=mc_samples, seed=seed)
    return latent_draws(found, model.config, 1, seed=seed)[0]


@checked
def get_latent_library_size(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    give_mean: bool = True,
    batch_size: int | None = None,
    dataloader: None = None,
    *,
    seed: Seed = 0,
    device: str = "cpu",
    **data_loader_kwargs: Any,
) -> np.ndarray:
    """Library sizes of cells, ``(n, 1)`` float32, in counts.

    Parameters
    ----------
    adata, indices, batch_size, device
        As for :meth:`posterior`.
    give_mean
        The mean of the posterior of a learned library size; otherwise a draw from it, or the total count where it is
        not learned.
    seed
        Of the draws.
    dataloader, **data_loader_kwargs
        Of scvi-tools, and not offered.

    Raises
    ------
    InputError
        For the mean of a model that does not learn the library size.
    """
    refuse_loaders("get_latent_library_size", data_loader_kwargs, dataloader=dataloader)
    cells = cells_for(model, adata, indices, need_conditions=model.config.encode_covariates)
    if not model.config.learns_library:
        if give_mean:
            raise InputError(
                "get_latent_library_size: give_mean=True came, but this model learns no library size "
                "(use_observed_lib_size=False would); give_mean=False gives the total counts"
            )
        return cells.library_n[:, None].copy()
    with computing(model.vae, device, seed) as here:
        latents = encode_with_library(here.network, cells, batch_size, here.device)
        if not give_mean:
            return latents.draw(here.network, 1, here.cpu_generator)[1][0].exp().numpy()
        assert latents.library_sd_n1 is not None, "a learned library size has a spread"
        return LogNormal(latents.log_library_n1, latents.library_sd_n1, validate_args=False).mean.numpy()


@checked
def get_batch_representation(
    model: OnCells, adata: AnnData | None = None, indices: IndicesLike | None = None, batch_size: int | None = None
) -> np.ndarray:
    """The embedding of the batch of each cell, ``(n, dimensions)`` float32.

    Parameters
    ----------
    adata, indices
        As for :meth:`posterior`.
    batch_size
        Not needed; there for the sake of programs written for scvi-tools.

    Raises
    ------
    InputError
        For a model without ``batch_representation="embedding"``.
    """
    embedding = model.vae.batch_embedding
    if embedding is None:
        raise InputError(
            "get_batch_representation: this model has no embedding of the batch; make one with "
            "SCVI(adata, batch_representation='embedding')"
        )
    cells = cells_for(model, adata, indices, need_conditions=True)
    with torch.no_grad():
        return embedding(torch.from_numpy(cells.codes_nc[:, 0])).numpy()


def _posterior(
    model: OnCells,
    adata: AnnData | None,
    indices: Any,
    batch_size: int,
    device: str,
    layer: str | None,
    use_raw: bool | None,
) -> Posterior:
    needed = model.config.encode_covariates
    cells = cells_for(model, adata, indices, need_conditions=needed, layer=layer, use_raw=use_raw)
    return encode(model.vae, cells, batch_size=batch_size, device=choose_device(device))
