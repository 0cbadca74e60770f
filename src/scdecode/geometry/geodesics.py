"""Geodesics: the paths along which what is decoded changes the least, kept where the model has seen cells.

A path is a cubic spline through a few knots. What is minimised is its energy in the pulled-back metric, as the sum of
the divergences of consecutive decoded distributions (Arvanitidis et al. 2022, Pulling back information geometry,
AISTATS, PMLR 151:4872),

    E = 2 N  sum_i KL( p(x | z_i) || p(x | z_i+1) ),   i = 0 .. N - 1

which tends to the integral of the squared speed and is least for an even speed, where it is the squared length. To it
comes the price of leaving the support, in units of the straight line's energy: a path that runs along the edge all the
way pays ``penalty`` times as much as the straight line is long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, PerPoint
from scdecode._utils.notebook import Shown
from scdecode.errors import ConvergenceWarning, InputError, PointsError, check_integer, check_number, unknown_name, warn
from scdecode.geometry.decoded import DecoderLike, ParameterMap, parameter_map
from scdecode.geometry.metric import length_of
from scdecode.geometry.nearness import Nearness
from scdecode.geometry.searching import STEPS, Found, Spline, Task, search
from scdecode.kernels.threads import own_threads
from scdecode.paths.graph import shortest_track
from scdecode.points import PointsLike
from scdecode.support import FAR

STARTS = ("graph", "linear")
"""What the search starts from."""

_FINE = 400  # intervals at which the finished path is measured
_HEAVIEST = 10  # of the conditions that are averaged over: so many the search looks at
_LONGER = 1e-3  # of the straight line: longer by less is as long


@dataclass(frozen=True, eq=False)
class Geodesic(Shown):
    """A path of least energy; made by :func:`geodesic`. ``model.decode`` takes it as it is."""

    points: np.ndarray  # (n, k) float32, evenly spaced by metric length
    time: np.ndarray  # (n,) float64: the share of the metric length that lies behind, 0 to 1
    length: float  # in the metric
    straight_length: float  # of the straight line between the ends, in the metric
    start_length: float  # of the path that the search started from (the graph's), in the metric
    energy: np.ndarray  # (iterations + 1,) the energy in the course of the search, in squared lengths
    penalty: np.ndarray  # (iterations + 1,) what leaving the support cost, likewise
    converged: bool
    n_iterations: int
    support: np.ndarray | None  # (n,) percent, as model.support; None without reference cells
    origin: str  # how it was made, in words
    notes: tuple[str, ...] = ()  # what there is to know about it
    conditions: Mapping[str, Any] = field(default_factory=dict)  # as arguments of decode, but for the library size
    measured: Mapping[str, Any] = field(default_factory=dict)  # what it was measured with, in words

    @property
    def spread(self) -> None:
        """None: it is a bare line."""

    @property
    def ratio(self) -> float:
        """The straight line's length over its own: 1 where it is as good, below 1 where it is shorter."""
        return self.straight_length / self.length

    @property
    def report(self) -> dict[str, Any]:
        """All about it but the points."""
        return {
            "length": self.length,
            "straight_length": self.straight_length,
            "ratio": self.ratio,
            "start_length": self.start_length,
            "energy": self.energy.tolist(),
            "penalty": self.penalty.tolist(),
            "converged": self.converged,
            "n_iterations": self.n_iterations,
            "largest_support": None if self.support is None else float(self.support.max()),
            "notes": list(self.notes),
            "conditions": dict(self.measured),
        }

    def __repr__(self) -> str:
        """One line, as the arrays are long."""
        return f"Geodesic: {self.origin}; length {self.length:.4g}, straight {self.straight_length:.4g}"

    def __len__(self) -> int:
        return len(self.points)


