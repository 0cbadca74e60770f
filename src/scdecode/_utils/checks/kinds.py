"""Named kinds of values that people have in many forms: what they take, and what they refuse at once.

Each is ``Any`` to a type checker and a check to :func:`scdecode._utils.checks.checked`. What holds data passes:
numbers, names, arrays, tables, and lists and mappings of them. An AnnData, a model, a trajectory, a module or a
function where a value is expected does not: numpy would iterate over it, for minutes or for ever.
"""

from __future__ import annotations

import datetime
import numbers
from collections.abc import Callable, Collection, Mapping, Set
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from scdecode._utils.checks.hints import LONGEST_RANGE, REFUSED, Between, Kind, take_path
from scdecode.errors import ConditionError, ConfigError, InputError, PointsError

_PLAIN: Final = frozenset({type(None), bool, int, float, complex, str})
_VALUES: Final = (
    str,
    numbers.Number,
    np.generic,
    datetime.date,  # datetime and Timestamp are dates
    datetime.time,
    datetime.timedelta,
    pd.Period,
    pd.Interval,
    type(pd.NA),
    type(pd.NaT),
    np.ndarray,
    pd.Series,
    pd.Index,
    pd.DataFrame,
    pd.api.extensions.ExtensionArray,
)
_COLLECTIONS: Final[tuple[type[Collection[Any]], ...]] = (list, tuple, Set, range, type({}.keys()), type({}.values()))
_LONGEST_INTEGER: Final = 1023
"""Bits of a whole number that a double can hold, too."""

_DEEPEST: Final = 6
"""Lists in lists, at most; a list that holds itself has no end."""


def take_data(value: Any, depth: int = 0) -> Any:
    """Return a value that holds data, as it is or as numpy; REFUSED for anything else.

    Parameters
    ----------
    value
        None, a number, a string, a date; an array of numpy, pandas, scipy, torch, dask or of any package that offers
        ``__array__``; a collection or mapping of these.
    depth
        Collections around the value.
    """
    if isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER:
        return REFUSED
    if type(value) in _PLAIN or isinstance(value, _VALUES) or sp.issparse(value):
        return value
    if isinstance(value, range):
        return value if abs(value.stop - value.start) <= LONGEST_RANGE else REFUSED
    if isinstance(value, _COLLECTIONS):
        return value if depth < _DEEPEST and _all_data(value, depth) else REFUSED
    if isinstance(value, Mapping):
        return value if depth < _DEEPEST and _all_data(value.values(), depth) else REFUSED
    if isinstance(value, torch.Tensor):
        if value.is_meta:  # such a tensor has a shape and no values
            return REFUSED
        value = value.detach() if value.requires_grad else value
        return value if value.layout is torch.strided else value.to_dense()
    return _take_foreign(value)


def _all_data(values: Collection[Any], depth: int) -> bool:
    kinds = set(map(type, values))
    if _PLAIN.issuperset(kinds):
        return int not in kinds or all(v.bit_length() <= _LONGEST_INTEGER for v in values if type(v) is int)
    return all(take_data(value, depth + 1) is not REFUSED for value in values)


def _take_foreign(value: Any) -> Any:
    """Read the array of another package, here and once: what it raises says nothing to the user of this one."""
    kind = type(value)
    if hasattr(kind, "compute") and not isinstance(value, type):  # an array of dask, or one like it
        return value
    if isinstance(value, type) or not hasattr(kind, "__array__"):
        return REFUSED
    try:
        return np.asarray(value)
    except Exception:  # of any kind: the code is not ours
        return REFUSED


def data(words: str, error: type[InputError] = InputError, *, also: Callable[[Any], bool] | None = None) -> Kind:
    """Return the kind of a value that holds data, or of what ``also`` is true for."""

    def take(value: Any) -> Any:
        return value if also is not None and also(value) else take_data(value)

    return Kind(take, words, error)


def _take_table(value: Any) -> Any:
    return take_data(value) if value is None or isinstance(value, Mapping | pd.DataFrame) else REFUSED


def _take_names(value: Any) -> Any:
    if isinstance(value, range):
        return REFUSED
    if isinstance(value, np.ndarray | pd.Series | pd.Index | pd.api.extensions.ExtensionArray):
        if np.ndim(value) != 1:
            return REFUSED
        value = value.tolist()
    if not isinstance(value, _COLLECTIONS):
        return REFUSED
    if all(type(name) is str for name in value):
        return value
    return [str(name) for name in value] if all(isinstance(name, str) for name in value) else REFUSED


