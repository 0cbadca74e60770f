"""The first layer of the encoder: log1p of sparse counts times a matrix, as one step of torch's autograd.

A count meets a column of torch's ``(h, g)`` weight, so the loops want it by gene, ``(g, h)`` in memory. A weight that
lies so (:func:`lay_by_input`) is used as it is, and its gradient comes laid likewise; another is copied at each call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.rows import SparseRows
from scdecode.kernels.threads import side_by_side

_ROWS = 8  # that a thread takes, at least
_GENES = 64  # of which a thread computes the gradient, at least


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
        bias = torch.zeros(len(weight), dtype=torch.float32)
    out: Tensor = SparseLinear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return out


def sparse_product(rows: SparseRows, weight: Tensor, bias: Tensor) -> Tensor:
    """``log1p(X) W' + b``, ``(n, h)``."""
    out = torch.empty(len(rows), len(weight), dtype=torch.float32)
    product(rows, weight.detach().t().contiguous().numpy(), bias.detach().numpy(), out.numpy())
    return out


def product(rows: SparseRows, weight_gh: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """The same into ``out``."""
    from scdecode.kernels import sparse_loops

    def part(first: int, last: int) -> None:
        sparse_loops.product(first, last, rows.indptr, rows.indices, rows.logs, weight_gh, bias, out)

    side_by_side(part, len(rows), least=_ROWS)


def sparse_gradient(rows: SparseRows, d_out: Tensor) -> Tensor:
    """``d_out' log1p(X)``, ``(h, g)``, laid by gene."""
    d_weight_gh = torch.empty(rows.n_genes, d_out.shape[1], dtype=torch.float32)
    d_out_nh = d_out.detach().contiguous().numpy()

    def part(first: int, last: int) -> None:
        gradient_of_genes(rows, d_out_nh, first, last, d_weight_gh.numpy()[first:last])

    side_by_side(part, rows.n_genes, least=_GENES)
    return d_weight_gh.t()


def gradient_of_genes(rows: SparseRows, d_out_nh: np.ndarray, first: int, last: int, out_gh: np.ndarray) -> None:
    """The same for genes ``first`` to ``last``, into as many rows."""
    from scdecode.kernels.sparse_loops import gradient

    gradient(first, last, rows.gene_indptr, rows.cells, rows.cell_logs, d_out_nh, out_gh)


def change_genes(
    rows: SparseRows, d_out_nh: np.ndarray, first: int, last: int, optimizer: KernelAdam, weight: Tensor
) -> None:
    """Adam's step of the weights of genes ``first`` to ``last``, each as soon as its gradient is known."""
    from scdecode.kernels.sparse_loops import gradient_and_step

    h = d_out_nh.shape[1]
    start, _ = optimizer.stretch(weight)
    arrays = (one.reshape(-1, h) for one in optimizer.arrays(start + first * h, start + last * h))
    gradient_and_step(
        first, last, rows.gene_indptr, rows.cells, rows.cell_logs, d_out_nh, *arrays, *optimizer.numbers
    )  # fmt: skip


def lay_by_input(weight: Tensor) -> None:
    """Let a weight lie in memory by input; its shape, its values and what refers to it stay."""
    weight.data = weight.detach().t().contiguous().t()


def lay_plainly(weight: Tensor) -> None:
    """Give a weight a memory of its own, in the order of its shape."""
    weight.data = weight.detach().clone(memory_format=torch.contiguous_format)
