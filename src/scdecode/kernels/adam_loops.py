"""One step of Adam over some weights as they lie in memory: the loop."""

from __future__ import annotations

import numpy as np

from scdecode.kernels.jit import jit

BLOCK = 16384
"""Weights in a block: 256 KB of weights, gradients and moments, which fit the second-level cache."""

_loop = jit(fastmath={"contract"})
_ONE = np.float32(1.0)


@_loop
def _step(weight, gradient, mean, square, beta1, beta2, decay, step_size, root_correction, eps):  # type: ignore[no-untyped-def]
    for j in range(len(weight)):
        w = weight[j]
        g = gradient[j] + decay * w
        m = mean[j] + (_ONE - beta1) * (g - mean[j])
        v = beta2 * square[j] + (_ONE - beta2) * (g * g)
        mean[j], square[j] = m, v
        weight[j] = w - step_size * m / (np.sqrt(v) * root_correction + eps)


@_loop
def adam_blocks(  # type: ignore[no-untyped-def]
    first, last, weight, gradient, mean, square, beta1, beta2, decay, step_size, root_correction, eps
):
    """Blocks ``first`` to ``last`` of flat arrays of one length."""
    for block in range(first, last):
        lo, hi = block * BLOCK, min((block + 1) * BLOCK, len(weight))
        _step(
            weight[lo:hi], gradient[lo:hi], mean[lo:hi], square[lo:hi],
            beta1, beta2, decay, step_size, root_correction, eps,
        )  # fmt: skip
