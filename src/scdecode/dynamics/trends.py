"""Along a path, point by point: the mean of each gene, its exact derivative, and the draws where it is most and least.

All draws of all points would be points x draws x genes numbers. Held are two of three axes at a time: the means and
derivatives of every point, and of the draws those of the highest and of the lowest point that a gene has had so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdecode.dynamics.routes import Route
from scdecode.kernels.threads import own_threads, side_by_side

_TILE_ROWS = 128  # rows (draws x points) at a time, at least: with fewer the matrix product has too little to do
_PIECE = 4  # tiles that a thread takes at a time, at least


@dataclass(frozen=True, eq=False)
class Trends:
    """What the genes of one route do."""

    time_n: np.ndarray
    mean_ng: np.ndarray  # float32, over the draws
    slope_ng: np.ndarray  # float32: its derivative, a unit of time
    change_sg: np.ndarray | None  # (draws, g) float32: log2 of each draw, at the highest over the lowest point


@torch.no_grad()
def walk(route: Route) -> Trends:
    """Decode a route."""
    n, s, g = len(route.time_n), len(route.noise_sk), route.plan.n_genes
    mean_ng, slope_ng = (np.empty((n, g), dtype=np.float32) for _ in range(2))
    rows = max(1, _TILE_ROWS // s)
    n_tiles = -(-n // rows)
    found: list[_Ends] = []

    def part(first: int, last: int) -> None:
        ends = _Ends(s, g)
        for start in range(first * rows, min(last * rows, n), rows):
            some = slice(start, min(start + rows, n))
            values_spg, slope_pg = route.values_and_slopes(some)
            mean_pg = values_spg.mean(0)
            mean_ng[some], slope_ng[some] = mean_pg.numpy(), slope_pg.numpy()
            if not route.bare:
                pseudocounts = route.pseudocounts(some)
                for i in range(mean_pg.shape[0]):
                    ends.see(values_spg[:, i], mean_pg[i], float(pseudocounts[min(i, len(pseudocounts) - 1), 0]))
        found.append(ends)

    with own_threads():
        side_by_side(part, n_tiles, least=_PIECE)
    change_sg = None
    if not route.bare:
        first, *others = found
        for other in others:
            first.join(other)
        change_sg = first.change_sg()
    return Trends(route.time_n, mean_ng, slope_ng, change_sg)


class _Ends:
    """The draws of each gene at the highest and at the lowest point so far, with the pseudocount added."""

    def __init__(self, n_samples: int, n_genes: int) -> None:
        self.high, self.low = (torch.full((n_genes,), bound, dtype=torch.float32) for bound in (-torch.inf, torch.inf))
        self.at_high, self.at_low = (torch.ones(n_samples, n_genes, dtype=torch.float32) for _ in range(2))

    def see(self, values_sg: Tensor, mean_g: Tensor, pseudocount: float) -> None:
        """A point more."""
        mean_g = mean_g + pseudocount
        values_sg = values_sg + pseudocount
        self._take(values_sg, mean_g > self.high, self.at_high)
        self._take(values_sg, mean_g < self.low, self.at_low)
        torch.maximum(self.high, mean_g, out=self.high)
        torch.minimum(self.low, mean_g, out=self.low)

    @staticmethod
    def _take(values_sg: Tensor, better_g: Tensor, kept_sg: Tensor) -> None:
        torch.where(better_g, values_sg, kept_sg, out=kept_sg)

    def join(self, other: _Ends) -> None:
        """Another stretch of points."""
        for better, mine, theirs in (
            (other.high > self.high, self.at_high, other.at_high),
            (other.low < self.low, self.at_low, other.at_low),
        ):
            self._take(theirs, better, mine)
        torch.maximum(self.high, other.high, out=self.high)
        torch.minimum(self.low, other.low, out=self.low)

    def change_sg(self) -> np.ndarray:
        """The log2 change of each draw, ``(draws, genes)``."""
        return torch.log2(self.at_high.div_(self.at_low)).numpy()
