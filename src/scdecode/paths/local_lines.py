"""Lines through cells within kernels of time, and the covariance around them, from the moments of bins.

What :mod:`scdecode.paths.curves` describes, for cells that were read and checked there. All that is needed of the cells
are sums of w x x^T, with x = (1, time, latents), in bins of time and in folds: those in a kernel are a matrix product,
those of all folds but one a difference, and a line, what cells are off it and what left-out cells are off it follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_FOLDS = 5
"""A cell of so many is left out at a time."""

_N_BINS = 256
_SHARES = np.geomspace(0.005, 0.6, 13)  # of the range of times: the kernels that are tried
_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by which the spread's kernel may be wider than the curve's
_PILOT, _POWER = 0.1, 1 / 3  # the distance to a tenth of the cells, to this power, says how wide a kernel is where
_TINY = 1e-9  # of the range of times, squared: within that, times are one time, and the line through them is level

Floats = np.ndarray


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of a weight above zero."""

    z_nk: Floats  # around their mean
    time_n: Floats  # 0 to 1
    weight_n: Floats
    variance_nk: Floats | None
    mean_k: Floats
    first: float  # the pseudotime that is 0
    range: float  # what was added to it at 1


@dataclass(frozen=True, eq=False)
class Bins:
    """Sums over the cells in bins of time, of x x^T with x = (1, time, latents)."""

    time_b: Floats  # mean time
    moments_fbaa: Floats  # (folds, b, 2 + k, 2 + k), weighted
    squares_b3: Floats  # of the squared weight times 1, time, time^2
    variance_bk: Floats | None  # of the weight times the posterior variance
    n_cells: float  # so many of equal weight would be as certain


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines fitted in kernels."""

    line_p2k: Floats  # value and slope
    inverse_p: Floats  # of the weight of a cell that is at the time itself
    n_effective_p: Floats
    moments_baa: Floats  # of the cells that they were fitted to
    share: float  # of all cells

    @property
    def value_pk(self) -> Floats:
        """Of each line, at its time."""
        return self.line_p2k[:, 0]


@dataclass(frozen=True, eq=False)
class Residuals:
    """What the cells of each bin are off their own line."""

    sums_bkk: Floats  # of r r^T, weighted
    left_b: Floats  # the weight that makes it a covariance without bias
    weight_b: Floats
    squares_b: Floats  # sum of the squared weights


def binned(cells: Cells) -> Bins:
    """Sort the cells into bins: one for each time where times are few, else some of equal width and of equal weight."""
    order = np.lexsort((cells.z_nk[:, 0], cells.time_n))  # by the latent, too: then the order they came in is no matter
    time, weight, z = cells.time_n[order], cells.weight_n[order], cells.z_nk[order]
    distinct = np.unique(time)
    if len(distinct) <= _N_BINS:
        edges = (distinct[1:] + distinct[:-1]) / 2
    else:
        half = np.arange(1, _N_BINS // 2) / (_N_BINS // 2)
        behind = np.cumsum(weight)
        edges = np.unique(np.concatenate([half, time[np.searchsorted(behind, half * behind[-1])]]))
    _, own = np.unique(np.searchsorted(edges, time, side="right"), return_inverse=True)
    n_bins = int(own[-1]) + 1
    group = own * N_FOLDS + np.arange(len(z)) % N_FOLDS
    by_group = np.argsort(group, kind="stable")
    x = np.concatenate([np.ones((len(z), 1)), time[:, None], z], axis=1)[by_group]
    weighted, group = weight[by_group, None] * x, group[by_group]
    moments = np.zeros((n_bins * N_FOLDS, x.shape[1], x.shape[1]))
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(x)], strict=True):
        moments[group[start]] = weighted[start:end].T @ x[start:end]
    folds = moments.reshape(n_bins, N_FOLDS, *moments.shape[1:]).swapaxes(0, 1)
    square = weight**2
    total = folds.sum(axis=0)
    variance = None
    if cells.variance_nk is not None:
        columns = (cells.weight_n[:, None] * cells.variance_nk)[order].T
        variance = np.stack([np.bincount(own, column, n_bins) for column in columns], axis=1)
    return Bins(
        time_b=total[:, 0, 1] / total[:, 0, 0],
        moments_fbaa=folds,
        squares_b3=np.stack([np.bincount(own, square * time**power, n_bins) for power in range(3)], axis=1),
        variance_bk=variance,
        n_cells=float(weight.sum() ** 2 / square.sum()),
    )


def kernel_weights(bins: Bins, time_p: Floats, width: float, factor: float = 1.0) -> Floats:
    """The weight of each bin at some times, for a width where cells are as dense as usual.

    Where there is a gap, or time comes in steps, a kernel reaches to where there are enough cells for a line.
    """
    k = bins.moments_fbaa.shape[2] - 2
    enough = min(0.2, 2 * (k + 1) / bins.n_cells)
    pilot_p, enough_p, third_p = _distances(bins, time_p, enough)
    usual = np.average(_distances(bins, bins.time_b, enough)[0], weights=bins.moments_fbaa[:, :, 0, 0].sum(axis=0))
    sd_p = factor * np.maximum(width * (pilot_p / usual) ** _POWER, 0.5 * np.maximum(enough_p, third_p))
    return np.exp(-0.5 * ((time_p[:, None] - bins.time_b) / sd_p[:, None]) ** 2)


def _distances(bins: Bins, time_p: Floats, share: float) -> tuple[Floats, Floats, Floats]:
    """How far in time a tenth of the cells are, a share of them, and the third nearest bin."""
    away = np.abs(time_p[:, None] - bins.time_b)
    order = np.argsort(away, axis=1)
    away = np.take_along_axis(away, order, axis=1)
    weight = bins.moments_fbaa[:, :, 0, 0].sum(axis=0)
    within = np.cumsum(weight[order], axis=1) / weight.sum()
    rows, last = np.arange(len(time_p)), away.shape[1] - 1
    tenth, enough = (away[rows, np.minimum((within < part).sum(axis=1), last)] for part in (_PILOT, share))
    third = away[:, min(2, last)]
    return np.maximum(tenth, third), enough, third


def fit_lines(bins: Bins, kernel_pb: Floats, time_p: Floats, left_out: int | None = None) -> Lines:
    """Least squares in each kernel, from all cells or from those of all folds but one."""
    moments = bins.moments_fbaa.sum(axis=0)
    share = 1.0
    if left_out is not None:
        moments, share = moments - bins.moments_fbaa[left_out], 1 - 1 / N_FOLDS
    products = moments[:, :2]  # of the latents with each other, lines need none
    sums = (kernel_pb @ products.reshape(len(products), -1)).reshape(len(kernel_pb), *products.shape[1:])
    design = _design(sums[:, 0, 0], sums[:, 0, 1], sums[:, 1, 1], time_p)
    design[:, 1, 1] += _TINY * sums[:, 0, 0]
    zeroth, first, second = (kernel_pb**2 @ (share * bins.squares_b3)).T
    squares = _design(zeroth, first, second, time_p)
    inverse = np.linalg.inv(design)
    line = inverse @ _centred(sums, time_p)
    # the value is a sum of l_i z_i over the cells, and 1 / sum of l_i^2 their effective number
    return Lines(line, inverse[:, 0, 0], 1 / (inverse @ squares @ inverse)[:, 0, 0], moments, share)


def _design(zeroth_p: Floats, first_p: Floats, second_p: Floats, time_p: Floats) -> Floats:
    """Sums of (1, s) (1, s)^T with s the time since ``time_p``, from sums of 1, time and time squared."""
    first = first_p - time_p * zeroth_p
    second = second_p - 2 * time_p * first_p + time_p**2 * zeroth_p
    return np.stack([zeroth_p, first, first, second], axis=1).reshape(-1, 2, 2)


def _centred(sums_paa: Floats, time_p: Floats) -> Floats:
    """Sums of (1, s) z^T with s the time since ``time_p``."""
    products = sums_paa[:, :2, 2:].copy()
    products[:, 1] -= time_p[:, None] * products[:, 0]
    return products


def _around(moments_baa: Floats, line_b2k: Floats, time_b: Floats) -> Floats:
    """Sums of r r^T in each bin, with r the latents without the bin's line."""
    design = _design(moments_baa[:, 0, 0], moments_baa[:, 0, 1], moments_baa[:, 1, 1], time_b)
    line_bk2 = line_b2k.swapaxes(1, 2)
    mixed = line_bk2 @ _centred(moments_baa, time_b)
    return moments_baa[:, 2:, 2:] - mixed - mixed.swapaxes(1, 2) + line_bk2 @ design @ line_b2k