def _take_seed(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return REFUSED
    return int(value) if int(value).bit_length() <= 128 else REFUSED


def _take_prefix(value: Any) -> Any:
    if not isinstance(value, str):
        return REFUSED
    if not value:
        return value
    taken = take_path(value)
    return taken if taken is REFUSED or len(str(taken).encode("utf-8", "surrogateescape")) <= 200 else REFUSED


def _take_levels(value: Any) -> Any:
    if isinstance(value, str | Mapping) or not (isinstance(value, _COLLECTIONS) or getattr(value, "ndim", 0) == 1):
        return REFUSED
    return take_data(value)


def _take_level(value: Any) -> Any:
    if isinstance(value, np.ndarray | pd.Series | pd.Index | pd.DataFrame | pd.api.extensions.ExtensionArray):
        return REFUSED
    return take_data(value) if value is None or isinstance(value, _VALUES) else REFUSED


def _take_column(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or (isinstance(value, int) and value.bit_length() > _LONGEST_INTEGER):
        return REFUSED
    return value if isinstance(value, str | int) else REFUSED


ArrayLike: TypeAlias = Annotated[Any, data("numbers: an array, a list, a table or one number")]
"""Numbers in any form: numpy, torch, dask, scipy.sparse, pandas, lists."""

NumbersLike: TypeAlias = Annotated[Any, data("numbers: an array, a list, a Series or one number", PointsError)]
"""Numbers of points or cells: times, pseudotimes, weights."""

PerPoint: TypeAlias = Annotated[
    Any,
    data("a name or number, an array of one per point, a list to average over or a mapping to weights", ConditionError),
]
"""One condition: a value for all points, one per point, several to average over, or weights of several."""

ConditionTable: TypeAlias = Annotated[
    Any, Kind(_take_table, "a mapping of covariate names to values, or None", ConditionError)
]
"""Covariates by name, each as :data:`PerPoint`."""

LibrarySize: TypeAlias = Annotated[Any, data("a number, an array of one per point or 'observed'", ConditionError)]
"""Library sizes in counts, never their logarithm."""

SpreadLike: TypeAlias = Annotated[
    Any, data("True, False, a standard deviation, or an array of standard deviations or covariances", PointsError)
]
"""Spread of latent points."""

NamesLike: TypeAlias = Annotated[Any, Kind(_take_names, "a list of names")]
"""Names, such as those of genes: a list, an Index, a Series or an array of strings, and no string."""

ColumnName: TypeAlias = Annotated[Any, Kind(_take_column, "the name of a column")]
"""Name of a column of ``obs``: a string, or the number that pandas has for one."""

IndicesLike: TypeAlias = Annotated[Any, data("positions of cells, or a mask of them")]
"""Cells of an AnnData: positions, or a mask."""

Neighbours: TypeAlias = Annotated[int, Between(1, 100_000)]
"""Neighbours of a cell: each is stored with its distance."""

PointsOfPath: TypeAlias = Annotated[int, Between(2, 1_000_000)]
"""Points on a path."""

Seed: TypeAlias = Annotated[int, Kind(_take_seed, "a whole number from 0 to 2**128 - 1", ConfigError)]
"""Seed of random draws."""

LevelName: TypeAlias = Annotated[Any, Kind(_take_level, "one name or number", ConditionError)]
"""A level of a condition."""

LevelsLike: TypeAlias = Annotated[Any, Kind(_take_levels, "a list of two or more levels", ConditionError)]
"""Levels of a condition: a list, an Index, a Series or an array of one axis."""

FilePrefix: TypeAlias = Annotated[str, Kind(_take_prefix, "the beginning of a file's name, at most 200 bytes")]
"""What stands before the names of the files of a model."""

Decoded: TypeAlias = Annotated[AnnData, "the AnnData that model.decode(path) returns"]
"""Decoded expression."""

GeneTable: TypeAlias = Annotated[pd.DataFrame, "the table of gene_dynamics"]
"""Genes with their shapes, as :func:`scdecode.dynamics.gene_dynamics` returns them."""

Values: TypeAlias = Annotated[Any, data("a name, a number, or an array or list of them")]
"""Names or numbers in any form."""
