"""The inverse question: where to go from a latent point so that chosen genes change as asked, and little else does.

Of all small steps that change the log scales f of the chosen genes by c, the one that is shortest in the metric is

    dz = G^-1 J^T (J G^-1 J^T)^-1 c,   J = df / dz

the natural gradient (Amari 1998, Neural Computation 10:251) under several constraints. The change asked for is cut into
small ones; after each step the same formula mends what the bend of the decoder left over.

Along dimensions that the decoder ignores a step costs nothing, however far it goes. So the prior's own information,
that of Normal(0, I), is added to that of the counts: G + I is the precision of a cell's posterior (Laplace), and a step
is as long as it is surprising to somebody who knows both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, PerPoint, Values
from scdecode._utils.notebook import Shown
from scdecode.errors import (
    ConvergenceWarning,
    InputError,
    PointsError,
    SupportWarning,
    check_integer,
    check_number,
    listing,
    warn,
)
from scdecode.geometry.decoded import DecoderLike, ParameterMap, parameter_map
from scdecode.geometry.metric import divergence, length_of, metric_tensor
from scdecode.points import PointsLike
from scdecode.support import FAR

_SIGNS = {"+": 1.0, "-": -1.0}
_CLOSE = 1e-3  # log2: a target nearer than that is met
_CORRECTIONS = 8  # of a step, at most
_HALVINGS = 6  # of a step that cannot be mended
_EDGE_HALVINGS = 12  # towards the edge of the support


@dataclass(frozen=True, eq=False)
class Move(Shown):
    """A way to change genes; made by :func:`move`. ``model.decode`` takes it as it is."""

    points: np.ndarray  # (n, k) float32, from the start to where it got
    time: np.ndarray  # (n,) float64: the share of the asked change that is done, 0 to 1
    targets: pd.DataFrame  # a row a gene: "asked" and "reached", log2 fold changes of the scale
    others: pd.DataFrame  # the other genes that changed the most: "log2_fold_change", "before", "after", "distance"
    length: float  # in the metric
    support: np.ndarray | None  # (n,) percent, as model.support; None without reference cells
    complete: bool  # whether all that was asked is reached
    stopped: str = ""  # why it is not, in words
    conditions: Mapping[str, Any] = field(default_factory=dict)  # as arguments of decode, but for the library size
    measured: Mapping[str, Any] = field(default_factory=dict)  # what it was measured with, in words

    @property
    def spread(self) -> None:
        """None: it is a bare line."""

    @property
    def end(self) -> np.ndarray:
        """Where it got, ``(k,)``."""
        return self.points[-1]

    def __repr__(self) -> str:
        genes = ", ".join(f"{gene} {row.reached:+.2f} of {row.asked:+.2f}" for gene, row in self.targets.iterrows())
        return f"Move: {genes} (log2); metric length {self.length:.4g}" + (f"; {self.stopped}" if self.stopped else "")

    def __len__(self) -> int:
        return len(self.points)


@checked
def move(
    model: DecoderLike,
    z: PointsLike,
    targets: Values,
    *,
    n_steps: int = 20,
    max_support: float | None = FAR,
    prior: float = 1.0,
    n_others: int = 20,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    library_size: LibrarySize = None,
    max_conditions: int = 100,
) -> Move:
    """The smallest step in the metric that changes chosen genes, kept inside the support.

    Each small step is the shortest that does its share; the whole way is therefore short, if not the shortest of all.

    Parameters
    ----------
    model
        A trained model, or a :class:`ParameterMap`.
    z
        A latent point, ``(k,)``; or a set of cells, which stands for the one nearest to its mean.
    targets
        Genes and what to do with their scale: ``"+"`` doubles it, ``"-"`` halves it, a number is a log2 fold change; 0
        holds a gene where it is.
    n_steps
        Steps that the change is cut into.
    max_support
        The percentile of support that no point may exceed; None for no limit.
    prior
        Weight of the prior's information beside that of the counts; 0 for the metric alone.
    n_others
        How many of the other genes to report.
    batch, labels, categorical, continuous, library_size, max_conditions
        As for ``model.decode``, but the same all along.

    Returns
    -------
    Move
        Where it stops at the edge of the support, or where no step does what is asked, a warning says so, and
        ``targets`` how far it got. ``others`` is sorted by how well the change can be seen in a cell of the library
        size: the distance is the square root of twice the divergence; ``before`` and ``after`` are counts there.

    Raises
    ------
    InputError
        For unknown genes, with the nearest; a gene that comes twice; more genes than latent dimensions; changes that
        are no finite numbers, or all zero.
    PointsError
        For a start that cannot be used, or that lies outside the support already.
    ConditionError, ConfigError
        For conditions and numbers that cannot be used.
    """
    check_integer("n_steps", n_steps, minimum=1, maximum=1_000_000)
    check_integer("n_others", n_others, minimum=0)
    check_number("prior", prior, 0.0, 1e12)
    if max_support is not None:
        check_number("max_support", max_support, 0.0, 100.0, open_minimum=True)
    decoder = parameter_map(
        model,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
    )
    asked = _read_targets(decoder, targets)
    way = _Way(decoder, list(asked), torch.tensor(list(asked.values()), dtype=torch.float64) * math.log(2), prior)
    start = decoder.read_one(z, "z")
    limit = None if decoder.support is None else max_support
    if limit is not None and (there := _support(decoder, start)) > limit:
        raise PointsError(
            f"z: the start has a support of {there:.1f} %, beyond max_support={limit:g}; pass a point nearer to the "
            "cells, or max_support=None"
        )
    found, time, stopped = _walk(way, start, n_steps, limit)
    return _report(way, asked, found, time, stopped, n_others)


def _read_targets(decoder: ParameterMap, targets: Any) -> dict[int, float]:
    """Positions of the genes, and the log2 fold change of each."""
    if not isinstance(targets, Mapping | Iterable) or isinstance(targets, str) or getattr(targets, "ndim", 1) == 0:
        raise InputError(f"targets: {targets!r} came, a mapping of genes to '+', '-' or log2 fold changes was expected")
    pairs = list(targets.items() if isinstance(targets, Mapping) else targets)
    if not pairs or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise InputError(f"targets: {listing(pairs, 3)} came; pairs of a gene and a change were expected, one at least")
    positions = decoder.positions([str(gene) for gene, _ in pairs])
    if len(positions) > decoder.n_latent:
        raise InputError(
            f"targets: {len(positions)} genes came, but the latent space has {decoder.n_latent} dimensions: no step "
            "changes more genes than that, each as asked; name fewer"
        )
    asked = {}
    for position, (gene, change) in zip(positions, pairs, strict=True):
        number = _SIGNS.get(change) if isinstance(change, str) else change
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise InputError(f"targets[{gene!r}]: {change!r} came; '+', '-' or a finite log2 fold change was expected")
        asked[position] = float(number)
    if not any(asked.values()):
        raise InputError(
            f"targets: no gene of {listing(gene for gene, _ in pairs)} is to change; one at least was expected"
        )
    return asked


@dataclass(frozen=True, eq=False)
class _Way:
    """What is to change, and the shortest step that does it."""

    decoder: ParameterMap
    genes: list[int]
    change: Tensor  # (targets,) float64, of log scale
    prior: float

    def log_scale(self, z_k: Tensor) -> Tensor:
        """Of the chosen genes, ``(targets,)`` float64."""
        with torch.no_grad():
            return self.decoder.log_mean(z_k[None], self.genes)[0].double()

    def step(self, z_k: Tensor, change: Tensor) -> Tensor | None:
        """The shortest step that changes log scales so, ``(k,)`` float64; None where there is none."""
        with torch.no_grad():
            j_tk = self.decoder.jacobian(lambda z: self.decoder.log_mean(z, self.genes), z_k[None])[:, 0].t().double()
        inside = _directions(self.decoder)
        g = inside.t() @ (metric_tensor(self.decoder, z_k[None])[0] + self.prior * torch.eye(len(z_k))) @ inside
        g = g + 1e-9 * g.diagonal().mean() * torch.eye(len(g))
        j = j_tk @ inside
        towards = torch.linalg.solve(g, j.t())  # G^-1 J^T
        gain = j @ towards
        values = torch.linalg.eigvalsh(gain)
        if values[0] <= 1e-9 * values[-1]:
            return None
        return inside @ (towards @ torch.linalg.solve(gain, change))

    def corrected(self, z_k: Tensor, goal: Tensor) -> Tensor | None:
        """A step to where the log scales are as they should be, mended until they are; None where it fails."""
        left = goal - self.log_scale(z_k)
        for _ in range(_CORRECTIONS):
            step = self.step(z_k, left)
            if step is None:
                return None
            z_k = (z_k.double() + step).to(z_k.dtype)
            before, left = left, goal - self.log_scale(z_k)
            if left.abs().max() < _CLOSE * math.log(2) / 2:
                return z_k
            if not torch.isfinite(left).all() or left.norm() > 2 * before.norm():
                return None
        return None


def _directions(decoder: ParameterMap) -> Tensor:
    """Where a point may go, ``(k, directions)``: on a simplex the coordinates keep their sum."""
    k = decoder.n_latent
    if not decoder.simplex:
        return torch.eye(k, dtype=torch.float64)
    across = torch.eye(k, dtype=torch.float64) - 1 / k
    return torch.linalg.svd(across)[0][:, : k - 1]


def _walk(way: _Way, z_k: Tensor, n_steps: int, limit: float | None) -> tuple[Tensor, list[float], str]:
    """Points on the way, the share of the change that is done at each, and why it ended early."""
    origin = way.log_scale(z_k)
    points, shares = [z_k], [0.0]
    least = 1 / n_steps / 2**_HALVINGS
    size = 1 / n_steps
    while shares[-1] < 1:
        share = min(shares[-1] + size, 1.0)
        share = 1.0 if share > 1 - 1e-9 else share
        found = way.corrected(points[-1], origin + share * way.change)
        if found is None or (way.decoder.simplex and (found < 0).any()):
            size /= 2
            if size < least:
                return torch.stack(points), shares, "no step nearby changes the genes any further as asked"
            continue
        if limit is not None and _support(way.decoder, found) > limit:
            edge, share = _to_edge(way, origin, points[-1], shares[-1], share, limit)
            if share > shares[-1]:
                points.append(edge)
                shares.append(share)
            return torch.stack(points), shares, f"the edge of the support ({limit:g} %) is reached"
        points.append(found)
        shares.append(share)
        size = min(2 * size, 1 / n_steps)
    return torch.stack(points), shares, ""


def _to_edge(way: _Way, origin: Tensor, inside: Tensor, low: float, high: float, limit: float) -> tuple[Tensor, float]:
    """The last point before the edge of the support, between two shares of the change, by bisection."""
    last, done = inside, low
    for _ in range(_EDGE_HALVINGS):
        share = (low + high) / 2
        found = way.corrected(inside, origin + share * way.change)
        if found is not None and _support(way.decoder, found) <= limit:
            last, done, low = found, share, share
        else:
            high = share
    return last, done


def _support(decoder: ParameterMap, z_k: Tensor) -> float:
    assert decoder.support is not None, "asked for where there is one"
    return float(decoder.support.percentile(z_k[None].float())[0])


def _report(way: _Way, asked: dict[int, float], points: Tensor, time: list[float], stopped: str, n_others: int) -> Move:
    decoder = way.decoder
    ends = points[[0, -1]]
    with torch.no_grad():
        log_mean = decoder.log_mean(ends).double().numpy()
        distance = (2 * divergence(decoder, ends[:1], ends[1:])[0].double()).clamp(min=0).sqrt().numpy()
    fold = (log_mean[1] - log_mean[0]) / math.log(2)
    names = np.array(decoder.genes, dtype=object)
    targets = pd.DataFrame(
        {"asked": list(asked.values()), "reached": fold[list(asked)]}, index=pd.Index(names[list(asked)], name="gene")
    )
    others = pd.DataFrame(
        {
            "log2_fold_change": fold,
            "before": np.exp(log_mean[0]),
            "after": np.exp(log_mean[1]),
            "distance": distance,
        },
        index=pd.Index(names, name="gene"),
    ).drop(index=targets.index)
    if stopped:
        warn(
            f"move: {stopped}, at {time[-1]:.0%} of the change asked for (see targets); ask for fewer or smaller "
            "changes, or start elsewhere",
            SupportWarning if "support" in stopped else ConvergenceWarning,
        )
    z_nk = points.float()
    return Move(
        points=z_nk.numpy(),
        time=np.array(time),
        targets=targets,
        others=others.sort_values("distance", ascending=False).head(n_others),
        length=length_of(decoder, points).length if len(points) > 1 else 0.0,
        support=None if decoder.support is None else decoder.support.percentile(z_nk),
        complete=not stopped,
        stopped=stopped,
        conditions=decoder.arguments,
        measured=decoder.conditions,
    )
