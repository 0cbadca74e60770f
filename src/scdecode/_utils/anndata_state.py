"""What an AnnData held when cells were read from it, and whether it still does.

A model keeps its cells as they were read. If their AnnData is put into another order, cut, or given other counts in
place, what the model says of its cells is no longer what stands in the AnnData.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scdecode._utils.counts_place import counts_matrix, gene_names, place_of_genes
from scdecode._utils.obs_columns import column_of, has_column
from scdecode.errors import CountsError, InputError, listing
from scdecode.matrices import to_csr, totals
from scdecode.schema import Columns

_REMEDY = "pass the cells you mean as adata=..., or make the model again"


@dataclass(frozen=True, eq=False)
class AnnDataState:
    """An AnnData, and what it held at a time; made by :func:`state_of`."""

    adata: AnnData
    columns: Columns  # where the counts and the conditions were
    cell_names: pd.Index
    gene_names: pd.Index
    genes: np.ndarray | None  # positions of the genes that were read; None for all in their order
    obs: dict[str, pd.Series]  # copies of the columns that were read
    seen: list[Any]  # one weak reference to the matrix of counts that has been compared; empty if it has none

    def __getstate__(self) -> dict[str, Any]:
        """Return what can be copied and pickled: a weak reference cannot, and without it counts are compared anew."""
        return {**self.__dict__, "seen": []}

    def check_cells(self) -> None:
        """Raise :class:`InputError` if cells or genes were added, left out, or put into another order."""
        _check_names("adata.obs_names", "cells", self.cell_names, self.adata.obs_names)
        _check_names(place_of_genes(self.columns), "genes", self.gene_names, gene_names(self.adata, self.columns))

    def check(self, counts: sp.csr_matrix, *, labels: bool) -> None:
        """Raise an error if what was read is no longer what the AnnData holds.

        Parameters
        ----------
        counts
            As they were read.
        labels
            Whether the labels are needed; people write predictions into their column.

        Raises
        ------
        InputError
            For other cells or genes, another order of them, or other conditions. Other names alone change nothing.
        CountsError
            For other counts.
        """
        self.check_cells()
        for key, column in self.obs.items():
            if key == self.columns.labels_key and not labels:
                continue
            if not has_column(self.adata.obs, key):
                continue  # what was read is still right
            n_changed = _n_changed(column, column_of(self.adata.obs, key))
            if n_changed:
                raise InputError(
                    f"adata.obs[{key!r}]: got other values for {n_changed:,} of {len(column):,} cells than when the "
                    f"model was made, expected the same; {_REMEDY}"
                )
        self._check_counts(counts)

    def _check_counts(self, counts: sp.csr_matrix) -> None:
        if self.adata.isbacked:
            return  # it gives another object each time, and comparing would read the file
        matrix, place = counts_matrix(self.adata, self.columns)
        if self.seen and self.seen[0]() is matrix:
            return
        found = to_csr(matrix, place)
        if self.genes is not None:
            found = sp.csr_matrix(found[:, self.genes])
            found.sort_indices()
        same = found.shape == counts.shape and all(
            np.array_equal(getattr(found, part), getattr(counts, part)) for part in ("indptr", "indices", "data")
        )
        if not same:
            raise CountsError(
                f"{place}: got other counts than when the model was made, expected the same; to keep raw counts beside "
                "others use a layer, adata.layers['counts'] = adata.X.copy(), and setup_anndata(adata, "
                f"layer='counts'); or {_REMEDY}"
            )
        self.seen[:] = _references(matrix)


def check_totals(counts: sp.csr_matrix, total_n: np.ndarray) -> None:
    """Raise :class:`CountsError` if counts were changed in place after their totals ``(n,)`` were taken.

    They share memory with the AnnData where they can; scanpy.pp.normalize_total and log1p change that in place.
    """
    changed = np.flatnonzero(totals(counts) != total_n)
    if len(changed):
        raise CountsError(
            f"adata: the counts of {len(changed):,} of {len(total_n):,} cells changed after the model was made, as by "
            "scanpy.pp.normalize_total; keep them in a layer, adata.layers['counts'] = adata.X.copy(), and make the "
            "model with setup_anndata(adata, layer='counts')"
        )


def state_of(adata: AnnData, columns: Columns, genes: np.ndarray | None) -> AnnDataState:
    """Return what an AnnData holds now.

    Parameters
    ----------
    adata, columns
        Cells, and where their counts and conditions are.
    genes
        Positions of the genes that are read; None for all in their order.
    """
    return AnnDataState(
        adata=adata,
        columns=columns,
        cell_names=adata.obs_names,
        gene_names=gene_names(adata, columns),
        genes=genes,
        obs={key: column_of(adata.obs, key).copy() for key in columns.obs_keys if has_column(adata.obs, key)},
        seen=[] if adata.isbacked else _references(counts_matrix(adata, columns)[0]),
    )


def _references(matrix: Any) -> list[Any]:
    try:
        return [weakref.ref(matrix)]
    except TypeError:  # not everything can be referred to
        return []


def _check_names(place: str, kind: str, known: pd.Index, now: pd.Index) -> None:
    if now is known or now.equals(known):
        return
    if len(now) != len(known):
        raise InputError(
            f"{place}: got {len(now):,} {kind}, and there were {len(known):,} when the model was made; expected the "
            f"same; {_REMEDY}"
        )
    own, before = np.asarray(now.astype(str), dtype=object), np.asarray(known.astype(str), dtype=object)
    moved = np.flatnonzero((own != before) & pd.Index(own).isin(before))
    if len(moved):
        raise InputError(
            f"{place}: {len(moved):,} of {len(own):,} {kind} are at another place than when the model was made, such "
            f"as {listing(own[moved[:3]])}; expected the same order; {_REMEDY}"
        )


def _n_changed(before: pd.Series, now: pd.Series) -> int:
    """Return how many values of a column are others, whatever its type is now."""
    if now.array is before.array or before.reset_index(drop=True).equals(now.reset_index(drop=True)):
        return 0
    if pd.api.types.is_numeric_dtype(before) and pd.api.types.is_numeric_dtype(now):
        numbers = [column.to_numpy(dtype=np.float64, na_value=np.nan) for column in (before, now)]
        return int((~((numbers[0] == numbers[1]) | (np.isnan(numbers[0]) & np.isnan(numbers[1])))).sum())
    return int((before.astype(str).to_numpy(dtype=object) != now.astype(str).to_numpy(dtype=object)).sum())
