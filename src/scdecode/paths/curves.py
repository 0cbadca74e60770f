"""A curve through cells that somebody ordered, and how the cells lie around it: local regression on a pseudotime.

At a time u, a line in time is fitted to the latents by least squares, each cell weighted by its own weight and by a
normal kernel of its time (Fan, 1992, JASA 87:998; a line, as a local mean is drawn inwards at the ends). Its value at u
is the curve. The spread at u is the kernel-weighted covariance of the cells, each around the line at its own time, so
that the path's own progress within the kernel does not count. It is averaged over a wider kernel than the curve, as a
covariance takes more cells than a mean, and drawn to the covariance of all cells around the curve by as much as if that
were k cells more.

Both widths are those that make left-out cells most likely, a fifth of them left out at a time: first the curve's, then
the spread's. Widths follow the cells' own density by a power of -1/3, between a fixed one, which is best where cells
are many, and one of a fixed number of cells, which is best where they are few.

Everything is computed from the moments of few bins of time, so that the number of cells hardly matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scdecode.errors import PointsError, SupportWarning, check_integer, check_number, warn
from scdecode.paths.local_lines import (
    N_FOLDS,
    Cells,
    around_lines,
    best_factor,
    best_width,
    binned,
    covariances,
    fit_lines,
    kernel_weights,
)
from scdecode.points import read_array

_MEMBER = 0.1  # of the largest weight: a cell of at least that belongs to the lineage
_STRAY = 0.005  # of the total weight: what strays beyond the last member at either end is left out

Floats = np.ndarray


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve through cells in the order of a pseudotime; made by :func:`fit_curve`."""

    time_n: np.ndarray  # (n,) float64, increasing, in units of the pseudotime
    points_nk: np.ndarray  # (n, k) float32: the mean of the cells at each time
    spread_nkk: np.ndarray  # (n, k, k) float32: their covariance around it, with their mean posterior variance
    bandwidth: float  # standard deviation of the kernel, in units of the pseudotime, where cells are as dense as usual
    n_effective_n: np.ndarray  # (n,) float64: the mean of so many cells would be as certain as the point


def fit_curve(
    z_nk: Any,
    time_n: Any,
    weights_n: Any = None,
    variance_nk: Any = None,
    *,
    n_points: int = 100,
    bandwidth: float | None = None,
    at: Any = None,
    lineage: str | None = None,
) -> Curve:
    """Fit the curve of cells' latents along a pseudotime, and the spread around it.

    Parameters
    ----------
    z_nk
        Latents of the cells, ``(n, k)``: the means of their posteriors.
    time_n
        Their pseudotime, ``(n,)``, in any units; ties are fine. Where the weight is zero it may be NaN, as slingshot
        leaves it outside of a lineage.
    weights_n
        How much each cell belongs to the lineage, ``(n,)``, from 0: a probability, a mask, or any other; only their
        ratios matter. By default all alike.
    variance_nk
        Posterior variances of the latents, ``(n, k)``; their mean is added to the spread.
    n_points
        Points on the curve, evenly spaced in time from the first cell to the last. With weights, up to 0.5 % of their
        sum may lie beyond either end, of cells of less than a tenth of the largest weight: other lineages' tips.
    bandwidth
        Standard deviation of the kernel in units of the pseudotime, where cells are as dense as usual; by default the
        one by which left-out cells are most likely.
    at
        The times of the points instead, increasing, within those of the cells.
    lineage
        Name of the lineage, for messages; by default none.

    Warns
    -----
    SupportWarning
        Where the curve has fewer than k + 1 effective cells: in gaps of the pseudotime, or with few cells.

    Raises
    ------
    PointsError
        For shapes that do not fit; latents, pseudotimes or variances that are not finite where the weight is above
        zero; negative or infinite weights, or none above zero; fewer than five cells, or weights by which they count
        as fewer than five, (sum w)^2 / sum w^2 (Kish, 1965, Survey Sampling); or one pseudotime for all.
    """
    check_integer("n_points", n_points, minimum=2)
    if bandwidth is not None:
        check_number("bandwidth", bandwidth, 0.0, open_minimum=True)
    of = "" if lineage is None else f" of lineage {lineage!r}"
    cells = _read(z_nk, time_n, weights_n, variance_nk, of)
    time = _times(cells, n_points) if at is None else _asked(at, cells)
    bins = binned(cells)
    width = best_width(bins) if bandwidth is None else bandwidth / cells.range
    lines = fit_lines(bins, kernel_weights(bins, time, width), time)
    wide_pb = kernel_weights(bins, time, width, best_factor(bins, width))
    at_bins = fit_lines(bins, kernel_weights(bins, bins.time_b, width), bins.time_b)
    spread = covariances(bins, wide_pb, around_lines(bins, at_bins))
    if bins.variance_bk is not None:
        own = (wide_pb @ bins.variance_bk) / (wide_pb @ lines.moments_baa[:, 0, 0])[:, None]
        spread = spread + own[:, :, None] * np.eye(own.shape[1])
    units = cells.first + cells.range * time
    # rounding, where weights are tiny, may leave it below zero or above the number of cells, which it cannot be
    n_effective = np.clip(np.nan_to_num(lines.n_effective_p, nan=0.0), 0.0, len(cells.time_n))
    _warn_of_few(units, n_effective, spread.shape[1], of)
    return Curve(
        time_n=units,
        points_nk=(lines.value_pk + cells.mean_k).astype(np.float32),
        spread_nkk=spread.astype(np.float32),
        bandwidth=float(width * cells.range),
        n_effective_n=n_effective,
    )


