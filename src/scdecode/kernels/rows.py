"""The counts of a minibatch as they are kept: sparse, gathered into memory that the next minibatch takes over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of a CSR matrix, each sorted by gene; and the same entries by gene."""

    indptr: np.ndarray  # (n + 1,) int64
    indices: np.ndarray  # (nnz,) int32: genes
    values: np.ndarray  # (nnz,) float32: counts
    logs: np.ndarray  # (nnz,) float32: log1p of them
    gene_indptr: np.ndarray  # (g + 1,) int64
    cells: np.ndarray  # (nnz,) int32: rows
    cell_logs: np.ndarray  # (nnz,) float32

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.gene_indptr) - 1


class Gatherer:
    """Rows of one CSR matrix, gathered again and again into the same memory.

    What :meth:`gather` gives is therefore good until it is called again.

    Parameters
    ----------
    counts
        ``(n, g)`` CSR float32, canonical.
    """

    def __init__(self, counts: sp.csr_matrix) -> None:
        self._counts = counts
        self._gene_indptr = np.empty(counts.shape[1] + 1, np.int64)
        self._indptr = np.empty(0, np.int64)
        self._integers = np.empty((2, 0), np.int32)
        self._floats = np.empty((3, 0), np.float32)

    def gather(self, rows: np.ndarray) -> SparseRows:
        """The rows at positions ``rows``, int64."""
        from scdecode.kernels.sparse_loops import gather

        counts = self._counts
        n_entries = int((counts.indptr[rows + 1] - counts.indptr[rows]).sum())
        if len(rows) >= len(self._indptr):
            self._indptr = np.empty(len(rows) + 1, np.int64)
        if n_entries > self._floats.shape[1]:
            room = n_entries + n_entries // 8  # the next minibatch is a little larger or smaller
            self._integers, self._floats = np.empty((2, room), np.int32), np.empty((3, room), np.float32)
        indptr = self._indptr[: len(rows) + 1]
        indices, cells = self._integers[:, :n_entries]
        values, logs, cell_logs = self._floats[:, :n_entries]
        gather(
            rows, counts.indptr, counts.indices, counts.data,
            indptr, indices, values, logs, self._gene_indptr, cells, cell_logs,
        )  # fmt: skip
        return SparseRows(indptr, indices, values, logs, self._gene_indptr, cells, cell_logs)
