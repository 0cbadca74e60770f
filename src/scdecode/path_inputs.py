"""What paths are made of, in the forms that people have it: cells in order, lineages, conditions of each point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scdecode._utils.names import are_numbers, check_names
from scdecode.errors import ConditionError, ConditionWarning, InputError, PointsError, listing, unknown_name, warn
from scdecode.points import Path, as_numpy, read_array, read_points
from scdecode.said import read_categories, read_numbers
from scdecode.schema import Schema

CONDITIONS = ("batch", "labels", "categorical", "continuous", "library_size")
"""Arguments of decode that a path may bring with it."""


# -- points


def is_path(points: Any) -> bool:
    """Whether it is a trajectory, or has what one has."""
    return isinstance(points, Path) and not isinstance(points, pd.DataFrame)  # which may have columns of those names


def values_of(points: Any, place: str = "z") -> Any:
    """What has the shape of the points."""
    if isinstance(points, AnnData):
        raise PointsError(
            f"{place}: an AnnData came; pass model.posterior(adata), or Trajectory.from_lineages(model, adata)"
        )
    return getattr(points, "mean", points) if hasattr(points, "log_prob") else points


def width_of(points: Any, place: str = "points") -> int:
    """How many dimensions latent points have.

    Raises
    ------
    PointsError
        For what is no array.
    """
    values = values_of(points.points if is_path(points) else points, place)
    shape = getattr(values, "shape", None)
    shape = tuple(shape) if isinstance(shape, tuple) else read_array(values, place).shape
    if len(shape) == 0:
        raise PointsError(f"{place}: {points!r} came, latent points (n, k) were expected")
    return int(shape[-1])


def variances_of(spread: np.ndarray | None) -> np.ndarray | None:
    """Variances in each dimension, ``(n, k)``."""
    if spread is None:
        return None
    return np.asarray(spread**2 if spread.ndim == 2 else np.diagonal(spread, axis1=1, axis2=2))


# -- cells in order, by lineage


@dataclass(frozen=True, eq=False)
class Ordered:
    """Cells in the order of a pseudotime; made by :func:`read_ordered`."""

    z_nk: np.ndarray
    variance_nk: np.ndarray | None  # of their posteriors
    time: dict[str | None, np.ndarray]  # by lineage; under None those of all
    weight: dict[str | None, np.ndarray]
    lineages: tuple[str, ...] | None


def read_ordered(z: Any, pseudotime: Any, weights: Any) -> Ordered:
    """Cells with their pseudotimes and weights.

    Raises
    ------
    PointsError, ConditionError, InputError
        For points that cannot be used, what are no numbers, cells in another order, lineages of other names.
    """
    cells = read_points(z, width_of(z, "z"))
    check_all_names({"pseudotime": pseudotime, "weights": weights}, cells.own_names, "cells")
    times, shares = by_lineage("pseudotime", pseudotime), by_lineage("weights", weights)
    times, shares = named_alike(times, pseudotime, shares, weights)
    return Ordered(cells.z_nk.numpy(), variances_of(cells.spread), times, shares, lineage_names(times, shares))


def check_all_names(given: Mapping[str, Any], names: pd.Index, kind: str) -> None:
    """Check the names in numbers of each cell, by lineage or not, against the cells' and against one another.

    Raises
    ------
    ConditionError
        As :func:`scdecode._utils.names.check_names`.
    """
    for place, values in given.items():
        several = isinstance(values, Mapping)
        parts = {f"{place}[{name!r}]": part for name, part in values.items()} if several else {place: values}
        for own_place, part in parts.items():
            check_names(own_place, part, names, kind)
            if are_numbers(names) and isinstance(part, pd.Series | pd.DataFrame):
                names = part.index  # the cells have none: those of the first values that have some


def by_lineage(place: str, values: Any) -> dict[str | None, Any]:
    """Numbers of each cell, by lineage; None is the name of those of all.

    Weights may be the name of each cell's lineage: a categorical column, or strings that are not numbers. The columns
    of a table have names if it is a DataFrame, a mapping, or an array with ``names``, as CellRank's ``Lineage``.

    Raises
    ------
    PointsError
        For what are no numbers, and Series of other cells.
    InputError
        For another shape, names that repeat, and weights that may be numbers of clusters.
    """
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return _unique(place, [(str(name), column) for name, column in values.items()])
    if isinstance(values, pd.DataFrame):
        return _unique(place, [(str(name), values.iloc[:, i]) for i, name in enumerate(values)])
    names = _lineage_of_each(place, values) if place == "weights" else None
    if names is not None:
        known = set(names) - {None}
        order = [str(name) for name in values.dtype.categories] if _categorical(values) is not None else names
        return {name: (names == name).astype(float) for name in dict.fromkeys(order) if name in known}
    array = cell_numbers(place, values)
    if array.ndim == 2 and array.shape[1]:
        own = column_names(values) or [f"lineage_{i + 1}" for i in range(array.shape[1])]
        return _unique(place, list(zip(own, array.T, strict=True)))
    if array.ndim != 1:
        raise InputError(f"{place}: shape {array.shape} came, one a cell, (n,) or (n, lineages), was expected")
    return {None: array}


def column_names(values: Any) -> list[str] | None:
    """The names that the columns of a table have, if any: of a DataFrame, or of CellRank's ``Lineage``."""
    if isinstance(values, pd.DataFrame):
        return [str(name) for name in values.columns]
    names = getattr(values, "names", None)
    if names is None or isinstance(names, str) or np.ndim(values) != 2 or len(names) != np.shape(values)[1]:
        return None
    return [str(name) for name in names]


