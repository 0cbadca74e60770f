"""Torch's Adam for weights that lie in one piece of memory, one pass over all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scdecode.kernels.threads import over_blocks

_ALIGNED = 16  # numbers: torch's products round otherwise where memory begins elsewhere than at 64 bytes


class KernelAdam(torch.optim.Adam):
    """Adam (Kingma and Ba 2015, ICLR) on the CPU; its state is that of :class:`torch.optim.Adam`.

    At the first step, or by :meth:`lay`, the weights that have a gradient move into one piece of memory, their
    gradients and moments into others, each weight as it lay.
    """

    _n_steps = 0
    _stretches: dict[nn.Parameter, tuple[int, int]] | None = None
    """Where each weight lies."""
    _gradients: dict[nn.Parameter, Tensor]
    """The places of the gradients; those that come elsewhere are copied there."""

    def lay(self, weights: list[nn.Parameter] | None = None) -> None:
        """Move the weights, by default those that have a gradient; what is in them and in their moments stays."""
        (group,) = self.param_groups
        if weights is None:
            weights = [weight for weight in group["params"] if weight.grad is not None]
        starts = np.cumsum([0, *(-(-weight.numel() // _ALIGNED) * _ALIGNED for weight in weights)]).tolist()
        self._flat = [torch.zeros(starts[-1]) for _ in range(4)]
        self._arrays = [one.numpy() for one in self._flat]
        self._stretches, self._gradients = {}, {}
        steps = {float(self.state[weight]["step"]) for weight in weights if self.state[weight]}
        assert len(steps) <= 1, "all weights took the same steps"
        self._n_steps = int(steps.pop()) if steps else 0
        step = torch.tensor(float(self._n_steps))
        for weight, start in zip(weights, starts, strict=False):
            state, stop = self.state[weight], start + weight.numel()
            views = [_view(one[start:stop], weight) for one in self._flat]
            for view, source in zip(
                views, (weight.detach(), weight.grad, state.get("exp_avg"), state.get("exp_avg_sq")), strict=True
            ):
                if source is not None:
                    view.copy_(source)
            weight.data, weight.grad, state["exp_avg"], state["exp_avg_sq"] = views
            state["step"] = step
            self._stretches[weight], self._gradients[weight] = (start, stop), views[1]
        self._step = step

    def stretch(self, weight: nn.Parameter) -> tuple[int, int]:
        """Where the numbers of a weight lie."""
        assert self._stretches is not None
        return self._stretches[weight]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the weights."""
        from scdecode.kernels.adam_loops import BLOCK

        assert closure is None, "a step here evaluates nothing"
        if self._stretches is None:
            self.lay()
        for weight, place in self._gradients.items():
            if weight.grad is not place and weight.grad is not None:
                place.copy_(weight.grad)
        self.begin_step()
        n = len(self._arrays[0])

        def part(first: int, last: int) -> None:
            self.change(first * BLOCK, min(last * BLOCK, n))

        over_blocks(part, -(-n // BLOCK))

    def begin_step(self) -> None:
        """Count a step, the parts of which :meth:`change` takes."""
        (group,) = self.param_groups
        beta1, beta2 = group["betas"]
        self._n_steps += 1
        self._step.fill_(self._n_steps)
        step_size = group["lr"] / (1 - beta1**self._n_steps)
        root_correction = 1 / math.sqrt(1 - beta2**self._n_steps)
        numbers = (beta1, beta2, group["weight_decay"], step_size, root_correction, group["eps"])
        self._numbers = tuple(np.float32(x) for x in numbers)

    def change(self, first: int, last: int) -> None:
        """Change the numbers ``first`` to ``last``."""
        from scdecode.kernels.adam_loops import adam

        adam(*(one[first:last] for one in self._arrays), *self._numbers)


def _view(memory: Tensor, like: Tensor) -> Tensor:
    """``memory`` in the shape of ``like``, laid as that is."""
    if like.ndim == 2 and not like.is_contiguous():
        return memory.view(like.shape[::-1]).t()
    assert like.is_contiguous(), "a weight lies plainly or turned round"
    return memory.view(like.shape)
