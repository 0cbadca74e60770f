"""The spread of cells around a path: where the maker of the path does not know it, it is found among reference cells.

Which cells are around a path, and which belong to another branch? Cells scatter in every dimension of the latent space,
those included that mean nothing, and by plain distance all are far from any line. So each cell is judged by its place
in the graph of neighbours, averaged over these (see :mod:`scdecode.paths.graph`), where that scatter is gone: it goes
to the point of the path nearest to that place, and counts the less the farther it is. How the cells themselves lie
around their points is the spread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scdecode.errors import PointsError, SupportWarning, warn
from scdecode.paths.graph import CellGraph, make_cell_graph

_FINE = 100  # intervals at which cells find their place on the path
_REACH = 0.05  # standard deviation of the kernel along the path, as a share of its length
_NEAREST, _NEAREST_SHARE = 50, 0.1  # the distance to so many nearest cells, or that share, says what is near a path


@dataclass(frozen=True, eq=False)
class Tube:
    """The cells around the points of a path; made by :func:`tube_around`."""

    spread_nkk: np.ndarray  # (n, k, k) float64: covariance of their means, and their mean posterior variance
    n_cells_n: np.ndarray  # (n,): how many cells, by weight, each comes from


def tube_around(
    points_nk: np.ndarray,
    cells: np.ndarray | CellGraph,
    variance_rk: np.ndarray | None = None,
    *,
    n_neighbours: int = 15,
) -> Tube:
    """Find the cells around a path, and how they scatter.

    Parameters
    ----------
    points_nk
        The path, in order, ``(n, k)``.
    cells
        Posterior means of the cells, ``(r, k)``, or their graph, which can be used for several paths.
    variance_rk
        Their posterior variances, ``(r, k)``, where they are known.
    n_neighbours
        Of each cell in the graph.

    Raises
    ------
    PointsError
        Where there are too few cells for any covariance, or the path has no length.
    """
    points = np.asarray(points_nk, dtype=np.float64)
    k = points.shape[1]
    n_cells = len(cells.latent_rk) if isinstance(cells, CellGraph) else len(cells)
    if n_cells <= k + 1:
        raise PointsError(
            f"spread: {n_cells} reference cells cannot tell how cells scatter in {k} dimensions, more than {k + 1} "
            "were expected; pass spread=..., or spread=False for the bare line"
        )
    graph = cells if isinstance(cells, CellGraph) else make_cell_graph(cells, n_neighbours=n_neighbours)
    share_j = np.linspace(0.0, 1.0, _FINE)
    moves = bool((points != points[0]).any())  # a flow may be at rest: its cells are those around the one place
    share_n = shares(points, strict=False) if moves else np.linspace(0.0, 1.0, len(points))
    fine_jk = _at(points, share_n, share_j)
    apart_rj = _squared_distances(graph.averaged_rk, fine_jk)
    own_r = apart_rj.argmin(axis=1)
    # of a short path among many cells, most are beyond its ends and say nothing of what is near it
    n_beside = int(((own_r > 0) & (own_r < _FINE - 1)).sum())
    nearest = min(max(_NEAREST, round(_NEAREST_SHARE * n_beside)), n_cells) - 1
    near_j = np.sqrt(np.partition(apart_rj, nearest, axis=0)[nearest])
    near_j = np.maximum(near_j, 1e-6 * max(near_j.max(), 1e-12))  # many cells may be in one place
    counts_r = np.exp(-0.5 * apart_rj[np.arange(n_cells), own_r] / near_j[own_r] ** 2)
    kernel_nj = np.exp(-0.5 * ((share_n[:, None] - share_j) / _REACH) ** 2)
    residual_rk = graph.latent_rk - fine_jk[own_r]
    products_rm = (residual_rk[:, :, None] * residual_rk[:, None]).reshape(-1, k * k)
    columns = [np.ones((n_cells, 1)), residual_rk, products_rm]
    if variance_rk is not None:
        columns.append(variance_rk.astype(np.float64))
    sums_jd = _sums(np.concatenate(columns, axis=1), counts_r, own_r)
    spread_nkk, n_cells_n = _covariances(kernel_nj @ sums_jd, k)
    pooled_kk, _ = _covariances(sums_jd.sum(axis=0, keepdims=True), k)
    # few cells tell little of their own covariance: it is drawn to that of all cells around the path
    share = (n_cells_n / (n_cells_n + k + 1))[:, None, None]
    if variance_rk is None:
        warn(
            "spread: the posterior variances of the reference cells are not known (latent points alone were attached); "
            "the spread is that of their means, which is too small; call model.attach_reference(adata) with the cells",
            SupportWarning,
        )
    return Tube(spread_nkk=share * spread_nkk + (1 - share) * pooled_kk, n_cells_n=n_cells_n)


def shares(points_nk: np.ndarray, *, strict: bool = True) -> np.ndarray:
    """The share of the path's length that lies behind each of its points, ``(n,)``, from 0 to 1.

    Raises
    ------
    PointsError
        Where all points are the same; where two in a row are, if ``strict``.
    """
    steps = np.sqrt((np.diff(np.asarray(points_nk, dtype=np.float64), axis=0) ** 2).sum(axis=1))
    if not steps.sum() > 0:
        raise PointsError("points: they are all the same; a path needs two that differ")
    if strict and not (steps > 0).all():
        at = int(np.flatnonzero(steps == 0)[0])
        raise PointsError(
            f"points: {at} and {at + 1} are the same; a path goes on from point to point: leave one out, or pass time="
        )
    return np.asarray(np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum())


def moments(points_lnk: np.ndarray, spread_lnkk: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(n, k)`` and covariance ``(n, k, k)`` over several paths, each with its spread, at each time."""
    mean_nk = points_lnk.astype(np.float64).mean(axis=0)
    apart_lnk = points_lnk - mean_nk
    spread_nkk = np.einsum("lni,lnj->nij", apart_lnk, apart_lnk) / (len(points_lnk) - 1)
    return mean_nk, spread_nkk if spread_lnkk is None else spread_nkk + spread_lnkk.mean(axis=0)


