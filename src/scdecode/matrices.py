"""Any matrix that an AnnData may hold to CSR in memory, and the checks that tell counts from other numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata.abc import CSCDataset, CSRDataset

from scdecode.errors import CountsError, listing

_BLOCK = 64 * 2**20  # entries of a dense block that is read at once: 256 MB as float32
_PIECE = 2**18  # values that are checked at once


def to_csr(matrix: Any, place: str) -> sp.csr_matrix:
    """A matrix as canonical CSR float32, sharing memory where it is that already.

    Parameters
    ----------
    matrix
        ``(n, g)``: scipy sparse in any format, numpy, or what a backed AnnData holds (h5py, zarr, dask). A dense one
        that lies on disk is read block by block, so that it is never in memory as a whole.
    place
        Where it came from, for the messages.

    Raises
    ------
    CountsError
        Where it is not a matrix of numbers.
    """
    if isinstance(matrix, CSRDataset | CSCDataset):
        matrix = matrix.to_memory()
    if hasattr(matrix, "compute"):  # dask, as of anndata's lazy reading
        matrix = matrix.compute()
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
        return csr
    blocks = [sp.csr_matrix(block.astype(np.float32, copy=False)) for block in _row_blocks(matrix)]
    return sp.vstack(blocks, format="csr") if len(blocks) != 1 else blocks[0]


def _row_blocks(matrix: Any) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK // max(1, matrix.shape[1]))
    for start in range(0, max(matrix.shape[0], 1), rows):
        yield np.asarray(matrix[start : start + rows])


def check_counts(counts: sp.csr_matrix, place: str, *, whole: bool) -> None:
    """Raise :class:`CountsError` for entries that are no counts.

    Parameters
    ----------
    counts
        ``(n, g)``.
    place
        Where they came from, for the messages.
    whole
        Whether fractions are an error too: they are for every likelihood of counts.
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
            "expected; say where they are with setup_anndata(adata, layer=...)"
        )
    if whole and _any(data, lambda some: some != np.rint(some)):
        raise CountsError(
            f"{place}: {_where(counts, data != np.rint(data), 'not whole numbers')}, as after normalising or log1p; "
            "raw counts were expected; say where they are with setup_anndata(adata, layer=...), or round estimated "
            "counts with numpy.rint, or use gene_likelihood='normal'"
        )


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


def check_no_empty_cells(library_n: np.ndarray, place: str) -> None:
    """Raise :class:`CountsError` for cells without a count: their library size has no logarithm."""
    empty = np.flatnonzero(library_n <= 0)
    if len(empty):
        raise CountsError(
            f"{place}: {len(empty):,} of {len(library_n):,} cells have no counts in the model's genes (rows "
            f"{listing(empty.tolist(), 5)}), so their library size has no logarithm; remove them, for example with "
            "scanpy.pp.filter_cells(adata, min_counts=1) after choosing the genes"
        )
