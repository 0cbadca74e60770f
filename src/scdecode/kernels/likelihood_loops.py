"""-log p(x) of cells and its gradients, in one pass over the genes of a cell while they are in the cache.

With mu the mean, theta the inverse dispersion and d = log mu - log theta, a zero costs ``theta softplus(d)``
(:mod:`scdecode.likelihoods`): no gamma function. So a tile of genes is first done as if all its counts were zero, in
vector instructions, and then its few other counts one by one, in double precision.

``softplus(d)`` and its kin come from ``t = exp(-|d|)``, the smaller of mu and theta over the larger: a quotient, no
exponential. With ``z = t / (2 + t)``, ``log(1 + t) = 2 atanh(z)``, a short polynomial.
"""

from __future__ import annotations

import math

import numpy as np

from scdecode.kernels.functions import atanh_tail, exp32, gamma_terms, log1p_unit, log32, log_factorial
from scdecode.kernels.jit import jit

NB, ZINB, POISSON = 0, 1, 2
ROWS = 16
"""Cells in a block. The blocks do not depend on the number of threads, and so neither does any sum over cells."""

_F = np.float32
_T = 512  # genes in a tile: its arrays, 28 KB, fit the first-level cache
# Where in the scratch each array of a tile begins. They share one array, as LLVM then knows that none overlaps.
_D, _V, _G, _H, _H0, _L, _W = (i * _T for i in range(7))
_ZI, _GZI, _P, _LOST = (i * _T for i in range(7, 11))
_N_ARRAYS = 11
# The same of the counts of a tile that are not zero.
_X, _C_THETA, _C_D, _C_L, _C_W, _PRODUCT, _REST = (i * _T for i in range(7))
_N_OF_COUNTS = 7
_MANY, _SMALL, _LARGE = _F(12.0), _F(1e-30), _F(1e3)  # of a count and theta: products of theta + k stay in range
_LOG_FACTORIAL = np.array([math.lgamma(x + 1.0) for x in range(int(_MANY) + 1)], np.float32)
_LOG_THETA_LOW, _LOG_THETA_HIGH = _F(-46.0), _F(40.0)  # the bounds of likelihoods.py
_ZERO, _ONE, _TWO = _F(0.0), _F(1.0), _F(2.0)
_SMALLEST_SUM, _LARGEST_SUM = 1e-15, 1e30  # of exponentials: between them none that matters was cut off
_LINEAR = _F(-15.0)  # below, log(softplus(x)) is x

_exact = jit(fastmath={"contract"})
_sums = jit(fastmath={"contract", "reassoc", "nsz"})


@_sums
def sum_of(a):  # type: ignore[no-untyped-def]
    """The sum of some hundred numbers, in any order."""
    total = _ZERO
    for j in range(len(a)):
        total += a[j]
    return total


@_exact
def _add_multiple(source, target, factor):  # type: ignore[no-untyped-def]
    for j in range(len(target)):
        target[j] += factor * source[j]


@_exact
def _largest(a):  # type: ignore[no-untyped-def]
    top = a[0]
    for j in range(1, len(a)):
        top = a[j] if a[j] > top else top
    return top


@_exact
def _exponential(logits, shift, scale):  # type: ignore[no-untyped-def]
    for j in range(len(logits)):
        scale[j] = exp32(logits[j] - shift)


@_exact
def _exponentials(logits, shift, scale):  # type: ignore[no-untyped-def]
    """``exp(logits - shift)`` into ``scale``, and their sum in double precision."""
    total = 0.0
    for lo in range(0, len(logits), _T):
        hi = min(lo + _T, len(logits))
        _exponential(logits[lo:hi], shift, scale[lo:hi])
        total += sum_of(scale[lo:hi])
    return total


@_exact
def _softplus(logits, scale, log_scale, slope):  # type: ignore[no-untyped-def]
    """Softplus, its logarithm, and the slope of that."""
    for j in range(len(logits)):
        x = logits[j]
        t = exp32(-abs(x))
        value = (x if x > _ZERO else _ZERO) + log1p_unit(t)
        far = x < _LINEAR
        scale[j] = exp32(x) if far else value
        log_scale[j] = x if far else log32(value)
        slope[j] = _ONE if far else (_ONE if x > _ZERO else t) / ((_ONE + t) * value)


