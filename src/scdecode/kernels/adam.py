"""Torch's Adam for weights that lie in one piece of memory, one pass over all of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode.kernels.threads import side_by_side

_ALIGNED = 16  # numbers: torch's products round otherwise where memory begins elsewhere than at 64 bytes


class KernelAdam(torch.optim.Adam):
    """Adam (Kingma and Ba 2015, ICLR) on the CPU; its state is that of :class:`torch.optim.Adam`.

    At the first step, or by :meth:`lay`, the weights that have a gradient move into one piece of memory, their
    gradients and moments into others, each weight as it lay.
    """

    # torch wraps these so that its compiler lets them alone, and at the first call imports that: a second, 70 MB
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    _load = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    _n_steps = 0
    _stretches: dict[Tensor, tuple[int, int]] | None = None
    """Where each weight lies."""
    _places: dict[Tensor, Tensor]
    """The places of the gradients; those that come elsewhere are copied there."""

    def lay(self, weights: list[Tensor] | None = None, large: Sequence[Tensor] = ()) -> None:
        """Move the weights, by default those that have a gradient; what is in them and in their moments stays.

        After them lie ``large`` ones, whose gradients have no place: :meth:`change` is given each.
        """
        (group,) = self.param_groups
        if weights is None:
            weights = [weight for weight in group["params"] if weight.grad is not None]
        n_placed, weights = len(weights), [*weights, *large]
        starts = np.cumsum([0, *(-(-weight.numel() // _ALIGNED) * _ALIGNED for weight in weights)]).tolist()
        flat, gradient = (
            [torch.zeros(starts[-1], dtype=torch.float32) for _ in range(3)],
            torch.zeros(starts[n_placed], dtype=torch.float32),
        )
        self._arrays, self._gradient = [one.numpy() for one in flat], gradient.numpy()
        self._stretches, self._places = {}, {}
        steps = {float(self.state[weight]["step"]) for weight in weights if self.state[weight]}
        assert len(steps) <= 1, "all weights took the same steps"
        self._n_steps = int(steps.pop()) if steps else 0
        self._step = torch.full((len(weights),), float(self._n_steps), dtype=torch.float32)
        for i, (weight, start) in enumerate(zip(weights, starts, strict=False)):
            state, stop = self.state[weight], start + weight.numel()
            views = [_view(one[start:stop], weight) for one in flat]
            sources = [weight.detach(), state.get("exp_avg"), state.get("exp_avg_sq")]
            if stop <= len(gradient):
                views.append(_view(gradient[start:stop], weight))
                sources.append(weight.grad)
                self._places[weight] = views[-1]
            for view, source in zip(views, sources, strict=True):
                if source is not None:
                    view.copy_(source)
            weight.data, state["exp_avg"], state["exp_avg_sq"] = views[:3]
            weight.grad, state["step"] = self._places.get(weight), self._step[i]
            self._stretches[weight] = (start, stop)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the weights are laid anew."""
        self._load(state_dict)
        self._stretches = None

    @property
    def moved(self) -> bool:
        """Whether somebody has given a weight another memory, as a trip to another device does."""
        if self._stretches is None:
            return False
        memory = self._arrays[0].ctypes.data
        return any(weight.data_ptr() != memory + 4 * start for weight, (start, _) in self._stretches.items())

    def stretch(self, weight: Tensor) -> tuple[int, int]:
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
        elif self.moved:
            self.lay(list(self._places))
        for weight, place in self._places.items():
            assert weight.grad is not None, "a weight that had a gradient has one in each step"
            if weight.grad is not place:
                place.copy_(weight.grad)
        self.begin_step()
        n = len(self._gradient)

        def part(first: int, last: int) -> None:
            self.change(first * BLOCK, min(last * BLOCK, n))

        side_by_side(part, -(-n // BLOCK))

    def begin_step(self) -> None:
        """Count a step, the parts of which :meth:`change` takes."""
        (group,) = self.param_groups
        beta1, beta2 = group["betas"]
        self._n_steps += 1
        self._step.fill_(self._n_steps)
        step_size = group["lr"] / (1 - beta1**self._n_steps)
        root_correction = 1 / math.sqrt(1 - beta2**self._n_steps)
        numbers = (1 - beta1, beta2, 1 - beta2, group["weight_decay"], step_size, root_correction, group["eps"])
        self.numbers: tuple[np.float32, ...] = tuple(np.float32(x) for x in numbers)

    def arrays(self, first: int, last: int) -> tuple[np.ndarray, ...]:
        """The numbers ``first`` to ``last`` of the weights and of their moments, which are theirs."""
        return tuple(one[first:last] for one in self._arrays)

    def change(self, first: int, last: int, gradient: np.ndarray | None = None) -> None:
        """Change the numbers ``first`` to ``last``, of which the gradient is in its place or given."""
        from scdecode.kernels.adam_loops import adam

        weight, mean, square = self.arrays(first, last)
        adam(weight, self._gradient[first:last] if gradient is None else gradient, mean, square, *self.numbers)


def _view(memory: Tensor, like: Tensor) -> Tensor:
    """``memory`` in the shape of ``like``, laid as that is."""
    if like.ndim == 2 and not like.is_contiguous():
        return memory.view(like.shape[::-1]).t()
    assert like.is_contiguous(), "a weight lies plainly or turned round"
    return memory.view(like.shape)
