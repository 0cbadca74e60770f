"""How far a point is from the reference cells, with a gradient: what keeps paths where the decoder has learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdecode.support import FAR, Support

_ROUND = 1e-3  # of the typical distance: below it the distance to a cell, a cone, is a bowl


@dataclass(frozen=True, eq=False)
class Nearness:
    """The distance that :class:`Support` measures, on the cells' own scale: 0 for a typical cell, 1 at the edge."""

    support: Support
    typical: float  # distance of the median cell to the others
    edge: float  # distance beyond which a point is flagged as not supported

    @classmethod
    def of(cls, support: Support | None) -> Nearness | None:
        """Of a model's reference; None where there is none, or where its cells are too few to tell."""
        if support is None or len(support.distances_r) == 0:
            return None
        typical, edge = (float(np.percentile(support.distances_r, q)) for q in (50.0, FAR))
        return cls(support, typical, edge) if edge > typical > 0 else None

    def excess(self, z_nk: Tensor) -> Tensor:
        """How far each point is out, ``(n,)``: 0 at the typical distance, 1 at the edge of the support.

        The nearest cell of each group of landmarks is found first; the gradient is that of the distance to it, which is
        that of the least distance wherever there is one.
        """
        landmarks = self.support.landmarks_gmk
        at = z_nk.float() - self.support.centre_k
        with torch.no_grad():
            nearest_gn = torch.cdist(at.expand(len(landmarks), -1, -1), landmarks).argmin(2)
        cells_gnk = torch.take_along_dim(landmarks, nearest_gn.unsqueeze(-1), 1)
        squared = (at - cells_gnk).square().sum(-1) + (_ROUND * self.typical) ** 2
        return (squared.sqrt().mean(0) - self.typical) / (self.edge - self.typical)

    def penalty(self, z_nk: Tensor) -> Tensor:
        """The mean over points of the squared excess of those that are farther out than a typical cell."""
        return self.excess(z_nk).clamp(min=0).square().mean()
