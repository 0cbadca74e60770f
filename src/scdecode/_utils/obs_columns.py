"""Columns of ``adata.obs`` as arrays: found by name, checked for missing values, as levels or as numbers."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd

from scdecode.errors import ConditionError, InputError, listing


def is_name(key: Any) -> bool:
    """Whether this can name a column: text, or a whole number, which pandas has for names, too."""
    return isinstance(key, str) or (isinstance(key, numbers.Integral) and not isinstance(key, bool))


def column_keys(place: str, keys: Any) -> tuple[Any, ...]:
    """Return the names of several columns: those of a list, an array, an Index or a Series.

    Raises
    ------
    InputError
        If it is one name rather than a list, or a set.
    """
    if keys is None:
        return ()
    if isinstance(keys, str):
        raise InputError(f"{place}: {keys!r} came, a list of columns was expected: [{keys!r}]")
    if isinstance(keys, Set) and not isinstance(keys, KeysView):
        raise InputError(
            f"{place}: got a {type(keys).__name__}, whose order differs from run to run, and with it the weights of a "
            "training; expected a list of names of columns of adata.obs"
        )
    if isinstance(keys, Mapping) or not isinstance(keys, Iterable) or getattr(keys, "ndim", 1) != 1:
        raise InputError(f"{place}: got {type(keys).__name__}, expected a list of names of columns of adata.obs")
    return tuple(keys)


def column_of(obs: pd.DataFrame, key: str) -> pd.Series:
    """Return a column by its name as text: 0 is ``"0"`` here, as it will be in a file."""
    if key in obs.columns:
        return obs[key]
    return obs.iloc[:, [str(name) for name in obs.columns].index(key)]


def has_column(obs: pd.DataFrame, key: str) -> bool:
    """Whether there is a column of that name as text."""
    return key in obs.columns or key in map(str, obs.columns)


def factorize(column: pd.Series, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the levels of a column that occur, as they are in it, and the position of each cell's among them.

    Raises
    ------
    ConditionError
        If values are missing, or cannot be names.
    """
    _check_present(column, key)
    if column.dtype == np.float16:
        column = column.astype(np.float32)  # pandas has no levels of it
    try:
        levels = column.astype("category").cat.remove_unused_categories().cat
    except TypeError as error:  # lists and the like have no hash
        raise ConditionError(f"adata.obs[{key!r}]: its values are no names ({error}); names were expected") from error
    return levels.categories.to_numpy(), levels.codes.to_numpy()


def numbers_of(obs: pd.DataFrame, key: str, optional: Sequence[str]) -> np.ndarray:
    """Return the numbers of a column, ``(n,)`` float32; NaN for an ``optional`` one that is not there.

    Raises
    ------
    ConditionError
        If values are missing, infinite or no numbers.
    """
    if not has_column(obs, key) and key in optional:
        return np.full(len(obs), np.nan, dtype=np.float32)
    column = column_of(obs, key)
    try:
        if column.dtype.kind in "mMc":  # dates would be nanoseconds
            raise TypeError(column.dtype)
        with np.errstate(over="ignore"):
            values = column.to_numpy(dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        _check_present(column, key)
        raise ConditionError(
            f"adata.obs[{key!r}]: {column.dtype} came, numbers were expected; a covariate of names is a categorical one"
        ) from error
    _check_present(pd.Series(values).where(np.isfinite(values)), key)
    return values


def _check_present(column: pd.Series, key: str) -> None:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise ConditionError(
            f"adata.obs[{key!r}]: {len(missing):,} of {len(column):,} values are missing or infinite (rows "
            f"{listing(missing.tolist(), 5)}); fill them in, or leave those cells out"
        )
