"""Points of a path that are known already, in any form: one path, several, by name, a trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch.distributions import Distribution

from scdecode._utils.names import check_names, names_of
from scdecode.errors import PointsError, unknown_name
from scdecode.path_inputs import is_path, part_of, read_conditions, width_of
from scdecode.points import DEFAULT_REP, as_numpy, read_array, read_points

WithSpread: TypeAlias = Annotated[
    bool,
    "True or False; to give a path a spread of your own: Trajectory.from_points(path.points, path.time, spread=...)",
    PointsError,
]
"""Whether a path carries the spread of the cells around it."""

_AXES = ("points", "time", "spread")  # of a path, with a row a lineage


@dataclass(frozen=True, eq=False)
class Parts:
    """What a path through known points is made of; made by :func:`read_parts`."""

    points: np.ndarray  # (n, k), or (lineages, n, k), float32
    time: np.ndarray | None  # the leading axes of the points, float64
    spread: np.ndarray | None  # covariances of the points
    lineages: tuple[str, ...] | None
    time_name: str | None
    conditions: dict[str, Any]


def read_parts(
    points: Any,
    n_latent: int | None,
    time: Any,
    spread: Any,
    lineages: Sequence[str] | None,
    conditions: Mapping[str, Any],
    *,
    simplex: bool,
) -> Parts:
    """Points, times, spreads, names and conditions of one path or of several.

    Parameters
    ----------
    points
        In any form that ``model.decode`` takes; of a trajectory all is taken that is not given.
    n_latent
        The model's k; None: that of the points.
    time, spread, conditions
        Of each point; None: none, or what the points have.
    lineages
        Names of paths that have none; of those that have names, which, and in which order.
    simplex
        Whether latent points are non-negative and sum to one.

    Raises
    ------
    PointsError, ConditionError, InputError
        For whatever does not fit.
    """
    names = names_of(points)
    time_name = None
    if is_path(points):
        kept = _kept(points, lineages)
        if time is None:
            time, time_name = kept["time"], getattr(points, "time_name", None)
        spread = kept["spread"] if spread is None or spread is True else spread
        conditions = _merged(kept["conditions"], conditions)
        points, lineages = kept["points"], kept["lineages"]
    z, around, lineages = read_paths(points, n_latent, spread, lineages, simplex=simplex)
    names = pd.RangeIndex(z.shape[-2]) if names is None else names
    check_names("time", time, names)
    return Parts(
        points=z,
        time=None if time is None else read_times(time, z.shape[:-1]),
        spread=around,
        lineages=lineages,
        time_name=time_name,
        conditions=read_conditions(z.shape[:-1], conditions, names),
    )


def read_paths(
    points: Any, n_latent: int | None, spread: Any, lineages: Sequence[str] | None, *, simplex: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None]:
    """Points of one path ``(n, k)`` or of several ``(lineages, n, k)``, their covariances, and the paths' names.

    Raises
    ------
    PointsError
        For paths of other lengths, fewer than two points, names that are not there, and whatever is wrong with points.
    """
    lineages = _read_names(lineages)
    if isinstance(points, Mapping):
        points, own, lineages = _stacked(points, lineages, simplex=simplex)
        spread = own if own is not None and (spread is None or spread is True) else spread
    k = width_of(points) if n_latent is None else n_latent
    read = read_points(points, k, spread=spread, simplex=simplex)
    if len(read.shape) not in (1, 2) or read.shape[-1] < 2:
        raise PointsError(
            f"points: shape {(*read.shape, k)} came, (n, k) or (lineages, n, k) was expected, n at least 2"
        )
    if len(read.shape) == 1 and lineages is not None and len(lineages) != 1:
        raise PointsError(
            f"lineages: {list(lineages)} came for one path, (n, k), which has one name; several are (lineages, n, k)"
        )
    if len(read.shape) == 2 and lineages is None:
        lineages = tuple(f"path_{i + 1}" for i in range(read.shape[0]))
    return (
        read.z_nk.numpy().reshape(*read.shape, k),
        None if read.spread is None else covariances_of(read.spread).reshape(*read.shape, k, k),
        lineages,
    )


def _read_names(lineages: Any) -> tuple[str, ...] | None:
    if lineages is None:
        return None
    if isinstance(lineages, str) or not isinstance(lineages, Iterable):
        raise PointsError(f"lineages: {lineages!r} came, a list of names, one a path, was expected")
    return tuple(str(name) for name in lineages)


def _chosen(lineages: Sequence[str], known: Sequence[str]) -> list[int]:
    """Where the names that are wanted are among those known."""
    for name in lineages:
        if name not in known:
            raise PointsError(unknown_name("lineages", name, known, "names of the paths"))
    if len(set(lineages)) < len(lineages):
        raise PointsError(f"lineages: {list(lineages)} came, which has a name twice; each once was expected")
    return [known.index(name) for name in lineages]


def _stacked(
    points: Mapping[Any, Any], lineages: tuple[str, ...] | None, *, simplex: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Paths by name as one array, their own covariances if they have any, and the names in order."""
    names = [str(name) for name in points]
    lineages = tuple(names) if lineages is None else lineages
    paths = [list(points.values())[at] for at in _chosen(lineages, names)]
    if any(is_path(path) for path in paths):
        raise PointsError(
            "points: a mapping with trajectories came, whose times may differ; pass their points, path.points, with "
            "time= and spread="
        )
    read = [read_points(p, width_of(p), simplex=simplex and isinstance(p, Distribution)) for p in paths]
    shapes = {(*r.shape, r.z_nk.shape[1]) for r in read}
    if len(shapes) != 1:
        raise PointsError(f"points: paths of shapes {sorted(shapes)} came; as many points each were expected")
    own = [None if r.spread is None else covariances_of(r.spread) for r in read]
    spreads = [spread for spread in own if spread is not None]
    if len(spreads) not in (0, len(own)):
        raise PointsError("points: some paths have a spread of their own and some have none; the same were expected")
    shape = shapes.pop()
    z = np.stack([r.z_nk.numpy().reshape(shape) for r in read])
    return z, np.stack(spreads) if spreads else None, lineages


