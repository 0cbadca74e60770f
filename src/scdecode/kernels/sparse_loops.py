"""Rows of a CSR matrix gathered, turned round, and multiplied with a dense matrix: the loops."""

from __future__ import annotations

import math

import numpy as np

from scdecode.kernels.adam_loops import adam
from scdecode.kernels.jit import jit

GENES = 1024
"""Of which the weights, half a megabyte at 128 hidden units, stay in the second-level cache."""

_LOG1P = np.log1p(np.arange(256, dtype=np.float64)).astype(np.float32)  # most counts are small whole numbers
_loop = jit(fastmath={"contract"})


@_loop
def _gather_rows(  # type: ignore[no-untyped-def]
    rows, all_indptr, all_indices, all_values, indptr, indices, values, logs
):
    """Copy rows of a CSR matrix, and log1p of its values beside them."""
    at = 0
    indptr[0] = 0
    for i in range(len(rows)):
        for k in range(all_indptr[rows[i]], all_indptr[rows[i] + 1]):
            x = all_values[k]
            indices[at] = all_indices[k]
            values[at] = x
            n = int(x) if 0.0 <= x < 256.0 else 0
            logs[at] = _LOG1P[n] if x == n else np.float32(math.log1p(x))
            at += 1
        indptr[i + 1] = at


@_loop
def _turn_round(indptr, indices, logs, gene_indptr, cells, cell_logs):  # type: ignore[no-untyped-def]
    """The entries by gene instead of by cell: a counting sort, so that cells stay in order within a gene."""
    g = len(gene_indptr) - 1
    gene_indptr[:] = 0
    n = indptr[len(indptr) - 1]
    for k in range(n):
        gene_indptr[indices[k] + 1] += 1
    for j in range(g):
        gene_indptr[j + 1] += gene_indptr[j]
    # each gene's start moves on as its entries come, and ends where the next one's was
    for i in range(len(indptr) - 1):
        for k in range(indptr[i], indptr[i + 1]):
            j = indices[k]
            at = gene_indptr[j]
            cells[at] = i
            cell_logs[at] = logs[k]
            gene_indptr[j] = at + 1
    for j in range(g, 0, -1):
        gene_indptr[j] = gene_indptr[j - 1]
    gene_indptr[0] = 0


@_loop
def gather(  # type: ignore[no-untyped-def]
    rows, all_indptr, all_indices, all_values, indptr, indices, values, logs, gene_indptr, cells, cell_logs
):
    """Rows of a CSR matrix by cell and by gene."""
    _gather_rows(rows, all_indptr, all_indices, all_values, indptr, indices, values, logs)
    _turn_round(indptr, indices, logs, gene_indptr, cells, cell_logs)


@_loop
def _add_multiple(target, source, factor):  # type: ignore[no-untyped-def]
    for c in range(len(target)):
        target[c] += factor * source[c]


@_loop
def _add_multiples(target, matrix, rows, factors, first, last):  # type: ignore[no-untyped-def]
    """Add multiples of rows of a matrix: four at once, so that the target is read and written a quarter as often."""
    k = first
    while k + 4 <= last:
        a, b, c, d = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        row_a, row_b, row_c, row_d = matrix[rows[k]], matrix[rows[k + 1]], matrix[rows[k + 2]], matrix[rows[k + 3]]
        for j in range(len(target)):
            target[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + d * row_d[j])
        k += 4
    while k < last:
        _add_multiple(target, matrix[rows[k]], factors[k])
        k += 1


@_loop
def product(first, last, indptr, indices, logs, weight_gh, bias, out_nh):  # type: ignore[no-untyped-def]
    """Cells ``first`` to ``last`` of ``out = X W + b``.

    Some genes at a time: their weights stay in the cache while all cells meet them.
    """
    places = indptr[first:last].copy()
    for i in range(first, last):
        out_nh[i] = bias
    for stop in range(GENES, len(weight_gh) + GENES, GENES):
        for i in range(first, last):
            start, end = places[i - first], indptr[i + 1]
            k = start
            while k < end and indices[k] < stop:
                k += 1
            _add_multiples(out_nh[i], weight_gh, indices, logs, start, k)
            places[i - first] = k


@_loop
def gradient(first, last, gene_indptr, cells, cell_logs, d_out_nh, d_weight_gh):  # type: ignore[no-untyped-def]
    """Genes ``first`` to ``last`` of ``dW = X' dout``, into as many rows."""
    for j in range(first, last):
        row = d_weight_gh[j - first]
        row[:] = np.float32(0.0)
        _add_multiples(row, d_out_nh, cells, cell_logs, gene_indptr[j], gene_indptr[j + 1])


@_loop
def gradient_and_step(  # type: ignore[no-untyped-def]
    first, last, gene_indptr, cells, cell_logs, d_out_nh, weight, mean, square,
    new1, beta2, new2, decay, step_size, root_correction, eps,
):  # fmt: skip
    """Genes ``first`` to ``last`` of ``dW = X' dout``, and Adam of these ``(genes, h)`` weights and moments."""
    row = np.empty(d_out_nh.shape[1], np.float32)
    for j in range(first, last):
        row[:] = np.float32(0.0)
        _add_multiples(row, d_out_nh, cells, cell_logs, gene_indptr[j], gene_indptr[j + 1])
        i = j - first
        adam(weight[i], row, mean[i], square[i], new1, beta2, new2, decay, step_size, root_correction, eps)