def cell_numbers(place: str, values: Any) -> np.ndarray:
    """Pseudotimes or weights as float64; categories that are numbers, or text of numbers, count as these.

    Raises
    ------
    PointsError
        For what are no numbers.
    InputError
        For weights that may be numbers of clusters.
    """
    category = _categorical(values)
    if category is not None:
        try:
            levels = category.categories.to_numpy().astype(np.float64)
        except (TypeError, ValueError) as error:
            raise PointsError(
                f"{place}: got categories {listing(category.categories, 5)} that are no array of numbers, numbers were "
                "expected; if they are ordered, pass their positions: series.cat.codes"
            ) from error
        array = np.append(levels, np.nan)[category.codes]
    else:
        array = read_array(values, place, strings=False).astype(np.float64)
    if place.startswith("weights"):
        _check_no_clusters(place, array)
    return array


def _check_no_clusters(place: str, array: np.ndarray) -> None:
    """Raise :class:`InputError` for whole numbers above one: 0 would be left out, and 2 would count twice as 1."""
    for column in array.reshape(len(array), -1).T if array.size and array.ndim else []:
        known = column[np.isfinite(column)]
        if len(known) and known.max() > max(1, known.min()) and (known == np.round(known)).all():
            raise InputError(
                f"{place}: got whole numbers up to {known.max():g}, which may be the numbers of clusters or weights; "
                "for a lineage of each cluster pass them as categories, pd.Categorical(values) or "
                "series.astype('category'); for weights divide them by their maximum"
            )


def _categorical(values: Any) -> pd.Categorical | None:
    """Categories with their codes, of whatever holds them."""
    if not isinstance(getattr(values, "dtype", None), pd.CategoricalDtype):
        return None
    category = pd.Categorical(values)
    if set(category.categories) <= {"True", "False"}:  # flags that a file has as text
        category = category.rename_categories({name: name == "True" for name in category.categories})
    return category


def _unique(place: str, columns: list[tuple[str, Any]]) -> dict[str | None, Any]:
    names = [name for name, _ in columns]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{place}: the lineages {listing(names)} came; names that differ were expected")
    return {name: cell_numbers(f"{place}[{name!r}]", column) for name, column in columns}


def _lineage_of_each(place: str, values: Any) -> np.ndarray | None:
    """The name of each cell's lineage, None where it has none; None for what are numbers."""
    category = _categorical(values)
    if category is not None:
        levels = category.categories
        if pd.api.types.is_bool_dtype(levels) or _is_fractional(levels):
            return None
        return np.array([*levels.astype(str), None], dtype=object)[category.codes]
    if isinstance(values, list | tuple):
        array = np.empty(len(values), dtype=object)  # numpy would make a name of NaN among names
        array[:] = values
    else:
        array = _names_or_numbers(values)
    if array.ndim != 1 or array.dtype.kind not in "OSU":
        return None
    array = array.astype(object)
    array[pd.isna(array)] = None
    known = [value for value in array if value is not None]
    if not any(isinstance(value, str) for value in known):
        return None
    odd = [value for value in known if not isinstance(value, str) or _is_number(value)]
    if odd:
        raise PointsError(
            f"{place}: strings came of which {listing(odd, 3)} are no names; numbers were expected, or the name of "
            "each cell's lineage, such as 'cluster_1'; of clusters with numbers pass pd.Categorical(values)"
        )
    return array


