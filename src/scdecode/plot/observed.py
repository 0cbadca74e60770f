"""The observed cells behind a trend: their counts in its unit, each at its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.names import check_names
from scdecode.errors import CountsError, CountsWarning, InputError, listing, unknown_name, warn
from scdecode.matrices import check_counts, to_csr
from scdecode.plot.reading import Line, columns_of, made_of
from scdecode.provenance import digest_of

N_BINS = 20
FEWEST = 25
"""Cells in a bin, at least: of fewer, the standard error is a guess."""


@dataclass(frozen=True, eq=False)
class Observed:
    """Cells as dots: in the unit of the decoded expression, at their times."""

    x: np.ndarray  # (n,) time of each cell, within the time of the path
    values_ng: np.ndarray  # (n, genes)
    group_n: np.ndarray  # (n,) the number of the line that each cell belongs to; -1 for none of them


@dataclass(frozen=True, eq=False)
class Bins:
    """Means of cells that follow one another, about as many in each."""

    x: np.ndarray  # (bins,) mean time
    mean: np.ndarray  # (bins,)
    error: np.ndarray  # (bins,) standard error of the mean
    size: int  # cells in a bin


def read_observed(
    expression: AnnData,
    lines: Sequence[Line],
    genes: Sequence[str],
    cells: AnnData,
    *,
    time: Any,
    lineage: Any,
    layer: str | None,
    library_size: Any,
) -> Observed:
    """Read what is drawn of the cells; the arguments are those of :func:`scdecode.plot.trends`.

    Raises
    ------
    InputError
        For genes, layers or columns that the cells do not have, lengths that do not fit, or times outside the path.
    CountsError
        For counts that are none, or cells without any.
    """
    if not isinstance(cells, AnnData):
        raise InputError(f"cells: {type(cells).__name__} came, an AnnData with counts was expected")
    columns = columns_of(cells, genes, "cells", "genes of the cells")
    x_n = _times(expression, cells, time)
    group_n = _groups(lines, cells, lineage)
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    shown = np.flatnonzero((x_n >= first) & (x_n <= last))  # NaN is neither
    if not len(shown):
        raise InputError(
            f"time: none of the {cells.n_obs:,} cells lies between {first:g} and {last:g}, where the path is; times in "
            "the units of the path were expected"
        )
    if layer is not None and layer not in cells.layers:
        raise InputError(unknown_name("layer", layer, list(cells.layers), "layers of the cells"))
    place = "cells.X" if layer is None else f"cells.layers[{layer!r}]"
    counts = to_csr(cells.X if layer is None else cells.layers[layer], place)[shown]
    check_counts(counts, place, whole=False)
    if (counts.data != np.rint(counts.data)).any():
        warn(
            f"{place}: it has fractions, as after normalising or log1p; the cells are drawn as if they were counts; "
            "say where counts are with layer=",
            CountsWarning,
        )
    size_n = _sizes(expression, cells, library_size, shown, counts, place)
    values_ng = counts[:, columns].toarray().astype(np.float64) * (_target(expression) / size_n)[:, None]
    return Observed(x_n[shown], values_ng, group_n[shown])


def _column(cells: AnnData, value: Any, place: str) -> Any:
    """A column of ``obs``, or one value a cell as given."""
    if isinstance(value, str):
        if value not in cells.obs:
            raise InputError(unknown_name(place, value, list(cells.obs.columns), "columns of cells.obs"))
        return cells.obs[value]
    if np.ndim(value) != 1 or len(value) != cells.n_obs:
        raise InputError(
            f"{place}: shape {np.shape(value)} came, a column of cells.obs or one value for each of the "
            f"{cells.n_obs:,} cells was expected"
        )
    check_names(place, value, cells.obs_names, "cells")
    return pd.Series(np.asarray(value), index=cells.obs_names)


def _numbers(cells: AnnData, value: Any, place: str) -> np.ndarray:
    column = _column(cells, value, place)
    if not pd.api.types.is_numeric_dtype(column):
        raise InputError(f"{place}: values of type {column.dtype} came, numbers were expected")
    return np.asarray(column.to_numpy(dtype=float, na_value=np.nan))


def _times(expression: AnnData, cells: AnnData, time: Any) -> np.ndarray:
    if time is None:
        time = made_of(expression).get("time_name")
        if time not in cells.obs:
            own = "has no name" if time is None else f"is {str(time)!r}, which is no column of cells.obs"
            raise InputError(
                f"time: the time of the path {own}; pass time=, a column of cells.obs or an array with the time of "
                "each cell in the units of the path"
            )
    return _numbers(cells, time, "time")


def _groups(lines: Sequence[Line], cells: AnnData, lineage: Any) -> np.ndarray:
    """The line of each cell; -1 for those of no line, or of all."""
    if lineage is None:
        return np.full(cells.n_obs, -1)
    names = [[name for name in (line.lineage, line.condition, line.name) if name is not None] for line in lines]
    if not any(names):
        raise InputError(f"lineage: {lineage!r} came, but the expression has one line without a name; leave it out")
    wanted = _column(cells, lineage, "lineage").astype(str).to_numpy()
    group_n = np.full(cells.n_obs, -1)
    for number, own in enumerate(names):
        group_n[(group_n == -1) & np.isin(wanted, own)] = number
    if (group_n == -1).all():
        raise InputError(
            f"lineage: none of {listing(sorted(set(wanted)))} is one of the expression's lines "
            f"{listing([line.name for line in lines])}"
        )
    return group_n


def _target(expression: AnnData) -> float:
    """The library size that the decoded expression is for."""
    if made_of(expression)["quantity"] == "scale":
        return 1.0
    sizes = expression.obs["library_size"].unique()
    if len(sizes) != 1:
        raise InputError(
            f"cells: the points were decoded at {len(sizes):,} library sizes; to show cells beside them, decode "
            "at one: model.decode(..., library_size=1e4)"
        )
    return float(sizes[0])


def _sizes(
    expression: AnnData, cells: AnnData, library_size: Any, shown: np.ndarray, counts: Any, place: str
) -> np.ndarray:
    """Library size of each of the shown cells: what was said, or the counts of the model's genes."""
    made = made_of(expression)
    if library_size is not None:
        size_n = _numbers(cells, library_size, "library_size")[shown]
        if not (size_n > 0).all():
            raise InputError("library_size: numbers above 0 were expected, one for each of the cells")
        return size_n
    if made["library"] != "counts":
        raise InputError(
            "cells: the model has a size factor, and theirs is not known; pass library_size=, a column of cells.obs or "
            "an array"
        )
    if _has_genes_of_model(expression, made):
        own = cells.var_names.get_indexer(expression.var_names)
        if (own < 0).any():
            absent = expression.var_names[own < 0]
            raise InputError(
                f"cells: {len(absent):,} of the model's {expression.n_vars:,} genes are not among theirs "
                f"({listing(absent, 5)}), so their library size is not known; pass library_size="
            )
        counts = counts[:, own]
    elif not _has_genes_of_model(cells, made):
        # of a choice of genes the whole is not known, unless the cells have it, and nothing else
        raise InputError(
            f"cells: the expression has {expression.n_vars:,} of the model's {made.get('n_model_genes', 'many')} "
            f"genes, and the cells have {cells.n_vars:,} that are not these, so their library size is not known; pass "
            "library_size=, the counts of each cell in the model's genes, or the expression of all of the model's genes"
        )
    size_n = np.asarray(counts.sum(axis=1), dtype=np.float64).reshape(-1)
    empty = np.flatnonzero(size_n <= 0)
    if len(empty):
        raise CountsError(
            f"{place}: {len(empty):,} of {len(size_n):,} cells along the path have no counts in the model's genes "
            f"(cells {listing(list(cells.obs_names[shown[empty]]), 5)}), so nothing can be said in the unit of the "
            "expression; leave them out"
        )
    return size_n


def _has_genes_of_model(adata: AnnData, made: Any) -> bool:
    """Whether it has exactly the genes of the model, in whatever order."""
    return adata.n_vars == made.get("n_model_genes") and digest_of(adata.var_names) == made["model_genes"]


def bins_of(x_n: np.ndarray, value_n: np.ndarray) -> Bins | None:
    """Means of the cells in the order of their time, in up to 20 bins of at least 25; None of fewer than two bins."""
    n_bins = min(N_BINS, len(x_n) // FEWEST)
    if n_bins < 2:
        return None
    parts = np.array_split(np.argsort(x_n, kind="stable"), n_bins)
    return Bins(
        x=np.array([x_n[part].mean() for part in parts]),
        mean=np.array([value_n[part].mean() for part in parts]),
        error=np.array([value_n[part].std(ddof=1) / np.sqrt(len(part)) for part in parts]),
        size=len(x_n) // n_bins,
    )
