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
_EMPTY_THETAS = np.empty((2, 0, 0), np.float32)


@dataclass(eq=False)
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

    def __post_init__(self) -> None:
        n, g = len(self.rows), self.rows.n_genes
        self.loss, self.d_library = torch.empty(n, dtype=torch.float32), torch.empty(n, dtype=torch.float32)
        """Results, ``(n,)`` each."""
        self._by_cell = self.log_theta is not None and self.log_theta.ndim == 2
        self._thetas, self._d_theta = _EMPTY_THETAS, _EMPTY  # log theta within its bounds, and theta
        if self.log_theta is not None:
            self._thetas = thetas_of(self.log_theta)
            if self.gradients:
                self._d_theta = np.zeros((n if self._by_cell else n_blocks(n), g), np.float32)

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

        rows = self.rows
        bias, zi_bias = (_array(*biases[i : i + 1]).reshape(-1) for i in (0, 1))
        likelihood_blocks(
            first, last, _KINDS[self.kind], self.softmax, self._by_cell, self.gradients, bias, zi_bias,
            _array(logits[0]), _array(self.log_library).reshape(-1), self._thetas[1], self._thetas[0],
            _array(*logits[1:]), rows.indptr, rows.indices, rows.values, _array(self.weight),
            self.loss.numpy(), _array(*d_logits[:1]), self.d_library.numpy(), self._d_theta, _array(*d_logits[1:]),
        )  # fmt: skip

    def d_log_theta(self) -> Tensor | None:
        """The gradient of log theta, in its shape."""
        from scdecode.kernels.likelihood_loops import finish_theta

        if self.log_theta is None or not self.gradients:
            return None
        out = torch.empty(self.log_theta.shape, dtype=torch.float32)
        n_sums = 1 if self._by_cell else len(self._d_theta)
        finish_theta(self._d_theta.reshape(n_sums, -1), _array(self.log_theta).reshape(-1), out.view(-1).numpy())
        return out


def thetas_of(log_theta: Tensor) -> np.ndarray:
    """Log theta within its bounds, and theta: ``(2, 1 or n, g)``."""
    from scdecode.kernels.likelihood_loops import thetas

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
        gradients: bool,
    ) -> Tensor:
        """The values, and the gradients kept for :meth:`backward`."""
        n = len(logits)

        def compute(weight: Tensor, *, gradients: bool) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            likelihood = Likelihood(rows, kind, softmax, log_library, log_theta, weight, gradients)
            given = [logits] if zi_logits is None else [logits, zi_logits]
            made = [torch.empty(logits.shape, dtype=torch.float32) for _ in given] if gradients else []
            side_by_side(lambda first, last: likelihood.blocks(first, last, given, made), n_blocks(n))
            d_logits, d_zi = (*made, None, None)[:2]
            return likelihood.loss, (d_logits, likelihood.d_library[:, None], likelihood.d_log_theta(), d_zi)

        ctx.weight, ctx.compute = torch.full((n,), 1.0 / n, dtype=torch.float32), compute
        loss, ctx.gradients = compute(ctx.weight, gradients=gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, and None for what is no tensor."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or not torch.equal(weight, ctx.weight):
            _, gradients = ctx.compute(weight.contiguous(), gradients=True)
        return (*gradients, None, None, None, None)


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
        logits, log_library, log_theta, zi_logits, rows, kind, softmax, torch.is_grad_enabled()
    )
    return loss


def _array(x: Tensor | None = None) -> np.ndarray:
    return _EMPTY if x is None else x.detach().contiguous().numpy()