def _is_fractional(levels: pd.Index) -> bool:
    """Whether categories are numbers between whole ones, which are weights and no names."""
    if not pd.api.types.is_numeric_dtype(levels):
        return False
    numbers = levels.to_numpy(dtype=np.float64)
    return bool((numbers != np.round(numbers)).any())


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _names_or_numbers(values: Any) -> np.ndarray:
    """As numpy; missing names are None."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "OSU":
        array = values.data.astype(object)
        array[np.ma.getmaskarray(values)] = None
        return array
    return as_numpy(values)


def _has_names(values: Any) -> bool:
    return isinstance(values, Mapping) or column_names(values) is not None


def named_alike(
    times: dict[str | None, Any], pseudotime: Any, shares: dict[str | None, Any], weights: Any
) -> tuple[dict[str | None, Any], dict[str | None, Any]]:
    """Pseudotimes and weights by lineage; if only one of them came with names, the other takes them in order."""
    if _has_names(weights):
        times = _named_as(times, pseudotime, shares)
    if _has_names(pseudotime):
        shares = _named_as(shares, weights, times)
    return times, shares


def _named_as(found: dict[str | None, Any], values: Any, named: Mapping[str | None, Any]) -> dict[str | None, Any]:
    """Columns without names under those of others, if they are as many."""
    # of two axes: names of each cell's lineage are names already
    unnamed = found and not _has_names(values) and as_numpy(values).ndim == 2
    return dict(zip(named, found.values(), strict=True)) if unnamed and len(found) == len(named) else found


def lineage_names(times: Mapping[str | None, Any], weights: Mapping[str | None, Any]) -> tuple[str, ...] | None:
    """The names of several lineages, which the pseudotimes and the weights must agree on; None for one without."""
    named = [[name for name in found if name is not None] for found in (times, weights)]
    if named[0] and named[1] and set(named[0]) != set(named[1]):
        raise InputError(
            f"weights: the lineages {named[1]} came, but those of the pseudotime are {named[0]}; name the same"
        )
    names = named[0] or named[1]
    return tuple(names) if names else None


# -- conditions


def read_conditions(shape: tuple[int, ...], given: Mapping[str, Any], names: pd.Index | None = None) -> dict[str, Any]:
    """Conditions of a path, arrays in the shape of its points.

    Parameters
    ----------
    shape
        Of the points, without their dimensions.
    given
        Arguments of decode; an array of any kind has one value a point.
    names
        Of the points; a Series that has the same in another order is an error.

    Raises
    ------
    InputError, PointsError, ConditionError
        For arguments of other names, arrays of other shapes, Series in another order.
    """
    for name in given:
        if name not in CONDITIONS:
            raise InputError(unknown_name("argument", name, CONDITIONS, "conditions of a path"))

    def fitted(place: str, value: Any) -> Any:
        check_names(place, value, names)
        array = pd.Series | pd.Index | pd.api.extensions.ExtensionArray
        if isinstance(value, array):
            value = np.asarray(value)
        elif isinstance(value, np.ma.MaskedArray | torch.Tensor) or hasattr(value, "compute"):
            value = _names_or_numbers(value)
        if not isinstance(value, np.ndarray):
            return value
        if value.ndim == 0:
            return value.item()
        if value.shape not in (shape, shape[-1:]):
            raise PointsError(f"{place}: shape {value.shape} came, one value a point, {shape}, was expected")
        return np.broadcast_to(value, shape)

    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name in ("categorical", "continuous"):
            if not isinstance(value, Mapping | pd.DataFrame):
                raise ConditionError(f"{name}: {value!r} came, a mapping of covariate names to values was expected")
            found[name] = {key: fitted(f"{name}[{key!r}]", value[key]) for key in value}
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


def part_of(values: Any, at: int | list[int], n_lineages: int) -> Any:
    """What is said of one lineage, or of some: of arrays with a row a lineage, in mappings of any depth, that row."""
    if isinstance(values, Mapping):
        return {key: part_of(value, at, n_lineages) for key, value in values.items()}
    return values[at] if isinstance(values, np.ndarray) and len(values) == n_lineages else values
