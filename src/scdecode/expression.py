"""Decode, the heart: any latent points, named conditions, the right units, error bars and support.

These functions are the methods of the same names of :class:`scdecode.SCVI`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Distribution

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, NamesLike, PerPoint, Seed, SpreadLike
from scdecode._utils.memory import check_memory
from scdecode._utils.transforms import is_transformed
from scdecode.conditions import Conditions, resolve
from scdecode.config import ModelConfig
from scdecode.decoding import OURS, Request, decode_tiles, gene_positions, make_request
from scdecode.decoding import distribution as likelihood_of
from scdecode.devices import choose_device
from scdecode.errors import InputError, PointsError, SupportWarning, suggestion, warn
from scdecode.points import Points, PointsLike, conditions_of, read_points
from scdecode.provenance import Frame, make_frame
from scdecode.results import OnTile, deliver
from scdecode.schema import Schema
from scdecode.support import FAR, Support
from scdecode.vae import VAE

EXPECTED = 0.02
"""Up to this share of points that are not supported there is no warning: of the training cells themselves it is 1 %."""


class Decodable(Protocol):
    """What decoding needs of a model."""

    config: ModelConfig
    schema: Schema
    vae: VAE

    def check_trained(self) -> None:
        """An error where the model has no trained weights."""

    def support_index(self) -> Support | None:
        """What support is measured against, where there is something."""


@checked
def decode(
    model: Decodable,
    points: PointsLike,
    *,
    quantity: str = "rate",
    library_size: LibrarySize = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    genes: NamesLike | str | None = None,
    spread: SpreadLike = None,
    n_samples: int | None = None,
    seed: Seed | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    chunk_size: int | None = None,
    max_conditions: int = 100,
    use_rep: str | None = None,
    device: str | None = None,
    count_noise: bool | None = None,
    on_tile: OnTile | None = None,
    **others: Any,
) -> AnnData:
    """Decode latent points to gene expression.

    Parameters
    ----------
    points
        ``(..., k)``: numpy, torch, dask, a list, a DataFrame, an AnnData with ``use_rep``, a torch ``Normal`` or
        ``MultivariateNormal``, or a :class:`scdecode.Trajectory`, whose own conditions hold where none are given here.
        They need be no cell's.
    quantity
        ``"scale"``: rho, the fraction of the RNA, which sums to one over all genes of the model. ``"rate"``:
        l rho, counts expected before zero inflation. ``"mean"``: (1 - pi) l rho, counts expected to be observed.
        ``"counts"``: counts drawn from the likelihood. (Symbols as in Lopez et al. 2018, Methods.)
    library_size
        l, in counts of the model's genes, never its logarithm: one number, one per point, or ``"observed"`` for the
        median of the training cells. By default 1e4 counts; for a model with a size factor, the median size factor.
    batch, labels
        A name for all points; a numpy array or pandas Series, one per point; a list of names to average over, or a
        mapping of names to weights. By default the average over the combinations of conditions that occurred in
        training, weighted by their cells; for a model that keeps no training cells (one of scvi-tools, until
        :meth:`attach_reference`), the plain average over the levels. ``labels`` matters with
        ``dispersion="gene-label"`` alone.
    categorical, continuous
        Mappings of covariate names to values, each in one of these forms; continuous covariates in the units of
        the training data.
    genes
        Names of the genes to return; the scale stays a fraction of all genes.
    spread
        How far the latent points scatter: a standard deviation, ``(..., k)`` of them, or ``(..., k, k)``
        covariances; by default that of a distribution or a trajectory, False for none. The result is then the mean
        over draws, with layers ``std``, ``q05`` and ``q95``: how far the means of cells scatter.
    n_samples
        Draws for the spread (by default 128), or of ``"counts"`` for each point (by default 1; the draws of a point
        are rows side by side, numbered in ``obs``).
    seed
        Of the draws; None is 0.
    out
        A ``.h5ad`` or ``.zarr`` to write to, tile by tile; in memory are the points, their ``obs`` and one tile. The
        result then reads from it; ``.to_memory()`` brings all of it in.
    overwrite
        Whether to replace ``out`` if it is already there; by default that is an error.
    chunk_size
        Points in a tile; by default as many as fit the processor's cache.
    max_conditions
        Combinations of conditions to average over, at most; the most frequent are kept.
    use_rep
        The entry of ``obsm`` with the points, for an AnnData; by default ``"X_scVI"``.
    device
        Where to compute; by default the CPU.
    count_noise
        Whether to add the layer ``std_counts``: how far the counts of one cell scatter around the mean, by the model's
        likelihood, in any of the conditions averaged over; of ``"rate"`` without, of ``"mean"`` with zero inflation. By
        default for a trajectory alone.
    on_tile
        Called with the number of points of each tile that is done.
    **others
        There are no others; for those that scvi-tools' methods have, the error names ours.

    Returns
    -------
    AnnData
        Points x genes. ``obs`` has the conditions, ``library_size``, ``support`` (percent, see :meth:`support`) and
        ``supported``, both missing where the model has no reference cells; ``obsm["latent"]`` the points;
        ``uns["scdecode"]`` what was done, which :func:`scdecode.decode_arguments` turns back into arguments.

    Raises
    ------
    PointsError
        For points of the wrong width, without rows, with NaN.
    ConditionError
        For unknown names, wrong lengths, missing values, impossible library sizes.
    InputError
        For unknown genes or quantities.
    OutputError
        If ``out`` cannot be written, or is already there and ``overwrite`` is False. Nothing is left that looks
        finished.
    """
    asked = prepare(
        model,
        points,
        quantity=quantity,
        library_size=library_size,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        genes=genes,
        spread=spread,
        n_samples=n_samples,
        seed=seed,
        chunk_size=chunk_size,
        max_conditions=max_conditions,
        use_rep=use_rep,
        count_noise=count_noise,
        **others,
    )
    frame = asked.frame
    if out is None:
        n_rows, n_genes = frame.shape
        remedy = 'fewer of them, fewer genes (genes=[...]), or a file to write to (out="expression.zarr")'
        check_memory("points, draws", n_rows, 4 * n_rows * n_genes, remedy)
    into = np.empty(frame.shape, dtype=np.float32) if out is None and not frame.counts else None
    there = choose_device(device)
    tiles = decode_tiles(model.vae, asked.points, asked.conditions, asked.request, there, into)
    return deliver(tiles, frame, out, on_tile, overwrite=overwrite, into=into)


@dataclass(frozen=True, eq=False)
class Asked:
    """What decode was asked for, read and checked."""

    points: Points
    conditions: Conditions
    request: Request
    frame: Frame


def prepare(
    model: Decodable,
    points: Any,
    *,
    quantity: str = "rate",
    library_size: Any = None,
    batch: Any = None,
    labels: Any = None,
    categorical: Mapping[str, Any] | None = None,
    continuous: Mapping[str, Any] | None = None,
    genes: Sequence[str] | None = None,
    spread: Any = None,
    n_samples: int | None = None,
    seed: Seed | None = None,
    chunk_size: int | None = None,
    max_conditions: int = 100,
    use_rep: str | None = None,
    count_noise: bool | None = None,
    **others: Any,
) -> Asked:
    """Read the arguments of :func:`decode`, and measure the support of the points; a path's own conditions hold."""
    _check_words("decode", others)
    model.check_trained()
    own = conditions_of(points)
    batch, labels, library_size = (
        own.get(name) if given is None else given
        for name, given in (("batch", batch), ("labels", labels), ("library_size", library_size))
    )
    categorical, continuous = joined(own.get("categorical"), categorical), joined(own.get("continuous"), continuous)
    read = read_points(
        points,
        model.config.n_latent,
        spread=spread,
        use_rep=use_rep,
        simplex=model.config.latent_distribution == "ln",
    )
    conditions = resolve(
        model.schema,
        len(read),
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
        label_matters=model.config.dispersion == "gene-label",
        point_names=read.own_names,
    )
    positions = gene_positions(model.schema, genes)
    request = make_request(
        quantity,
        read,
        model.schema.n_genes,
        genes=positions,
        n_samples=n_samples,
        seed=seed,
        chunk_size=chunk_size,
        count_noise=count_noise,
    )
    support_n, support = None, model.support_index()
    if support is not None:
        support_n = support.percentile(read.z_nk)
        _warn_of_support(support_n)
    frame = make_frame(model.schema, read, conditions, request, support_n, model.config.gene_likelihood)
    return Asked(read, conditions, request, frame)