@_exact
def thetas(log_theta, clamped, theta):  # type: ignore[no-untyped-def]
    """Log theta within its bounds, and theta, of flat arrays."""
    for j in range(len(theta)):
        x = log_theta[j]
        x = _LOG_THETA_LOW if x < _LOG_THETA_LOW else x
        clamped[j] = _LOG_THETA_HIGH if x > _LOG_THETA_HIGH else x
    for j in range(len(theta)):
        theta[j] = exp32(clamped[j])


@_exact
def finish_theta(parts, log_theta, out):  # type: ignore[no-untyped-def]
    """The sum of the gradients of log theta, none beyond its bounds."""
    out[:] = parts[0]
    for i in range(1, len(parts)):
        _add_multiple(parts[i], out, _ONE)
    for j in range(len(out)):
        x = log_theta[j]
        out[j] = out[j] if x >= _LOG_THETA_LOW and x <= _LOG_THETA_HIGH else _ZERO


@_exact
def _difference(log_scale, log_theta, shift, constant, s):  # type: ignore[no-untyped-def]
    """Log mu - log theta."""
    for j in range(len(log_scale)):
        s[_D + j] = ((log_scale[j] - shift) + constant) - log_theta[j]


@_exact
def _nb_zeros(scale, theta_of, factor, s):  # type: ignore[no-untyped-def]
    """A tile of zeros: value, gradient with respect to log mu and to log theta, and what the other counts need."""
    for j in range(len(scale)):
        mu, theta, d = factor * scale[j], theta_of[j], s[_D + j]
        above = d > _ZERO
        small, large = (theta if above else mu), (mu if above else theta)
        z = small / (_TWO * large + small)
        tail = _TWO * z * atanh_tail(z)
        log1p_t = _TWO * z + tail
        w = _TWO * z / (_ONE + z)  # sigmoid(-|d|)
        softplus = d + log1p_t if above else log1p_t
        sigmoid = _ONE - w if above else w
        rest = softplus - sigmoid if above else z * w + tail  # softplus - sigmoid, without cancelling
        s[_V + j] = theta * softplus
        s[_G + j] = theta * sigmoid
        s[_H + j] = theta * rest
        s[_H0 + j] = theta * rest
        s[_L + j] = log1p_t
        s[_W + j] = w


@_exact
def _inflate_zeros(s, m):  # type: ignore[no-untyped-def]
    """What zero inflation makes of a tile of zeros: ``log(1 + e^pi) - log(e^pi + e^a)``, a the log-probability."""
    for j in range(m):
        pi, a = s[_ZI + j], -s[_V + j]
        v = a - pi
        p, u = exp32(-abs(pi)), exp32(-abs(v))
        z = (p - u) / (_TWO + p + u)  # log((1 + p) / (1 + u)) = 2 atanh(z)
        top = a if a > pi else pi
        r = _ONE / ((_ONE + p) * (_ONE + u))
        lost = (_ONE if pi >= _ZERO else p) * r * (_ONE + u)
        counted = (_ONE if v >= _ZERO else u) * r * (_ONE + p)  # the probability that a zero is of the counts
        not_counted = (u if v >= _ZERO else _ONE) * r * (_ONE + p)
        s[_V + j] = _TWO * z + _TWO * z * atanh_tail(z) + ((pi if pi > _ZERO else _ZERO) - top)
        s[_GZI + j] = lost - not_counted
        s[_P + j] = p
        s[_LOST + j] = lost
        s[_G + j] *= counted
        s[_H + j] *= counted


