"""The small layers of a step of training, there and back: each with memory for what it makes, and no graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.rows import SparseRows
from scdecode.kernels.sparse_layer import change_genes, product
from scdecode.networks import LEAST_VARIANCE, Encoder, HiddenLayer

NOTHING = np.empty((0, 0), np.float32)


class StepHidden:
    """A hidden layer in training: linear, batch normalisation, ReLU, dropout.

    Parameters
    ----------
    layer
        With batch normalisation and without layer normalisation; its weight lies by input. The gradients of its
        parameters have a place, but for that of a weight that meets counts.
    n_cells
        The largest minibatch.
    """

    def __init__(self, layer: HiddenLayer, n_cells: int) -> None:
        linear, norm = layer.linear, layer.batch_norm
        assert norm is not None and layer.layer_norm is None, "a layer of another kind"
        self._linear, self._norm, self._n_input = linear, norm, linear.n_input
        self._keep = 1.0 if layer.dropout is None else 1.0 - layer.dropout.p
        h = linear.out_features
        self._weight = linear.weight.detach().t()  # (inputs, h)
        self._d_weight = None if linear.weight.grad is None else linear.weight.grad.t()
        self._d_bias = gradient_of(linear.bias)
        self._of_norm = [_array(norm.weight), _array(norm.bias)]
        self._d_of_norm = [gradient_of(norm.weight).numpy(), gradient_of(norm.bias).numpy()]
        self._x, self._out, self._d_x = (torch.empty(n_cells, h) for _ in range(3))
        self._d_input = torch.empty(n_cells, self._n_input)
        self._mean, self._inverse_deviation = np.empty((2, h), np.float32)

    def draw(self, n: int) -> np.ndarray:
        """What dropout keeps of ``n`` cells, as factors; drawn as torch draws it."""
        if self._keep == 1.0:
            return NOTHING
        return torch.empty(n, self._linear.out_features).bernoulli_(self._keep).div_(self._keep).numpy()

    def forward(self, x: Tensor | SparseRows, codes: np.ndarray, kept: np.ndarray) -> Tensor:
        """The output, ``(n, h)``, in memory that the next step takes over; the running statistics move on."""
        from scdecode.kernels.small_loops import add_columns, normal_relu

        n = len(x)
        self._input, self._codes, self._kept = x, codes, kept
        before, out = self._x[:n], self._out[:n]
        if isinstance(x, SparseRows):
            product(x, self._weight.numpy(), _array(self._linear.bias), before.numpy())
        else:
            torch.addmm(self._linear.bias.detach(), x, self._weight[: self._n_input], out=before)
            for column, first in self._linear.firsts:
                add_columns(before.numpy(), self._weight.numpy(), codes[:, column], first)
        norm = self._norm
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        normal_relu(
            before.numpy(), *self._of_norm, kept, norm.eps, np.float32(norm.momentum),
            norm.running_mean.numpy(), norm.running_var.numpy(), self._mean, self._inverse_deviation, out.numpy(),
        )  # fmt: skip
        return out

    def backward(self, d_out: Tensor) -> Tensor:
        """Write the gradients of the parameters that have a place; return that of the input, or before a sparse one."""
        from scdecode.kernels.small_loops import add_columns_gradient, normal_relu_gradient

        x, n = self._input, len(d_out)
        d_x = self._d_x[:n]
        normal_relu_gradient(
            d_out.numpy(), self._out[:n].numpy(), self._x[:n].numpy(), self._kept, self._of_norm[0], self._mean,
            self._inverse_deviation, d_x.numpy(), *self._d_of_norm,
        )  # fmt: skip
        torch.sum(d_x, 0, out=self._d_bias)
        if isinstance(x, SparseRows):
            return d_x
        assert self._d_weight is not None, "the weight of a dense input has a gradient with a place"
        torch.mm(x.t(), d_x, out=self._d_weight[: self._n_input])
        self._d_weight[self._n_input :].zero_()
        for column, first in self._linear.firsts:
            add_columns_gradient(d_x.numpy(), self._codes[:, column], first, self._d_weight.numpy())
        return torch.mm(d_x, self._weight[: self._n_input].t(), out=self._d_input[:n])

    def change_genes(self, first: int, last: int, optimizer: KernelAdam) -> None:
        """Adam's step of the weight that meets the counts of genes ``first`` to ``last``."""
        assert isinstance(self._input, SparseRows), "another input is not sparse"
        change_genes(self._input, self._d_x.numpy(), first, last, optimizer, self._linear.weight)


class StepPosterior:
    """The posterior's mean and variance, a draw of it, and its KL to a standard normal.

    Parameters
    ----------
    encoder
        The gradients of whose parameters have a place.
    n_cells
        The largest minibatch.
    """

    def __init__(self, encoder: Encoder, n_cells: int) -> None:
        heads = (encoder.mean, encoder.log_variance)
        self._weights = [(head.weight.detach().t(), head.bias.detach()) for head in heads]
        self._gradients = [(gradient_of(head.weight), gradient_of(head.bias)) for head in heads]
        k, n_hidden = encoder.mean.weight.shape
        memory = [torch.empty(n_cells, k) for _ in range(6)]
        self._outputs, self._d_outputs, self._variance, self._z = memory[:2], memory[2:4], memory[4], memory[5]
        self._kl, self._d_hidden = torch.empty(n_cells), torch.empty(n_cells, n_hidden)

    def forward(self, hidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The draw, ``(n, k)``, and the KL, ``(n,)``, in memory that the next step takes over."""
        from scdecode.kernels.small_loops import draw

        n = len(hidden)
        self._hidden, self._noise = hidden, noise
        mean, log_variance = (one[:n] for one in self._outputs)
        for out, (weight, bias) in zip((mean, log_variance), self._weights, strict=True):
            torch.addmm(bias, hidden, weight, out=out)
        variance, z, kl = self._variance[:n], self._z[:n], self._kl[:n]
        draw(
            mean.numpy(), log_variance.numpy(), noise.numpy(), np.float32(LEAST_VARIANCE),
            variance.numpy(), z.numpy(), kl.numpy(),
        )  # fmt: skip
        return z, kl

    def backward(self, d_z: Tensor, d_kl: float) -> Tensor:
        """Write the gradients of the parameters; return that of the hidden layer."""
        from scdecode.kernels.small_loops import draw_gradient

        n = len(d_z)
        d_outputs, d_hidden = [one[:n] for one in self._d_outputs], self._d_hidden[:n]
        draw_gradient(
            self._outputs[0][:n].numpy(), self._variance[:n].numpy(), self._noise.numpy(), np.float32(LEAST_VARIANCE),
            d_z.contiguous().numpy(), np.full(n, d_kl, np.float32), *(one.numpy() for one in d_outputs),
        )  # fmt: skip
        for i, (d_out, (weight, _), (d_weight, d_bias)) in enumerate(
            zip(d_outputs, self._weights, self._gradients, strict=True)
        ):
            torch.mm(d_out.t(), self._hidden, out=d_weight)
            torch.sum(d_out, 0, out=d_bias)
            d_hidden.addmm_(d_out, weight.t(), beta=i)
        return d_hidden


def gradient_of(weight: Tensor) -> Tensor:
    """The place of a weight's gradient."""
    assert weight.grad is not None, "the optimiser gives each weight a place for its gradient"
    return weight.grad


def _array(weight: Tensor) -> np.ndarray:
    return weight.detach().numpy()
