"""A step of Adam: the loop."""

from __future__ import annotations

import numpy as np

from scdecode.kernels.jit import jit

BLOCK = 16384
"""Numbers that a thread takes at least."""

_ONE = np.float32(1.0)


@jit(fastmath={"contract"})
def adam(  # type: ignore[no-untyped-def]
    weight, gradient, mean, square, beta1, beta2, decay, step_size, root_correction, eps
):
    """Change weights and moments, flat arrays of one length."""
    for j in range(len(weight)):
        w = weight[j]
        g = gradient[j] + decay * w
        m = mean[j] + (_ONE - beta1) * (g - mean[j])
        v = beta2 * square[j] + (_ONE - beta2) * (g * g)
        mean[j], square[j] = m, v
        weight[j] = w - step_size * m / (np.sqrt(v) * root_correction + eps)