def _read(z_nk: Any, time_n: Any, weights_n: Any, variance_nk: Any, of: str) -> Cells:
    z = read_array(z_nk, "z").astype(np.float64)
    if z.ndim != 2 or z.shape[1] < 1:
        raise PointsError(f"z: shape {z.shape} came, latents (cells, k) were expected")
    n = len(z)
    time = _column(f"pseudotime{of}", time_n, n)
    weight = np.ones(n) if weights_n is None else _column(f"weights{of}", weights_n, n)
    bad = ~np.isfinite(weight) | (weight < 0)
    if bad.any():
        raise PointsError(
            f"weights{of}: {bad.sum():,} of {n:,} are negative, NaN or infinite; numbers from 0 were expected, 0 for "
            "cells outside of the lineage"
        )
    used = weight > 0
    if not used.any():
        raise PointsError(
            f"weights{of}: all {n:,} are zero; a lineage of at least {N_FOLDS} cells was expected"
            if n
            else "z: no cells came"
        )
    lost = used & ~np.isfinite(time)
    if lost.any():
        raise PointsError(
            f"pseudotime{of}: {lost.sum():,} of {n:,} cells have a NaN or infinite pseudotime; leave such cells out by "
            "a mask, or by weights_n of zero: those of other lineages, or what dpt did not reach"
        )
    if used.sum() < N_FOLDS:
        raise PointsError(
            f"pseudotime{of}: {used.sum()} cells came, at least {N_FOLDS} of a weight above zero were expected; leave "
            "the lineage out, or take more of its cells"
        )
    variance = None
    if variance_nk is not None:
        variance = read_array(variance_nk, "variance").astype(np.float64)
        if variance.shape != z.shape:
            raise PointsError(f"variance: shape {variance.shape} came, that of the latents {z.shape} was expected")
        variance = variance[used]
        if not (np.isfinite(variance).all() and (variance >= 0).all()):
            raise PointsError("variance: negative, NaN or infinite values came; variances were expected")
    z, time, weight = z[used], time[used], weight[used] / weight.max()
    alike = weight.sum() ** 2 / (weight**2).sum()
    if alike < N_FOLDS - 1e-9:
        heavy = int((weight >= 0.5).sum())
        raise PointsError(
            f"weights{of}: {heavy} of {len(weight):,} cells have nearly all of the weight, so that all count as "
            f"{alike:.1f} cells of one weight, and a curve needs {N_FOLDS}; weights that differ less were expected, "
            "such as fate probabilities, or more cells of this lineage"
        )
    if not np.isfinite(z).all():
        raise PointsError(f"z: {(~np.isfinite(z).all(axis=1)).sum():,} of {n:,} cells have NaN or infinite latents")
    first, extent = float(time.min()), float(np.ptp(time))
    if not extent > 1e-12 * max(abs(first), abs(first + extent)):
        raise PointsError(
            f"pseudotime{of}: all {len(z):,} cells have the same pseudotime, {first:g}; a curve needs two or more"
        )
    mean = weight @ z / weight.sum()
    return Cells(z - mean, (time - first) / extent, weight, variance, mean, first, extent)


def _column(place: str, value: Any, n: int) -> Floats:
    array = read_array(value, place, strings=False).astype(np.float64)
    if array.shape != (n,):
        raise PointsError(f"{place}: shape {array.shape} came for {n:,} cells, ({n},) was expected")
    return array


def _times(cells: Cells, n_points: int) -> Floats:
    """Even times between the ends of the lineage, which are those of its members and of most of its weight."""
    order = np.argsort(cells.time_n)
    time, weight = cells.time_n[order], cells.weight_n[order]
    behind = np.cumsum(weight) / weight.sum()
    inside = time[(weight >= _MEMBER) | ((behind > _STRAY) & (behind - weight / weight.sum() < 1 - _STRAY))]
    if inside[0] == inside[-1]:  # a few cells at one time outweigh all others
        inside = time
    return np.linspace(inside[0], inside[-1], n_points)


def _asked(at: Any, cells: Cells) -> Floats:
    time = read_array(at, "at", strings=False).astype(np.float64)
    if time.ndim != 1 or len(time) < 2 or not np.isfinite(time).all() or not (np.diff(time) > 0).all():
        raise PointsError(f"at: shape {time.shape} came; at least two times were expected, finite and increasing")
    share = (time - cells.first) / cells.range
    outside = (share < -1e-9) | (share > 1 + 1e-9)
    if outside.any():
        raise PointsError(
            f"at: {outside.sum():,} of {len(time):,} times lie outside of those of the cells, {cells.first:g} to "
            f"{cells.first + cells.range:g}; a curve does not go on where there are no cells"
        )
    return share


def _warn_of_few(time_n: Floats, n_effective_n: Floats, k: int, of: str) -> None:
    few = np.flatnonzero(n_effective_n < k + 1)
    if len(few):
        warn(
            f"pseudotime{of}: the curve has fewer than {k + 1} effective cells, as its mean takes, at {len(few):,} of "
            f"{len(time_n):,} points (times {_stretches(time_n, few)}), {n_effective_n.min():.1f} at the least; do not "
            "rely on it there, or pass a larger bandwidth",
            SupportWarning,
        )


def _stretches(time_n: Floats, few: Floats) -> str:
    """Points in a row as ``0.1 to 0.3, 0.9 to 1``."""
    parts = np.split(few, np.flatnonzero(np.diff(few) > 1) + 1)
    shown = [f"{time_n[part[0]]:.4g} to {time_n[part[-1]]:.4g}" for part in parts[:3]]
    return ", ".join(shown) + (", ..." if len(parts) > 3 else "")
