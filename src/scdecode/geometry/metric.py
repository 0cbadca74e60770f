"""The metric that the decoder pulls back to the latent space: how far apart two points are for who sees the counts.

    G(z) = J^T F J

with J the derivatives of the decoder's outputs at z and F the Fisher information of the model's own likelihood on them
(Arvanitidis et al. 2022, Pulling back information geometry, AISTATS, PMLR 151:4872). To second order
``KL(z || z + dz) = dz^T G dz / 2``, so a length of 1 is about what one cell of the library size can tell apart: the log
likelihood ratio of points that far apart is 1/2 nat, on average. Lengths grow with the square root of the library size
while counts are few, and the dispersion bounds them when there are many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, PerPoint
from scdecode._utils.notebook import Shown
from scdecode.errors import PointsError
from scdecode.geometry.decoded import DecoderLike, ParameterMap, Slot, map_along, push
from scdecode.geometry.divergences import fisher_information, kl_divergence
from scdecode.kernels.threads import own_threads
from scdecode.points import PointsLike

_NODES = 100
"""Places along a path, at least, at which its speed is measured."""


@dataclass(frozen=True, eq=False, repr=False)
class PathLength(Shown):
    """How long a path is in the metric."""

    segments: np.ndarray  # (n - 1,) float64: lengths between consecutive points

    @property
    def length(self) -> float:
        """Of the whole path."""
        return float(self.segments.sum())

    @property
    def energy(self) -> float:
        """The integral of the squared speed over a time of 1 in which each segment takes as long as the others.

        At least the squared length, and equal to it where the points are evenly spaced.
        """
        return float(len(self.segments) * np.square(self.segments).sum())

    @property
    def share(self) -> np.ndarray:
        """The share of the length that lies behind each point, ``(n,)``, 0 to 1."""
        behind = np.concatenate([[0.0], self.segments.cumsum()])
        return behind / behind[-1] if behind[-1] > 0 else np.linspace(0.0, 1.0, len(behind))


@checked
def metric(
    model: DecoderLike,
    points: PointsLike,
    *,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    library_size: LibrarySize = None,
    max_conditions: int = 100,
) -> np.ndarray:
    """The pulled-back metric at points, ``(n, k, k)`` float64: symmetric, with eigenvalues of at least 0.

    Dimensions that the decoder ignores have eigenvalues near 0. Averaged over conditions, it is the mean of theirs.

    Parameters
    ----------
    model
        A trained model, or a :class:`ParameterMap`.
    points
        ``(n, k)`` latent points in any form that ``model.decode`` takes.
    batch, labels, categorical, continuous, library_size, max_conditions
        As for ``model.decode``, but the same for all points; those of a path hold where nothing is said here.

    Raises
    ------
    PointsError, ConditionError
        For points or conditions that cannot be used; for conditions that change from point to point.
    """
    decoder = map_along(
        model,
        points,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
    )
    return metric_tensor(decoder, decoder.read(points)).numpy()


@checked
def path_length(
    model: DecoderLike,
    points: PointsLike,
    *,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    library_size: LibrarySize = None,
    max_conditions: int = 100,
) -> PathLength:
    """How long the path through points is in the metric, straight from each to the next.

    Parameters
    ----------
    model, batch, labels, categorical, continuous, library_size, max_conditions
        As for :func:`metric`.
    points
        ``(n, k)`` latent points in order, at least two, or a trajectory.

    Raises
    ------
    PointsError, ConditionError
        As :func:`metric`; for a single point; for several paths, whose lengths are one each.
    """
    decoder = map_along(
        model,
        points,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
    )
    return length_of(decoder, decoder.read_path(points, "points"))


def metric_tensor(decoder: ParameterMap, z_nk: Tensor) -> Tensor:
    """The metric at points, ``(n, k, k)`` float64; the derivatives of a few points are held at a time."""
    k = decoder.n_latent
    total = torch.zeros(len(z_nk), k, k, dtype=torch.float64)
    with torch.no_grad(), own_threads():
        for rows in decoder.tiles(len(z_nk), k):
            for slot in decoder.slots:
                total[rows] += slot.weight * _metric_of(decoder, slot, z_nk[rows]).double()
    return (total + total.mT) / 2


def _metric_of(decoder: ParameterMap, slot: Slot, z_nk: Tensor) -> Tensor:
    parameters = slot.function(z_nk)
    fisher = fisher_information(decoder.gene_likelihood, parameters)
    mean_kng, zero_kng = parameters.split(decoder.jacobian(slot.outputs, z_nk))
    force_mean, force_zero = fisher.product(mean_kng, zero_kng)
    g_nkk = torch.einsum("ang,bng->nab", mean_kng, force_mean)
    if zero_kng is not None and force_zero is not None:
        g_nkk = g_nkk + torch.einsum("ang,bng->nab", zero_kng, force_zero)
    return g_nkk


def squared_speed(decoder: ParameterMap, z_nk: Tensor, v_nk: Tensor) -> Tensor:
    """``v^T G v`` at points, ``(n,)`` float64, by one Jacobian-vector product a point."""
    total = torch.zeros(len(z_nk), dtype=torch.float64)
    with torch.no_grad(), own_threads():
        for rows in decoder.tiles(len(z_nk), 2):
            for slot in decoder.slots:
                parameters = slot.function(z_nk[rows])
                fisher = fisher_information(decoder.gene_likelihood, parameters)
                mean, zero = parameters.split(push(slot.outputs, z_nk[rows], v_nk[rows]))
                force_mean, force_zero = fisher.product(mean, zero)
                squared = (mean * force_mean).sum(-1, dtype=torch.float64)
                if zero is not None and force_zero is not None:
                    squared = squared + (zero * force_zero).sum(-1, dtype=torch.float64)
                total[rows] += slot.weight * squared
    return total.clamp(min=0)


def length_of(decoder: ParameterMap, z_nk: Tensor) -> PathLength:
    """The lengths of the straight segments between consecutive points, each by Gauss-Legendre quadrature."""
    n = len(z_nk) - 1
    if n < 1:
        raise PointsError("points: 1 point came, a path of at least two was expected")
    nodes, weights = np.polynomial.legendre.leggauss(max(1, -(-_NODES // n)))
    share = torch.from_numpy((nodes + 1) / 2).to(z_nk.dtype)[:, None, None]
    step = z_nk[1:] - z_nk[:-1]
    at = z_nk[:-1] + share * step
    squared = squared_speed(decoder, at.reshape(-1, z_nk.shape[1]), step.expand_as(at).reshape(-1, z_nk.shape[1]))
    return PathLength((squared.sqrt().view(len(nodes), n) * torch.from_numpy(weights / 2)[:, None]).sum(0).numpy())


def divergence(decoder: ParameterMap, first_nk: Tensor, second_nk: Tensor) -> Tensor:
    """KL between what is decoded from two points each, ``(n, genes)`` nats, averaged over the slots; differentiable."""
    total: Tensor | None = None
    for slot in decoder.slots:
        kl = kl_divergence(decoder.gene_likelihood, slot.function(first_nk), slot.function(second_nk))
        total = slot.weight * kl if total is None else total + slot.weight * kl
    assert total is not None, "there is at least one slot"
    return total
