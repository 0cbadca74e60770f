"""Which numbers the weights of a network can be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LARGEST_WEIGHT = 1e9
"""Adam moves a weight by about its learning rate a step, so no training leads there. The product of two such numbers is
far from the largest of single precision, 3.4e38."""

LARGEST_STATISTIC = 1e30
"""Of batch normalisation: the variance of hidden units for counts of 1e6 that are not log-transformed is some 1e14."""


def problems_of(weights: Mapping[str, Tensor]) -> list[str]:
    """Describe the weights that no training leads to: NaN, infinite or huge numbers, negative variances.

    Parameters
    ----------
    weights
        By name, as a ``state_dict`` has them. Names that end in ``running_mean``, ``running_var`` or
        ``log_variance`` are statistics.

    Returns
    -------
    list of str
        One sentence a weight; empty if all can be right.
    """
    return [f"{name} {problem}" for name, tensor in weights.items() if (problem := _problem(name, tensor)) is not None]


def _problem(name: str, tensor: Tensor) -> str | None:
    if not tensor.numel() or tensor.is_complex():
        return "has complex numbers" if tensor.is_complex() else None
    # a NaN is both extremes, and they take no memory, as a mask would
    low, high = (float(extreme) for extreme in torch.aminmax(tensor))
    if not (low > float("-inf") and high < float("inf")):
        return "has NaN or infinite values"
    statistic = name.endswith(("running_mean", "running_var"))
    limit = LARGEST_STATISTIC if statistic else LARGEST_WEIGHT
    if name.endswith(("running_var", "library_log_variance", "library_log_vars")) and low < 0:
        return f"has the variance {low:.3g}, numbers of at least 0 were expected"
    if tensor.is_floating_point() and max(-low, high) > limit:
        return f"has the number {high if high > -low else low:.3g}, numbers up to {limit:g} were expected"
    return None
