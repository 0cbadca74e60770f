"""-log p(x) from the logits of the decoder, as one step of torch's autograd.

The reference is :mod:`scdecode.likelihoods` with the softmax or softplus of :mod:`scdecode.networks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode.kernels.rows import SparseRows
from scdecode.kernels.threads import side_by_side

_KINDS = {"nb": 0, "zinb": 1, "poisson": 2}
_EMPTY = np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Likelihood:
    """-log p(x) of the cells of a minibatch: what is given beside the logits, and where the results go.

    Parameters
    ----------
    rows
        The counts.
    kind
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    softmax
        Whether the scale is the softmax of its logits, or their softplus.
    log_library
        ``(n, 1)``.
    log_theta
        ``(g,)`` or ``(n, g)``; None for ``"poisson"``.
    weight
        ``(n,)``: the gradients are those of ``(weight * loss).sum()``.
    gradients
        Whether to compute them.
    """

    rows: SparseRows
    kind: str
    softmax: bool
    log_library: Tensor
    log_theta: Tensor | None
    weight: Tensor
    gradients: bool
    loss: Tensor  # (n,)
    d_library: Tensor  # (n,)
    d_theta: Tensor | None  # (blocks, g), or (n, g) as theta is
    thetas: np.ndarray  # log theta within its bounds, and theta: (2, 1 or n, g)

    @classmethod
    def of(
        cls,
        rows: SparseRows,
        kind: str,
        softmax: bool,
        log_library: Tensor,
        log_theta: Tensor | None,
        weight: Tensor,
        *,
        gradients: bool,
    ) -> Likelihood:
        """With memory for the results."""
        n = len(rows)
        d_theta = None
        if gradients and log_theta is not None:
            d_theta = torch.zeros(n if log_theta.ndim == 2 else n_blocks(n), rows.n_genes)
        loss, d_library = torch.empty(2, n)
        made = _thetas(log_theta)
        return cls(rows, kind, softmax, log_library, log_theta, weight, gradients, loss, d_library, d_theta, made)

    def blocks(
        self,
        first: int,
        last: int,
        logits: Sequence[Tensor],
        d_logits: Sequence[Tensor],
        biases: Sequence[Tensor] = (),
    ) -> None:
        """Compute blocks ``first`` to ``last`` of cells.

        The logits are ``(n, g)`` each: of the scale and, for ``"zinb"`` alone, of the zero inflation. Their gradients
        may take their memory. ``biases``, ``(g,)`` each, are still to be added to the logits, and then are.
        """
        from scdecode.kernels.likelihood_loops import likelihood_blocks

        by_cell = self.log_theta is not None and self.log_theta.ndim == 2
        rows = self.rows
        likelihood_blocks(
            first, last, _KINDS[self.kind], self.softmax, by_cell, self.gradients,
            *(_array(*biases[i : i + 1]).reshape(-1) for i in (0, 1)), _array(logits[0]), _array(self.log_library).reshape(-1), self.thetas[1], self.thetas[0],
            _array(*logits[1:]), rows.indptr, rows.indices, rows.values, _array(self.weight), self.loss.numpy(),
            _array(*d_logits[:1]), self.d_library.numpy(), _array(self.d_theta), _array(*d_logits[1:]),
        )  # fmt: skip

    def other_gradients(self) -> tuple[Tensor, Tensor | None]:
        """Those of the log library size and of log theta, in their shapes."""
        d_theta = self.d_theta
        if d_theta is not None and self.log_theta is not None:
            if self.log_theta.ndim == 1:
                d_theta = d_theta.sum(0)
            d_theta *= torch.from_numpy(self.thetas[0]).view_as(d_theta) == self.log_theta  # none beyond the bounds
        return self.d_library[:, None], d_theta


def _thetas(log_theta: Tensor | None) -> np.ndarray:
    from scdecode.kernels.likelihood_loops import thetas

    if log_theta is None:
        return np.empty((2, 0, 0), np.float32)
    given = _array(log_theta)
    made = np.empty((2, given.size // given.shape[-1], given.shape[-1]), np.float32)
    thetas(given.reshape(-1), made[0].reshape(-1), made[1].reshape(-1))
    return made


def n_blocks(n_cells: int) -> int:
    """How many blocks of cells there are."""
    from scdecode.kernels.likelihood_loops import ROWS

    return -(-n_cells // ROWS)


class FusedLikelihood(torch.autograd.Function):
    """The value and, while the genes of a cell are in the cache, all gradients.

    The gradients are computed at once, for a loss that is the mean over cells; another loss costs a second pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        log_library: Tensor,
        log_theta: Tensor | None,
        zi_logits: Tensor | None,
        rows: SparseRows,
        kind: str,
        softmax: bool,
    ) -> Tensor:
        """The values, and the gradients kept for :meth:`backward`."""
        n = len(logits)

        def compute(weight: Tensor, *, gradients: bool) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            likelihood = Likelihood.of(rows, kind, softmax, log_library, log_theta, weight, gradients=gradients)
            given = [logits] if zi_logits is None else [logits, zi_logits]
            made = [torch.empty(logits.shape) for _ in given] if gradients else []
            side_by_side(lambda first, last: likelihood.blocks(first, last, given, made), n_blocks(n))
            d_logits, d_zi = (*made, None, None)[:2]
            return likelihood.loss, (d_logits, *likelihood.other_gradients(), d_zi)

        ctx.weight, ctx.compute = torch.full((n,), 1.0 / n), compute
        loss, ctx.gradients = compute(ctx.weight, gradients=any(ctx.needs_input_grad))
        return loss

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, and None for what is no tensor."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or not torch.equal(weight, ctx.weight):
            _, gradients = ctx.compute(weight.contiguous(), gradients=True)
        return (*gradients, None, None, None)


def fused_likelihood(
    logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    rows: SparseRows,
    kind: str,
    *,
    softmax: bool,
) -> Tensor:
    """-log p(x) of each cell, ``(n,)``; the arguments are those of :class:`Likelihood`."""
    loss: Tensor = FusedLikelihood.apply(  # type: ignore[no-untyped-call]
        logits, log_library, log_theta, zi_logits, rows, kind, softmax
    )
    return loss


def _array(x: Tensor | None = None) -> np.ndarray:
    return _EMPTY if x is None else x.detach().contiguous().numpy()
