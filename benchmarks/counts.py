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


def make_counts(n_cells: int, n_genes: int, *, density: float = DENSITY, seed: int = 0) -> sp.csr_matrix:
    """CSR float32; each cell has ``density * n_genes`` non-zero entries, geometric from 1 up, mean 2."""
    rng = np.random.default_rng(seed)
    n_entries = round(density * n_genes)
    # One column from each of n_entries neighbouring strips of genes: distinct and sorted without a sort.
    edges = np.linspace(0, n_genes, n_entries + 1).astype(np.int32)
    places = rng.random((n_cells, n_entries), dtype=np.float32) * np.diff(edges)
    columns = edges[:-1] + np.minimum(places.astype(np.int32), np.diff(edges) - 1)
    data = rng.geometric(0.5, n_cells * n_entries).astype(np.float32)
    indptr = np.arange(n_cells + 1, dtype=np.int32 if n_cells * n_entries < 2**31 else np.int64) * n_entries
    counts = sp.csr_matrix((data, columns.reshape(-1), indptr), shape=(n_cells, n_genes))
    counts.has_canonical_format = True
    return counts


def make_cells(counts: sp.csr_matrix) -> AnnData:
    """An AnnData of counts, with two batches in ``obs["batch"]``."""
    batch = np.where(np.arange(counts.shape[0]) % 2, "batch_2", "batch_1")
    obs = pd.DataFrame({"batch": pd.Categorical(batch)}, index=pd.RangeIndex(counts.shape[0]).astype(str))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index="gene_" + pd.RangeIndex(counts.shape[1]).astype(str)))
