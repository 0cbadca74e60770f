"""The decoder at rest: what of it depends on the condition computed once a condition, and the rest in as few passes.

In evaluation mode batch normalisation is a linear map, and is folded into the layer before it. What conditions add to a
layer's input, columns of its weights, is then one row of shifts for each condition. What is left for the points is a
product with the point itself, a few small products, and one large one, whose output a loop turns into expression where
it lies: in the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, softplus

from scdecode import kernels
from scdecode.kernels.threads import own_threads, side_by_side
from scdecode.networks import CovariateLinear, Decoder, HiddenLayer, LinearDecoder, LinearHead

LARGE = 2**25
"""Values to compute: for fewer, fetching the compiled loops, once a process, takes longer than they save."""

_TILE_BYTES = 2**25  # of a thread's logits, at most
# Points in a tile. More fit no cache at 20,000 genes, and yet, measured, the product gains more than the loop loses: it
# brings the weights into its own order once a tile.
_TILE_ROWS = (16, 256)


def worth_loops(n_values: int) -> bool:
    """Whether so many values are to be computed by the compiled loops, and there are such loops here."""
    return n_values >= LARGE and kernels.usable()


@dataclass(frozen=True, eq=False)
class Affine:
    """``x W`` and the shift of a condition: a linear map at rest, with the normalisation after it."""

    weight_io: Tensor  # (inputs, outputs) float32, contiguous
    shift_so: Tensor  # (conditions or 1, outputs) float32
    norm: float | None  # eps of the layer normalisation that follows, where one does


@dataclass(frozen=True, eq=False)
class Given:
    """Points to decode, with what is each one's own."""

    inputs_ni: Tensor  # (n, i) float32: latent points, beside the continuous covariates given per point
    group_n: np.ndarray  # (n,) int64: each point's group of conditions
    library_n: np.ndarray  # (n or 1,) float32: what the scale is multiplied with

    def __len__(self) -> int:
        return len(self.inputs_ni)

    def at(self, rows: slice) -> Given:
        """Some of the points."""
        library_n = self.library_n if len(self.library_n) == 1 else self.library_n[rows]
        return Given(self.inputs_ni[rows], self.group_n[rows], library_n)


