"""The small layers of a step of training, there and back: each with memory for what it makes, and no graph."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from scdecode.draws import draw_kept
from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.rows import SparseRows
from scdecode.kernels.sparse_layer import change_genes, product
from scdecode.networks import LEAST_VARIANCE, Encoder, HiddenLayer

_LEAST_VARIANCE = np.float32(LEAST_VARIANCE)
NOTHING = np.empty((0, 0), np.float32)


class Memory:
    """Arrays with a row a cell that each step takes over, for torch and for the loops.

    Parameters
    ----------
    n_cells
        The largest minibatch.
    **widths
        The name and the width of each; zero for one number a cell.
    """

    def __init__(self, n_cells: int, **widths: int) -> None:
        self._whole = {
            name: torch.empty((n_cells, width) if width else (n_cells,), dtype=torch.float32)
            for name, width in widths.items()
        }
        self._n, self._n_cells = -1, n_cells

    def of(self, n: int) -> tuple[SimpleNamespace, SimpleNamespace]:
        """Those of ``n`` cells, by name: the tensors, and the same as arrays."""
        assert n <= self._n_cells, "the loops write as many rows as they are told"
        if n != self._n:  # hardly ever: to cut them anew in each step would take longer than some loops
            tensors = {name: whole[:n] for name, whole in self._whole.items()}
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            self._cut, self._n = (SimpleNamespace(**tensors), SimpleNamespace(**arrays)), n
        return self._cut


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
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        self._weight, self._firsts, self._rate = linear.weight, linear.firsts, 0.0
        if layer.dropout is not None:
            self._rate = layer.dropout.p
        n_input, h = linear.n_input, linear.out_features
        weight = linear.weight.detach().t()  # (inputs, h)
        self._inputs, self._weight_array = weight[:n_input], weight.numpy()
        self._bias, self._bias_array = linear.bias.detach(), linear.bias.detach().numpy()
        if linear.weight.grad is not None:
            d_weight = linear.weight.grad.t()
            self._d_inputs, self._d_weight_array = d_weight[:n_input], d_weight.numpy()
        self._d_bias = gradient_of(linear.bias)
        self._scale, self._shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
        self._d_scale, self._d_shift = gradient_of(norm.weight).numpy(), gradient_of(norm.bias).numpy()
        self._running = (norm.running_mean.numpy(), norm.running_var.numpy())
        self._n_seen = norm.num_batches_tracked.numpy().reshape(1)
        self._eps, self._momentum = norm.eps, np.float32(norm.momentum)
        self._mean, self._inverse_deviation = np.empty((2, h), np.float32)
        self._memory = Memory(
            n_cells, before=h, out=h, d_before=h, d_input=0 if linear.weight.grad is None else n_input
        )

    def draw(self, n: int, generator: torch.Generator) -> np.ndarray:
        """Draw what dropout keeps of ``n`` cells, as factors."""
        if self._rate == 0.0:
            return NOTHING
        return draw_kept(torch.empty(n, len(self._bias), dtype=torch.float32), self._rate, generator).numpy()

    def forward(self, x: Tensor | SparseRows, codes: np.ndarray, kept: np.ndarray) -> Tensor:
        """The output, ``(n, h)``, in memory that the next step takes over; the running statistics move on."""
        from scdecode.kernels import small_loops

        tensors, arrays = self._memory.of(len(x))
        self._input, self._codes, self._kept = x, codes, kept
        if isinstance(x, SparseRows):
            product(x, self._weight_array, self._bias_array, arrays.before)
        else:
            torch.addmm(self._bias, x, self._inputs, out=tensors.before)
            for column, first in self._firsts:
                small_loops.add_columns(arrays.before, self._weight_array, codes[:, column], first)
        self._n_seen += 1
        small_loops.normal_relu(
            arrays.before, self._scale, self._shift, kept, self._eps, self._momentum, *self._running,
            self._mean, self._inverse_deviation, arrays.out,
        )  # fmt: skip
        out: Tensor = tensors.out
        return out

    def backward(self, d_out: Tensor) -> Tensor:
        """Write the gradients of the parameters that have a place; return that of the input, or before a sparse one."""
        from scdecode.kernels import small_loops

        x, (tensors, arrays) = self._input, self._memory.of(len(d_out))
        small_loops.normal_relu_gradient(
            d_out.numpy(), arrays.out, arrays.before, self._kept, self._scale, self._mean, self._inverse_deviation,
            arrays.d_before, self._d_scale, self._d_shift,
        )  # fmt: skip
        d_before: Tensor = tensors.d_before
        torch.sum(d_before, 0, out=self._d_bias)
        if isinstance(x, SparseRows):
            return d_before
        torch.mm(x.t(), d_before, out=self._d_inputs)
        self._d_weight_array[len(self._inputs) :] = 0.0
        for column, first in self._firsts:
            small_loops.add_columns_gradient(arrays.d_before, self._codes[:, column], first, self._d_weight_array)
        return torch.mm(d_before, self._inputs.t(), out=tensors.d_input)

    def change_genes(self, first: int, last: int, optimizer: KernelAdam) -> None:
        """Adam's step of the weight that meets the counts of genes ``first`` to ``last``."""
        assert isinstance(self._input, SparseRows), "another input is not sparse"
        _, arrays = self._memory.of(len(self._input))
        change_genes(self._input, arrays.d_before, first, last, optimizer, self._weight)


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
        self._weights = [head.weight.detach() for head in heads]
        self._biases = [head.bias.detach() for head in heads]
        self._gradients = [(gradient_of(head.weight), gradient_of(head.bias)) for head in heads]
        k, h = encoder.mean.weight.shape
        self._memory = Memory(
            n_cells, mean=k, log_variance=k, variance=k, z=k, kl=0, d_mean=k, d_log_variance=k, d_kl=0, d_hidden=h
        )

    def forward(self, hidden: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The draw, ``(n, k)``, and the KL, ``(n,)``, in memory that the next step takes over."""
        from scdecode.kernels import small_loops

        tensors, arrays = self._memory.of(len(hidden))
        self._hidden, self._noise = hidden, noise.numpy()
        for out, weight, bias in zip((tensors.mean, tensors.log_variance), self._weights, self._biases, strict=True):
            torch.addmm(bias, hidden, weight.t(), out=out)
        small_loops.draw(
            arrays.mean, arrays.log_variance, self._noise, _LEAST_VARIANCE, arrays.variance, arrays.z, arrays.kl
        )
        return tensors.z, tensors.kl

    def backward(self, d_z: Tensor, d_kl: float) -> Tensor:
        """Write the gradients of the parameters; return that of the hidden layer."""
        from scdecode.kernels import small_loops

        tensors, arrays = self._memory.of(len(d_z))
        arrays.d_kl[:] = d_kl
        small_loops.draw_gradient(
            arrays.mean, arrays.variance, self._noise, _LEAST_VARIANCE, d_z.contiguous().numpy(), arrays.d_kl,
            arrays.d_mean, arrays.d_log_variance,
        )  # fmt: skip
        d_hidden: Tensor = tensors.d_hidden
        d_outputs = (tensors.d_mean, tensors.d_log_variance)
        for i, (d_out, weight, (d_weight, d_bias)) in enumerate(
            zip(d_outputs, self._weights, self._gradients, strict=True)
        ):
            torch.mm(d_out.t(), self._hidden, out=d_weight)
            torch.sum(d_out, 0, out=d_bias)
            d_hidden.addmm_(d_out, weight, beta=i)
        return d_hidden


def gradient_of(weight: Tensor) -> Tensor:
    """The place of a weight's gradient."""
    assert weight.grad is not None, "the optimiser gives each weight a place for its gradient"
    return weight.grad
