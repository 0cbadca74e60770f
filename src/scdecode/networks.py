"""The encoder's and the decoder's networks: hidden layers that are told the conditions, and the heads on top.

Conditions enter as codes. A one-hot column times a weight matrix is a column of that matrix, so a layer adds up the
columns of its conditions; one row of codes for all points is then computed once, whatever the number of points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, log_softmax, relu, softplus

from scdecode.draws import draw_kept
from scdecode.kernels.rows import SparseRows
from scdecode.kernels.small_layers import conditioned_linear, normal_relu_dropout
from scdecode.kernels.sparse_layer import lay_by_input, lay_plainly, sparse_linear

LEAST_VARIANCE = 1e-4
"""Of a posterior."""


def allow_kernels(module: nn.Module, allowed: bool) -> None:
    """Let the parts of a network use kernels where they can, or not.

    Allowed, the weights of the hidden layers lie by input, as the kernels take them; otherwise all weights lie plainly,
    each in a memory of its own.
    """
    for part in module.modules():
        if isinstance(part, CovariateLinear | HiddenLayer):
            part.fused = allowed
        if allowed and isinstance(part, HiddenLayer):
            lay_by_input(part.linear.weight)
    if not allowed:
        for weight in module.parameters():
            lay_plainly(weight)


class CovariateLinear(nn.Linear):
    """A linear layer of an input beside one-hot columns of categorical conditions.

    Parameters
    ----------
    n_in
        Width of the input.
    n_out
        Width of the output.
    n_levels
        Levels of each condition; those with one level have no column, as they say nothing.
    """

    def __init__(self, n_in: int, n_out: int, n_levels: Sequence[int] = (), *, bias: bool = True) -> None:
        self.n_input = n_in
        self.n_levels = tuple(n_levels)
        super().__init__(n_in + sum(n for n in self.n_levels if n > 1), n_out, bias=bias)
        self.fused = False
        """Whether a kernel may do it, which takes a bias and a row of codes a point."""
        starts = n_in + np.cumsum([0, *(n if n > 1 else 0 for n in self.n_levels)])
        self.firsts = [(j, int(starts[j])) for j, n in enumerate(self.n_levels) if n > 1]
        """Each condition that has columns, and the first of them."""

    def forward(self, x: Tensor | SparseRows, codes: Tensor | None = None) -> Tensor:
        """Map ``x`` (..., n_in) and ``codes`` (..., n_conditions), which may have fewer or shorter leading axes.

        Of sparse counts, it is log1p that is mapped.
        """
        if self.in_features == self.n_input:
            return _linear(x, self.weight, self.bias)
        assert codes is not None and codes.shape[-1] == len(self.n_levels), "one code for each condition"
        if (
            self.fused
            and self.bias is not None
            and isinstance(x, Tensor)
            and x.ndim == codes.ndim == 2
            and len(x) == len(codes)
        ):
            return conditioned_linear(x, codes, self.weight, self.bias, self.firsts)
        shift: Tensor | float = 0.0 if self.bias is None else self.bias
        columns = self.weight[:, self.n_input :].t()
        offset = 0
        for j, n in enumerate(self.n_levels):
            if n > 1:
                shift = shift + embedding(codes[..., j] + offset, columns)
                offset += n
        return _linear(x, self.weight[:, : self.n_input], None) + shift


class HiddenLayer(nn.Module):
    """Linear, batch normalisation, layer normalisation without weights, ReLU, dropout; each norm where asked."""

    def __init__(
        self, n_in: int, n_out: int, n_levels: Sequence[int], *, batch_norm: bool, layer_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.linear = CovariateLinear(n_in, n_out, n_levels)
        # eps and momentum are those of the first, TensorFlow, scVI
        self.batch_norm = nn.BatchNorm1d(n_out, eps=1e-3, momentum=0.01) if batch_norm else None
        self.layer_norm = nn.LayerNorm(n_out, elementwise_affine=False) if layer_norm else None
        self.dropout = nn.Dropout(dropout) if dropout > 0 else None
        self.fused = False
        """Whether a kernel may do what follows the linear map, in training."""

    def forward(self, x: Tensor | SparseRows, codes: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """Map ``x`` (..., n_in) to (..., n_out).

        ``generator`` draws what dropout keeps in training; by default torch's global generator does.
        """
        hidden: Tensor = self.linear(x, codes)
        if (
            self.fused
            and self.training
            and self.batch_norm is not None
            and self.layer_norm is None
            and hidden.ndim == 2
        ):
            return normal_relu_dropout(hidden, self.batch_norm, self.dropout, generator)
        if self.batch_norm is not None:
            hidden = self.batch_norm(hidden.reshape(-1, hidden.shape[-1])).reshape(hidden.shape)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        hidden = relu(hidden)
        if self.dropout is None or not self.training:
            return hidden
        return hidden * draw_kept(hidden, self.dropout.p, generator)


class MLP(nn.Module):
    """Hidden layers of one width, told the conditions at the first or (``inject``) at every layer."""

    def __init__(
        self,
        n_in: int,
        n_hidden: int,
        n_layers: int,
        n_levels: Sequence[int] = (),
        *,
        inject: bool,
        batch_norm: bool,
        layer_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            HiddenLayer(
                n_in if i == 0 else n_hidden,
                n_hidden,
                n_levels if inject or i == 0 else (),
                batch_norm=batch_norm,
                layer_norm=layer_norm,
                dropout=dropout,
            )
            for i in range(n_layers)
        )

    def forward(
        self, x: Tensor | SparseRows, codes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Map ``x`` (..., n_in) and ``codes`` (..., n_conditions) to (..., n_hidden)."""
        first, *others = self.layers
        hidden: Tensor = first(x, codes, generator)
        for layer in others:
            hidden = layer(hidden, codes, generator)
        return hidden