def around_lines(bins: Bins, lines: Lines) -> Residuals:
    """What the cells of each bin are off their own line, with what the line took of it made up for."""
    weight = lines.moments_baa[:, 0, 0]
    square = lines.share * bins.squares_b3[:, 0]
    own = lines.inverse_p * square / np.maximum(weight, _TINY)  # what a cell, on average, weighs in its own line
    left = np.maximum(1 - 2 * own + 1 / lines.n_effective_p, 0.05)
    return Residuals(_around(lines.moments_baa, lines.line_p2k, bins.time_b), left * weight, weight, square)


def covariances(bins: Bins, wide_pb: Floats, residuals: Residuals) -> Floats:
    """The covariance in each kernel, drawn to that of all cells by as much as if it were k cells more."""
    k = residuals.sums_bkk.shape[1]
    pooled = residuals.sums_bkk.sum(axis=0) / residuals.left_b.sum()
    few = k / (k + bins.n_cells)  # and that of all cells to its diagonal, which matters where all are few
    pooled = (1 - few) * pooled + few * np.diag(np.diag(pooled))
    sums = (wide_pb @ residuals.sums_bkk.reshape(len(residuals.sums_bkk), -1)).reshape(-1, k, k)
    n_cells = (wide_pb @ residuals.weight_b) ** 2 / (wide_pb**2 @ residuals.squares_b)
    own = sums / (wide_pb @ residuals.left_b)[:, None, None]
    spread = (n_cells[:, None, None] * own + k * pooled) / (n_cells + k)[:, None, None]
    return (spread + spread.swapaxes(1, 2)) / 2


