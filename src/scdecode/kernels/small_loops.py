"""What lies between the large layers: the loops. Each is short; what they save is torch's calls."""

from __future__ import annotations

import math

import numpy as np

from scdecode.kernels.jit import jit

_loop = jit(fastmath={"contract"})
_F = np.float32
_ZERO, _ONE = _F(0.0), _F(1.0)


@_loop
def _add(total, row):  # type: ignore[no-untyped-def]
    for j in range(len(total)):
        total[j] += row[j]


@_loop
def _add_square(total, row, mean):  # type: ignore[no-untyped-def]
    for j in range(len(total)):
        total[j] += (row[j] - mean[j]) * (row[j] - mean[j])


@_loop
def _normal_relu(row, mean, slope, shift, out):  # type: ignore[no-untyped-def]
    for j in range(len(row)):
        y = (row[j] - mean[j]) * slope[j] + shift[j]
        out[j] = _ZERO if y < _ZERO else y


@_loop
def _scale(row, factor):  # type: ignore[no-untyped-def]
    for j in range(len(row)):
        row[j] *= factor[j]


@_loop
def normal_relu(  # type: ignore[no-untyped-def]
    x, weight, bias, kept, eps, momentum, running_mean, running_variance, mean, inverse_deviation, out
):
    """Batch normalisation of a minibatch in training, ReLU, and dropout (``kept``: factors, or no row at all)."""
    n, h = x.shape
    variance, slope = np.zeros(h, np.float32), np.empty(h, np.float32)
    mean[:] = _ZERO
    for i in range(n):
        _add(mean, x[i])
    for j in range(h):
        mean[j] /= _F(n)
    for i in range(n):
        _add_square(variance, x[i], mean)
    for j in range(h):
        v = variance[j] / _F(n)
        inverse_deviation[j] = _F(1.0 / math.sqrt(v + eps))
        slope[j] = inverse_deviation[j] * weight[j]
        running_mean[j] += momentum * (mean[j] - running_mean[j])
        running_variance[j] += momentum * (v * _F(n) / _F(n - 1) - running_variance[j])
    for i in range(n):
        _normal_relu(x[i], mean, slope, bias, out[i])
        if len(kept):
            _scale(out[i], kept[i])


@_loop
def _masked(d_out, out, target):  # type: ignore[no-untyped-def]
    for j in range(len(d_out)):
        target[j] = d_out[j] if out[j] > _ZERO else _ZERO


@_loop
def _add_product(total, d, x, mean, inverse_deviation):  # type: ignore[no-untyped-def]
    for j in range(len(total)):
        total[j] += d[j] * (x[j] - mean[j]) * inverse_deviation[j]


@_loop
def _through_norm(d, x, mean, inverse_deviation, weight, mean_d, mean_product):  # type: ignore[no-untyped-def]
    for j in range(len(d)):
        normal = (x[j] - mean[j]) * inverse_deviation[j]
        d[j] = weight[j] * inverse_deviation[j] * (d[j] - mean_d[j] - normal * mean_product[j])


@_loop
def normal_relu_gradient(  # type: ignore[no-untyped-def]
    d_out, out, x, kept, weight, mean, inverse_deviation, d_x, d_weight, d_bias
):
    """The gradients of :func:`normal_relu`."""
    n = len(x)
    d_weight[:], d_bias[:] = _ZERO, _ZERO
    for i in range(n):
        _masked(d_out[i], out[i], d_x[i])
        if len(kept):
            _scale(d_x[i], kept[i])
        _add(d_bias, d_x[i])
        _add_product(d_weight, d_x[i], x[i], mean, inverse_deviation)
    mean_d, mean_product = d_bias / _F(n), d_weight / _F(n)
    for i in range(n):
        _through_norm(d_x[i], x[i], mean, inverse_deviation, weight, mean_d, mean_product)


@_loop
def draw(mean, log_variance, noise, floor, variance, z, kl):  # type: ignore[no-untyped-def]
    """A draw of a normal posterior whose variance is ``exp(log_variance) + floor``, and its KL to a standard normal."""
    n, k = mean.shape
    for i in range(n):
        total = 0.0
        for j in range(k):
            m = mean[i, j]
            v = _F(math.exp(log_variance[i, j]) + floor)
            variance[i, j] = v
            z[i, j] = m + _F(math.sqrt(v)) * noise[i, j]
            total += 0.5 * (v + m * m - 1.0 - math.log(v))
        kl[i] = total


@_loop
def draw_gradient(mean, variance, noise, floor, d_z, d_kl, d_mean, d_log_variance):  # type: ignore[no-untyped-def]
    """The gradients of :func:`draw`."""
    n, k = mean.shape
    for i in range(n):
        for j in range(k):
            v = variance[i, j]
            d_mean[i, j] = d_z[i, j] + d_kl[i] * mean[i, j]
            d_v = _F(0.5) * (d_z[i, j] * noise[i, j] / _F(math.sqrt(v)) + d_kl[i] * (_ONE - _ONE / v))
            d_log_variance[i, j] = d_v * (v - floor)


@_loop
def add_columns(out, weight, codes, first):  # type: ignore[no-untyped-def]
    """Add to each row of ``out``, ``(n, h)``, the row of its code of ``weight``, ``(inputs, h)``."""
    for i in range(len(out)):
        _add(out[i], weight[first + codes[i]])


@_loop
def add_columns_gradient(d_out, codes, first, d_weight):  # type: ignore[no-untyped-def]
    """Add each row of ``d_out`` to the row of its code, cell after cell."""
    for i in range(len(d_out)):
        _add(d_weight[first + codes[i]], d_out[i])