def _kept(path: Any, lineages: Any) -> dict[str, Any]:
    """What a path has, of all its lineages or of those named."""
    names = getattr(path, "lineages", None)
    several = np.ndim(path.points) == 3
    kept = {
        **{key: None if (value := getattr(path, key)) is None else as_numpy(value) for key in _AXES},
        "conditions": dict(getattr(path, "conditions", None) or {}),
    }
    lineages = _read_names(lineages)
    if names is not None and lineages is not None and several:
        at = _chosen(lineages, [str(name) for name in names])
        kept = {key: part_of(value, at, len(names)) for key, value in kept.items()}
    return {**kept, "lineages": names if lineages is None else lineages}


def _merged(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions of a path under those that are given, one covariate at a time."""
    merged = dict(own)
    for name, value in given.items():
        if value is not None:
            both = name in ("categorical", "continuous") and isinstance(value, Mapping)
            merged[name] = {**own.get(name, {}), **value} if both else value
    return merged


def read_times(time: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The time of each point, for one path or the same for several.

    Raises
    ------
    PointsError
        For another shape, and what are no numbers.
    """
    array = read_array(time, "time", strings=False).astype(np.float64)
    if array.shape not in (shape, shape[-1:]):
        raise PointsError(f"time: shape {array.shape} came, one number a point, {shape}, was expected")
    return np.array(np.broadcast_to(array, shape))


def check_waypoints(waypoints: Any) -> tuple[list[Any], list[str]]:
    """Places that a path goes through and what messages call them.

    Raises
    ------
    PointsError
        For fewer than two, and cells without latents.
    """
    if isinstance(waypoints, pd.DataFrame):
        waypoints = waypoints.to_numpy()
    if isinstance(waypoints, str) or not isinstance(waypoints, Sequence | np.ndarray | torch.Tensor):
        raise PointsError(f"waypoints: {type(waypoints).__name__} came, a list of points or sets of cells was expected")
    places = list(waypoints) if getattr(waypoints, "ndim", 1) else []
    if len(places) < 2:
        raise PointsError(f"waypoints: {len(places)} came, two or more were expected")
    names = ["start", "end"] if len(places) == 2 else [f"waypoint {i}" for i in range(len(places))]
    for name, place in zip(names, places, strict=True):
        if isinstance(place, AnnData) and DEFAULT_REP not in place.obsm:
            raise PointsError(
                f"{name}: an AnnData came, without latents; pass the cells' posterior, model.posterior(adata[...]), or "
                "their points, model.get_latent_representation(adata[...])"
            )
    return places, names


def covariances_of(spread: np.ndarray) -> np.ndarray:
    """Covariances of what are standard deviations or covariances already."""
    if spread.ndim == 3:
        return spread
    return np.asarray(spread[:, :, None] ** 2 * np.eye(spread.shape[1]))