@checked
def geodesic(
    model: DecoderLike,
    start: PointsLike,
    end: PointsLike,
    *,
    n_points: int = 100,
    n_knots: int = 8,
    init: Any = "graph",
    penalty: float = 1.0,
    max_iterations: int = 200,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    library_size: LibrarySize = None,
    max_conditions: int = 100,
) -> Geodesic:
    """The path between two points along which the decoded distributions change the least.

    Straight lines of a latent space are often nearly geodesic: see :attr:`Geodesic.ratio` before you read much into a
    bend. The path found is a local minimum near where the search starts; where the straight line would be better than
    what was found, the search is repeated from there, and the better of the two is returned.

    The price of leaving the support is by the distance to the nearest cells. That keeps a path out of wide gaps, but
    does not see that the middle of a tube of cells is hollow, as cells of many latent dimensions lie around their mean
    and not at it: on the line through such a middle, support was measured at 0 to 8 %, nearer than a typical cell, so
    that it costs nothing there.

    Averaged over more than 10 conditions, the search looks at the 10 of the largest weight, which ``notes`` say; the
    lengths and the spacing of the points are those of all.

    Parameters
    ----------
    model
        A trained model, or a :class:`ParameterMap`.
    start, end
        A latent point, ``(k,)``; or a set of cells, ``(m, k)``, which stands for the one nearest to its mean.
    n_points
        Points on the path, both ends included, evenly spaced by metric length.
    n_knots
        Knots of the spline between the ends; more allow sharper bends and take longer.
    init
        What the search starts from: ``"graph"``, the shortest path in the graph of the reference cells (the straight
        line for a model that has none); ``"linear"``; or points in order, ``(m, k)``.
    penalty
        Price of leaving the support, in energies of the straight line, for a path along its edge; 0 for none. A model
        without reference cells has none, which the notes say.
    max_iterations
        Of the search.
    batch, labels, categorical, continuous, library_size, max_conditions
        As for ``model.decode``, but the same all along. The path keeps them, but for the library size, as its
        ``conditions``, which hold where it is decoded.

    Raises
    ------
    PointsError
        For points of the wrong width, NaN, ends that are the same or that no path in the graph connects.
    ConditionError
        For conditions that are unknown, or that change along the path.
    InputError
        For another ``init``.
    ConfigError
        For numbers out of range.
    """
    check_integer("n_points", n_points, minimum=2, maximum=1_000_000)
    check_integer("n_knots", n_knots, minimum=1, maximum=1_000)
    check_integer("max_iterations", max_iterations, minimum=1)
    check_number("penalty", penalty, 0.0, 1e12)
    decoder = parameter_map(
        model,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
    )
    ends = torch.stack([decoder.read_one(start, "start"), decoder.read_one(end, "end")])
    if torch.allclose(ends[0], ends[1]):
        raise PointsError("start, end: they are the same point; a path needs two that differ")
    nearness = Nearness.of(decoder.support)
    with own_threads():  # many small operations, after each of which torch's own threads would meet
        first, origin, notes = _first_path(decoder, ends, init, nearness)
        if nearness is None and penalty > 0:
            notes.append("the model has no reference cells: nothing keeps the path where it has learned")
        straight_length = length_of(decoder, ends).length
        _check_finite(straight_length)
        if straight_length == 0:
            raise PointsError("start, end: the decoder does not tell them apart, so no path between them has a length")
        searched, left_out = _heaviest(decoder)
        notes += left_out
        task = Task(searched, nearness, penalty, ends.double().numpy(), Spline(n_knots, STEPS), straight_length**2)
        found = search(task, first, max_iterations)
        straight = np.linspace(ends[0].numpy(), ends[1].numpy(), 2)
        # "not ... <=" is true of NaN, too
        if origin != "linear" and not found.total <= task.cost(task.spline.fit(straight, task.ends)).total:
            notes.append(
                f"from the {origin} path the search ended in a path worse than the straight line: repeated from there"
            )
            other = search(task, straight, max_iterations)
            found = found if found.total <= other.total else other
        _check_finite(found.total)
        return _finish(decoder, task, found, first, n_points, origin, notes, straight_length)


def _check_finite(number: float) -> None:
    if not np.isfinite(number):
        raise PointsError(
            "start, end: between them the decoder gives NaN or infinite values, so no path there has a length; pass "
            "ends nearer to the cells, or a decoder that is finite"
        )


