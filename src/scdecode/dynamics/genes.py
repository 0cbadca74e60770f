"""What each gene does along a path: one row a gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, NamesLike, PerPoint, Seed, SpreadLike
from scdecode.dynamics.hermite import Extremes, extremes
from scdecode.dynamics.pairs import at_times
from scdecode.dynamics.routes import Asked, Route, read_routes
from scdecode.dynamics.shapes import LEAST_SCORE, MIN_CHANGE, SHAPES, name_shapes, scores
from scdecode.dynamics.trends import Trends, walk
from scdecode.errors import PointsError, check_number
from scdecode.expression import Decodable
from scdecode.points import PathsLike
from scdecode.pseudocounts import PSEUDOCOUNT

_STEPS = 30
"""Points at which a path is walked, at least, where between them it is a smooth curve."""
_GENES = 4096  # at a time, of what is computed in double precision between the points


@runtime_checkable
class Several(Protocol):
    """Several models of the same genes, such as a :class:`scdecode.Ensemble`."""

    @property
    def models(self) -> Sequence[Decodable]:
        """The models."""

    def paths(self, points: Any) -> Sequence[Any]:
        """The path in each model's latent space."""


@checked
def gene_dynamics(
    model: Decodable | Several,
    path: PathsLike,
    *,
    genes: NamesLike | str | None = None,
    quantity: str = "rate",
    library_size: LibrarySize = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    spread: SpreadLike = None,
    n_samples: int | None = None,
    seed: Seed | None = None,
    pseudocount: float = PSEUDOCOUNT,
    min_change: float = MIN_CHANGE,
    least_score: float = LEAST_SCORE,
    max_conditions: int = 100,
) -> pd.DataFrame:
    """Say what each gene does along a path, and how far the change is more than its error bars.

    The trend of a gene is its mean over the tube, E[f(z(t) + L(t) eps)], where L L' is the spread around the point
    z(t). Its derivative is that of the decoder, E[J (dz/dt + dL/dt eps)], by Jacobian-vector products with the same
    draws eps, no difference of decoded values; dz/dt and dL/dt are those of cubic splines through the points and
    through their L. Between the points a trend is the cubic with those values and derivatives, in log2; a path of
    fewer than 30 points is walked along the splines at 30 at least.

    Parameters
    ----------
    model, path
        A model and a :class:`scdecode.Trajectory` of at least three points, with one or several lineages. Or an
        :class:`scdecode.Ensemble` and, as its :meth:`paths` takes them, a path in the latent space of each model, at
        the same times; the trends are then averaged over the models, in log2, and how much they differ counts as an
        error bar too.
    genes, library_size, batch, labels, categorical, continuous, spread, seed, max_conditions
        As for :meth:`scdecode.SCVI.decode`; what the path itself says of conditions holds where nothing is said here.
    quantity
        ``"rate"``, ``"scale"`` or ``"mean"``.
    n_samples
        Draws for the spread; 128 by default. Memory grows with draws x genes, and with points x genes.
    pseudocount
        Counts per ten thousand that are added before the logarithm, so that genes near zero do not win; for the scale
        as a fraction. The default, 0.1, is a gene counted in one of ten cells of 10,000 counts: below that no model has
        learned a fold change. In the simulations of :data:`LEAST_SCORE`, it told genes that change from others better
        than 1, which hides those of low expression.
    min_change
        The least change that is of interest, in log2.
    least_score
        The least score of a gene that is not ``"flat"``.

    Returns
    -------
    pandas.DataFrame
        A row for each gene (and lineage, where there are several), the highest score first:

        ``gene``, ``lineage``
            Names; ``lineage`` only where the path has several.
        ``start``, ``end``
            The mean at the first and the last point, in the unit of the quantity.
        ``log2_fold_change``
            End over start, ``log2((end + c) / (start + c))`` with the pseudocount c.
        ``peak_time``, ``peak``, ``trough_time``, ``trough``
            Where the trend is highest and lowest, between the points too, and its values there.
        ``fastest_time``, ``fastest_rate``
            Where the trend changes fastest in log2, up or down, and its derivative there, log2 a unit of time. In log2,
            as a gene is switched on where it multiplies: in counts, it would be fastest where it is high already.
        ``log2_range``
            log2 of the peak over the trough.
        ``std``
            Of that change, over the draws: each draw keeps its place in the tube, relative to the path, all along, and
            so has a change of its own between the same two points. What all draws share is no part of it. Zero for a
            bare line.
        ``std_models``
            Of that change between the models; only where there are several.
        ``shape``
            ``"up"``, ``"down"``, ``"transient"``, ``"valley"`` or ``"flat"``, see :func:`name_shapes`.
        ``score``
            ``log2_range / sqrt(std^2 + std_models^2 + min_change^2)``.
        ``rank``
            1 is the highest score, in each lineage.

        ``attrs`` has ``unit``, ``quantity``, ``time_name``, ``conditions``, ``supported`` (the share of the path's
        points that have training cells near; None where the model keeps none), ``pseudocount``, ``min_change`` and
        ``least_score``.

    Raises
    ------
    PointsError
        For what is no path, fewer than three points, times that do not increase, paths that do not fit one another.
    ConditionError, InputError
        As for :meth:`scdecode.SCVI.decode`.

    Notes
    -----
    Where conditions change from point to point, trends are no smooth curves: peaks are then looked for at the points
    alone, and the fastest change is that due to the path, at fixed conditions.
    """
    check_number("min_change", min_change, 0.0, open_minimum=True)
    check_number("least_score", least_score, 0.0)
    models, paths = _in_lists(model, path)
    asked = [
        read_routes(
            one,
            through,
            genes=genes,
            quantity=quantity,
            library_size=library_size,
            batch=batch,
            labels=labels,
            categorical=categorical,
            continuous=continuous,
            spread=spread,
            n_samples=n_samples,
            seed=seed,
            pseudocount=pseudocount,
            max_conditions=max_conditions,
        )
        for one, through in zip(models, paths, strict=True)
    ]
    _check_alike(asked)
    tables = []
    for routes in zip(*(one.routes for one in asked), strict=True):
        table = _table(asked[0].genes, routes, min_change, least_score)
        if routes[0].name is not None:
            table.insert(1, "lineage", routes[0].name)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    supported = [one.supported for one in asked if one.supported is not None]
    table["shape"] = pd.Categorical(table["shape"], categories=SHAPES)
    table.attrs = {
        "unit": asked[0].unit,
        "quantity": quantity,
        "time_name": asked[0].time_name,
        "conditions": asked[0].said,
        "supported": min(supported) if len(supported) == len(asked) else None,
        "pseudocount": pseudocount,
        "min_change": min_change,
        "least_score": least_score,
    }
    return table


