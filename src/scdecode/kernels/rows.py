"""The counts of a minibatch as they are kept: sparse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of a CSR matrix, each sorted by gene."""

    indptr: np.ndarray  # (n + 1,) int64
    indices: np.ndarray  # (nnz,) int32
    values: np.ndarray  # (nnz,) float32: counts
    logs: np.ndarray  # (nnz,) float32: log1p of them
    n_genes: int

    def __len__(self) -> int:
        return len(self.indptr) - 1
