"""Cells along a path, pooled: the counts of those that are near in time and of the same conditions, added up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from scdecode.cells import Cells

_FEWEST_BINS = 8  # of time, however many combinations of conditions there are
_PIECE = 2**14  # cells whose counts are made doubles at a time
_ROWS = 400  # of pooled cells, about: what the time of a fit grows with


@dataclass(frozen=True, eq=False)
class Pooled:
    """Pooled cells: bins of time times combinations of conditions, those that have cells."""

    counts_bg: np.ndarray  # (b, g) float64: weighted sums
    library_b: np.ndarray  # (b,): weighted sums of the library sizes, or of the size factors
    square_b: np.ndarray  # (b,): weighted sums of their squares
    time_b: np.ndarray  # (b,): weighted means
    continuous_bd: np.ndarray  # (b, d): weighted means of the covariates
    combination_b: np.ndarray  # (b,) int64: rows of codes_mc
    codes_mc: np.ndarray  # (m, c): combinations of batch and categorical covariates
    labels_bl: np.ndarray  # (b, labels): the share of each label; no columns where labels are not read
    n_cells: int  # with weight, on the path
    n_bins: int  # of time

    @property
    def n_combinations(self) -> int:
        """Combinations of conditions."""
        return len(self.codes_mc)

    @property
    def lone_b(self) -> np.ndarray:
        """One over the number of cells, of like size, that would vary as much as each row does."""
        return self.square_b / self.library_b**2


def pool(
    cells: Cells,
    rows: np.ndarray,
    library_n: np.ndarray,
    time_n: np.ndarray,
    weight_n: np.ndarray,
    n_bins: int,
    n_labels: int,
) -> Pooled:
    """Add up the cells of each bin of time and combination of conditions.

    Bins have about the same weight of cells, all conditions together. A cell of half a weight counts as half a cell.

    Parameters
    ----------
    cells, rows
        Positions of the cells with weight; what follows is of these.
    library_n
        What the scale is multiplied with to give their expected counts.
    time_n, weight_n
        Of each.
    n_bins
        Of time; fewer where there are so many combinations that rows would run to thousands.
    n_labels
        Levels of the label, where the dispersion depends on it; else 0.
    """
    codes_nc = cells.codes_nc[rows]
    codes_mc, combination_n = np.unique(codes_nc[:, :-1], axis=0, return_inverse=True)
    combination_n = combination_n.reshape(-1)  # numpy 2.0 gave it an extra axis
    bin_n = _bins(time_n, weight_n, min(n_bins, max(_FEWEST_BINS, _ROWS // len(codes_mc))))
    _, row_n = np.unique(combination_n * n_bins + bin_n, return_inverse=True)
    row_n = row_n.reshape(-1)
    n, b = len(rows), int(row_n.max()) + 1
    sums = sp.csc_matrix((weight_n, (row_n, np.arange(n))), shape=(b, n))
    counts_bg = np.zeros((b, cells.counts.shape[1]))
    for start in range(0, n, _PIECE):
        piece = slice(start, start + _PIECE)
        counts_bg += (sums[:, piece] @ cells.counts[rows[piece]].astype(np.float64)).toarray()
    library = library_n.astype(np.float64)
    total_b = np.asarray(sums.sum(axis=1)).reshape(-1)
    combination_b = np.zeros(b, dtype=np.int64)
    combination_b[row_n] = combination_n
    labels_bl = np.zeros((b, n_labels))
    if n_labels:
        np.add.at(labels_bl, (row_n, codes_nc[:, -1]), weight_n)
    return Pooled(
        counts_bg=counts_bg,
        library_b=sums @ library,
        square_b=sums @ library**2,
        time_b=(sums @ time_n) / total_b,
        continuous_bd=(sums @ cells.continuous_nd[rows].astype(np.float64)) / total_b[:, None],
        combination_b=combination_b,
        codes_mc=codes_mc,
        labels_bl=labels_bl / total_b[:, None],
        n_cells=n,
        n_bins=len(np.unique(bin_n)),
    )


def _bins(time_n: np.ndarray, weight_n: np.ndarray, n_bins: int) -> np.ndarray:
    """The bin of each cell; cells of the same time share one."""
    order = np.argsort(time_n, kind="stable")
    share = np.cumsum(weight_n[order])
    edges = time_n[order][np.searchsorted(share, share[-1] * np.arange(1, n_bins) / n_bins)]
    return np.searchsorted(np.unique(edges), time_n, side="right")
