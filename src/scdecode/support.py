"""How close a latent point is to the cells that the model learned from.

The reference latents are dealt into groups; a point's distance is the mean, over the groups, of the distance to the
nearest cell of each: about that to a few nearest neighbours, at the cost of a matrix product. Its support is where that
distance stands among those of the reference cells themselves, each measured to the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FAR = 99.0
"""A point of a higher percentile is flagged as not supported."""

_N_GROUPS = 5
_GROUP_SIZE = 1000
_TILE = 256  # points whose distances to all landmarks are held at once


@dataclass(frozen=True, eq=False)
class Support:
    """The reference cells against which points are measured; made by :func:`make_support`."""

    landmarks_gmk: Tensor  # (groups, cells, k) float32
    distances_r: np.ndarray  # sorted distances of the reference cells to each other

    def distance(self, points_nk: Tensor) -> np.ndarray:
        """Distance of each point to the reference, ``(n,)``, in units of the latent space."""
        groups, cells, k = self.landmarks_gmk.shape
        flat = self.landmarks_gmk.reshape(-1, k)
        near = 1e-2 * float(self.distances_r[len(self.distances_r) // 2]) if len(self.distances_r) else 0.0
        out = []
        for tile in points_nk.split(_TILE):
            nearest = _squared_distances(tile, flat).view(-1, groups, cells).amin(2).sqrt()
            apart = nearest > near  # a reference cell is not its own neighbour
            mean = (nearest * apart).sum(1) / apart.sum(1).clamp(min=1)
            out.append(mean.numpy())
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def percentile(self, points_nk: Tensor) -> np.ndarray:
        """The share, in percent, of the reference cells that lie as close to the others as the point, ``(n,)``."""
        rank = np.searchsorted(self.distances_r, self.distance(points_nk), side="left")
        return (100.0 * rank / len(self.distances_r)).astype(np.float32)


def make_support(reference_rk: np.ndarray) -> Support:
    """Deal reference latents, ``(r, k)``, into groups and measure them against each other."""
    order = np.random.default_rng(0).permutation(len(reference_rk))
    groups = max(1, min(_N_GROUPS, len(order) // 10))
    size = min(len(order) // groups, _GROUP_SIZE)
    landmarks = torch.from_numpy(np.ascontiguousarray(reference_rk[order[: groups * size]], dtype=np.float32))
    landmarks_gmk = landmarks.view(groups, size, -1)
    support = Support(landmarks_gmk, np.zeros(0))
    return Support(landmarks_gmk, np.sort(support.distance(landmarks)))


def _squared_distances(points_nk: Tensor, others_mk: Tensor) -> Tensor:
    products = torch.addmm(others_mk.square().sum(1), points_nk, others_mk.t(), alpha=-2)
    return (products + points_nk.square().sum(1, keepdim=True)).clamp(min=0)
