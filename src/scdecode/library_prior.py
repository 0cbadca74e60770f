"""The prior of a learned library size, from the cells (Lopez et al. 2018, Methods: l_mu and l_sigma of each batch)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scdecode.cells import Cells


def library_prior(cells: Cells, n_batches: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the log total count in each batch; 0 and 1 where a batch has no counts."""
    mean, variance = torch.zeros(n_batches), torch.ones(n_batches)
    for batch in range(n_batches):
        library = cells.library_n[(cells.codes_nc[:, 0] == batch) & (cells.library_n > 0)]
        if len(library):
            logs = np.log(library.astype(np.float64))
            # a batch of equal totals has no variance, and its prior would have no density
            mean[batch], variance[batch] = float(logs.mean()), max(float(logs.var()), 1e-4)
    return mean, variance
