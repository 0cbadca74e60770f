"""What paths are made of, in the forms that people have it: values, spreads, lineages, conditions of each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode.errors import ConditionWarning, InputError, PointsError, unknown_name, warn
from scdecode.points import read_points
from scdecode.said import read_categories, read_numbers
from scdecode.schema import Schema

CONDITIONS = ("batch", "labels", "categorical", "continuous", "library_size")
"""Arguments of decode that a path may bring with it."""


def read_paths(
    points: Any, n_latent: int | None, spread: Any, lineages: Sequence[str] | None, *, simplex: bool
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None]:
    """Points of one path ``(n, k)`` or of several ``(lineages, n, k)``, their covariances, and the paths' names.

    Raises
    ------
    PointsError
        For paths of other lengths, fewer than two points, and whatever is wrong with points.
    """
    if isinstance(points, Mapping):
        lineages = [str(name) for name in points] if lineages is None else lineages
        shapes = {np.shape(path) for path in points.values()}
        if len(shapes) != 1:
            raise PointsError(f"points: paths of shapes {sorted(shapes)} came; as many points each were expected")
        points = np.stack([np.asarray(path) for path in points.values()])
    k = int(np.shape(values_of(points))[-1]) if n_latent is None else n_latent
    read = read_points(points, k, spread=spread, simplex=simplex)
    if len(read.shape) not in (1, 2) or read.shape[-1] < 2:
        raise PointsError(
            f"points: shape {(*read.shape, k)} came, (n, k) or (lineages, n, k) was expected, n at least 2"
        )
    if len(read.shape) == 1 and lineages is not None:
        raise PointsError(
            f"lineages: {list(lineages)} came for one path, (n, k); several, (lineages, n, k), have names"
        )
    if len(read.shape) == 2 and lineages is None:
        lineages = [f"path_{i + 1}" for i in range(read.shape[0])]
    return (
        read.z_nk.numpy().reshape(*read.shape, k),
        None if read.spread is None else covariances_of(read.spread).reshape(*read.shape, k, k),
        None if lineages is None else tuple(str(name) for name in lineages),
    )


def read_times(time: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The time of each point, for one path or the same for several.

    Raises
    ------
    PointsError
        For another shape.
    """
    array = np.asarray(time, dtype=np.float64)
    if array.shape not in (shape, shape[-1:]):
        raise PointsError(f"time: shape {array.shape} came, one number a point, {shape}, was expected")
    return np.array(np.broadcast_to(array, shape))


def values_of(points: Any) -> Any:
    """What has the shape of the points."""
    if isinstance(points, AnnData):
        raise PointsError("z: an AnnData came; pass model.posterior(adata), or Trajectory.from_lineages(model, adata)")
    return getattr(points, "mean", points) if hasattr(points, "log_prob") else points


def covariances_of(spread: np.ndarray) -> np.ndarray:
    """Covariances of what are standard deviations or covariances already."""
    if spread.ndim == 3:
        return spread
    return np.asarray(spread[:, :, None] ** 2 * np.eye(spread.shape[1]))


def variances_of(spread: np.ndarray | None) -> np.ndarray | None:
    """Variances in each dimension, ``(n, k)``."""
    if spread is None:
        return None
    return np.asarray(spread**2 if spread.ndim == 2 else np.diagonal(spread, axis1=1, axis2=2))


def by_lineage(place: str, values: Any) -> dict[str | None, Any]:
    """Values of each cell, by lineage; None is the name of those of all."""
    if values is None:
        return {}
    if isinstance(values, Mapping):
        values = pd.DataFrame(values)
    if isinstance(values, pd.DataFrame):
        return {str(name): values[name].to_numpy() for name in values}
    array = np.asarray(values)
    if array.ndim == 1 and array.dtype.kind in "OUS":  # names: a lineage each
        return {str(name): (array == name).astype(float) for name in pd.unique(pd.Series(array).dropna())}
    if array.ndim == 2:
        return {f"lineage_{i + 1}": array[:, i] for i in range(array.shape[1])}
    if array.ndim != 1:
        raise InputError(f"{place}: shape {array.shape} came, one a cell, (n,) or (n, lineages), was expected")
    return {None: array}


def lineage_names(times: Mapping[str | None, Any], weights: Mapping[str | None, Any]) -> tuple[str, ...] | None:
    """The names of several lineages, which the pseudotimes and the weights must agree on; None for one without."""
    named = [[name for name in found if name is not None] for found in (times, weights)]
    if named[0] and named[1] and named[0] != named[1]:
        raise InputError(
            f"weights: the lineages {named[1]} came, but those of the pseudotime are {named[0]}; name the same"
        )
    names = named[0] or named[1]
    return tuple(names) if names else None


def read_conditions(shape: tuple[int, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions of a path, arrays in the shape of its points."""
    for name in given:
        if name not in CONDITIONS:
            raise InputError(unknown_name("argument", name, CONDITIONS, "conditions of a path"))

    def fitted(place: str, value: Any) -> Any:
        if isinstance(value, pd.Series | pd.Categorical):
            value = np.asarray(value)
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            return value
        if value.shape not in (shape, shape[-1:]):
            raise PointsError(f"{place}: shape {value.shape} came, one value a point, {shape}, was expected")
        return np.broadcast_to(value, shape)

    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in ("categorical", "continuous"):
            found[name] = {key: fitted(f"{name}[{key!r}]", v) for key, v in dict(value).items()}
        else:
            found[name] = fitted(name, value)
    return found


def shared_conditions(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of several paths that hold for all of them at each time; a warning names those that do not."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        if isinstance(value, Mapping) and name in ("categorical", "continuous"):
            found[name] = shared_conditions(value)
        elif not isinstance(value, np.ndarray):
            found[name] = value
        elif (value == value[0]).all():
            found[name] = value[0]
        else:
            warn(
                f"{name}: the paths differ in it, so the pooled path is without it; pass it to decode, where one holds",
                ConditionWarning,
            )
    return found


def check_conditions(schema: Schema, n_points: int, own: Mapping[str, Any]) -> None:
    """Raise :class:`ConditionError` for conditions that a model does not know."""
    read_categories(schema, n_points, own.get("batch"), own.get("labels"), own.get("categorical"))
    read_numbers(schema, n_points, own.get("continuous"))


def part_of(values: Any, at: int, n_lineages: int) -> Any:
    """What is said of one of several lineages: of arrays with a row a lineage, in mappings of any depth, that row."""
    if isinstance(values, Mapping):
        return {key: part_of(value, at, n_lineages) for key, value in values.items()}
    return values[at] if isinstance(values, np.ndarray) and len(values) == n_lineages else values
