"""The decoder's heads and -log p(x) of their output, as one step of torch's autograd.

Each thread takes some cells from the last hidden layer through the products with the heads, the likelihood and the
products back, while their logits are in its cache. The gradient takes the memory of the logits, which nothing else
needs. The gradients of the heads themselves are sums over cells, so there each thread takes some genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scdecode.kernels.likelihood import Likelihood, n_blocks
from scdecode.kernels.rows import SparseRows
from scdecode.kernels.threads import n_threads, side_by_side

_GENES = 256  # of a product that yields a gradient, at least
_PIECE = 1024  # genes that a thread takes at once in the first product, where they are many
_WIDE = 8192  # genes from which on threads share these in the first product: half of the cells would read all weights


@dataclass(frozen=True, eq=False)
class Heads:
    """What is multiplied with the last hidden layer: the scale, and the zero inflation where there is one."""

    weights: Sequence[Tensor]  # (g, h) each
    biases: Sequence[Tensor]  # (g,) each

    def compute(self, hidden: Tensor, likelihood: Likelihood, logits: Sequence[Tensor]) -> Tensor:
        """Fill the likelihood's results and ``logits``, ``(n, g)`` each, which end as the gradients of the logits.

        Returned is the gradient of the hidden layer, ``(n, h)``; without gradients it is not filled.
        """
        from scdecode.kernels.likelihood_loops import ROWS

        n, d_hidden = len(hidden), torch.empty(hidden.shape)

        by_genes = n_threads() > 1 and len(self.weights[0]) >= _WIDE

        def multiply(cells: slice, genes: slice) -> None:
            for out, weight in zip(logits, self.weights, strict=True):
                torch.mm(hidden[cells], weight[genes].t(), out=out[cells, genes])

        def part(first: int, last: int) -> None:
            cells = slice(first * ROWS, min(last * ROWS, n))
            if not by_genes:
                multiply(cells, slice(None))
            likelihood.blocks(first, last, logits, logits, self.biases)
            if likelihood.gradients:
                for i, (d_logits, weight) in enumerate(zip(logits, self.weights, strict=True)):
                    d_hidden[cells].addmm_(d_logits[cells], weight, beta=int(i > 0))

        if by_genes:
            side_by_side(
                lambda first, last: multiply(slice(None), slice(first, last)), len(self.weights[0]), piece=_PIECE
            )
        side_by_side(part, n_blocks(n))
        return d_hidden

    def gradients(self, hidden: Tensor, d_logits: Sequence[Tensor]) -> list[Tensor]:
        """The gradient of each head's weight and bias."""
        made = [
            (torch.empty(weight.shape), torch.empty(bias.shape))
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]

        def part(first: int, last: int) -> None:
            for d_logit, (d_weight, d_bias) in zip(d_logits, made, strict=True):
                torch.mm(d_logit[:, first:last].t(), hidden, out=d_weight[first:last])
                torch.sum(d_logit[:, first:last], 0, out=d_bias[first:last])

        side_by_side(part, len(self.weights[0]), least=_GENES)
        return [one for pair in made for one in pair]


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
        n = len(hidden)
        given = [(weight, bias), *([] if zi_weight is None or zi_bias is None else [(zi_weight, zi_bias)])]
        heads = Heads([weight.detach() for weight, _ in given], [bias.detach() for _, bias in given])

        def compute(cell_weight: Tensor, *, gradients: bool) -> tuple[Tensor, tuple[Any, ...]]:
            asked = Likelihood(rows, kind, softmax, log_library, log_theta, cell_weight, gradients)
            logits = [torch.empty(n, rows.n_genes) for _ in given]
            d_hidden = heads.compute(hidden.detach(), asked, logits)
            return asked.loss, (logits, d_hidden, (asked.d_library[:, None], asked.d_log_theta()))

        ctx.heads, ctx.hidden, ctx.compute = heads, hidden.detach(), compute
        ctx.cell_weight = torch.full((n,), 1.0 / n)
        loss, ctx.kept = compute(ctx.cell_weight, gradients=any(ctx.needs_input_grad))
        return loss

    @staticmethod
    def backward(ctx: Any, cell_weight: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, and None for what is no tensor."""
        kept, ctx.kept = ctx.kept, None
        if kept is None or not torch.equal(cell_weight, ctx.cell_weight):
            _, kept = ctx.compute(cell_weight.contiguous(), gradients=True)
        d_logits, d_hidden, others = kept
        of_heads: list[Tensor | None] = [*ctx.heads.gradients(ctx.hidden, d_logits)]
        if len(of_heads) == 2:
            of_heads += [None, None]
        return d_hidden, *of_heads, *others, None, None, None


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
