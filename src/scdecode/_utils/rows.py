"""Positions of cells, or a mask of them, as the user gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scdecode._utils.names import as_mask, check_names
from scdecode.errors import InputError, got


def check_rows(
    rows: Any, n: int, names: pd.Index | None = None, *, place: str = "indices", kind: str = "cells"
) -> np.ndarray:
    """Positions of cells, or a mask of them, as positions among ``n`` cells.

    Parameters
    ----------
    rows
        Positions; or a mask, which may be a Series that names the cells.
    n
        How many cells there are.
    names
        Names of the cells.
    place, kind
        Name of the argument and what it counts, for messages.

    Raises
    ------
    InputError
        If they are neither, or no cell has such a position; or (ConditionError) for a mask that names other cells,
        or these in another order.
    """
    try:
        mask = as_mask(rows)
    except ValueError as error:
        raise InputError(f"{place}: got a mask of which {error}; expected True or False for each") from error
    if mask is not None and mask.shape == (n,):
        check_names(place, rows, names, kind)
        return np.flatnonzero(mask)
    if isinstance(rows, np.ma.MaskedArray) and np.ma.is_masked(rows):
        raise InputError(f"{place}: got positions some of which are masked; expected positions of {kind}")
    try:
        array = np.asarray(rows)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # ragged lists; the last is what torch raises
        raise InputError(f"{place}: got {got(rows)}, expected positions of {kind}") from error
    if array.shape == (0,):
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{place}: an array of shape {array.shape} of {array.dtype} came; positions of {kind}, or a mask of {n:,} "
            "values, were expected"
        )
    if array.min() < -n or array.max() >= n:
        strange = array.max() if array.max() >= n else array.min()
        raise InputError(f"{place}: {strange} came, but there are {n:,} {kind}: positions 0 to {n - 1:,}")
    return array
