"""Which genes a latent dimension moves, and which dimensions moved a gene.

Both are about the log scale of a gene, averaged over conditions as ``model.decode`` averages it; the library size moves
all genes alike and changes nothing. Derivatives are exact, and the points pass through in tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, NamesLike, PerPoint
from scdecode._utils.notebook import Shown
from scdecode.errors import check_integer, check_number
from scdecode.geometry.decoded import DecoderLike, ParameterMap, map_along
from scdecode.kernels.threads import own_threads
from scdecode.points import PointsLike

_DEEPEST = 24  # halvings of a segment at most: there its share is below what float32 can tell
_NODES = 3  # of the quadrature on each piece of a segment


@dataclass(frozen=True, eq=False)
class Sensitivity(Shown):
    """How the log scale of each gene changes with each latent dimension; made by :func:`sensitivity`."""

    mean: pd.DataFrame  # genes x Z_0, Z_1, ...: the derivative of log scale, averaged over the points
    rms: pd.DataFrame  # its root mean square: large for a gene that goes up here and down there, too
    n_points: int

    @checked
    def top(self, n: int = 10) -> pd.DataFrame:
        """The genes that each dimension moves the most, by root mean square.

        Returns
        -------
        pandas.DataFrame
            A row for each dimension and rank: ``dimension``, ``rank`` from 1, ``gene``, ``mean``, ``rms``.
        """
        check_integer("n", n, minimum=1)
        rows = []
        for dimension in self.rms.columns:
            largest = self.rms[dimension].nlargest(n)
            rows.append(
                pd.DataFrame(
                    {
                        "dimension": dimension,
                        "rank": np.arange(1, len(largest) + 1),
                        "gene": largest.index,
                        "mean": self.mean[dimension][largest.index].to_numpy(),
                        "rms": largest.to_numpy(),
                    }
                )
            )
        return pd.concat(rows, ignore_index=True)

    def __repr__(self) -> str:
        return f"Sensitivity: {self.rms.shape[0]} genes x {self.rms.shape[1]} dimensions, over {self.n_points:,} points"


@dataclass(frozen=True, eq=False)
class Attribution(Shown):
    """What each latent dimension did to a gene along a path; made by :func:`attribution`."""

    contributions: pd.DataFrame  # genes x Z_0, Z_1, ...: parts of the change of log scale
    change: pd.Series  # the change of log scale of each gene, end minus start
    unexplained: pd.Series  # change minus the sum of the contributions: the error of the integral

    def __repr__(self) -> str:
        n_genes, n_dimensions = self.contributions.shape
        return f"Attribution: {n_genes} genes to {n_dimensions} dimensions"


@checked
def sensitivity(
    model: DecoderLike,
    points: PointsLike,
    *,
    genes: NamesLike | str | None = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    max_conditions: int = 100,
) -> Sensitivity:
    """Derivatives of the log scale of each gene in each latent dimension, summed up over points.

    Parameters
    ----------
    model
        A trained model, or a :class:`ParameterMap`.
    points
        ``(n, k)`` latent points in any form that ``model.decode`` takes: cells, or a trajectory.
    genes
        Names; by default all.
    batch, labels, categorical, continuous, max_conditions
        As for ``model.decode``, but the same for all points; those of a path hold where nothing is said here.

    Raises
    ------
    PointsError, ConditionError, InputError
        For points, conditions or genes that cannot be used.
    """
    decoder = map_along(
        model,
        points,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        max_conditions=max_conditions,
    )
    positions = None if genes is None else decoder.positions(genes)
    names = decoder.genes if positions is None else [decoder.genes[i] for i in positions]
    z_nk = decoder.read(points)
    total = torch.zeros(decoder.n_latent, len(names), dtype=torch.float64)
    squares = torch.zeros_like(total)
    with torch.no_grad(), own_threads():
        for rows in decoder.tiles(len(z_nk), decoder.n_latent * len(decoder.slots)):
            pushed_kng = decoder.jacobian(lambda z: decoder.log_mean(z, positions), z_nk[rows])
            total += pushed_kng.sum(1, dtype=torch.float64)
            squares += pushed_kng.square().sum(1, dtype=torch.float64)
    index, columns = pd.Index(names, name="gene"), dimensions(decoder)
    mean, rms = total / len(z_nk), (squares / len(z_nk)).sqrt()
    return Sensitivity(
        pd.DataFrame(mean.t().numpy().copy(), index=index, columns=columns),
        pd.DataFrame(rms.t().numpy().copy(), index=index, columns=columns),
        len(z_nk),
    )


@checked
def attribution(
    model: DecoderLike,
    path: PointsLike,
    genes: NamesLike | str | None = None,
    *,
    tolerance: float = 1e-4,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    max_conditions: int = 100,
) -> Attribution:
    """What each latent dimension did to the log scale of genes along a path: integrated gradients.

    The derivative in a dimension is integrated over that dimension's own changes, along the path itself; the parts add
    up to the change from the start to the end (Sundararajan, Taly and Yan 2017, Axiomatic attribution for deep
    networks, ICML, PMLR 70:3319). Where the network bends, segments are
    halved until they do.

    Parameters
    ----------
    model, batch, labels, categorical, continuous, max_conditions
        As for :func:`sensitivity`.
    path
        ``(n, k)`` points in order, at least two, or a trajectory; straight from each to the next.
    genes
        A name or names; by default all.
    tolerance
        Largest error of the sum of a gene's parts, in units of log scale.

    Raises
    ------
    PointsError, ConditionError, InputError
        For points, conditions or genes that cannot be used.
    """
    check_number("tolerance", tolerance, 0.0, open_minimum=True)
    decoder = map_along(
        model,
        path,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        max_conditions=max_conditions,
    )
    positions = None if genes is None else decoder.positions(genes)
    names = decoder.genes if positions is None else [decoder.genes[i] for i in positions]
    z_nk = decoder.read_path(path, "path")

    def log_scale(z: Tensor) -> Tensor:
        return decoder.log_mean(z, positions)

    parts = torch.zeros(decoder.n_latent, len(names), dtype=torch.float64)
    with torch.no_grad(), own_threads():
        change = log_scale(z_nk[-1:]).double()[0] - log_scale(z_nk[:1]).double()[0]
        for rows in decoder.tiles(len(z_nk) - 1, decoder.n_latent * len(decoder.slots) * _NODES):
            some = slice(rows.start, rows.stop + 1)
            parts += _integrated(decoder, log_scale, z_nk[some][:-1], z_nk[some][1:], tolerance / (len(z_nk) - 1) / 4)
    index = pd.Index(names, name="gene")
    return Attribution(
        pd.DataFrame(parts.t().numpy().copy(), index=index, columns=dimensions(decoder)),
        pd.Series(change.numpy(), index=index, name="change"),
        pd.Series((change - parts.sum(0)).numpy(), index=index, name="unexplained"),
    )


def _integrated(decoder: ParameterMap, function: Any, first: Tensor, last: Tensor, tolerance: float) -> Tensor:
    """The parts of straight segments ``(n, k)``, added up, ``(k, genes)``; those that do not add up are halved."""
    nodes, weights = (torch.from_numpy(values).to(first.dtype) for values in np.polynomial.legendre.leggauss(_NODES))
    nodes, weights = (nodes + 1) / 2, weights / 2
    total = torch.zeros(decoder.n_latent, function(first[:1]).shape[1], dtype=torch.float64)
    for depth in range(_DEEPEST + 1):
        step = last - first
        at = (first + nodes[:, None, None] * step).reshape(-1, decoder.n_latent)
        slope = decoder.jacobian(function, at).unflatten(1, (_NODES, len(first)))  # (k, nodes, n, genes)
        parts = torch.einsum("q,kqng,nk->kng", weights, slope, step).double()
        error = (function(last).double() - function(first).double() - parts.sum(0)).abs().amax(1)
        # differences of float32 values, of logarithms near 10, have errors of their own, which no halving mends
        rounding = 8 * torch.finfo(first.dtype).eps * function(first).abs().amax(1).double().clamp(min=10)
        # a bend stays in one of the halves, with half the error: the allowance of a piece need not shrink
        good = error <= rounding.clamp(min=tolerance)
        if depth == _DEEPEST:
            good[:] = True
        total += parts[:, good].sum(1)
        if good.all():
            break
        first, middle, last = first[~good], (first + step / 2)[~good], last[~good]
        first, last = torch.cat([first, middle]), torch.cat([middle, last])
    return total


def dimensions(decoder: ParameterMap) -> list[str]:
    """Names of the latent dimensions."""
    return [f"Z_{i}" for i in range(decoder.n_latent)]
