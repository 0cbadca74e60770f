"""Paths through the latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scdecode.errors import InputError, PointsError, SupportWarning, check_integer, unknown_name, warn
from scdecode.model import SCVI
from scdecode.points import Points, read_points

WAYS = ("linear",)
"""How :meth:`Trajectory.between` gets from one end to the other."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Points along a path, in order; ``model.decode`` takes it as it is."""

    points: np.ndarray  # (n, k) float32
    time: np.ndarray  # (n,) float64: the share of the path's length that lies behind, 0 to 1
    spread: np.ndarray | None  # (n, k, k) covariances of the cells around each point, or None: the bare line
    origin: str  # how it was made, in words

    @classmethod
    def between(
        cls,
        model: SCVI,
        start: Any,
        end: Any,
        n_points: int = 100,
        how: str = "linear",
        *,
        spread: bool = True,
    ) -> Trajectory:
        """A path from one place of the latent space to another.

        Cells do not lie on the line between two places but all around it, and the decoder is not linear: what it says
        of the bare line is not what it says of the cells, on average. So where the ends are sets of cells, the path
        carries their covariances, and :meth:`SCVI.decode` averages over that spread. In between it is the straight path
        between the two normal distributions (means and covariances interpolated).

        Parameters
        ----------
        model
            Whose latent space it is.
        start, end
            A point, ``(k,)``; a set of cells, ``(m, k)``; or their posterior, ``model.posterior(adata[...])``, which
            knows how far each cell scatters, too. A set of cells stands for its mean and its covariance; where there
            are too few cells for a covariance, or ``spread`` is off, for the cell nearest to its mean.
        n_points
            Points on the path, both ends included.
        how
            ``"linear"``: the straight line.
        spread
            Whether to carry the covariances of sets of cells; otherwise, and for single points, the line is bare.

        Raises
        ------
        PointsError
            For points of the wrong width, NaN, or ends that are the same.
        InputError
            For another ``how``, or fewer than two points.
        """
        if how not in WAYS:
            raise InputError(unknown_name("how", how, WAYS, "ways"))
        check_integer("n_points", n_points, minimum=2)
        simplex = model.config.latent_distribution == "ln"
        ends = [read_points(end, model.config.n_latent, simplex=simplex) for end in (start, end)]
        tube = spread and all(len(cells) > model.config.n_latent for cells in ends)
        few = min(len(cells) for cells in ends)
        if spread and not tube and few > 1:
            warn(
                f"start, end: {few} cells came, more than {model.config.n_latent} are needed for their covariance; the "
                "path is the bare line between two of them, where the decoder has seen no cell",
                SupportWarning,
            )
        # a spread is around the mean of the cells; a bare line runs where cells are, from medoid to medoid
        middle = np.mean if tube else medoid
        first, last = (middle(cells.z_nk.numpy().astype(np.float64), axis=0) for cells in ends)
        if np.allclose(first, last):
            raise PointsError("start, end: they are the same point; a path needs two that differ")
        time = np.linspace(0.0, 1.0, n_points)
        covariances = None
        if tube:
            begin, finish = (_covariance(cells) for cells in ends)
            covariances = (1 - time)[:, None, None] * begin + time[:, None, None] * finish
        return cls(
            points=(first + time[:, None] * (last - first)).astype(np.float32),
            time=time,
            spread=None if covariances is None else covariances.astype(np.float32),
            origin=f"linear, {n_points} points, between {len(ends[0])} and {len(ends[1])} cells",
        )

    def __repr__(self) -> str:
        """One line, as the arrays are long."""
        return f"Trajectory: {self.origin}, {'with' if self.spread is not None else 'without'} spread"

    def __len__(self) -> int:
        return len(self.points)


def medoid(cells_mk: np.ndarray, axis: int = 0) -> np.ndarray:
    """The one of ``(m, k)`` cells that is nearest to their mean."""
    mean = cells_mk.mean(axis=axis, keepdims=True)
    return cells_mk[int(((cells_mk - mean) ** 2).sum(axis=1).argmin())]


def _covariance(cells: Points) -> np.ndarray:
    """Covariance of the cells, and of each cell around itself where that is known (a posterior)."""
    total = np.cov(cells.z_nk.numpy().astype(np.float64), rowvar=False).reshape(cells.z_nk.shape[1], -1)
    if cells.spread is None:
        return total
    own = cells.spread if cells.spread.ndim == 3 else np.stack([np.diag(sd**2) for sd in cells.spread])
    return total + own.mean(axis=0)