def joined(own: Any, given: Any) -> Any:
    """Covariates of a path, and those given, which go first; what is no mapping is left to whoever reads it."""
    if own is None or given is None:
        return own if given is None else given
    return {**own, **given} if isinstance(given, Mapping | pd.DataFrame) else given


@checked
def distribution(
    model: Decodable,
    z: Annotated[Tensor, "a tensor of latent points, (n, k)", PointsError],
    *,
    library_size: LibrarySize = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    genes: NamesLike | str | None = None,
    max_conditions: int = 100,
) -> Distribution:
    """p(x | z) as a torch distribution, differentiable in z; the arguments are those of :meth:`decode`.

    Parameters
    ----------
    z
        ``(n, k)`` tensor on the CPU. Within ``torch.func`` (``vmap``, ``jacrev``, ``jvp``) its values are not checked.
    library_size, batch, labels, categorical, continuous, genes, max_conditions
        As for :meth:`decode`. Averaged over several conditions, each gene has the mixture over them.

    Returns
    -------
    torch.distributions.Distribution
        Of counts, ``(n, genes)``: ``log_prob``, ``mean``, ``variance``, ``sample``.
    """
    model.check_trained()
    if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != model.config.n_latent:
        came = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise PointsError(f"z: {came} came, a tensor of shape (n, {model.config.n_latent}) was expected")
    z = z if z.layout is torch.strided else z.to_dense()
    if not is_transformed(z):  # whose values torch.func does not tell
        read_points(z, model.config.n_latent, simplex=model.config.latent_distribution == "ln")  # for its checks
    conditions = resolve(
        model.schema,
        len(z),
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
        label_matters=model.config.dispersion == "gene-label",
    )
    positions = gene_positions(model.schema, genes)
    return likelihood_of(model.vae, z.float(), conditions, None if positions is None else torch.tensor(positions))