@dataclass(frozen=True, eq=False)
class Plan:
    """The decoder for some conditions; made by :func:`make_plan`.

    Conditions come in groups of ``n_slots``, and a point's expression is the weighted mean over those of its group.
    """

    layers: tuple[Affine, ...]  # hidden; none in a linear decoder
    scale: Affine
    zi_logits: Affine | None  # of the genes to keep; None where nothing is lost to zero inflation
    softmax: bool
    genes: Tensor | None  # columns of the scale's logits to keep; None: all
    weight_s: np.ndarray  # (conditions,) float64
    n_slots: int

    @property
    def n_genes(self) -> int:
        """Of the result."""
        return self.scale.weight_io.shape[1] if self.genes is None else len(self.genes)

    @torch.no_grad()
    def compute(self, given: Given) -> Tensor:
        """The expression of points, ``(n, genes)``, in plain torch."""
        base = given.inputs_ni @ (self.layers[0] if self.layers else self.scale).weight_io
        library_n1 = torch.from_numpy(given.library_n)[:, None]
        total: Tensor | None = None
        for slot in range(self.n_slots):
            at = torch.from_numpy(given.group_n * self.n_slots + slot)
            values = self._slot(given.inputs_ni, base, at)
            factor = library_n1 * torch.from_numpy(self.weight_s)[at, None].float()
            total = values.mul_(factor) if total is None else total.addcmul_(values, factor)
        assert total is not None, "there is at least one slot"
        return total

    def _slot(self, inputs_ni: Tensor, base: Tensor, at: Tensor) -> Tensor:
        def shift(affine: Affine) -> Tensor:
            return affine.shift_so[at] if len(affine.shift_so) > 1 else affine.shift_so

        hidden = inputs_ni
        for i, layer in enumerate(self.layers):
            hidden = base + shift(layer) if i == 0 else torch.addmm(shift(layer), hidden, layer.weight_io)
            if layer.norm is not None:
                hidden = layer_norm(hidden, hidden.shape[-1:], eps=layer.norm)
            hidden = hidden.relu_()
        logits = (
            torch.addmm(shift(self.scale), hidden, self.scale.weight_io) if self.layers else base + shift(self.scale)
        )
        values = torch.softmax(logits, dim=-1) if self.softmax else softplus(logits)
        values = values if self.genes is None else values[:, self.genes]
        if self.zi_logits is not None:
            zi = torch.addmm(shift(self.zi_logits), hidden, self.zi_logits.weight_io)
            values = values * torch.sigmoid(zi.neg_())
        return values

    def fill(self, given: Given, out_ng: np.ndarray) -> None:
        """Write the expression of points into ``out_ng``, by the compiled loops and as many threads as torch has.

        The tiles do not depend on the number of threads, and so neither does any bit of the result.
        """
        n, n_logits = len(given), self.scale.weight_io.shape[1]
        low, high = _TILE_ROWS
        rows = min(max(_TILE_BYTES // (4 * n_logits), low), high)

        def part(first: int, last: int) -> None:
            work = _Work(self, rows)
            for start in range(first * rows, min(last * rows, n), rows):
                some = slice(start, min(start + rows, n))
                work.tile(given.at(some), out_ng[some])

        with torch.no_grad(), own_threads():
            side_by_side(part, -(-n // rows))


class _Work:
    """One thread's memory, and what it does with a tile of points."""

    def __init__(self, plan: Plan, rows: int) -> None:
        self.plan = plan
        first = (*plan.layers, plan.scale)[0]
        self.inputs = torch.empty(rows, first.weight_io.shape[0], dtype=torch.float32)
        widths = [layer.weight_io.shape[1] for layer in plan.layers]
        self.base = torch.empty(rows, widths[0] if widths else plan.scale.weight_io.shape[1], dtype=torch.float32)
        self.hidden = [torch.empty(rows, width, dtype=torch.float32) for width in widths]
        # the logits take the place of the result where there is one place for each
        self.in_place = plan.n_slots == 1 and plan.genes is None and bool(plan.layers)
        apart = not self.in_place and bool(plan.layers)
        self.logits = torch.empty(rows, plan.scale.weight_io.shape[1], dtype=torch.float32) if apart else self.base
        self.zi = torch.empty(rows, 0 if plan.zi_logits is None else plan.n_genes, dtype=torch.float32)
        self.genes = np.empty(0, np.int64) if plan.genes is None else plan.genes.numpy()

    def tile(self, given: Given, out_ng: np.ndarray) -> None:
        from scdecode.kernels.decode_loops import finish_rows

        plan, m = self.plan, len(given)
        # into memory of torch's own, as products of another alignment may round otherwise
        inputs = self.inputs[:m].copy_(given.inputs_ni)
        base = self.base[:m]
        torch.mm(inputs, (*plan.layers, plan.scale)[0].weight_io, out=base)
        logits = torch.from_numpy(out_ng) if self.in_place else self.logits[:m]
        zi_bias = plan.scale.shift_so if plan.zi_logits is None else plan.zi_logits.shift_so
        for slot in range(plan.n_slots):
            hidden = self._hidden(inputs, base, given.group_n, slot)
            if plan.layers:
                torch.mm(hidden, plan.scale.weight_io, out=logits)
            if plan.zi_logits is not None:
                torch.mm(hidden, plan.zi_logits.weight_io, out=self.zi[:m])
            finish_rows(
                plan.softmax, logits.numpy(), plan.scale.shift_so.numpy(), self.zi[:m].numpy(), zi_bias.numpy(),
                self.genes, given.group_n, slot, plan.n_slots, plan.weight_s, given.library_n, out_ng,
            )  # fmt: skip

    def _hidden(self, hidden: Tensor, base: Tensor, group_n: np.ndarray, slot: int) -> Tensor:
        """The last hidden layer, ``(n, h)``; the inputs themselves where there is none."""
        from scdecode.kernels.decode_loops import shift_rows

        for i, layer in enumerate(self.plan.layers):
            out = self.hidden[i][: len(base)]
            source = base if i == 0 else torch.mm(hidden, layer.weight_io, out=out)
            plain = layer.norm is None
            shift_rows(source.numpy(), layer.shift_so.numpy(), group_n, slot, self.plan.n_slots, plain, out.numpy())
            if layer.norm is not None:
                out.copy_(layer_norm(out, out.shape[-1:], eps=layer.norm)).relu_()
            hidden = out
        return hidden


@torch.no_grad()
def make_plan(
    decoder: Decoder | LinearDecoder,
    embedding: nn.Embedding | None,
    codes_sc: np.ndarray,
    continuous_sd: np.ndarray,
    weight_s: np.ndarray,
    *,
    n_latent: int,
    n_slots: int,
    per_point: Sequence[int] = (),
    zero_inflated: bool = False,
    genes: Sequence[int] | None = None,
) -> Plan:
    """The plan of a decoder on the CPU, of its weights as they are now.

    Parameters
    ----------
    decoder, embedding
        The network, and the batch embedding where there is one.
    codes_sc, continuous_sd, weight_s
        Of each condition: its codes (with the label, which the decoder does not see), its continuous covariates and
        its weight. ``n_slots`` of them, side by side, are a group.
    n_latent
        Width of a latent point.
    per_point
        The continuous covariates that come with the points, after the latent point.
    zero_inflated
        Whether to take off what is lost to zero inflation.
    genes
        Positions of the genes to keep; None is all.
    """
    conditions = _Conditions(embedding, codes_sc, continuous_sd, n_latent, per_point)
    kept = None if genes is None else torch.tensor(genes, dtype=torch.int64)
    layers: list[Affine] = []
    if isinstance(decoder, Decoder):
        for layer in decoder.mlp.layers:
            assert isinstance(layer, HiddenLayer), "that is what a network is made of"
            eps = None if layer.layer_norm is None else layer.layer_norm.eps
            layers.append(conditions.fold(layer.linear, layer.batch_norm, first=not layers, norm=eps))
    softmax = decoder.softmax if isinstance(decoder, Decoder) else True
    # without a normaliser, the other genes need not be computed
    of_scale = None if softmax else kept
    return Plan(
        layers=tuple(layers),
        scale=conditions.head(decoder.scale, of_scale),
        zi_logits=conditions.head(decoder.zi_logits, kept) if zero_inflated else None,
        softmax=softmax,
        genes=kept if softmax else None,
        weight_s=np.ascontiguousarray(weight_s, dtype=np.float64),
        n_slots=n_slots,
    )


class _Conditions:
    """What conditions add to a layer's output, and what is left for the points."""

    def __init__(
        self,
        embedding: nn.Embedding | None,
        codes_sc: np.ndarray,
        continuous_sd: np.ndarray,
        n_latent: int,
        per_point: Sequence[int],
    ) -> None:
        codes = torch.from_numpy(codes_sc)
        n_continuous = continuous_sd.shape[1]
        # in the order of a layer's inputs, after the latent point
        beside = [_double(torch.from_numpy(continuous_sd))]
        self.codes_sc = codes[:, :-1]
        if embedding is not None:
            beside.append(_double(embedding.weight)[codes[:, 0]])
            self.codes_sc = codes[:, 1:-1]
        fixed = torch.cat(beside, dim=1)
        own = [n_latent + j for j in per_point]
        self.own = torch.tensor([*range(n_latent), *own], dtype=torch.int64)
        others = [j for j in range(n_latent, n_latent + fixed.shape[1]) if j not in own]
        self.others = torch.tensor(others, dtype=torch.int64)
        self.fixed_sf = fixed[:, self.others - n_latent]
        assert n_continuous >= len(own), "what is given per point is a continuous covariate"

    def fold(
        self,
        linear: CovariateLinear,
        batch_norm: nn.BatchNorm1d | None,
        *,
        first: bool,
        norm: float | None = None,
        genes: Tensor | None = None,
    ) -> Affine:
        """A layer with the batch normalisation after it; ``first`` is one that sees the points themselves."""
        weight_oi = _double(linear.weight)
        weight = weight_oi[:, self.own] if first else weight_oi[:, : linear.n_input]
        shift = torch.zeros(1, len(weight_oi), dtype=torch.float64)
        if linear.bias is not None:
            shift = shift + _double(linear.bias)
        if first and len(self.others):
            shift = shift + self.fixed_sf @ weight_oi[:, self.others].t()
        for j, start in linear.firsts:
            shift = shift + weight_oi.t()[start + self.codes_sc[:, j]]
        if batch_norm is not None:
            mean, variance = batch_norm.running_mean, batch_norm.running_var
            assert mean is not None and variance is not None, "batch normalisation here keeps its statistics"
            slope = _double(batch_norm.weight) / (_double(variance) + batch_norm.eps).sqrt()
            weight = weight * slope[:, None]
            shift = (shift - _double(mean)) * slope + _double(batch_norm.bias)
        return _affine(weight, shift, genes, norm)

    def head(self, head: nn.Linear | LinearHead, genes: Tensor | None) -> Affine:
        """A map to the genes."""
        if isinstance(head, LinearHead):
            return self.fold(head.linear, head.batch_norm, first=True, genes=genes)
        return _affine(head.weight.detach().cpu(), head.bias.detach().cpu()[None], genes, None)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _affine(weight_oi: Tensor, shift_so: Tensor, genes: Tensor | None, norm: float | None) -> Affine:
    if genes is not None:
        weight_oi, shift_so = weight_oi[genes], shift_so[:, genes]
    return Affine(weight_oi.float().t().contiguous(), shift_so.float().contiguous(), norm)
