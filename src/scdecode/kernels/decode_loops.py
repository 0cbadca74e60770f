"""What lies around the matrix products of decoding: the loops. Each reads a tile once and writes it once.

A row's condition is row ``group * n_slots + slot`` of the tables of shifts and weights; a table of one row is the same
for all.
"""

from __future__ import annotations

import numpy as np

from scdecode.kernels.functions import exp32, log1p_unit
from scdecode.kernels.jit import jit
from scdecode.kernels.likelihood_loops import sum_of

_F = np.float32
_T = 512  # genes at a time, so that what is added up stays in the first-level cache
_ZERO, _ONE = _F(0.0), _F(1.0)
_SMALLEST_SUM, _LARGEST_SUM = 1e-15, 1e30  # of exponentials: between them none that matters was cut off

_exact = jit(fastmath={"contract"})


@_exact
def _shifted_relu(row, shift, relu):  # type: ignore[no-untyped-def]
    if relu:
        for j in range(len(row)):
            y = row[j] + shift[j]
            row[j] = _ZERO if y < _ZERO else y
    else:
        for j in range(len(row)):
            row[j] += shift[j]


@_exact
def shift_rows(source, shift_so, group_n, slot, n_slots, relu, out):  # type: ignore[no-untyped-def]
    """``source`` and the shift of each row's condition, and ReLU where asked, into ``out``, which may be ``source``."""
    several = len(shift_so) > 1
    for i in range(len(source)):
        out[i] = source[i]
        _shifted_relu(out[i], shift_so[group_n[i] * n_slots + slot if several else 0], relu)


@_exact
def _largest(logits, bias):  # type: ignore[no-untyped-def]
    top = logits[0] + bias[0]
    for j in range(1, len(logits)):
        x = logits[j] + bias[j]
        top = x if x > top else top
    return top


@_exact
def _exponential(logits, bias, shift, values):  # type: ignore[no-untyped-def]
    for j in range(len(logits)):
        values[j] = exp32(logits[j] + bias[j] - shift)


@_exact
def _exponentials(logits, bias, shift, values):  # type: ignore[no-untyped-def]
    """``exp(logits + bias - shift)`` into ``values``, and their sum in double precision."""
    total = 0.0
    for lo in range(0, len(logits), _T):
        hi = min(lo + _T, len(logits))
        _exponential(logits[lo:hi], bias[lo:hi], shift, values[lo:hi])
        total += sum_of(values[lo:hi])
    return total


@_exact
def _softplus(logits, bias, values):  # type: ignore[no-untyped-def]
    for j in range(len(logits)):
        x = logits[j] + bias[j]
        values[j] = (x if x > _ZERO else _ZERO) + log1p_unit(exp32(-abs(x)))


@_exact
def _pick(values, genes, picked):  # type: ignore[no-untyped-def]
    for j in range(len(genes)):
        picked[j] = values[genes[j]]


@_exact
def _observe(values, zi_logits, bias):  # type: ignore[no-untyped-def]
    """Times the probability that a count is not lost to zero inflation."""
    for j in range(len(values)):
        values[j] /= _ONE + exp32(zi_logits[j] + bias[j])


@_exact
def _store(values, factor, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = factor * values[j]


@_exact
def _add(values, factor, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += factor * values[j]


@_exact
def finish_rows(  # type: ignore[no-untyped-def]
    softmax, logits, bias_sg, zi_logits, zi_bias_sg, genes, group_n, slot, n_slots, weight_s, library_n, out
):
    """From logits to expression, added to ``out`` from the second slot on; ``logits`` may be ``out``.

    ``zi_logits`` without columns is no zero inflation. ``genes`` are the columns of the logits to keep, none for all.
    """
    n, g = logits.shape
    values, picked = np.empty(g, np.float32), np.empty(len(genes), np.float32)
    several, zi_several = len(bias_sg) > 1, len(zi_bias_sg) > 1
    for i in range(n):
        condition = group_n[i] * n_slots + slot
        row, bias, total = logits[i], bias_sg[condition if several else 0], 1.0
        if softmax:
            total = _exponentials(row, bias, _ZERO, values)
            if not (_SMALLEST_SUM < total < _LARGEST_SUM):
                total = _exponentials(row, bias, _largest(row, bias), values)
        else:
            _softplus(row, bias, values)
        factor = _F(weight_s[condition] * library_n[i if len(library_n) > 1 else 0] / total)
        kept = values
        if len(genes):
            _pick(values, genes, picked)
            kept = picked
        if zi_logits.shape[1]:
            _observe(kept, zi_logits[i], zi_bias_sg[condition if zi_several else 0])
        if slot:
            _add(kept, factor, out[i])
        else:
            _store(kept, factor, out[i])