def _first_path(
    decoder: ParameterMap, ends: Tensor, init: Any, nearness: Nearness | None
) -> tuple[np.ndarray, str, list[str]]:
    """What the search starts from, ``(m, k)``, in words, and what there is to say of it."""
    straight = ends.double().numpy()
    if not isinstance(init, str):
        points = decoder.read(init).double().numpy()
        return np.concatenate([straight[:1], points, straight[1:]]), "given", []
    if init not in STARTS:
        raise InputError(unknown_name("init", init, STARTS, "ways to start; points (m, k) are another"))
    if init == "linear":
        return straight, "linear", []
    if nearness is None:
        return (
            straight,
            "linear",
            ["the model has no reference cells, so no graph: the search starts from the straight line"],
        )
    support = nearness.support
    cells = (support.landmarks_gmk.flatten(0, 1) + support.centre_k).numpy()
    try:
        track = shortest_track(cells, ends[0].numpy(), ends[1].numpy(), STEPS + 1)
    except PointsError as error:
        raise PointsError(f"{error}; init='linear' starts from the straight line") from error
    return track.points_nk.astype(np.float64), "graph", []


def _heaviest(decoder: ParameterMap) -> tuple[ParameterMap, list[str]]:
    """The map of the heaviest slots alone, each step of a search being as long as there are slots; and a note."""
    slots = sorted(decoder.slots, key=lambda slot: -slot.weight)
    kept = slots[:_HEAVIEST]
    if len(kept) == len(slots):
        return decoder, []
    total, all_of_them = sum(slot.weight for slot in kept), sum(slot.weight for slot in slots)
    note = (
        f"the search saw the {len(kept)} heaviest of the {len(slots)} conditions averaged over "
        f"({total / all_of_them:.0%} of the weight); lengths and spacing are of all"
    )
    few = tuple(replace(slot, weight=slot.weight * all_of_them / total) for slot in kept)
    return replace(decoder, slots=few), [note]


def _finish(
    decoder: ParameterMap,
    task: Task,
    found: Found,
    first: np.ndarray,
    n_points: int,
    origin: str,
    notes: list[str],
    straight_length: float,
) -> Geodesic:
    """Measure the path, space its points evenly, and say what there is to say."""
    time = np.linspace(0.0, 1.0, _FINE + 1)
    measured = length_of(decoder, task.points(found.knots, task.spline.at(time)))
    even = np.interp(np.linspace(0.0, 1.0, n_points), measured.share, time)
    points = task.points(found.knots, task.spline.at(even))
    points[[0, -1]] = torch.from_numpy(task.ends).to(decoder.dtype)
    if not found.converged:
        message = (
            f"geodesic: the search did not converge in {len(found.trace) - 1} steps ({found.message}); the path is "
            "the best so far. Raise max_iterations, or take fewer n_knots"
        )
        warn(message, ConvergenceWarning)
        notes.append(message)
    if measured.length > straight_length * (1 + _LONGER):
        straight = task.cost(task.spline.fit(task.ends, task.ends))
        kept = straight.penalty > found.trace[-1].penalty
        notes.append(
            "longer than the straight line, which leaves the support further"
            if kept
            else "longer than the straight line, and not for the support's sake: the straight line is the better path"
        )
    z_nk = points.float()
    support = None if decoder.support is None else decoder.support.percentile(z_nk)
    if support is not None and (far := int((support > FAR).sum())):
        notes.append(f"{far:,} of {n_points:,} points are outside the support ({FAR:g} %)")
    return Geodesic(
        points=z_nk.numpy(),
        time=np.linspace(0.0, 1.0, n_points),
        length=measured.length,
        straight_length=straight_length,
        start_length=length_of(decoder, torch.from_numpy(first).to(decoder.dtype)).length,
        energy=np.array([cost.energy for cost in found.trace]) * task.unit,
        penalty=np.array([cost.penalty for cost in found.trace]) * task.unit,
        converged=found.converged,
        n_iterations=len(found.trace) - 1,
        support=support,
        origin=f"geodesic from the {origin} path, {n_points} points, {len(found.knots)} knots",
        notes=tuple(notes),
        conditions=decoder.arguments,
        measured=decoder.conditions,
    )
