"""The decoder's heads and -log p(x) of their output, as one step of torch's autograd.

What is gained over a linear layer before :class:`~scdecode.kernels.likelihood.FusedLikelihood`: the gradient takes the
memory of the logits, which are still in the cache, and which nothing else needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scdecode.kernels.likelihood import Gradients, likelihood_and_gradients
from scdecode.kernels.rows import SparseRows


class HeadsLikelihood(torch.autograd.Function):
    """From the last hidden layer of the decoder to -log p(x) of each cell."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        zi_weight: Tensor | None,
        zi_bias: Tensor | None,
        log_library: Tensor,
        log_theta: Tensor | None,
        rows: SparseRows,
        kind: str,
        softmax: bool,
    ) -> Tensor:
        """The values, and the gradients kept for :meth:`backward`."""

        def compute(cell_weight: Tensor, *, gradients: bool) -> tuple[Tensor, Gradients | None]:
            zi_logits = None
            if zi_weight is not None and zi_bias is not None:
                zi_logits = torch.addmm(zi_bias, hidden, zi_weight.t())
            logits = torch.addmm(bias, hidden, weight.t())
            return likelihood_and_gradients(
                logits, log_library, log_theta, zi_logits, rows, kind, softmax, cell_weight,
                gradients=gradients, in_place=True,
            )  # fmt: skip

        ctx.kept = (hidden, weight, zi_weight)
        ctx.cell_weight, ctx.compute = torch.full((len(hidden),), 1.0 / len(hidden)), compute
        loss, ctx.gradients = compute(ctx.cell_weight, gradients=any(ctx.needs_input_grad))
        return loss

    @staticmethod
    def backward(ctx: Any, cell_weight: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, and None for what is no tensor."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or not torch.equal(cell_weight, ctx.cell_weight):
            _, gradients = ctx.compute(cell_weight.contiguous(), gradients=True)
        d_logits, d_library, d_theta, d_zi = gradients
        hidden, weight, zi_weight = ctx.kept
        d_hidden, d_weight, d_bias = d_logits @ weight, d_logits.t() @ hidden, d_logits.sum(0)
        d_zi_weight = d_zi_bias = None
        if d_zi is not None:
            d_hidden.addmm_(d_zi, zi_weight)
            d_zi_weight, d_zi_bias = d_zi.t() @ hidden, d_zi.sum(0)
        return d_hidden, d_weight, d_bias, d_zi_weight, d_zi_bias, d_library, d_theta, None, None, None


def heads_likelihood(
    hidden: Tensor,
    scale: nn.Linear,
    zi_logits: nn.Linear | None,
    log_library: Tensor,
    log_theta: Tensor | None,
    rows: SparseRows,
    kind: str,
    *,
    softmax: bool,
) -> Tensor:
    """-log p(x) of each cell, ``(n,)``, from the last hidden layer ``(n, h)`` and the heads on top."""
    zi = (None, None) if zi_logits is None else (zi_logits.weight, zi_logits.bias)
    loss: Tensor = HeadsLikelihood.apply(  # type: ignore[no-untyped-call]
        hidden, scale.weight, scale.bias, *zi, log_library, log_theta, rows, kind, softmax
    )
    return loss
