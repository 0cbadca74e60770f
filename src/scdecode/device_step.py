"""The bound of scVI on a GPU: what :meth:`scdecode.vae.VAE.elbo` computes, in a form that suits one.

Two things differ. The likelihood is written over all genes of a cell alike: at the non-zero entries alone, as in
:mod:`scdecode.likelihoods`, it would have to ask the GPU where they are and wait. And from the decoder's logits to
``-log p(x)`` it is one function of tensors, which torch compiles into a few passes over the genes. With ``bf16`` the
products of the encoder and of the decoder are in that precision, and the draws, the KL and the likelihood are not.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import log_softmax, softplus

from scdecode.cells import Cells
from scdecode.config import TrainConfig
from scdecode.draws import draw_normal
from scdecode.errors import ConfigError, TrainingWarning, warn
from scdecode.likelihoods import NegativeBinomial, lgamma_ratio, make_likelihood
from scdecode.minibatches import Minibatch
from scdecode.networks import LEAST_VARIANCE, Decoder, DecoderLogits, Encoder, log_softplus
from scdecode.resident import DeviceCells, bytes_of, fits, free_bytes
from scdecode.vae import VAE, Elbo, Reconstruction

# what a compiler that is not there, not whole or not up to it raises; the errors of torch's own are RuntimeErrors
_CANNOT_COMPILE = (RuntimeError, ImportError, OSError, subprocess.SubprocessError)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]
"""From counts, logits of the scale, log library size, log dispersion and logits of zero inflation to ``(n,)`` nats."""


def dense_loss(kind: str, *, softmax: bool) -> Loss:
    """``-log p(x)`` of a likelihood and of a scale that is a softmax, or else a softplus, of its logits."""

    def loss(
        x_ng: Tensor, logits_ng: Tensor, log_library_n1: Tensor, log_theta: Tensor | None, zi_logits: Tensor | None
    ) -> Tensor:
        logits_ng = logits_ng.float()  # of bf16: what follows is in single precision
        log_mu = log_library_n1 + (log_softmax(logits_ng, dim=-1) if softmax else log_softplus(logits_ng))
        log_theta = None if log_theta is None else log_theta.float()
        if kind in ("nb", "zinb"):
            assert log_theta is not None
            log_p = _log_nb(x_ng, log_mu, log_theta)
            if kind == "zinb":
                assert zi_logits is not None
                zi_logits = zi_logits.float()
                at_zero = torch.logaddexp(zi_logits, log_p)
                log_p = torch.where(x_ng > 0, log_p, at_zero) - softplus(zi_logits, threshold=40.0)
        else:
            log_p = make_likelihood(kind, log_mu, log_theta, zi_logits).log_prob(x_ng)
        return -log_p.sum(-1)

    return loss


def _log_nb(x: Tensor, log_mu: Tensor, log_theta: Tensor) -> Tensor:
    """The log-probability of :class:`NegativeBinomial`, its gamma functions computed at every entry."""
    log_theta = NegativeBinomial(log_mu, log_theta).log_theta  # within its bounds
    theta = log_theta.exp()
    gammas = torch.where(x > 0, lgamma_ratio(x, theta) - torch.lgamma(x + 1), 0.0)
    d = log_mu - log_theta
    return gammas - theta * softplus(d, threshold=40.0) - x * softplus(-d, threshold=40.0)


class CompiledLoss:
    """A loss that is compiled for minibatches of one size, tried out at the first of them; others take it as it is.

    Where it cannot be compiled, one warning says why, and all take it as it is.

    Parameters
    ----------
    loss
        To be compiled.
    n_rows
        Cells of a full minibatch.
    backend
        Of ``torch.compile``; None: do not compile.
    """

    def __init__(self, loss: Loss, n_rows: int, backend: str | None) -> None:
        self._loss, self._n_rows, self._backend = loss, n_rows, backend
        self._compiled: Loss | None = None

    def __call__(
        self, x_ng: Tensor, logits: Tensor, log_library: Tensor, log_theta: Tensor | None, zi_logits: Tensor | None
    ) -> Tensor:
        """The loss of each cell, ``(n,)``."""
        arguments = (x_ng, logits, log_library, log_theta, zi_logits)
        # validation has no gradients, and would be compiled once more: it is a tenth of the work
        if self._backend is None or len(x_ng) != self._n_rows or not torch.is_grad_enabled():
            return self._loss(*arguments)
        if self._compiled is None:
            self._compiled = self._try(self._backend, arguments)
        return self._compiled(*arguments)

    def _try(self, backend: str, arguments: tuple[Tensor | None, ...]) -> Loss:
        """Compile, and take one step there and back: the way back is compiled no sooner than it is gone."""
        copies = [None if one is None else one.detach().requires_grad_(one.requires_grad) for one in arguments]
        device = copies[0].device  # type: ignore[union-attr]
        cuda = [device] if device.type == "cuda" else []
        try:
            # a compiler may draw random numbers for its timings, and warns of itself and of options of the user's
            with torch.random.fork_rng(devices=cuda), warnings.catch_warnings(action="ignore"):
                compiled: Loss = torch.compile(self._loss, fullgraph=True, dynamic=False, backend=backend)
                torch.autograd.backward(compiled(*copies).sum())  # type: ignore[arg-type]
        except torch.cuda.OutOfMemoryError:
            raise  # it would not fit uncompiled, either
        except _CANNOT_COMPILE as error:
            reason = " ".join(str(error).strip().splitlines()[:2])  # the first line may say no more than who failed
            warn(
                f"train: torch.compile cannot compile the likelihood here ({type(error).__name__}: {reason}), so it "
                "runs as it is, more slowly; a working triton and C compiler were expected",
                TrainingWarning,
            )
            return self._loss
        return compiled


def backend_for(device: torch.device) -> str | None:
    """What to compile with: Triton writes for GPUs alone, and comes with torch on Linux alone."""
    return "inductor" if device.type == "cuda" and find_spec("triton") is not None else None


class DeviceBound:
    """The bound of one network, in place of :meth:`scdecode.vae.VAE.reconstruct` and what is above it.

    Random numbers are drawn in the same order.

    Parameters
    ----------
    vae
        The network.
    batch_size
        Cells of a full minibatch.
    precision
        ``"fp32"``, or ``"bf16"``: products of the encoder and of the decoder while training, not while evaluating.
    backend
        Of ``torch.compile``; None: do not compile.
    """

    def __init__(self, vae: VAE, batch_size: int, precision: str, backend: str | None) -> None:
        self._vae, self._bf16 = vae, precision == "bf16"
        softmax = vae.decoder.softmax if isinstance(vae.decoder, Decoder) else True
        self._loss = CompiledLoss(dense_loss(vae.config.gene_likelihood, softmax=softmax), batch_size, backend)

    def encode(self, cells: Minibatch, generator: torch.Generator | None = None) -> Normal:
        """The posterior q(z | x)."""
        return self._posterior(self._vae.z_encoder, cells, generator)

    def reconstruct(self, cells: Minibatch, generator: torch.Generator | None = None) -> Reconstruction:
        """Encode cells, draw z (and l, where it is learned) once, and decode it."""
        vae = self._vae
        posterior = self.encode(cells, generator)
        log_library, kl_l = self._library(cells, generator)  # before z: in the plain form's order of random numbers
        latent = vae.to_latent(draw_normal(posterior, generator))
        with self._products(cells):
            logits = self._logits(*vae.conditioned(latent, cells.codes_nc, cells.continuous_nd))
        log_theta = vae.log_theta_of(logits.log_theta, cells.codes_nc)
        loss = self._loss(cells.x_ng, logits.scale, log_library, log_theta, logits.zi_logits)
        return Reconstruction(posterior, latent, loss=loss, kl_l=kl_l)

    def elbo(self, cells: Minibatch, generator: torch.Generator | None = None) -> Elbo:
        """The parts of the bound of scVI."""
        drawn = self.reconstruct(cells, generator)
        prior = Normal(torch.zeros_like(drawn.posterior.loc), 1.0, validate_args=False)
        return Elbo(drawn.loss, kl_divergence(drawn.posterior, prior).sum(-1), drawn.kl_l)

    def _products(self, cells: Minibatch) -> torch.autocast:
        enabled = self._bf16 and self._vae.training
        return torch.autocast(cells.x_ng.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _posterior(self, encoder: Encoder, cells: Minibatch, generator: torch.Generator | None = None) -> Normal:
        inputs = self._vae.encoder_input(cells)
        with self._products(cells):
            mean, log_variance = encoder.raw(*inputs, generator)
        variance = log_variance.float().exp() + LEAST_VARIANCE
        return Normal(mean.float(), variance.sqrt(), validate_args=False)

    def _library(self, cells: Minibatch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        vae = self._vae
        if vae.library_encoder is None:
            return cells.library_n1.log(), cells.library_n1.new_zeros(len(cells))
        posterior = self._posterior(vae.library_encoder, cells, generator)
        batch = cells.codes_nc[:, :1]
        prior = Normal(vae.library_log_mean[batch], vae.library_log_variance[batch].sqrt(), validate_args=False)
        return draw_normal(posterior, generator), kl_divergence(posterior, prior).sum(-1)

    def _logits(self, x: Tensor, one_hot: Tensor) -> DecoderLogits:
        decoder, config = self._vae.decoder, self._vae.config
        zinb, by_cell = config.gene_likelihood == "zinb", config.dispersion == "gene-cell"
        if not isinstance(decoder, Decoder):
            return decoder.logits(x, one_hot, zero_inflated=zinb, cell_dispersion=by_cell)
        hidden = decoder.mlp(x, one_hot)
        return DecoderLogits(
            decoder.scale(hidden),
            decoder.zi_logits(hidden) if zinb else None,
            decoder.log_theta(hidden) if by_cell else None,
            softmax=decoder.softmax,
        )


def on_device(vae: VAE, cells: Cells, config: TrainConfig, device: torch.device) -> tuple[DeviceCells, DeviceBound]:
    """Cells and bound for a network that is on the device already; the counts are kept there if they fit.

    Raises
    ------
    ConfigError
        Where a GPU has no instructions for the precision that is asked for.
    """
    if config.precision == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise ConfigError("precision: 'bf16' came, but this GPU has no instructions for it; pass precision='fp32'")
    resident = fits(
        bytes_of(cells),
        free_bytes(device),
        n_weights=sum(weight.numel() for weight in vae.parameters()),
        n_genes=vae.n_genes,
        batch_size=min(config.batch_size, len(cells)),
    )
    bound = DeviceBound(vae, config.batch_size, config.precision, backend_for(device))
    return DeviceCells(cells, device, resident=resident), bound


def _has_bf16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere; torch would emulate it on older ones