class Encoder(nn.Module):
    """From a cell to the mean and the variance of a normal posterior."""

    def __init__(self, mlp: MLP, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.mean = nn.Linear(n_hidden, n_out)
        self.log_variance = nn.Linear(n_hidden, n_out)

    def forward(
        self, x: Tensor | SparseRows, codes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance, each (n, n_out); the variance is at least 1e-4, which keeps the KL finite."""
        hidden = self.mlp(x, codes, generator)
        return self.mean(hidden), self.log_variance(hidden).exp() + LEAST_VARIANCE

    def raw(
        self, x: Tensor | SparseRows, codes: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean and what the variance is made of: its logarithm, before the least variance is added."""
        hidden = self.mlp(x, codes, generator)
        return self.mean(hidden), self.log_variance(hidden)


@dataclass(frozen=True, eq=False)
class DecoderOutput:
    """What the decoder says of each point and gene, independent of the library size."""

    log_scale: Tensor  # (..., g): log of rho
    zi_logits: Tensor | None  # (..., g): only with zero inflation
    log_theta: Tensor | None  # (..., g): only where the dispersion depends on the cell


@dataclass(frozen=True, eq=False)
class DecoderLogits:
    """The same before the scale is normalised, as a fused likelihood takes it; each ``(n, g)``."""

    scale: Tensor
    zi_logits: Tensor | None
    log_theta: Tensor | None
    softmax: bool  # the scale is the softmax of its logits, or else their softplus


class Decoder(nn.Module):
    """From a latent point and its conditions to the scale, the zero inflation and the dispersion of each gene.

    All heads exist whatever the likelihood, as in scvi-tools: a model can then be written back without loss, and the
    heads that a likelihood does not use cost nothing, as they are not run.
    """

    def __init__(self, mlp: MLP, n_hidden: int, n_genes: int, *, softmax: bool) -> None:
        super().__init__()
        self.mlp = mlp
        self.softmax = softmax
        self.scale = nn.Linear(n_hidden, n_genes)
        self.log_theta = nn.Linear(n_hidden, n_genes)
        self.zi_logits = nn.Linear(n_hidden, n_genes)
        self.precision = torch.float32
        """Of the kernels' products with the heads of the scale and of the zero inflation."""

    def forward(
        self,
        x: Tensor,
        codes: Tensor | None,
        *,
        zero_inflated: bool,
        cell_dispersion: bool,
        genes: Tensor | None = None,
    ) -> DecoderOutput:
        """Decode ``x`` (..., n_in) with ``codes`` (..., n_conditions).

        ``genes`` (positions) keeps those columns alone; every logit still counts in the softmax.
        """
        hidden = self.mlp(x, codes)
        logits = self.scale(hidden)
        log_scale = log_softmax(logits, dim=-1) if self.softmax else log_softplus(logits)
        return DecoderOutput(
            log_scale=log_scale if genes is None else log_scale[..., genes],
            zi_logits=_head(self.zi_logits, hidden, genes) if zero_inflated else None,
            log_theta=_head(self.log_theta, hidden, genes) if cell_dispersion else None,
        )

    def scale_of(self, x: Tensor, codes: Tensor | None, *, genes: Tensor | None = None) -> Tensor:
        """The scale alone, ``(..., genes)``, and not its logarithm: a pass over the genes less than :meth:`forward`."""
        logits = self.scale(self.mlp(x, codes))
        scale = torch.softmax(logits, dim=-1) if self.softmax else softplus(logits)
        return scale if genes is None else scale[..., genes]


class LinearHead(nn.Module):
    """One linear map of a latent point and its conditions to every gene, with batch normalisation where asked."""

    def __init__(self, n_in: int, n_genes: int, n_levels: Sequence[int], *, batch_norm: bool, bias: bool) -> None:
        super().__init__()
        self.linear = CovariateLinear(n_in, n_genes, n_levels, bias=bias)
        self.batch_norm = nn.BatchNorm1d(n_genes, eps=1e-3, momentum=0.01) if batch_norm else None

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        """Map ``x`` (..., n_in) to (..., n_genes)."""
        x = self.linear(x, codes)
        return x if self.batch_norm is None else self.batch_norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def loadings(self) -> Tensor:
        """The change of each gene's output with each input, ``(n_genes, n_in)``, without the conditions' columns.

        In evaluation mode batch normalisation is a linear map too: the weights are divided by the running standard
        deviation of their gene, and multiplied by its learned scale.
        """
        weight = self.linear.weight[:, : self.linear.n_input]
        if self.batch_norm is None:
            return weight
        variance = self.batch_norm.running_var
        assert variance is not None, "batch normalisation here keeps its statistics"
        return (self.batch_norm.weight / (variance + self.batch_norm.eps).sqrt())[:, None] * weight


class LinearDecoder(nn.Module):
    """A :class:`Decoder` without hidden layers (Svensson et al. 2020, Bioinformatics 36:3418, Methods).

    Each gene's logit of the scale is a weighted sum of the latent dimensions, so that the weights say which genes go
    with a dimension. Both heads exist whatever the likelihood, as in scvi-tools; no head gives a dispersion.
    """

    def __init__(self, n_in: int, n_genes: int, n_levels: Sequence[int], *, batch_norm: bool, bias: bool) -> None:
        super().__init__()
        self.scale = LinearHead(n_in, n_genes, n_levels, batch_norm=batch_norm, bias=bias)
        self.zi_logits = LinearHead(n_in, n_genes, n_levels, batch_norm=batch_norm, bias=bias)
        self.precision = torch.float32

    def forward(
        self,
        x: Tensor,
        codes: Tensor | None,
        *,
        zero_inflated: bool,
        cell_dispersion: bool,
        genes: Tensor | None = None,
    ) -> DecoderOutput:
        """Decode as :meth:`Decoder.forward` does."""
        assert not cell_dispersion, "a linear decoder has no dispersion of its own"
        log_scale = log_softmax(self.scale(x, codes), dim=-1)
        zi_logits = self.zi_logits(x, codes) if zero_inflated else None
        if genes is not None:
            log_scale = log_scale[..., genes]
            zi_logits = None if zi_logits is None else zi_logits[..., genes]
        return DecoderOutput(log_scale=log_scale, zi_logits=zi_logits, log_theta=None)

    def logits(self, x: Tensor, codes: Tensor | None, *, zero_inflated: bool, cell_dispersion: bool) -> DecoderLogits:
        """What :meth:`forward` makes its output of."""
        assert not cell_dispersion, "a linear decoder has no dispersion of its own"
        zi_logits = self.zi_logits(x, codes) if zero_inflated else None
        return DecoderLogits(self.scale(x, codes), zi_logits, None, softmax=True)

    def scale_of(self, x: Tensor, codes: Tensor | None, *, genes: Tensor | None = None) -> Tensor:
        """The scale alone, as :meth:`Decoder.scale_of`."""
        scale = torch.softmax(self.scale(x, codes), dim=-1)
        return scale if genes is None else scale[..., genes]


def _linear(x: Tensor | SparseRows, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(x, SparseRows):
        return sparse_linear(x, weight, bias)
    return linear(x, weight, bias)


def _head(head: nn.Linear, hidden: Tensor, genes: Tensor | None) -> Tensor:
    return head(hidden) if genes is None else linear(hidden, head.weight[genes], head.bias[genes])


def log_softplus(x: Tensor) -> Tensor:
    """``log(log(1 + exp(x)))``, which far below zero is ``x`` itself, where softplus would underflow."""
    return torch.where(x < -15, x, softplus(x.clamp(min=-15)).log())
