"""The first layer of the encoder: log1p of sparse counts times a matrix, as one step of torch's autograd.

A count meets a column of torch's ``(h, g)`` weight, so the loops want it by gene, ``(g, h)`` in memory. A weight that
lies so (:func:`lay_by_gene`) is used as it is, and its gradient comes laid likewise; another is copied at each call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scdecode.kernels.rows import SparseRows
from scdecode.kernels.threads import over_blocks


class SparseLinear(torch.autograd.Function):
    """``log1p(X) W' + b`` for the counts X of a minibatch."""

    @staticmethod
    def forward(ctx: Any, rows: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
        """The product, ``(n, h)``."""
        ctx.rows = rows
        return sparse_product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[None, Tensor, Tensor]:
        """None for the counts, and the gradients of the weight and of the bias."""
        return None, sparse_gradient(ctx.rows, d_out), d_out.sum(0)


def sparse_linear(rows: SparseRows, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``log1p(X) W' + b``, ``(n, h)``, with a gradient where torch records one."""
    if bias is None:
        bias = torch.zeros(len(weight))
    out: Tensor = SparseLinear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return out


def sparse_product(rows: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
    """``log1p(X) W' + b``, ``(n, h)``."""
    from scdecode.kernels.sparse_loops import ROWS, product_blocks

    out = torch.empty(len(rows), len(weight))
    weight_gh = weight.detach().t().contiguous().numpy()
    n_blocks = -(-len(rows) // ROWS)
    over_blocks(
        product_blocks, n_blocks, rows.indptr, rows.indices, rows.logs, weight_gh, bias.detach().numpy(), out.numpy()
    )
    return out


def sparse_gradient(rows: SparseRows, d_out: Tensor) -> Tensor:
    """``d_out' log1p(X)``, ``(h, g)``, laid by gene."""
    from scdecode.kernels.sparse_loops import GENES, gradient_blocks

    d_weight_gh = torch.empty(rows.n_genes, d_out.shape[1])
    n_blocks = -(-rows.n_genes // GENES)
    d_out_nh = d_out.detach().contiguous().numpy()
    over_blocks(gradient_blocks, n_blocks, rows.gene_indptr, rows.cells, rows.cell_logs, d_out_nh, d_weight_gh.numpy())
    return d_weight_gh.t()


def lay_by_gene(weight: nn.Parameter) -> None:
    """Let a weight lie in memory by gene; its shape, its values and what refers to it stay."""
    weight.data = weight.detach().t().contiguous().t()


def lay_plainly(weight: nn.Parameter) -> None:
    """Undo :func:`lay_by_gene`."""
    weight.data = weight.detach().contiguous()
