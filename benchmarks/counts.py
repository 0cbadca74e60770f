"""Counts that are quick to make: as many non-zero entries in each cell as wanted, spread evenly over the genes.

Speed depends on the shape and the sparsity of the counts and not on what they mean; what a model learns from cells is
measured on real ones (heldout.py).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

DENSITY = 0.08

_PIECE = 20_000  # cells that are drawn at once, so that a million need little memory beside their own
_BITS = np.arange(2**16)
_GEOMETRIC = (17 - np.ceil(np.log2(_BITS + 1))).astype(np.float32)  # the leading zeros of 16 fair bits, and one


def make_counts(n_cells: int, n_genes: int, *, density: float = DENSITY, seed: int = 0) -> sp.csr_matrix:
    """CSR float32; each cell has ``density * n_genes`` non-zero entries, geometric from 1 up, mean 2."""
    rng = np.random.default_rng(seed)
    n_entries = round(density * n_genes)
    # One column from each of n_entries neighbouring strips of genes: distinct and sorted without a sort.
    edges = np.linspace(0, n_genes, n_entries + 1).astype(np.int32)
    widths = np.diff(edges)
    data = np.empty((n_cells, n_entries), dtype=np.float32)
    columns = np.empty((n_cells, n_entries), dtype=np.int32)
    for start in range(0, n_cells, _PIECE):
        rows = slice(start, min(start + _PIECE, n_cells))
        shape = data[rows].shape
        places = (rng.random(shape, dtype=np.float32) * widths).astype(np.int32)
        np.add(edges[:-1], np.minimum(places, widths - 1), out=columns[rows])
        data[rows] = _GEOMETRIC[rng.integers(0, 2**16, shape, dtype=np.uint16)]
    indptr = np.arange(n_cells + 1, dtype=np.int32 if n_cells * n_entries < 2**31 else np.int64) * n_entries
    counts = sp.csr_matrix((data.reshape(-1), columns.reshape(-1), indptr), shape=(n_cells, n_genes))
    counts.has_canonical_format = True
    return counts


def n_bytes(counts: sp.csr_matrix) -> int:
    """Of the three arrays of a sparse matrix."""
    return int(counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes)


def make_cells(counts: sp.csr_matrix, *, n_batches: int = 2) -> AnnData:
    """An AnnData of counts, with batches in turn in ``obs["batch"]``."""
    names = [f"batch_{i + 1}" for i in range(n_batches)]
    batch = pd.Categorical.from_codes(np.arange(counts.shape[0]) % n_batches, names)
    obs = pd.DataFrame({"batch": batch}, index=pd.RangeIndex(counts.shape[0]).astype(str))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index="gene_" + pd.RangeIndex(counts.shape[1]).astype(str)))