@_exact
def _count(s, k, x, theta, log_theta):  # type: ignore[no-untyped-def]
    """A count that is not zero, at place ``k`` of the tile, in double precision."""
    d, log1p_t, w = float(s[_D + k]), float(s[_L + k]), float(s[_W + k])
    above = d > 0.0
    value, rest = gamma_terms(x, theta, log_theta)
    sigmoid = 1.0 - w if above else w
    softplus = d + log1p_t if above else log1p_t
    softplus_minus = log1p_t if above else log1p_t - d
    s[_V + k] = theta * softplus + x * softplus_minus - value + log_factorial(x)
    s[_G + k] = theta * sigmoid - x * (1.0 - sigmoid)
    s[_H + k] = s[_H0 + k] - x * sigmoid + rest


@_exact
def _few(c, n, largest):  # type: ignore[no-untyped-def]
    """Whole counts up to ``largest``, side by side in ``c``: the same, by the factors of the gamma function."""
    for e in range(n):
        c[_PRODUCT + e] = c[_C_THETA + e]
        c[_REST + e] = _ZERO
    for q in range(1, largest):
        k = _F(q)
        for e in range(n):
            taken = c[_X + e] > k
            factor = c[_C_THETA + e] + k
            c[_PRODUCT + e] *= factor if taken else _ONE
            c[_REST + e] += k / factor if taken else _ZERO
    for e in range(n):
        x, theta, d, log1p_t, w = c[_X + e], c[_C_THETA + e], c[_C_D + e], c[_C_L + e], c[_C_W + e]
        above = d > _ZERO
        sigmoid = _ONE - w if above else w
        softplus = d + log1p_t if above else log1p_t
        softplus_minus = log1p_t if above else log1p_t - d
        c[_X + e] = theta * softplus + (x * softplus_minus - log32(c[_PRODUCT + e]))
        c[_C_THETA + e] = theta * sigmoid - x * (_ONE - sigmoid)
        c[_REST + e] -= x * sigmoid


@_exact
def _counts(s, c, lo, places, values, thetas, log_thetas):  # type: ignore[no-untyped-def]
    """The counts of a tile that begins at gene ``lo``."""
    n, largest = 0, 1
    for e in range(len(places)):
        k, x = places[e] - lo, values[e]
        theta = thetas[k]
        if x == _ZERO:
            continue
        if x > _MANY or x != math.floor(x) or theta > _LARGE or theta < _SMALL:
            _count(s, k, float(x), float(theta), float(log_thetas[k]))
            continue
        c[_X + n], c[_C_THETA + n] = x, theta
        c[_C_D + n], c[_C_L + n], c[_C_W + n] = s[_D + k], s[_L + k], s[_W + k]
        largest = max(largest, int(x))
        n += 1
    _few(c, n, largest)
    n = 0
    for e in range(len(places)):
        k, x = places[e] - lo, values[e]
        theta = thetas[k]
        if x == _ZERO or x > _MANY or x != math.floor(x) or theta > _LARGE or theta < _SMALL:
            continue
        s[_V + k] = c[_X + n] + _LOG_FACTORIAL[int(x)]
        s[_G + k] = c[_C_THETA + n]
        s[_H + k] = s[_H0 + k] + c[_REST + n]
        n += 1


@_exact
def _inflate_counts(s, lo, places, values):  # type: ignore[no-untyped-def]
    """What zero inflation makes of the counts of a tile: ``log(1 + e^pi)`` is lost."""
    for e in range(len(places)):
        k = places[e] - lo
        if values[e] != _ZERO:
            s[_V + k] += log1p_unit(s[_P + k]) + max(s[_ZI + k], _ZERO)
            s[_GZI + k] = s[_LOST + k]


@_exact
def _copy(source, target, factor):  # type: ignore[no-untyped-def]
    for j in range(len(target)):
        target[j] = factor * source[j]


@_exact
def _finish_softmax(gradient, scale, total, weight):  # type: ignore[no-untyped-def]
    for j in range(len(gradient)):
        gradient[j] = weight * (gradient[j] - total * scale[j])


@_exact
def _finish_softplus(gradient, slope, weight):  # type: ignore[no-untyped-def]
    for j in range(len(gradient)):
        gradient[j] = weight * gradient[j] * slope[j]


