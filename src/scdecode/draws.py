"""Normal draws that are spread more evenly than chance would, for means and quantiles over them."""

from __future__ import annotations

import torch
from torch import Tensor


def even_normals(n_samples: int, n_dimensions: int, seed: int) -> Tensor:
    """Standard normal draws, ``(n_samples, n_dimensions)``, more even than by chance: a scrambled Sobol net.

    The same are used at every point, so that the error that is left moves all points of a path alike and its trends are
    smooth, and so that a result does not depend on how its points are cut into tiles. (Owen 1998, Journal of Complexity
    14:466, is the scrambling.)
    """
    engine = torch.quasirandom.SobolEngine(n_dimensions, scramble=True, seed=seed % 2**63)
    # rounded to float32 first, as torch rounds the first point of the net to its default type, whatever that is
    uniform = engine.draw(n_samples, dtype=torch.float64).float().double()
    return torch.special.ndtri(uniform.clamp(2**-32, 1 - 2**-32)).float()
