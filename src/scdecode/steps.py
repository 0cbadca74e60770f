"""A step of training on the CPU as a fixed sequence of loops and products, its gradients written out.

What is computed is :meth:`scdecode.vae.VAE.elbo`, its gradient and Adam, as torch's autograd would have it; without a
graph, without memory that is taken and given back, and with three places a step where threads meet: the sparse layer
and the likelihood share cells among threads, and the gradients of the large weights share genes, where Adam follows at
once. Networks with other parts than these (:func:`can_step`) are trained by autograd, over the same loops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scdecode.cells import Cells
from scdecode.draws import draw_standard
from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.heads import Heads, HeadsGradient
from scdecode.kernels.likelihood import Likelihood
from scdecode.kernels.rows import Gatherer, SparseRows
from scdecode.kernels.threads import Pending, in_background, n_threads, side_by_side, wait_for
from scdecode.minibatches import SparseMinibatch, small_tensors
from scdecode.networks import Decoder
from scdecode.step_layers import NOTHING, StepHidden, StepPosterior, gradient_of
from scdecode.vae import VAE

_GENES = 1024  # whose weights, gradients and moments a thread takes at once: they stay in its cache


def can_step(network: nn.Module) -> bool:
    """Whether all parts of a network are among those of :class:`KernelStep`."""
    if not isinstance(network, VAE) or not network.takes_sparse or not isinstance(network.decoder, Decoder):
        return False
    config = network.config
    return (
        config.use_batch_norm == "both"
        and config.use_layer_norm == "none"
        and config.latent_distribution == "normal"
        and not config.learns_library
        and config.batch_representation == "one-hot"
        and config.dispersion != "gene-cell"
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """The random numbers of a step."""

    kept: list[np.ndarray]  # of each hidden layer of the encoder: (n, h), zero where dropped; or empty
    noise: Tensor  # (n, k)


class _Epoch:
    """The cells of an epoch in its order: what is small is gathered for all minibatches at once."""

    def __init__(self, cells: Cells, minibatches: Sequence[np.ndarray]) -> None:
        self._minibatches, self._stops = minibatches, np.cumsum([0, *map(len, minibatches)]).tolist()
        self._small = small_tensors(cells, np.concatenate(minibatches), torch.device("cpu"))

    def minibatch(self, i: int, gatherer: Gatherer) -> SparseMinibatch:
        some = slice(self._stops[i], self._stops[i + 1])
        return SparseMinibatch(
            gatherer.gather(self._minibatches[i]), **{name: tensor[some] for name, tensor in self._small.items()}
        )


class _Ahead:
    """What other threads do for the next step while this one is between the regions that they share."""

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self._tasks, self._started = list(tasks), list[Pending]()

    def go_on(self) -> None:
        if self._tasks:
            self._started.append(in_background(self._tasks.pop(0)))

    def results(self) -> list[Any]:
        wait_for(self._started)
        return [one.result() for one in self._started]


class KernelStep:
    """The network, its optimiser, and memory for a step.

    Parameters
    ----------
    vae
        One that :func:`can_step`, whose hidden layers' weights lie by input.
    optimizer
        Of its weights, which move into the memory of it.
    cells
        To train on.
    n_cells
        The largest minibatch.
    """

    def __init__(self, vae: VAE, optimizer: KernelAdam, cells: Cells, n_cells: int) -> None:
        assert isinstance(vae.decoder, Decoder), "another decoder has other parts"
        zero_inflated = vae.config.gene_likelihood == "zinb"
        layers: list[Any] = [*vae.z_encoder.mlp.layers, *vae.decoder.mlp.layers]
        heads = [vae.decoder.scale, *([vae.decoder.zi_logits] if zero_inflated else [])]
        large: list[Any] = [layers[0].linear.weight, *(head.weight for head in heads)]
        others = [one for layer in layers for one in layer.parameters() if one is not large[0]]
        others += [*vae.z_encoder.mean.parameters(), *vae.z_encoder.log_variance.parameters()]
        others += [head.bias for head in heads]
        self._log_theta = None if vae.config.gene_likelihood == "poisson" else vae.log_theta
        if self._log_theta is not None:
            others.append(self._log_theta)
        optimizer.lay(others, large)
        self._n_others = optimizer.stretch(large[0])[0]
        self._vae, self._optimizer, self._cells = vae, optimizer, cells
        self._large = [(optimizer.stretch(weight)[0], weight.shape[1]) for weight in large[1:]]
        self._d_biases = [gradient_of(head.bias) for head in heads]
        self._gatherers = itertools.cycle([Gatherer(cells.counts), Gatherer(cells.counts)])  # one is read, one written
        n_encoder = len(vae.z_encoder.mlp.layers)
        self._encoder = [StepHidden(layer, n_cells) for layer in layers[:n_encoder]]
        self._posterior = StepPosterior(vae.z_encoder, n_cells)
        self._decoder = [StepHidden(layer, n_cells) for layer in layers[n_encoder:]]
        weights, biases = [head.weight.detach() for head in heads], [head.bias.detach() for head in heads]
        self._heads = Heads(weights, biases, vae.decoder.precision)
        self._logits = [torch.empty(n_cells, vae.n_genes, dtype=torch.float32) for _ in heads]

    def epoch(self, minibatches: Sequence[np.ndarray], kl_weight: float, generator: torch.Generator) -> Tensor:
        """Take the steps of an epoch.

        Parameters
        ----------
        minibatches
            Positions of the cells of each.
        kl_weight
            Of the KL of z.
        generator
            Of dropout and of the latent draws.

        Returns
        -------
        Tensor
            ``(steps, 4)`` sums over cells: reconstruction, KL of z, KL of l, and the loss.
        """
        parts = np.zeros((len(minibatches), 4), np.float32)
        epoch = _Epoch(self._cells, minibatches)
        drawn, cells = self._draw(len(minibatches[0]), generator), self._gather(epoch, 0)
        for i in range(len(minibatches)):
            tasks: list[Callable[[], Any]] = []
            if i + 1 < len(minibatches):
                n = len(minibatches[i + 1])
                tasks = [partial(self._draw, n, generator), partial(self._gather, epoch, i + 1)]
            ahead = _Ahead(tasks)
            try:
                parts[i] = self._step(cells, drawn, kl_weight, ahead)
            finally:  # whatever happens, no thread may draw random numbers later
                found = ahead.results()
            if found:
                drawn, cells = found
        return torch.from_numpy(parts)

    def _step(self, cells: SparseMinibatch, drawn: _Drawn, kl_weight: float, ahead: _Ahead) -> list[float]:
        hidden = self._encode(cells, drawn)
        ahead.go_on()
        latent, kl = self._posterior.forward(hidden, drawn.noise)
        hidden = self._decode(latent, cells)
        likelihood, back = self._likelihood(hidden, cells)
        ahead.go_on()
        reconstruction, kl_z = float(likelihood.loss.numpy().sum()), float(kl.numpy().sum())
        d_latent = self._decoder_gradient(back.d_hidden)
        self._encoder_gradient(d_latent, kl_weight / len(cells))
        self._change(cells, back, likelihood)
        return [reconstruction, kl_z, 0.0, reconstruction + kl_weight * kl_z]

    # -- a minibatch ahead -----------------------------------------------------------------------------------------

    def _gather(self, epoch: _Epoch, i: int) -> SparseMinibatch:
        return epoch.minibatch(i, next(self._gatherers))

    def _draw(self, n: int, generator: torch.Generator) -> _Drawn:
        """The random numbers are those of torch's own modules, in their order."""
        kept = [layer.draw(n, generator) for layer in self._encoder]
        noise = torch.empty(n, self._vae.config.n_latent, dtype=torch.float32)
        return _Drawn(kept, draw_standard(noise, generator))

    # -- there -----------------------------------------------------------------------------------------------------

    def _encode(self, cells: SparseMinibatch, drawn: _Drawn) -> Tensor:
        x: Tensor | SparseRows = cells.rows
        for layer, kept in zip(self._encoder, drawn.kept, strict=True):
            x = layer.forward(x, cells.codes_nc.numpy(), kept)
        assert isinstance(x, Tensor)
        return x

    def _decode(self, latent: Tensor, cells: SparseMinibatch) -> Tensor:
        x = torch.cat([latent, cells.continuous_nd], 1) if self._vae.n_continuous else latent
        for layer in self._decoder:
            x = layer.forward(x, cells.codes_nc.numpy(), NOTHING)
        return x

    def _likelihood(self, hidden: Tensor, cells: SparseMinibatch) -> tuple[Likelihood, HeadsGradient]:
        n, config = len(cells), self._vae.config
        log_theta = self._vae.log_theta_of(None, cells.codes_nc)
        likelihood = Likelihood(
            cells.rows,
            config.gene_likelihood,
            not config.use_size_factor,
            cells.library_n1.log(),
            None if log_theta is None else log_theta.detach(),
            torch.full((n,), 1.0 / n, dtype=torch.float32),
            gradients=True,
        )
        logits = [one[:n] for one in self._logits]
        return likelihood, self._heads.compute(hidden, likelihood, logits)

    # -- and back --------------------------------------------------------------------------------------------------

    def _decoder_gradient(self, d_hidden: Tensor) -> Tensor:
        for layer in reversed(self._decoder):
            d_hidden = layer.backward(d_hidden)
        return d_hidden[:, : self._vae.config.n_latent]

    def _encoder_gradient(self, d_latent: Tensor, kl_weight: float) -> None:
        d_hidden = self._posterior.backward(d_latent, kl_weight)
        for layer in reversed(self._encoder):
            d_hidden = layer.backward(d_hidden)

    def _change(self, cells: SparseMinibatch, back: HeadsGradient, likelihood: Likelihood) -> None:
        """The gradients of the large weights, and Adam: of each stretch of genes while it is in the cache."""
        optimizer, first_layer = self._optimizer, self._encoder[0]
        optimizer.begin_step()

        def part(first: int, last: int) -> None:
            first_layer.change_genes(first, last, optimizer)
            for i, ((start, width), d_bias) in enumerate(zip(self._large, self._d_biases, strict=True)):
                gradient = back.of_weight(i, first, last).view(-1).numpy()
                optimizer.change(start + first * width, start + last * width, gradient)
                torch.sum(back.d_logits[i][:, first:last], 0, out=d_bias[first:last])

        n_genes = self._vae.n_genes
        side_by_side(part, n_genes, piece=min(_GENES, -(-n_genes // n_threads())))
        if self._log_theta is not None:
            d_theta = likelihood.d_log_theta()
            assert d_theta is not None, "what has a dispersion has its gradient"
            d_table = gradient_of(self._log_theta)
            if len(d_table) == 1 and d_theta.ndim == 1:
                d_table.copy_(d_theta)
            else:
                column = 0 if self._vae.config.dispersion == "gene-batch" else -1
                d_table.zero_().index_add_(0, cells.codes_nc[:, column], d_theta)
        optimizer.change(0, self._n_others)
