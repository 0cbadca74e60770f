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
ROWS = 8
"""Cells in a block. The blocks do not depend on the number of threads, and so neither does any sum over cells."""

_F = np.float32
_T = 512  # genes in a tile: its arrays, 28 KB, fit the first-level cache
# Where in the scratch each array of a tile begins. They share one array, as LLVM then knows that none overlaps.
_MU, _D, _THETA, _V, _G, _H = 0, _T, 2 * _T, 3 * _T, 4 * _T, 5 * _T
_L, _W, _H0, _ZI, _GZI, _LOG_THETA = 6 * _T, 7 * _T, 8 * _T, 9 * _T, 10 * _T, 11 * _T
_P, _LOST = 12 * _T, 13 * _T
_N_ARRAYS = 14
_LOG_THETA_LOW, _LOG_THETA_HIGH = _F(-46.0), _F(40.0)  # the bounds of likelihoods.py
_ZERO, _ONE, _TWO = _F(0.0), _F(1.0), _F(2.0)
_SMALLEST_SUM, _LARGEST_SUM = 1e-15, 1e30  # of exponentials: between them none that matters was cut off
_LINEAR = _F(-15.0)  # below, log(softplus(x)) is x

_exact = jit(fastmath={"contract"})
_sums = jit(fastmath={"contract", "reassoc", "nsz"})


@_sums
def _sum(a):  # type: ignore[no-untyped-def]
    total = _ZERO
    for j in range(len(a)):
        total += a[j]
    return total


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
        total += _sum(scale[lo:hi])
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
def _load_theta(log_theta, s, m):  # type: ignore[no-untyped-def]
    for j in range(m):
        x = log_theta[j]
        x = _LOG_THETA_LOW if x < _LOG_THETA_LOW else x
        s[_LOG_THETA + j] = _LOG_THETA_HIGH if x > _LOG_THETA_HIGH else x
    for j in range(m):
        s[_THETA + j] = exp32(s[_LOG_THETA + j])


@_exact
def _nb_zeros(s, m):  # type: ignore[no-untyped-def]
    """A tile of zeros: value, gradient with respect to log mu and to log theta, and what the other counts need."""
    for j in range(m):
        mu, theta, d = s[_MU + j], s[_THETA + j], s[_D + j]
        above = mu > theta
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
def _count(s, k, x, zero_inflated):  # type: ignore[no-untyped-def]
    """A count that is not zero, at place ``k`` of the tile."""
    theta, log_theta = float(s[_THETA + k]), float(s[_LOG_THETA + k])
    d, log1p_t, w = float(s[_D + k]), float(s[_L + k]), float(s[_W + k])
    above = s[_MU + k] > s[_THETA + k]
    value, rest = gamma_terms(x, theta, log_theta)
    sigmoid = 1.0 - w if above else w
    softplus = d + log1p_t if above else log1p_t
    softplus_minus = log1p_t if above else log1p_t - d
    loss = theta * softplus + x * softplus_minus - value + log_factorial(x)
    if zero_inflated:
        loss += log1p_unit(s[_P + k]) + max(s[_ZI + k], _ZERO)  # log(1 + e^pi)
        s[_GZI + k] = s[_LOST + k]
    s[_V + k] = loss
    s[_G + k] = theta * sigmoid - x * (w if above else 1.0 - w)
    s[_H + k] = s[_H0 + k] - x * sigmoid + rest


@_exact
def _add_theta(gradient, log_theta, s, m, weight):  # type: ignore[no-untyped-def]
    for j in range(m):
        x = log_theta[j]
        inside = x >= _LOG_THETA_LOW and x <= _LOG_THETA_HIGH
        gradient[j] += weight * (s[_H + j] if inside else _ZERO)


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
def _add(source, target, value):  # type: ignore[no-untyped-def]
    for j in range(len(target)):
        target[j] = source[j] + value


@_exact
def likelihood_blocks(  # type: ignore[no-untyped-def]
    first, last, kind, softmax, by_cell, with_gradient,
    logits, log_library, log_theta, zi_logits, indptr, indices, values, weight,
    loss, d_logits, d_library, d_theta, d_zi,
):  # fmt: skip
    """Blocks ``first`` to ``last`` of cells; ``d_logits`` may be ``logits`` itself, and ``d_zi`` ``zi_logits``.

    ``d_theta`` has a row a block, or (``by_cell``) a cell, and is added to. All gradients are those of the sum of
    ``weight * loss``.
    """
    n, g = logits.shape
    s = np.empty(_N_ARRAYS * _T, np.float32)
    scale, slope = np.empty(g, np.float32), np.empty(0 if softmax else g, np.float32)
    log_scale = np.empty(0 if softmax else g, np.float32)
    for i in range(first * ROWS, min(last * ROWS, n)):
        row = logits[i]
        log_l = float(log_library[i])
        if softmax:
            shift = _ZERO
            total = _exponentials(row, shift, scale)
            if not (_SMALLEST_SUM < total < _LARGEST_SUM):
                shift = _largest(row)
                total = _exponentials(row, shift, scale)
            constant = _F(log_l - float(shift) - math.log(total))
            factor = _F(math.exp(log_l) / total)
        else:
            _softplus(row, scale, log_scale, slope)
            total, constant, factor = 1.0, _F(log_l), _F(math.exp(log_l))
        value, gradient, at = 0.0, 0.0, indptr[i]
        theta_row = i if by_cell else 0
        for lo in range(0, g, _T):
            hi = min(lo + _T, g)
            m = hi - lo
            _copy(scale[lo:hi], s[_MU : _MU + m], factor)
            _add(row[lo:hi] if softmax else log_scale[lo:hi], s[_D : _D + m], constant)
            if kind == POISSON:
                for j in range(m):
                    s[_V + j] = s[_MU + j]
                    s[_G + j] = s[_MU + j]
            else:
                _load_theta(log_theta[theta_row, lo:hi], s, m)
                for j in range(m):
                    s[_D + j] -= s[_LOG_THETA + j]
                _nb_zeros(s, m)
            if kind == ZINB:
                _copy(zi_logits[i, lo:hi], s[_ZI : _ZI + m], _ONE)
                _inflate_zeros(s, m)
            while at < indptr[i + 1] and indices[at] < hi:
                k, x = indices[at] - lo, float(values[at])
                if kind == POISSON:
                    s[_V + k] = s[_MU + k] - x * float(s[_D + k]) + log_factorial(x)
                    s[_G + k] = s[_MU + k] - x
                elif x != 0.0:
                    _count(s, k, x, kind == ZINB)
                at += 1
            value += _sum(s[_V : _V + m])
            if with_gradient:
                gradient += _sum(s[_G : _G + m])
                _copy(s[_G : _G + m], d_logits[i, lo:hi], _ONE)
                if kind != POISSON:
                    to = i if by_cell else i // ROWS
                    _add_theta(d_theta[to, lo:hi], log_theta[theta_row, lo:hi], s, m, weight[i])
                if kind == ZINB:
                    _copy(s[_GZI : _GZI + m], d_zi[i, lo:hi], weight[i])
        loss[i] = value if math.isfinite(log_l) else math.nan  # a library size of zero has no likelihood
        if with_gradient:
            d_library[i] = weight[i] * gradient
            if softmax:
                _finish_softmax(d_logits[i], scale, _F(gradient / total), weight[i])
            else:
                _finish_softplus(d_logits[i], slope, weight[i])
