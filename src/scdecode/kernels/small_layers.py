"""What lies between the large layers, as few steps of torch's autograd: what each of torch's own costs is its call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scdecode.draws import draw_kept, draw_standard

_NONE = torch.empty(0, 0, dtype=torch.float32)


class NormalRelu(torch.autograd.Function):
    """Batch normalisation in training, ReLU and dropout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kept: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        """The output, ``(n, h)``; the running statistics of ``norm`` move on."""
        from scdecode.kernels.small_loops import normal_relu

        x = x.contiguous()
        out, statistics = torch.empty_like(x), torch.empty(2, x.shape[1], dtype=torch.float32)
        mean, inverse_deviation = statistics.numpy()
        ctx.kept = (x, weight, kept, statistics, out)
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        normal_relu(
            _array(x), _array(weight), _array(bias), kept.numpy(), norm.eps, np.float32(norm.momentum),
            norm.running_mean.numpy(), norm.running_var.numpy(), mean, inverse_deviation, out.numpy(),
        )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The gradients of the input, the weight and the bias."""
        from scdecode.kernels.small_loops import normal_relu_gradient

        (x, weight, kept, statistics, out), ctx.kept = ctx.kept, None  # the output would keep itself alive
        mean, inverse_deviation = statistics.numpy()
        d_x, d_weight, d_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
        normal_relu_gradient(
            _array(d_out), out.detach().numpy(), _array(x), kept.numpy(), _array(weight), mean, inverse_deviation,
            d_x.numpy(), d_weight.numpy(), d_bias.numpy(),
        )  # fmt: skip
        return d_x, d_weight, d_bias, None, None


def normal_relu_dropout(
    x: Tensor, norm: nn.BatchNorm1d, dropout: nn.Dropout | None, generator: torch.Generator | None = None
) -> Tensor:
    """Batch normalisation, ReLU and dropout of ``(n, h)`` in training; the draws are those of torch's dropout."""
    kept = _NONE if dropout is None else draw_kept(x.detach(), dropout.p, generator)
    out: Tensor = NormalRelu.apply(x, norm.weight, norm.bias, kept, norm)  # type: ignore[no-untyped-call]
    return out


class Draw(torch.autograd.Function):
    """A draw of the posterior, and its KL to a standard normal."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_variance: Tensor, noise: Tensor, floor: float) -> tuple[Tensor, Tensor]:
        """The draw, ``(n, k)``, and the KL, ``(n,)``."""
        from scdecode.kernels.small_loops import draw

        variance, z, kl = torch.empty_like(mean), torch.empty_like(mean), torch.empty(len(mean), dtype=torch.float32)
        ctx.kept, ctx.floor = (mean, variance, noise), np.float32(floor)
        draw(_array(mean), _array(log_variance), noise.numpy(), ctx.floor, variance.numpy(), z.numpy(), kl.numpy())
        return z, kl

    @staticmethod
    def backward(ctx: Any, d_z: Tensor, d_kl: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The gradients of the mean and of the log variance."""
        from scdecode.kernels.small_loops import draw_gradient

        mean, variance, noise = (_array(x) for x in ctx.kept)
        d_mean, d_log_variance = (
            torch.empty(mean.shape, dtype=torch.float32),
            torch.empty(mean.shape, dtype=torch.float32),
        )
        draw_gradient(
            mean, variance, noise, ctx.floor, _array(d_z), _array(d_kl), d_mean.numpy(), d_log_variance.numpy()
        )
        return d_mean, d_log_variance, None, None


def draw_posterior(
    mean: Tensor, log_variance: Tensor, floor: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """A draw of ``Normal(mean, exp(log_variance) + floor)``, ``(n, k)``, and its KL to a standard normal, ``(n,)``.

    The random numbers are those of torch's ``Normal.rsample``.
    """
    noise = draw_standard(mean.detach(), generator)
    z, kl = Draw.apply(mean, log_variance, noise, floor)  # type: ignore[no-untyped-call]
    return z, kl


class ConditionedLinear(torch.autograd.Function):
    """A linear layer of an input beside one-hot columns."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, weight: Tensor, bias: Tensor, firsts: Sequence[tuple[int, int]]
    ) -> Tensor:
        """The output, ``(n, h)``; ``firsts`` has a column of the codes and the first of its columns of the weight."""
        from scdecode.kernels.small_loops import add_columns

        ctx.kept, ctx.firsts = (x, codes, weight), firsts
        out = torch.addmm(bias, x, weight[:, : x.shape[1]].t())
        for column, first in firsts:
            add_columns(out.numpy(), _array(weight.t()), codes.numpy()[:, column], first)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        """The gradients of the input, the weight and the bias."""
        from scdecode.kernels.small_loops import add_columns_gradient

        x, codes, weight = ctx.kept
        n_in = x.shape[1]
        d_weight = torch.zeros(weight.shape[::-1], dtype=torch.float32)  # by input: a row is a column of the weight
        torch.mm(x.t(), d_out, out=d_weight[:n_in])
        for column, first in ctx.firsts:
            add_columns_gradient(_array(d_out), codes.numpy()[:, column], first, d_weight.numpy())
        return d_out @ weight[:, :n_in], None, d_weight.t(), d_out.sum(0), None


def conditioned_linear(
    x: Tensor, codes: Tensor, weight: Tensor, bias: Tensor, firsts: Sequence[tuple[int, int]]
) -> Tensor:
    """See :class:`ConditionedLinear`."""
    out: Tensor = ConditionedLinear.apply(x, codes, weight, bias, firsts)  # type: ignore[no-untyped-call]
    return out


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()
