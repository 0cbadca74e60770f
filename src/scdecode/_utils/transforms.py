"""Tensors within ``torch.func``, whose values cannot be looked at."""

from __future__ import annotations

import torch
from torch import Tensor


def is_transformed(tensor: Tensor) -> bool:
    """Whether a tensor is traced by a transform, a compiler or an exporter, so that its values are not known."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch.compiler.is_compiling()