def _at(values_nd: np.ndarray, known_n: np.ndarray, wanted_m: np.ndarray) -> np.ndarray:
    """Values between those known, column by column, ``(m, d)``."""
    return np.stack([np.interp(wanted_m, known_n, column) for column in values_nd.T], axis=1)


def _squared_distances(a_rk: np.ndarray, b_jk: np.ndarray) -> np.ndarray:
    product = a_rk @ b_jk.T
    return np.maximum((a_rk**2).sum(axis=1)[:, None] - 2 * product + (b_jk**2).sum(axis=1), 0.0)


def _sums(values_rd: np.ndarray, counts_r: np.ndarray, own_r: np.ndarray) -> np.ndarray:
    """Weighted sums of the values of the cells at each place of the path, ``(places, d)``."""
    from scipy.sparse import csr_array

    to_places = csr_array((counts_r, (own_r, np.arange(len(own_r)))), shape=(_FINE, len(own_r)))
    return np.asarray(to_places @ values_rd)


def _covariances(sums_nd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Covariances of residuals with the mean variance, ``(n, k, k)``, and numbers of cells, of sums over cells."""
    n_cells_n = sums_nd[:, 0]
    mean_nd = sums_nd[:, 1:] / np.maximum(n_cells_n, 1e-12)[:, None]
    centre_nk, second_nkk = mean_nd[:, :k], mean_nd[:, k : k + k * k].reshape(-1, k, k)
    found_nkk = second_nkk - centre_nk[:, :, None] * centre_nk[:, None]
    if mean_nd.shape[1] > k + k * k:
        found_nkk = found_nkk + mean_nd[:, k + k * k :, None] * np.eye(k)
    return found_nkk, n_cells_n
