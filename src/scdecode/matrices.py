"""Any matrix that an AnnData may hold to CSR in memory, and the checks that tell counts from other numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset

from scdecode.errors import CountsError, CountsWarning, listing, warn

_BLOCK = 64 * 2**20  # entries of a dense block that is read at once: 256 MB as float32
_PIECE = 2**18  # values that are checked or added up at once
_SAMPLE = 100  # rows that tell whether a matrix holds counts
SAY_WHERE = "say where they are with setup_anndata(adata, layer=...)"
"""The advice of a message about values that are no counts."""


def to_csr(matrix: Any, place: str) -> sp.csr_matrix:
    """A matrix as canonical CSR float32 without stored zeros, sharing memory where it is that already.

    The same counts give the same arrays, however they are stored: indices sorted, each once, and no zero among them.

    Parameters
    ----------
    matrix
        ``(n, g)``: scipy sparse in any format, numpy, a DataFrame, or what a backed AnnData holds (h5py, zarr, dask). A
        dense one that lies on disk is read block by block, so that it is never in memory as a whole.
    place
        Where it came from, for the messages.

    Raises
    ------
    CountsError
        Where it is not a matrix of numbers, or some of them are masked.
    """
    if isinstance(matrix, CSRDataset | CSCDataset):
        matrix = matrix.to_memory()
    if hasattr(matrix, "compute"):  # dask, as of anndata's lazy reading
        matrix = matrix.compute()
    if isinstance(matrix, np.ma.MaskedArray) and (n_masked := int(np.ma.getmaskarray(matrix).sum())):
        raise CountsError(
            f"{place}: got a masked array, {n_masked:,} of its {matrix.size:,} values masked; expected a count for "
            "each cell and gene; leave those cells or genes out, or say what the counts are with matrix.filled(0)"
        )
    if isinstance(matrix, pd.DataFrame):
        matrix = _of_table(matrix)
    if not isinstance(matrix, h5py.Dataset | zarr.Array) and not sp.issparse(matrix):
        matrix = np.asarray(matrix)
    if len(matrix.shape) != 2 or matrix.dtype.kind not in "fiub":
        raise CountsError(f"{place}: shape {matrix.shape} of {matrix.dtype} came, a matrix of counts was expected")
    if sp.issparse(matrix):
        csr = sp.csr_matrix(matrix, copy=False)
        if csr.dtype != np.float32:
            csr = sp.csr_matrix((csr.data.astype(np.float32), csr.indices, csr.indptr), shape=csr.shape)
        if not csr.has_canonical_format:  # never sort or sum the caller's own arrays
            csr = csr.copy()
            csr.sum_duplicates()
        if _any(csr.data, lambda some: some == 0):
            csr = csr.copy()
            csr.eliminate_zeros()
        return csr
    blocks = [sp.csr_matrix(block.astype(np.float32, copy=False)) for block in _row_blocks(matrix)]
    return sp.vstack(blocks, format="csr") if len(blocks) != 1 else blocks[0]


def _of_table(table: pd.DataFrame) -> np.ndarray:
    """Return the values of a table; of pandas' nullable numbers as doubles, in which a missing one is NaN."""
    kinds = {getattr(dtype, "kind", "O") for dtype in table.dtypes}
    has_numbers = kinds <= set("fiub") and any(pd.api.types.is_extension_array_dtype(dtype) for dtype in table.dtypes)
    return table.to_numpy(dtype=np.float64, na_value=np.nan) if has_numbers else table.to_numpy()


def _row_blocks(matrix: Any) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK // max(1, matrix.shape[1]))
    for start in range(0, max(matrix.shape[0], 1), rows):
        yield np.asarray(matrix[start : start + rows])


def check_counts(
    counts: sp.csr_matrix, place: str, *, whole: bool, remedy: Callable[[], str] = lambda: SAY_WHERE
) -> None:
    """Raise :class:`CountsError` for entries that are no counts.

    Parameters
    ----------
    counts
        ``(n, g)``.
    place
        Where they came from, for the messages.
    whole
        Whether fractions are an error too.
    remedy
        Gives the advice of where the counts are instead; it may look at them, and is called for an error alone.
    """
    data = counts.data
    if _any(data, lambda some: ~np.isfinite(some)):
        raise CountsError(
            f"{place}: {_where(counts, ~np.isfinite(data), 'NaN or infinite')}; counts were expected; "
            "remove those cells or genes, or choose another layer"
        )
    if _any(data, lambda some: some < 0):
        raise CountsError(
            f"{place}: {_where(counts, data < 0, 'negative')}, as after scaling or regressing out; raw counts were "
            f"expected; {remedy()}"
        )
    if whole and _any(data, _is_fraction):
        raise CountsError(
            f"{place}: {_where(counts, _is_fraction(data), 'not whole numbers')}, as after normalising or log1p; "
            f"raw counts were expected; {remedy()}; for estimated counts, as of SoupX, pass "
            "setup_anndata(adata, allow_fractional_counts=True), or round them with numpy.rint, or use "
            "gene_likelihood='normal'"
        )