@_exact
def likelihood_blocks(  # type: ignore[no-untyped-def]
    first, last, kind, softmax, by_cell, with_gradient, bias, zi_bias,
    logits, log_library, theta, log_theta, zi_logits, indptr, indices, values, weight,
    loss, d_logits, d_library, d_theta, d_zi,
):  # fmt: skip
    """Blocks ``first`` to ``last`` of cells; biases that are not empty are added to the logits first.

    ``d_logits`` may be ``logits`` itself, and ``d_zi`` ``zi_logits``. ``theta`` has one row, or (``by_cell``) a row a
    cell, and ``log_theta`` likewise. ``d_theta`` has a row a block, or
    a cell, and is added to. All gradients are those of the sum of ``weight * loss``.
    """
    n, g = logits.shape
    s, c = np.empty(_N_ARRAYS * _T, np.float32), np.empty(_N_OF_COUNTS * _T, np.float32)
    scale, slope = np.empty(g, np.float32), np.empty(0 if softmax else g, np.float32)
    log_scale = np.empty(0 if softmax else g, np.float32)
    for i in range(first * ROWS, min(last * ROWS, n)):
        row = logits[i]
        if len(bias):
            _add_multiple(bias, row, _ONE)
        if len(zi_bias):
            _add_multiple(zi_bias, zi_logits[i], _ONE)
        log_l = float(log_library[i])
        if softmax:
            shift = _ZERO
            total = _exponentials(row, shift, scale)
            if not (_SMALLEST_SUM < total < _LARGEST_SUM):
                shift = _largest(row)
                total = _exponentials(row, shift, scale)
            constant = _F(log_l - math.log(total))
            factor = _F(math.exp(log_l) / total)
        else:
            _softplus(row, scale, log_scale, slope)
            total, shift, constant, factor = 1.0, _ZERO, _F(log_l), _F(math.exp(log_l))
        value, gradient, start = 0.0, 0.0, indptr[i]
        theta_row = i if by_cell else 0
        for lo in range(0, g, _T):
            hi = min(lo + _T, g)
            m = hi - lo
            stop = start
            while stop < indptr[i + 1] and indices[stop] < hi:
                stop += 1
            places, xs = indices[start:stop], values[start:stop]
            start = stop
            log_mu = row[lo:hi] if softmax else log_scale[lo:hi]
            if kind == POISSON:
                _copy(scale[lo:hi], s[_G : _G + m], factor)
                _copy(scale[lo:hi], s[_V : _V + m], factor)
                for e in range(len(places)):
                    k, x = places[e] - lo, float(xs[e])
                    s[_V + k] += log_factorial(x) - x * (float(log_mu[k] - shift) + float(constant))
                    s[_G + k] -= x
            else:
                _difference(log_mu, log_theta[theta_row, lo:hi], shift, constant, s)
                _nb_zeros(scale[lo:hi], theta[theta_row, lo:hi], factor, s)
                if kind == ZINB:
                    _copy(zi_logits[i, lo:hi], s[_ZI : _ZI + m], _ONE)
                    _inflate_zeros(s, m)
                _counts(s, c, lo, places, xs, theta[theta_row, lo:hi], log_theta[theta_row, lo:hi])
                if kind == ZINB:
                    _inflate_counts(s, lo, places, xs)
            value += sum_of(s[_V : _V + m])
            if with_gradient:
                gradient += sum_of(s[_G : _G + m])
                _copy(s[_G : _G + m], d_logits[i, lo:hi], _ONE)
                if kind != POISSON:
                    _add_multiple(s[_H : _H + m], d_theta[i if by_cell else i // ROWS, lo:hi], weight[i])
                if kind == ZINB:
                    _copy(s[_GZI : _GZI + m], d_zi[i, lo:hi], weight[i])
        loss[i] = value if math.isfinite(log_l) else math.nan  # a library size of zero has no likelihood
        if with_gradient:
            d_library[i] = weight[i] * gradient
            if softmax:
                _finish_softmax(d_logits[i], scale, _F(gradient / total), weight[i])
            else:
                _finish_softplus(d_logits[i], slope, weight[i])
