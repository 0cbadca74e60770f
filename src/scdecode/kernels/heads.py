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
class HeadsGradient:
    """What the likelihood has said of the heads, to be taken back through them."""

    d_hidden: Tensor  # (n, h)
    d_logits: Sequence[Tensor]  # (n, g) each
    _factors: Sequence[Tensor]  # the same, and the hidden layer, as the products take them
    _hidden: Tensor

    def of_weight(self, i: int, first: int, last: int) -> Tensor:
        """The gradient of genes ``first`` to ``last`` of the weight of head ``i``."""
        return torch.mm(self._factors[i][:, first:last].t(), self._hidden).float()

    def of_all(self) -> list[Tensor]:
        """The gradient of each head's weight and bias."""
        n_genes, width = self.d_logits[0].shape[1], self._hidden.shape[1]
        made = [
            (torch.empty(n_genes, width, dtype=torch.float32), torch.empty(n_genes, dtype=torch.float32))
            for _ in self.d_logits
        ]

        def part(first: int, last: int) -> None:
            for i, (d_weight, d_bias) in enumerate(made):
                d_weight[first:last] = self.of_weight(i, first, last)
                torch.sum(self.d_logits[i][:, first:last], 0, out=d_bias[first:last])

        side_by_side(part, n_genes, least=_GENES)
        return [one for pair in made for one in pair]


@dataclass(frozen=True, eq=False)
class Heads:
    """What is multiplied with the last hidden layer: the scale, and the zero inflation where there is one."""

    weights: Sequence[Tensor]  # (g, h) each
    biases: Sequence[Tensor]  # (g,) each
    precision: torch.dtype = torch.float32  # of the products

    def compute(self, hidden: Tensor, likelihood: Likelihood, logits: Sequence[Tensor]) -> HeadsGradient:
        """Fill the likelihood's results and ``logits``, ``(n, g)`` each, which end as the gradients of the logits.

        Without gradients what is returned is not filled.
        """
        from scdecode.kernels.likelihood_loops import ROWS

        n, n_genes, low = len(hidden), len(self.weights[0]), self.precision != torch.float32
        d_hidden, weights, factor = torch.empty(hidden.shape, dtype=torch.float32), self.weights, hidden
        factors = logits
        if low:
            factor, weights = hidden.to(self.precision), [torch.empty_like(w, dtype=self.precision) for w in weights]
            factors = [torch.empty_like(one, dtype=self.precision) for one in logits]
        by_genes = n_threads() > 1 and n_genes >= _WIDE

        def multiply(cells: slice, genes: slice) -> None:
            for out, weight in zip(logits, weights, strict=True):
                if low:
                    out[cells, genes] = torch.mm(factor[cells], weight[genes].t())
                else:
                    torch.mm(factor[cells], weight[genes].t(), out=out[cells, genes])

        def convert(first: int, last: int) -> None:
            for weight, source in zip(weights, self.weights, strict=True):
                weight[first:last] = source[first:last]

        def part_of_genes(first: int, last: int) -> None:
            if low:
                convert(first, last)
            multiply(slice(None), slice(first, last))

        def part_of_cells(first: int, last: int) -> None:
            cells = slice(first * ROWS, min(last * ROWS, n))
            if not by_genes:
                multiply(cells, slice(None))
            likelihood.blocks(first, last, logits, logits, self.biases)
            if not likelihood.gradients:
                return
            for i, weight in enumerate(weights):
                if low:
                    factors[i][cells] = logits[i][cells]
                    product = torch.mm(factors[i][cells], weight).float()
                    d_hidden[cells] = product if i == 0 else d_hidden[cells] + product
                else:
                    d_hidden[cells].addmm_(factors[i][cells], weight, beta=int(i > 0))

        if by_genes:
            side_by_side(part_of_genes, n_genes, piece=_PIECE)
        elif low:
            convert(0, n_genes)
        side_by_side(part_of_cells, n_blocks(n))
        return HeadsGradient(d_hidden, logits, factors, factor)


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
        precision: torch.dtype,
        gradients: bool,
    ) -> Tensor:
        """The values, and the gradients kept for :meth:`backward`."""
        n = len(hidden)
        given = [(weight, bias), *([] if zi_weight is None or zi_bias is None else [(zi_weight, zi_bias)])]
        heads = Heads([weight.detach() for weight, _ in given], [bias.detach() for _, bias in given], precision)

        def compute(cell_weight: Tensor, *, gradients: bool) -> tuple[Tensor, tuple[Any, ...]]:
            asked = Likelihood(rows, kind, softmax, log_library, log_theta, cell_weight, gradients)
            logits = [torch.empty(n, rows.n_genes, dtype=torch.float32) for _ in given]
            back = heads.compute(hidden.detach(), asked, logits)
            return asked.loss, (back, asked.d_library[:, None], asked.d_log_theta())

        ctx.compute = compute
        ctx.cell_weight = torch.full((n,), 1.0 / n, dtype=torch.float32)
        loss, ctx.kept = compute(ctx.cell_weight, gradients=gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, cell_weight: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, and None for what is no tensor."""
        kept, ctx.kept = ctx.kept, None
        if kept is None or not torch.equal(cell_weight, ctx.cell_weight):
            _, kept = ctx.compute(cell_weight.contiguous(), gradients=True)
        back, *others = kept
        of_heads: list[Tensor | None] = [*back.of_all()]
        if len(of_heads) == 2:
            of_heads += [None, None]
        return back.d_hidden, *of_heads, *others, None, None, None, None, None


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
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """-log p(x) of each cell, ``(n,)``, from the last hidden layer ``(n, h)`` and the heads on top."""
    zi = (None, None) if zi_logits is None else (zi_logits.weight, zi_logits.bias)
    loss: Tensor = HeadsLikelihood.apply(  # type: ignore[no-untyped-call]
        hidden,
        scale.weight,
        scale.bias,
        *zi,
        log_library,
        log_theta,
        rows,
        kind,
        softmax,
        precision,
        torch.is_grad_enabled(),
    )
    return loss
