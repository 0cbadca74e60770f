"""Exponential, logarithm and the gamma function's kin, for the loops of this folder to take in.

LLVM turns a loop into vector instructions only where it sees plain arithmetic, and a call of libm is none: so exp and
log are polynomials here, of single precision, right to about 1e-7. The coefficients are Chebyshev interpolations of
the functions named beside them. Reassociation is not allowed in this file: it would undo the rounding trick of exp.

Numba's files on disk are as old as the file of a loop, whatever that calls: after a change here, touch those files.
"""

from __future__ import annotations

import math

import numpy as np

from scdecode.kernels.jit import jit

_F = np.float32
_LOG2_E = _F(1.4426950408889634)
_LN2_HIGH = _F(0.693359375)  # few bits, so that a whole number times it is exact
_LN2_LOW = _F(-2.12194440e-4)
_ROUNDER = _F(12582912.0)  # 1.5 * 2^23: adding it leaves no bits for a fraction
_EXP_LOW, _EXP_HIGH = _F(-87.3), _F(88.37)  # beyond, exp would be denormal, or overflow
_E2, _E3, _E4, _E5, _E6 = _F(0.5), _F(0.16666577), _F(0.04166655), _F(0.00836323), _F(0.00139263)  # (exp(r)-1-r)/r^2
_A0, _A1, _A2, _A3, _A4 = _F(0.33333334), _F(0.19999853), _F(0.14296179), _F(0.10853288), _F(0.11612165)
_ZERO, _ONE, _TWO, _HALF = _F(0.0), _F(1.0), _F(2.0), _F(0.5)
_SQRT2 = _F(1.4142135)

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_N_FACTORIALS = 256
_LOG_FACTORIAL = np.array([math.lgamma(x + 1.0) for x in range(_N_FACTORIALS)])
_SHIFT = 16.0  # from here on Stirling's series with three terms is right to 1e-11

scalar = jit(forceinline=True, fastmath={"contract"})
"""How a function of this file is compiled."""


@scalar
def exp32(x):  # type: ignore[no-untyped-def]
    """``exp(x)``, held between 1e-38 and 2e38; no number gives no number."""
    x = _EXP_HIGH if x > _EXP_HIGH else x
    x = _EXP_LOW if x < _EXP_LOW else x
    n = (x * _LOG2_E + _ROUNDER) - _ROUNDER
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    tail = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (_ONE + (r + r * r * tail)) * power


@scalar
def atanh_tail(z):  # type: ignore[no-untyped-def]
    """``atanh(z) / z - 1`` for z within a third of zero."""
    s = z * z
    return s * (_A0 + s * (_A1 + s * (_A2 + s * (_A3 + s * _A4))))


@scalar
def log32(x):  # type: ignore[no-untyped-def]
    """``log(x)`` of a positive, normal number."""
    bits = np.float32(x).view(np.int32)
    n = (bits >> np.int32(23)) - np.int32(127)
    mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    large = mantissa > _SQRT2
    mantissa = _HALF * mantissa if large else mantissa
    power = _F(n) + (_ONE if large else _ZERO)
    z = (mantissa - _ONE) / (mantissa + _ONE)
    return power * _LN2_HIGH + (power * _LN2_LOW + (_TWO * z + _TWO * z * atanh_tail(z)))


@scalar
def log1p_unit(t):  # type: ignore[no-untyped-def]
    """``log(1 + t)`` for t between zero and one."""
    z = t / (_TWO + t)
    return _TWO * z + _TWO * z * atanh_tail(z)


@scalar
def log_factorial(x):  # type: ignore[no-untyped-def]
    """``lgamma(x + 1)`` in double precision."""
    n = int(x) if x < _N_FACTORIALS else _N_FACTORIALS
    if n < _N_FACTORIALS and n == x:
        return _LOG_FACTORIAL[n]
    return math.lgamma(x + 1.0)


@scalar
def gamma_terms(x, theta, log_theta):  # type: ignore[no-untyped-def]
    """``lgamma(x + theta) - lgamma(theta)`` and ``x - theta (digamma(x + theta) - digamma(theta))`` for x above zero.

    In double precision. The second is a difference that the gradient needs as a whole: for a large theta its parts
    cancel. For a whole x the first is the logarithm of theta (theta + 1) ... (theta + x - 1), and the second the sum
    of ``k / (theta + k)``: most counts are small, and need no series.
    """
    if x == 1.0:
        return log_theta, 0.0
    if x <= 12.0 and x == math.floor(x):
        product, rest = theta, 0.0
        for k in range(1, int(x)):
            factor = theta + k
            product *= factor
            rest += k / factor
        return math.log(product), rest
    # both arguments are moved up to where Stirling's series holds, by as many factors
    a, b, log_ratio, slope = theta, theta + x, 0.0, 0.0
    if a < _SHIFT:
        products_a, products_b = 1.0, 1.0
        while a < _SHIFT:
            products_a *= a
            products_b *= b
            slope += 1.0 / a - 1.0 / b
            a += 1.0
            b += 1.0
        log_ratio = math.log(products_a / products_b)
    growth = math.log1p(x / a)
    inverse_a, inverse_b = 1.0 / a, 1.0 / b
    square_a, square_b = inverse_a * inverse_a, inverse_b * inverse_b
    series_a = inverse_a * (1 / 12 - square_a * (1 / 360 - square_a / 1260))
    series_b = inverse_b * (1 / 12 - square_b * (1 / 360 - square_b / 1260))
    value = (a - 0.5) * growth + x * (math.log(b) - 1.0) + (series_b - series_a) + log_ratio
    slope += growth - 0.5 * (inverse_b - inverse_a)
    slope -= square_b * (1 / 12 - square_b * (1 / 120 - square_b / 252))
    slope += square_a * (1 / 12 - square_a * (1 / 120 - square_a / 252))
    return value, x - theta * slope
