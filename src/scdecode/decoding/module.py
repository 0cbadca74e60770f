"""The decoder under fixed conditions as a plain network: what exporters, compilers and ``torch.func`` take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, softplus

from scdecode.decode_plan import Affine, Plan


class _FoldedLinear(nn.Module):
    """A linear map with a shift for each condition, and the normalisation after it."""

    def __init__(self, affine: Affine) -> None:
        super().__init__()
        self.weight: Tensor
        self.shift: Tensor
        self.register_buffer("weight", affine.weight_io.t().contiguous())
        self.register_buffer("shift", affine.shift_so.clone())
        self.norm = affine.norm

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., s or 1, n_in)`` to ``(..., s, n_out)``."""
        out = linear(x, self.weight) + self.shift
        return out if self.norm is None else layer_norm(out, out.shape[-1:], eps=self.norm)


class DecoderModule(nn.Module):
    """Latent points to expression, with the conditions and the library size folded in.

    Made by :meth:`scdecode.decoders.PointDecoder.module`. It is made of matrix products and elementwise functions
    alone, and nothing in it depends on the values of its input: ``torch.export``, ``torch.compile``, ``torch.func`` and
    ONNX take it. Its weights are constants of float32 (``.double()`` and ``.to(device)`` change that); it is
    differentiable in the points.

    Averaged over conditions it computes all of them at once: points x conditions x genes numbers.

    Parameters
    ----------
    plan
        The decoder, with one group of conditions.
    library_size
        What the scale is multiplied with; one for the scale itself.
    genes
        Names of the columns.
    quantity, unit
        What the values are, in words.
    """

    def __init__(self, plan: Plan, library_size: float, *, genes: Sequence[str], quantity: str, unit: str) -> None:
        super().__init__()
        self.genes = tuple(genes)
        self.quantity = quantity
        self.unit = unit
        self.n_latent = int((*plan.layers, plan.scale)[0].weight_io.shape[0])
        self.hidden = nn.ModuleList(_FoldedLinear(layer) for layer in plan.layers)
        self.scale = _FoldedLinear(plan.scale)
        self.zi_logits = None if plan.zi_logits is None else _FoldedLinear(plan.zi_logits)
        self.softmax = plan.softmax
        self.columns: Tensor | None
        self.factor: Tensor
        self.register_buffer("columns", None if plan.genes is None else plan.genes.clone())
        factor_s1 = torch.from_numpy(plan.weight_s * library_size).to(torch.float32).unsqueeze(-1)
        self.register_buffer("factor", factor_s1)

    def forward(self, points: Tensor) -> Tensor:
        """Decode points ``(..., k)`` to ``(..., genes)``."""
        hidden = points.unsqueeze(-2)  # beside every condition in turn
        for layer in self.hidden:
            hidden = torch.relu(layer(hidden))
        logits = self.scale(hidden)
        values = torch.softmax(logits, dim=-1) if self.softmax else softplus(logits)
        if self.columns is not None:
            values = values.index_select(-1, self.columns)
        if self.zi_logits is not None:
            values = values * torch.sigmoid(-self.zi_logits(hidden))
        return (values * self.factor).sum(-2)
