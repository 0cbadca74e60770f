"""A step of Adam: the loop."""

from __future__ import annotations

import numpy as np

from scdecode.kernels.jit import jit

BLOCK = 16384
"""Numbers that a thread takes at least."""


@jit(fastmath={"contract"})
def adam(  # type: ignore[no-untyped-def]
    weight, gradient, mean, square, new1, beta2, new2, decay, step_size, root_correction, eps
):
    """Change weights and moments, flat arrays of one length; ``new1`` and ``new2`` are 1 - beta1 and 1 - beta2."""
    for j in range(len(weight)):
        w = weight[j]
        g = gradient[j] + decay * w
        m = mean[j] + new1 * (g - mean[j])
        v = beta2 * square[j] + new2 * (g * g)
        mean[j], square[j] = m, v
        weight[j] = w - step_size * m / (np.sqrt(v) * root_correction + eps)