def warn_of_fractions(counts: sp.csr_matrix, place: str, remedy: Callable[[], str]) -> None:
    """Warn of counts that are not whole numbers; the arguments are those of :func:`check_counts`."""
    if _any(counts.data, _is_fraction):
        warn(
            f"{place}: {_where(counts, _is_fraction(counts.data), 'not whole numbers')}; they are taken as they are, "
            f"which is right for a model trained on such estimated counts, and wrong for normalised ones; {remedy()}",
            CountsWarning,
        )


def _is_fraction(data: np.ndarray) -> np.ndarray:
    return data != np.rint(data)


def _any(data: np.ndarray, bad: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether a value is bad; some at a time, as a copy of all the counts would be most of what training takes."""
    return any(bad(data[start : start + _PIECE]).any() for start in range(0, len(data), _PIECE))


def _where(counts: sp.csr_matrix, bad: np.ndarray, what: str) -> str:
    first = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(counts.indptr, first, side="right")) - 1
    number = int(bad.sum())
    are = "is" if number == 1 else "are"
    example = f"the first: {counts.data[first]:g}, in row {row}"
    return f"{number:,} of its {len(bad):,} non-zero values {are} {what} ({example})"


def check_no_empty_cells(library_n: np.ndarray, place: str, names: pd.Index | None = None) -> None:
    """Raise :class:`CountsError` for cells without a count: their library size has no logarithm.

    Parameters
    ----------
    library_n
        ``(n,)`` total counts.
    place
        Where the counts came from, for the messages.
    names
        ``(n,)`` names of the cells; without them, the message lists rows.
    """
    empty = np.flatnonzero(library_n <= 0)
    if len(empty):
        named = "" if names is None else f": {listing(names[empty], 5)}"
        raise CountsError(
            f"{place}: {len(empty):,} of {len(library_n):,} cells have no counts in the model's genes (rows "
            f"{listing(empty.tolist(), 5)}){named}, so their library size has no logarithm, and it is needed; remove "
            "them, for example with scanpy.pp.filter_cells(adata, min_counts=1) after choosing the genes"
        )


def counts_elsewhere(adata: AnnData, place: str) -> str:
    """Return where else an AnnData holds raw counts, as advice: in ``adata.raw``, in a layer, or in ``adata.X``."""
    said_of_layers = f"{SAY_WHERE}; the layers are {listing(adata.layers)}"
    said = {"adata.raw.X": "use_raw=True", "adata.X": "neither layer nor use_raw"}
    places = {f"adata.layers[{name!r}]": matrix for name, matrix in adata.layers.items()}
    places |= {"adata.X": adata.X, "adata.raw.X": None if adata.raw is None else adata.raw.X}
    for other, matrix in places.items():
        if other != place and matrix is not None and _looks_like_counts(matrix):
            argument = said.get(other, f"layer={other.removeprefix('adata.layers[').removesuffix(']')}")
            return f"{said_of_layers}; {other} holds whole numbers: pass {argument}"
    return said_of_layers


def _looks_like_counts(matrix: Any) -> bool:
    """Whether the first rows of a matrix are whole numbers, none negative, and not all zero."""
    if len(getattr(matrix, "shape", ())) != 2:
        return False
    try:
        data = to_csr(matrix[:_SAMPLE], "").data
    except CountsError:
        return False
    return bool(len(data)) and bool((np.isfinite(data) & (data >= 0) & (data == np.rint(data))).all())


def totals(counts: sp.csr_matrix) -> np.ndarray:
    """Return total counts of each cell, ``(n,)`` float32, added up in double precision without a copy of them."""
    total_n = np.zeros(counts.shape[0], dtype=np.float32)
    starts = np.searchsorted(counts.indptr, np.arange(0, counts.nnz, _PIECE), side="right") - 1
    for first, last in itertools.pairwise([*np.unique(starts), len(total_n)]):  # numpy turns all it adds into doubles
        indptr = counts.indptr[first : last + 1]
        filled_n = np.diff(indptr) > 0  # reduceat would take an empty row for the next one's first entry
        some = counts.data[indptr[0] : indptr[-1]]
        if filled_n.any():
            firsts = indptr[:-1][filled_n] - indptr[0]
            total_n[first:last][filled_n] = np.add.reduceat(some, firsts, dtype=np.float64)
    return total_n
