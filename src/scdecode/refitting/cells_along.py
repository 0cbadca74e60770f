"""Which cells lie along a path, when, and how much they belong to it: read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode.errors import InputError, PointsError, SupportWarning, listing, unknown_name, warn
from scdecode.lineages import column_of
from scdecode.path_inputs import by_lineage, check_all_names
from scdecode.trajectory import SHARE

_STRAY = 0.05  # of the weight: cells before or after the path, of which nobody need be told


@dataclass(frozen=True, eq=False)
class Along:
    """The cells of one path."""

    rows: np.ndarray  # positions of those with weight, within the path's time
    time_n: np.ndarray
    weight_n: np.ndarray  # the largest is 1


def read_values(place: str, values: Any, adata: AnnData | None, n_cells: int) -> dict[str | None, np.ndarray]:
    """Numbers of each cell by lineage; under None those of all lineages.

    Parameters
    ----------
    place
        ``"pseudotime"`` or ``"weights"``.
    values
        A column of ``obs``, an entry of ``obsm`` with a column a lineage, or the numbers themselves; weights may be the
        names of lineages, one a cell. None is nothing.
    adata
        The cells, where there is an AnnData.
    n_cells
        How many there are.

    Raises
    ------
    InputError
        For a column that is not there, another number of cells, cells in another order, what are no numbers.
    """
    if isinstance(values, str):
        if adata is None:
            raise InputError(f"{place}: {values!r} came, but there is no AnnData with that column; pass adata=...")
        if values not in adata.obs and values not in adata.obsm:
            raise InputError(unknown_name(place, values, [*adata.obs, *adata.obsm], "columns of adata.obs and obsm"))
        values = column_of(adata, values, place)
    names = pd.RangeIndex(n_cells) if adata is None else adata.obs_names
    check_all_names({place: values}, names, "cells")
    try:
        found = by_lineage(place, values)
    except PointsError as error:
        raise InputError(f"{place}: values came that are no numbers ({error}); numbers were expected") from error
    for column in found.values():
        if column.shape != (n_cells,):
            raise InputError(f"{place}: shape {column.shape} came, one number a cell, ({n_cells},), was expected")
    return found


def of_lineage(
    place: str, found: Mapping[str | None, np.ndarray], lineage: str | None, lineages: tuple[str, ...]
) -> np.ndarray | None:
    """The numbers for a lineage of a path, None where there are none.

    Raises
    ------
    InputError
        Where they are those of other lineages.
    """
    if not found or None in found:
        return found.get(None)
    if lineage is None and len(found) == 1:
        return next(iter(found.values()))
    if lineage not in found:
        known = listing(str(name) for name in found)
        if len(lineages) < 2:
            own = "" if lineage is None else f", {lineage!r}"
            raise InputError(
                f"{place}: lineages {known} came for a path that is one{own}; pass the numbers of one, one a cell, (n,)"
            )
        raise InputError(
            f"{place}: lineages {known} came, {listing(lineages)} were expected, as the path's; refit one of them with "
            f"path[{lineages[0]!r}]"
        )
    return found[lineage]


def place_cells(
    time_n: np.ndarray, weight_n: np.ndarray | None, path_time: np.ndarray, time_name: str, lineage: str | None
) -> Along:
    """Find the cells with weight within the time of a path.

    Raises
    ------
    InputError
        For weights that are negative or no number, no cell with weight, cells with weight without a pseudotime.
    PointsError
        Where most cells are before or after the path: its time is another.
    """
    of = "" if lineage is None else f" of {lineage!r}"
    weight_n = np.ones(len(time_n)) if weight_n is None else weight_n
    if not (np.isfinite(weight_n) & (weight_n >= 0)).all():
        raise InputError(f"weights{of}: negative values, NaN or infinity came; finite numbers from 0 were expected")
    rows = np.flatnonzero(weight_n > 0)
    if not len(rows):
        raise InputError(f"weights{of}: none of {len(time_n):,} cells has weight; at least one was expected")
    lost = rows[~np.isfinite(time_n[rows])]
    if len(lost):
        raise InputError(
            f"pseudotime{of}: {len(lost):,} cells with weight have none (rows {listing(lost.tolist(), 5)}); give them "
            "weight zero, or leave them out of adata"
        )
    first, last = float(path_time[0]), float(path_time[-1])
    slack = 1e-6 * (last - first)
    inside = (time_n[rows] >= first - slack) & (time_n[rows] <= last + slack)
    outside = 1 - float(weight_n[rows[inside]].sum() / weight_n[rows].sum())
    if outside > 0.5:
        low, high = float(time_n[rows].min()), float(time_n[rows].max())
        hint = "make the path with Trajectory.along_pseudotime(...) of this pseudotime"
        if time_name == SHARE:
            hint = "its time is a share of its length, and no pseudotime; " + hint
        raise PointsError(
            f"pseudotime{of}: {outside:.0%} of the cells, {low:g} to {high:g}, are before or after the path, whose "
            f"time ({time_name}) is {first:g} to {last:g}; {hint}"
        )
    if outside > _STRAY:
        warn(
            f"pseudotime{of}: {outside:.0%} of the cells are before or after the path, whose time ({time_name}) is "
            f"{first:g} to {last:g}, and are left out",
            SupportWarning,
        )
    rows = rows[inside]
    return Along(rows, np.clip(time_n[rows], first, last), weight_n[rows] / weight_n[rows].max())
