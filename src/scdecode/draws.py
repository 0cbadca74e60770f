"""Random draws from a generator of the caller: torch's global generators are never touched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.overrides import TorchFunctionMode


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of random numbers on a device; seeds are taken modulo 2^63."""
    return torch.Generator(device).manual_seed(seed % 2**63)


def draw_standard(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal numbers in the shape, the type and the place of a tensor.

    They are those that ``torch.distributions.Normal`` draws from a generator in the same state.
    """
    return torch.normal(torch.zeros_like(like), torch.ones_like(like), generator=generator)


def draw_normal(normal: Normal, generator: torch.Generator | None, n_draws: int | None = None) -> Tensor:
    """Draw from a normal distribution, differentiable in its parameters: ``([n_draws,] *shape)``."""
    mean = normal.loc if n_draws is None else normal.loc.expand(n_draws, *normal.loc.shape)
    return mean + draw_standard(mean, generator) * normal.scale


def draw_kept(like: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Draw what dropout multiplies a tensor by: zero with the probability ``rate``, otherwise ``1 / (1 - rate)``."""
    return torch.empty_like(like).bernoulli_(1 - rate, generator=generator).div_(1 - rate)


class drawing_from(TorchFunctionMode):
    """Within, torch's functions that draw random numbers in this thread draw them from a generator.

    For code that takes no generator: the initial weights of torch's layers, and networks of other packages.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWING and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator
        return func(*args, **kwargs)


_DRAWING = frozenset(
    {
        *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_),
        *(Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_),
        *(torch.normal, torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like),
        *(torch.bernoulli, torch.multinomial, torch.poisson, torch._standard_gamma),
    }
)


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
