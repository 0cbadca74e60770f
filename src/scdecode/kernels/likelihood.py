"""-log p(x) from the logits of the decoder, as one step of torch's autograd.

The reference is :mod:`scdecode.likelihoods` with the softmax or softplus of :mod:`scdecode.networks`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode.kernels.rows import SparseRows
from scdecode.kernels.threads import over_blocks

_KINDS = {"nb": 0, "zinb": 1, "poisson": 2}
_EMPTY = np.empty((0, 0), np.float32)


Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""With respect to the logits, the log library size, log theta and the logits of the zero inflation."""


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

        def compute(weight: Tensor, *, gradients: bool) -> tuple[Tensor, Gradients | None]:
            return likelihood_and_gradients(
                logits, log_library, log_theta, zi_logits, rows, kind, softmax, weight, gradients=gradients
            )

        ctx.weight, ctx.compute = torch.full((len(logits),), 1.0 / len(logits)), compute
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
    """-log p(x) of each cell, ``(n,)``; the arguments are those of :func:`likelihood_and_gradients`."""
    loss: Tensor = FusedLikelihood.apply(  # type: ignore[no-untyped-call]
        logits, log_library, log_theta, zi_logits, rows, kind, softmax
    )
    return loss


def likelihood_and_gradients(
    logits: Tensor,
    log_library: Tensor,
    log_theta: Tensor | None,
    zi_logits: Tensor | None,
    rows: SparseRows,
    kind: str,
    softmax: bool,
    weight: Tensor,
    *,
    gradients: bool,
    in_place: bool = False,
) -> tuple[Tensor, Gradients | None]:
    """-log p(x) of each cell, ``(n,)``, and the gradients of ``(weight * loss).sum()``.

    Parameters
    ----------
    logits
        ``(n, g)`` float32, contiguous: of the scale.
    log_library
        ``(n, 1)``.
    log_theta
        ``(g,)`` or ``(n, g)``; unused for ``"poisson"``.
    zi_logits
        ``(n, g)``; used for ``"zinb"`` alone.
    rows
        The counts.
    kind
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    softmax
        Whether the scale is the softmax of its logits, or their softplus.
    weight
        ``(n,)``.
    gradients
        Whether to compute them.
    in_place
        Whether the gradients may take the memory of ``logits`` and ``zi_logits``.
    """
    from scdecode.kernels.likelihood_loops import ROWS, likelihood_blocks

    n, g = logits.shape
    assert not in_place or logits.is_contiguous()
    n_blocks = -(-n // ROWS)
    by_cell = log_theta is not None and log_theta.ndim == 2
    loss, d_library = torch.empty(n), torch.empty(n)
    d_logits = logits if in_place or not gradients else torch.empty(n, g)
    d_zi = zi_logits if in_place or not gradients or zi_logits is None else torch.empty(n, g)
    d_theta = None
    if gradients and log_theta is not None:
        d_theta = torch.zeros(n if by_cell else n_blocks, g)
    over_blocks(
        likelihood_blocks, n_blocks, _KINDS[kind], softmax, by_cell, gradients,
        _array(logits), _array(log_library).reshape(-1), _array(log_theta).reshape(-1, g), _array(zi_logits),
        rows.indptr, rows.indices, rows.values, _array(weight),
        loss.numpy(), _array(d_logits), d_library.numpy(), _array(d_theta), _array(d_zi),
    )  # fmt: skip
    if not gradients:
        return loss, None
    if d_theta is not None and not by_cell:
        d_theta = d_theta.sum(0)
    return loss, (d_logits, d_library[:, None], d_theta, d_zi)


def _array(x: Tensor | None) -> np.ndarray:
    return _EMPTY if x is None else x.detach().contiguous().numpy()