@checked
def support(model: Decodable, points: PointsLike, *, use_rep: str | None = None) -> np.ndarray:
    """How close points are to the cells that the model learned from, in percent, in the shape of the points.

    50 is a typical training cell, 100 is farther from the others than any. Above 99 the decoder has learned from
    nothing nearby, and what it says there is extrapolation.

    Parameters
    ----------
    points, use_rep
        As for :meth:`decode`.

    Raises
    ------
    InputError
        For a model without reference cells: one of scvi-tools, until :meth:`attach_reference`.
    """
    model.check_trained()
    index = model.support_index()
    if index is None:
        raise InputError(
            "support: this model has no reference cells (files of scvi-tools have none); call "
            "model.attach_reference(...) with its training cells, or with latent points of them"
        )
    simplex = model.config.latent_distribution == "ln"
    read = read_points(points, model.config.n_latent, use_rep=use_rep, simplex=simplex)
    return index.percentile(read.z_nk).reshape(read.shape)


def _check_words(place: str, others: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for an argument that there is not."""
    if not others:
        return
    known = list(inspect.signature(decode).parameters)[2:-1]  # but for the model and the points
    for name in others:
        meant = f"; did you mean {OURS[name]}=?" if name in OURS else suggestion(name, known)
        raise InputError(f"{place}: there is no argument {name!r}{meant}")


def _warn_of_support(support_n: np.ndarray) -> None:
    far = int((support_n > FAR).sum())
    if far > EXPECTED * len(support_n):
        warn(
            f"points: {far:,} of {len(support_n):,} are farther from the training cells than {FAR:g} % of those cells "
            "are from one another: what is decoded there is extrapolation (obs['supported'] is False)",
            SupportWarning,
        )
