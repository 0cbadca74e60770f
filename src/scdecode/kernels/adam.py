"""Torch's Adam, with a step that is one pass over each weight, its gradient and its moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode.kernels.threads import over_blocks


class KernelAdam(torch.optim.Adam):
    """Adam (Kingma and Ba 2015, ICLR) for weights on the CPU; its state is that of :class:`torch.optim.Adam`.

    Each weight is taken as it lies in memory, so its moments and its gradient have to lie alike; those that do not
    are laid anew.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the weights that have a gradient."""
        from scdecode.kernels.adam_loops import BLOCK, adam_blocks

        assert closure is None, "a step here evaluates nothing"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            fixed = [np.float32(x) for x in (beta1, beta2, group["weight_decay"])]
            eps = np.float32(group["eps"])
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                n = float(state["step"])
                arrays = (_memory(x, weight) for x in (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]))
                step_size = np.float32(group["lr"] / (1 - beta1**n))
                root_correction = np.float32(1 / math.sqrt(1 - beta2**n))
                n_blocks = -(-weight.numel() // BLOCK)
                over_blocks(adam_blocks, n_blocks, *arrays, *fixed, step_size, root_correction, eps)


def _memory(x: Tensor, like: Tensor) -> np.ndarray:
    """The numbers of ``x`` in the order in which those of ``like`` lie in memory; its own memory where it lies so."""
    if x.stride() != like.stride():
        x = torch.empty_like(like).copy_(x)
    x = x.detach()
    if x.ndim == 2 and not x.is_contiguous():
        x = x.t()
    assert x.is_contiguous(), "a weight lies plainly or turned round"
    return x.reshape(-1).numpy()