def _in_lists(model: Any, path: Any) -> tuple[list[Decodable], list[Any]]:
    if isinstance(model, Several):
        return list(model.models), list(model.paths(path))
    return [model], [path]


def _check_alike(asked: Sequence[Asked]) -> None:
    """Several models must say the same things of the same times; their genes are the same."""
    first = asked[0]
    for i, other in enumerate(asked[1:], 1):
        times = [[route.time_n for route in one.routes] for one in (first, other)]
        if len(times[0]) != len(times[1]) or not all(map(_same, *times)):
            raise PointsError(f"path: that of model {i} has other times than that of model 0; the same were expected")


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b))


def _table(genes: tuple[str, ...], routes: Sequence[Route], min_change: float, least_score: float) -> pd.DataFrame:
    """The table of one lineage, in one or several models."""
    routes = _finer(routes)
    trends = [walk(route) for route in routes]
    parts = [
        _part(routes, trends, slice(start, min(start + _GENES, len(genes))), min_change, least_score)
        for start in range(0, len(genes), _GENES)
    ]
    table = pd.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    table.insert(0, "gene", np.asarray(genes, dtype=object))
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    table = table.iloc[order].reset_index(drop=True)
    return table.assign(rank=np.arange(1, len(genes) + 1))


def _finer(routes: Sequence[Route]) -> Sequence[Route]:
    """Routes of few points with more between them: a cubic from each to the next would miss what is in between."""
    time_n = routes[0].time_n
    times = -(-(_STEPS - 1) // (len(time_n) - 1))
    if times < 2 or not all(route.steady for route in routes):
        return routes
    finer = np.interp(np.arange((len(time_n) - 1) * times + 1) / times, np.arange(len(time_n)), time_n)
    finer[::times] = time_n  # the points themselves, to the last digit
    return [at_times(route, finer) for route in routes]


def _part(
    routes: Sequence[Route], trends: Sequence[Trends], genes: slice, min_change: float, least_score: float
) -> dict[str, np.ndarray]:
    """The columns of some genes."""
    time_n = routes[0].time_n
    logs = [log_trend(route, trend, genes) for route, trend in zip(routes, trends, strict=True)]
    value_ng, slope_ng = (np.mean([log[i] for log in logs], axis=0) for i in (0, 1))
    found = extremes(time_n, value_ng, slope_ng, between=all(route.steady for route in routes))
    std = np.zeros(value_ng.shape[1])
    for trend in trends:
        if trend.change_sg is not None:
            std += trend.change_sg[:, genes].var(axis=0, dtype=np.float64) / len(trends)
    std = np.sqrt(std)
    columns = {"std": std}
    if len(routes) > 1:
        high, low, at = value_ng.argmax(axis=0), value_ng.argmin(axis=0), np.arange(value_ng.shape[1])
        columns["std_models"] = np.std([value[high, at] - value[low, at] for value, _ in logs], axis=0, ddof=1)
    error = np.sqrt(sum(column**2 for column in columns.values()))
    span = found.peak - found.trough
    return {
        **_in_units(routes, value_ng, found),
        "log2_fold_change": value_ng[-1] - value_ng[0],
        "fastest_time": found.fastest_time,
        "fastest_rate": found.fastest_rate,
        "log2_range": span,
        **columns,
        "shape": name_shapes(
            value_ng[0],
            value_ng[-1],
            found.peak,
            found.trough,
            error,
            min_change=min_change,
            least_score=least_score,
        ),
        "score": scores(span, error, min_change),
    }


def log_trend(route: Route, trend: Trends, genes: slice) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the mean with the pseudocount, and its derivative, ``(n, g)`` in double precision."""
    raised_ng = trend.mean_ng[:, genes].astype(np.float64) + route.pseudocounts(slice(None))
    return np.log2(raised_ng), trend.slope_ng[:, genes] / (raised_ng * np.log(2.0))


def _in_units(routes: Sequence[Route], value_ng: np.ndarray, found: Extremes) -> dict[str, np.ndarray]:
    """Back from log2, the pseudocount off again."""
    time_n = routes[0].time_n
    counts_n = np.mean([np.broadcast_to(route.pseudocount_n, time_n.shape) for route in routes], axis=0)

    def value(log: np.ndarray, time: np.ndarray | float) -> np.ndarray:
        return np.maximum(np.exp2(log) - np.interp(time, time_n, counts_n), 0.0)

    return {
        "start": value(value_ng[0], time_n[0]),
        "end": value(value_ng[-1], time_n[-1]),
        "peak_time": found.peak_time,
        "peak": value(found.peak, found.peak_time),
        "trough_time": found.trough_time,
        "trough": value(found.trough, found.trough_time),
    }
