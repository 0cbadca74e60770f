"""Latent points, and the spread around them, on the two axes of a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scdecode.errors import InputError
from scdecode.points import read_array

_NEAREST = 30
"""Cells whose places a bare point takes the mean of, in an embedding."""
_MOST = 20_000
"""Cells of an embedding that points are carried by, at most."""

_CARRIED = 500
"""Points of a path that are carried by cells; those of a path of more are interpolated between them."""

Place = tuple[np.ndarray, np.ndarray | None]
"""Points on the plane, ``(n, 2)``, and their covariances, ``(n, 2, 2)``, or None."""
Carry = Callable[[np.ndarray, np.ndarray | None], Place]


@dataclass(frozen=True, eq=False)
class Plane:
    """Where cells are, and how to get there from the latent space."""

    cells_n2: np.ndarray
    labels: tuple[str, str]  # of the axes
    words: str  # of how a path got there, where it is not just a projection
    is_embedding: bool  # whether its axes have no unit
    carry: Carry  # points (n, k) and covariances (n, k, k) or None -> (n, 2) and (n, 2, 2) or None


def principal_plane(cells_nk: np.ndarray) -> Plane:
    """The first two principal axes of the cells."""
    cells_nk = np.asarray(cells_nk, dtype=np.float64)
    centre = cells_nk.mean(axis=0)
    _, singular, rows = np.linalg.svd(cells_nk - centre, full_matrices=False)
    axes_2k, share = np.zeros((2, cells_nk.shape[1])), np.zeros(2)
    n = min(2, len(rows))  # a latent space of one dimension has one axis
    axes_2k[:n], share[:n] = rows[:n], singular[:n] ** 2 / max(float((singular**2).sum()), 1e-300)

    def carry(points_nk: np.ndarray, spread_nkk: np.ndarray | None) -> Place:
        return (points_nk - centre) @ axes_2k.T, None if spread_nkk is None else axes_2k @ spread_nkk @ axes_2k.T

    labels = [f"latent principal axis {i + 1} ({share[i]:.0%} of variance)" if i < n else "" for i in range(2)]
    return Plane((cells_nk - centre) @ axes_2k.T, (labels[0], labels[1]), "", False, carry)


def embedded_plane(cells_nk: np.ndarray, embedding: Any) -> Plane:
    """A given embedding of the cells, to which points are carried by the cells near them.

    A point of a tube is the mean of the cells' places weighted by the density of the tube's normal distribution at the
    cells' latents, and its spread their weighted covariance. A bare point is the mean over its 30 nearest cells, with
    Gaussian weights whose standard deviation is half the distance of the last of them. Of a path of more than 500
    points, that many are carried, and the others lie straight between them.

    Raises
    ------
    InputError
        For an embedding that is not two numbers for each of the cells.
    """
    names = embedding.columns if isinstance(embedding, pd.DataFrame) else ("embedding axis 1", "embedding axis 2")
    place_n2 = read_array(embedding, "embedding").astype(np.float64)
    if place_n2.shape != (len(cells_nk), 2) or not np.isfinite(place_n2).all():
        raise InputError(
            f"embedding: shape {place_n2.shape} came, two finite numbers for each of the {len(cells_nk):,} cells, "
            f"({len(cells_nk)}, 2), were expected; pass the latents of the same cells as cells="
        )
    some = np.random.default_rng(0).permutation(len(cells_nk))[:_MOST]
    near_nk, near_n2 = np.asarray(cells_nk, dtype=np.float64)[some], place_n2[some]

    def carry(points_nk: np.ndarray, spread_nkk: np.ndarray | None) -> Place:
        n = len(points_nk)
        at = np.arange(n) if n <= _CARRIED else np.unique(np.linspace(0, n - 1, _CARRIED).round().astype(int))
        mean_n2, around_n22 = np.empty((len(at), 2)), np.empty((len(at), 2, 2))
        for row, i in enumerate(at):  # the weights of one point at a time: of all they would be points x cells
            weight = _weights(near_nk, points_nk[i], None if spread_nkk is None else spread_nkk[i])
            mean_n2[row] = weight @ near_n2
            off = near_n2 - mean_n2[row]
            around_n22[row] = (off * weight[:, None]).T @ off
        if len(at) < n:
            mean_n2, around_n22 = _between(mean_n2, at, n), _between(around_n22, at, n)
        return mean_n2, None if spread_nkk is None else around_n22

    words = "Points of a path are at the mean place of the cells around them."
    return Plane(place_n2, (str(names[0]), str(names[1])), words, True, carry)


def _between(values: np.ndarray, at: np.ndarray, n: int) -> np.ndarray:
    """Values known at some of n places in a row, straight between them."""
    flat = values.reshape(len(at), -1)
    return np.stack([np.interp(np.arange(n), at, column) for column in flat.T], axis=1).reshape(n, *values.shape[1:])


def _weights(cells_nk: np.ndarray, point_k: np.ndarray, spread_kk: np.ndarray | None) -> np.ndarray:
    """How much each cell is at a point; they sum to one."""
    off_nk = cells_nk - point_k
    if spread_kk is None:
        square_n = (off_nk**2).sum(axis=1)
        last = np.partition(square_n, min(_NEAREST, len(square_n)) - 1)[min(_NEAREST, len(square_n)) - 1]
        square_n = np.where(square_n <= last, square_n / max(float(last) / 4, 1e-300), np.inf)
    else:
        values, vectors = np.linalg.eigh(spread_kk.astype(np.float64))
        values = np.maximum(values, 1e-4 * max(float(values[-1]), 1e-12))  # of a spread that is flat somewhere
        square_n = ((off_nk @ vectors) ** 2 / values).sum(axis=1)
    weight_n = np.exp(-0.5 * (square_n - square_n.min()))
    return np.asarray(weight_n / weight_n.sum())
