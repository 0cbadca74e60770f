"""How close a latent point is to the cells that the model learned from.

The reference latents are dealt into groups; a point's distance is the mean, over the groups, of the distance to the
nearest cell of each: about that to a few nearest neighbours, at the cost of a matrix product. Its support is where that
distance stands among those of the reference cells themselves, each measured to the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from scdecode._utils.notebook import Shown
from scdecode._utils.progress import tracked
from scdecode.kernels.threads import own_threads, side_by_side

FAR = 99.0
"""A point of a higher percentile is flagged as not supported."""

_N_GROUPS = 5
_GROUP_SIZE = 1000
_TILE = 256  # points whose distances to all landmarks are held at once
_STRETCH = 256  # tiles between two reports of progress
_ROUNDING = 4e-6  # of a point's squared distance from the centre: what a matrix product makes of a distance of zero
_SAME = 0.02  # of the typical distance: a point this near to a reference cell is that cell, perhaps in float16


@dataclass(frozen=True, eq=False, repr=False)
class Support(Shown):
    """The reference cells against which points are measured; made by :func:`make_support`."""

    landmarks_gmk: Tensor  # (groups, cells, k) float32, around the centre: far from zero, distances would cancel
    centre_k: Tensor  # (k,) float32
    distances_r: np.ndarray  # sorted distances of the reference cells to each other

    def distance(self, points_nk: Tensor) -> np.ndarray:
        """Distance of each point to the reference, ``(n,)``, in units of the latent space."""
        if len(points_nk) <= _TILE:
            return self._distance(points_nk - self.centre_k).numpy()
        distance_n = np.empty(len(points_nk), dtype=np.float32)

        def part(before: int, first: int, last: int) -> None:
            for start in range((before + first) * _TILE, min((before + last) * _TILE, len(points_nk)), _TILE):
                some = slice(start, start + _TILE)
                distance_n[some] = self._distance(points_nk[some] - self.centre_k).numpy()

        n_tiles = -(-len(points_nk) // _TILE)
        stretches = [range(start, min(start + _STRETCH, n_tiles)) for start in range(0, n_tiles, _STRETCH)]
        with torch.no_grad(), own_threads():  # torch's own threads would meet after each small operation
            for some in tracked(stretches, "measuring support", unit="tiles", total=n_tiles, size=len):
                side_by_side(partial(part, some.start), len(some))
        return distance_n

    @cached_property
    def _squares_m(self) -> Tensor:
        """The squared distance of each landmark from the centre."""
        return self.landmarks_gmk.reshape(-1, self.landmarks_gmk.shape[2]).square().sum(1)

    def _distance(self, points_nk: Tensor) -> Tensor:
        groups, cells, k = self.landmarks_gmk.shape
        # |p - o|^2 = |p|^2 + (|o|^2 - 2 p.o), of which the first is the same for all others: it joins the least alone
        others_mk, own_n1 = self.landmarks_gmk.reshape(-1, k), points_nk.square().sum(1, keepdim=True)
        partial = torch.addmm(self._squares_m, points_nk, others_mk.t(), alpha=-2).view(-1, groups, cells)
        nearest = (partial.amin(2) + own_n1).clamp(min=0)
        # a reference cell is not its own neighbour: where a point is one, the next nearest of that group counts
        least, group_n = nearest.min(1)
        close = (least <= _ROUNDING * own_n1.squeeze(1)).nonzero().squeeze(1)
        if len(close) and cells > 1:
            group = group_n[close]
            others = (partial[close, group] + own_n1[close]).clamp(min=0)
            which = others.argmin(1)
            apart = (points_nk[close] - self.landmarks_gmk[group, which]).square().sum(1).sqrt()
            others[torch.arange(len(close)), which] = torch.where(apart <= _SAME * self.typical, torch.inf, apart**2)
            nearest[close, group] = others.amin(1)
        return nearest.sqrt().mean(1)

    @property
    def typical(self) -> float:
        """Distance of a typical reference cell to the others."""
        return float(self.distances_r[len(self.distances_r) // 2]) if len(self.distances_r) else 0.0

    def percentile(self, points_nk: Tensor) -> np.ndarray:
        """The share, in percent, of the reference cells that lie closer to the others than the point, ``(n,)``.

        Those that lie as close count by half: a point at the typical distance of all is at 50.
        """
        distance_n = self.distance(points_nk)
        closer, not_farther = (np.searchsorted(self.distances_r, distance_n, side=side) for side in ("left", "right"))
        return (50.0 * (closer + not_farther) / len(self.distances_r)).astype(np.float32)


def make_support(reference_rk: np.ndarray) -> Support:
    """Deal reference latents, ``(r, k)``, into groups and measure them against each other."""
    order = np.random.default_rng(0).permutation(len(reference_rk))
    groups = max(1, min(_N_GROUPS, len(order) // 10))
    size = min(len(order) // groups, _GROUP_SIZE)
    landmarks = torch.from_numpy(np.ascontiguousarray(reference_rk[order[: groups * size]], dtype=np.float32))
    centre = landmarks.mean(0)
    support = Support((landmarks - centre).view(groups, size, -1), centre, np.zeros(0))
    return replace(support, distances_r=np.sort(support.distance(landmarks)))