def best_width(bins: Bins) -> float:
    """The width by which left-out cells are most likely, given one covariance of all around the curve."""
    unlikely = []
    for width in _SHARES:
        kernel = kernel_weights(bins, bins.time_b, width)
        lines = [fit_lines(bins, kernel, bins.time_b, fold).line_p2k for fold in range(N_FOLDS)]
        off = [_around(left_out, line, bins.time_b) for left_out, line in zip(bins.moments_fbaa, lines, strict=True)]
        unlikely.append(np.linalg.slogdet(_firm(np.sum(off, axis=(0, 1))))[1])
    return float(_SHARES[int(np.argmin(unlikely))])


def best_factor(bins: Bins, width: float) -> float:
    """How much wider the kernel of the spread is, for left-out cells to be most likely around the curve."""
    kernel = kernel_weights(bins, bins.time_b, width)
    folds = []
    for fold in range(N_FOLDS):
        lines = fit_lines(bins, kernel, bins.time_b, fold)
        moments = bins.moments_fbaa[fold]
        folds.append((around_lines(bins, lines), moments[:, 0, 0], _around(moments, lines.line_p2k, bins.time_b)))
    unlikely = []
    for factor in _FACTORS:
        wide = kernel_weights(bins, bins.time_b, width, factor)
        total = 0.0
        for residuals, weight, off in folds:
            spread = _firm(covariances(bins, wide, residuals))
            total += float(weight @ np.linalg.slogdet(spread)[1] + (np.linalg.inv(spread) * off).sum())
        unlikely.append(total)
    return _FACTORS[int(np.argmin(unlikely))]


def _firm(covariance: Floats) -> Floats:
    """Covariances that can be inverted, where cells do not scatter in some direction."""
    k = covariance.shape[-1]
    size = np.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / k
    return covariance + (1e-9 * size + 1e-30) * np.eye(k)
