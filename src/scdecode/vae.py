"""The generative model of scVI in one place (Lopez et al. 2018, Nature Methods 15:1053; names as in its Methods).

For a cell with counts x, batch and covariates s and library size l:

    z ~ Normal(0, I)                          the latent state
    l   the total count of the cell; or l ~ LogNormal(mean and variance of the cell's batch); or a given size factor
    rho = softmax(f(z, s))                    the scale: the fraction of the RNA that each gene has
    x ~ ZINB(mean l rho, inverse dispersion theta, zero inflation pi(z, s)); or NB, Poisson, Normal
    q(z | x) = Normal(m(x), v(x))             the approximate posterior

Training minimises, averaged over cells, ``-log p(x | z, l) + w KL(q(z|x) || p(z)) + KL(q(l|x) || p(l))``.

With the latent distribution ``"ln"`` the decoder is given softmax(z), as the latent point. With a given size factor the
scale is a softplus and sums to nothing in particular. This file knows tensors and codes, and neither names nor data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence
from torch.nn.functional import embedding

from scdecode.config import ModelConfig
from scdecode.draws import draw_normal
from scdecode.kernels.heads import heads_likelihood
from scdecode.kernels.likelihood import fused_likelihood
from scdecode.kernels.rows import SparseRows
from scdecode.kernels.small_layers import draw_posterior
from scdecode.likelihoods import make_likelihood
from scdecode.minibatches import Minibatch, SparseMinibatch
from scdecode.networks import LEAST_VARIANCE, MLP, Decoder, DecoderOutput, Encoder, LinearDecoder


@dataclass(frozen=True, eq=False)
class Elbo:
    """The parts of the evidence lower bound, in nats a cell, each ``(n,)``."""

    reconstruction: Tensor  # -log p(x | z, l)
    kl_z: Tensor
    kl_l: Tensor

    def loss(self, kl_weight: float) -> Tensor:
        """What training minimises: the mean over cells, with the KL of z weighted."""
        return (self.reconstruction + kl_weight * self.kl_z + self.kl_l).mean()

    def sums(self) -> Tensor:
        """The parts added up over cells, ``(3,)``: reconstruction, KL of z, KL of l."""
        return torch.stack([self.reconstruction.sum(), self.kl_z.sum(), self.kl_l.sum()])


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Cells encoded, drawn once, and decoded."""

    posterior: Normal  # q(z | x), (n, k)
    latent: Tensor  # (n, k): the latent point that was drawn
    loss: Tensor  # (n,): -log p(x | z, l), nats
    kl_l: Tensor  # (n,): of a learned library size, else zero


class VAE(nn.Module):
    """The encoder, the decoder and the dispersions.

    Parameters
    ----------
    config
        The options.
    n_genes
        Number of genes.
    n_levels
        Levels of each column of codes: the batch, each categorical covariate, the label.
    n_continuous
        Number of continuous covariates.
    library_prior
        Mean and variance of the log library size in each batch, ``(n_batches,)`` each; needed where the library size is
        learned.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_genes: int,
        n_levels: Sequence[int],
        n_continuous: int,
        library_prior: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.n_genes = n_genes
        self.n_continuous = n_continuous
        n_batches, *n_covariate_levels, n_labels = n_levels
        embeds = config.batch_representation == "embedding"
        self.batch_embedding = nn.Embedding(n_batches, config.batch_embedding_dim) if embeds else None
        conditions = n_covariate_levels if embeds else [n_batches, *n_covariate_levels]
        n_extra = n_continuous + (config.batch_embedding_dim if embeds else 0)

        def mlp(n_in: int, levels: Sequence[int], n_layers: int, part: str, dropout: float) -> MLP:
            return MLP(
                n_in,
                config.n_hidden,
                n_layers,
                levels,
                inject=config.deeply_inject_covariates,
                batch_norm=config.use_batch_norm in (part, "both"),
                layer_norm=config.use_layer_norm in (part, "both"),
                dropout=dropout,
            )

        n_seen = n_genes + (n_extra if config.encode_covariates else 0)
        seen = conditions if config.encode_covariates else []
        encoder_mlp = mlp(n_seen, seen, config.n_layers, "encoder", config.dropout_rate)
        self.z_encoder = Encoder(encoder_mlp, config.n_hidden, config.n_latent)
        library_mlp = mlp(n_seen, seen, 1, "encoder", config.dropout_rate)
        self.library_encoder = Encoder(library_mlp, config.n_hidden, 1) if config.learns_library else None
        self.decoder: Decoder | LinearDecoder
        if config.decoder == "linear":
            assert not n_extra, "a linear decoder has no continuous covariates and no embedding"
            norm = config.use_batch_norm == "both"
            self.decoder = LinearDecoder(config.n_latent, n_genes, conditions, batch_norm=norm, bias=config.linear_bias)
        else:
            decoder_mlp = mlp(config.n_latent + n_extra, conditions, config.n_layers, "decoder", 0.0)
            self.decoder = Decoder(decoder_mlp, config.n_hidden, n_genes, softmax=not config.use_size_factor)

        rows = {"gene": 1, "gene-batch": n_batches, "gene-label": n_labels}.get(config.dispersion)
        self.log_theta = None if rows is None else nn.Parameter(nn.init.normal_(torch.empty(rows, n_genes)))
        self.library_log_mean: Tensor
        self.library_log_variance: Tensor
        if config.learns_library:
            assert library_prior is not None, "a learned library size has a prior"
            self.register_buffer("library_log_mean", library_prior[0])
            self.register_buffer("library_log_variance", library_prior[1])

    # -- the conditions, as the networks take them -----------------------------------------------------------------

    def conditioned(self, x: Tensor, codes: Tensor, continuous: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` beside the continuous covariates and the batch embedding, and the codes of what goes in as one-hot."""
        beside = [continuous] if self.n_continuous else []
        one_hot = codes[..., :-1]  # the label is seen by the dispersion alone
        if self.batch_embedding is not None:
            beside.append(self.batch_embedding(codes[..., 0]))
            one_hot = codes[..., 1:-1]
        if beside:
            x = torch.cat([x, *(b.expand(*x.shape[:-1], b.shape[-1]) for b in beside)], dim=-1)
        return x, one_hot

    # -- from cells to latents -------------------------------------------------------------------------------------

    def encode(self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None = None) -> Normal:
        """The posterior q(z | x), ``(n, k)``; for ``"ln"`` that of z before its softmax.

        ``generator`` draws what dropout keeps in training, as in what follows; by default torch's global one does.
        """
        mean, variance = self.z_encoder(*self.encoder_input(cells), generator)
        return Normal(mean, variance.sqrt(), validate_args=False)

    def encode_library(self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None = None) -> Normal:
        """The posterior q(log l | x), ``(n, 1)``, of a learned library size."""
        assert self.library_encoder is not None, "only a learned library size has a posterior"
        mean, variance = self.library_encoder(*self.encoder_input(cells), generator)
        return Normal(mean, variance.sqrt(), validate_args=False)

    def encoder_input(self, cells: Minibatch | SparseMinibatch) -> tuple[Tensor | SparseRows, Tensor | None]:
        """What the encoders see of cells, and the codes of what goes in as one-hot."""
        if isinstance(cells, SparseMinibatch):
            assert not self.config.encode_covariates, "covariates beside the counts need these as a tensor"
            return cells.rows, None
        x = torch.log1p(cells.x_ng)
        if not self.config.encode_covariates:
            return x, None
        return self.conditioned(x, cells.codes_nc, cells.continuous_nd)

    def to_latent(self, z: Tensor) -> Tensor:
        """The latent point of a draw of z: z itself, or its softmax for ``"ln"``."""
        return z if self.config.latent_distribution == "normal" else torch.softmax(z, dim=-1)

    # -- from latents to expression --------------------------------------------------------------------------------

    def decode(
        self, latent: Tensor, codes: Tensor, continuous: Tensor, *, genes: Tensor | None = None
    ) -> DecoderOutput:
        """Decode latent points.

        Parameters
        ----------
        latent
            ``(..., k)``.
        codes
            ``(..., c)`` codes of the conditions; leading axes may be fewer or of length one: one row serves all points.
        continuous
            ``(..., d)`` continuous covariates, likewise.
        genes
            Positions of the genes to keep; by default all.
        """
        x, one_hot = self.conditioned(latent, codes, continuous)
        zinb, by_cell = self.config.gene_likelihood == "zinb", self.config.dispersion == "gene-cell"
        output: DecoderOutput = self.decoder(x, one_hot, zero_inflated=zinb, cell_dispersion=by_cell, genes=genes)
        return output

    def scale(self, latent: Tensor, codes: Tensor, continuous: Tensor, *, genes: Tensor | None = None) -> Tensor:
        """The scale rho of latent points, ``(..., g)``; the arguments are those of :meth:`decode`."""
        x, one_hot = self.conditioned(latent, codes, continuous)
        return self.decoder.scale_of(x, one_hot, genes=genes)

    def dispersion(self, output: DecoderOutput, codes: Tensor, genes: Tensor | None = None) -> Tensor | None:
        """Log inverse dispersion that broadcasts with the output; None for the Poisson, which has none."""
        return self.log_theta_of(output.log_theta, codes, genes)

    def log_theta_of(self, by_cell: Tensor | None, codes: Tensor, genes: Tensor | None = None) -> Tensor | None:
        """The same, from what the decoder says of it where it depends on the cell."""
        if self.config.gene_likelihood == "poisson":
            return None
        if self.log_theta is None:
            return by_cell
        table = self.log_theta if genes is None else self.log_theta[:, genes]
        if self.config.dispersion == "gene":
            return table[0]
        return embedding(codes[..., 0 if self.config.dispersion == "gene-batch" else -1], table)

    def likelihood(
        self, output: DecoderOutput, log_library: Tensor, codes: Tensor, genes: Tensor | None = None
    ) -> Distribution:
        """p(x | z, l): a distribution of counts, ``(..., g)``; ``log_library`` is ``(..., 1)``."""
        log_theta = self.dispersion(output, codes, genes)
        return make_likelihood(self.config.gene_likelihood, log_library + output.log_scale, log_theta, output.zi_logits)

    def idle(self) -> Iterator[nn.Parameter]:
        """The weights of heads that are not run: training never changes them."""
        if self.config.gene_likelihood != "zinb":
            yield from self.decoder.zi_logits.parameters()
        if isinstance(self.decoder, Decoder) and self.config.dispersion != "gene-cell":
            yield from self.decoder.log_theta.parameters()

    # -- the bound -------------------------------------------------------------------------------------------------

    @property
    def takes_sparse(self) -> bool:
        """Whether sparse minibatches do: where all that touches counts has a kernel for it."""
        return self.config.has_counts and not self.config.encode_covariates

    def reconstruct(
        self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None = None
    ) -> Reconstruction:
        """Encode cells, draw z (and l, where it is learned) once, and decode it."""
        posterior = self.encode(cells, generator)
        log_library, kl_l = self._library(cells, generator)
        latent = self.to_latent(draw_normal(posterior, generator))
        if isinstance(cells, SparseMinibatch):
            return Reconstruction(posterior, latent, loss=self.fused_loss(cells, latent, log_library), kl_l=kl_l)
        output = self.decode(latent, cells.codes_nc, cells.continuous_nd)
        likelihood = self.likelihood(output, log_library, cells.codes_nc)
        return Reconstruction(posterior, latent, loss=-likelihood.log_prob(cells.x_ng).sum(-1), kl_l=kl_l)

    def fused_loss(self, cells: SparseMinibatch, latent: Tensor, log_library: Tensor) -> Tensor:
        """-log p(x | z, l) of cells whose counts are sparse."""
        x, one_hot = self.conditioned(latent, cells.codes_nc, cells.continuous_nd)
        kind, by_cell = self.config.gene_likelihood, self.config.dispersion == "gene-cell"
        if isinstance(self.decoder, Decoder):
            return self._heads_loss(self.decoder, self.decoder.mlp(x, one_hot), cells, log_library)
        logits = self.decoder.logits(x, one_hot, zero_inflated=kind == "zinb", cell_dispersion=by_cell)
        log_theta = self.log_theta_of(logits.log_theta, cells.codes_nc)
        return fused_likelihood(
            logits.scale, log_library, log_theta, logits.zi_logits, cells.rows, kind, softmax=logits.softmax
        )

    def _heads_loss(self, decoder: Decoder, hidden: Tensor, cells: SparseMinibatch, log_library: Tensor) -> Tensor:
        kind = self.config.gene_likelihood
        by_cell = decoder.log_theta(hidden) if self.config.dispersion == "gene-cell" else None
        return heads_likelihood(
            hidden,
            decoder.scale,
            decoder.zi_logits if kind == "zinb" else None,
            log_library,
            self.log_theta_of(by_cell, cells.codes_nc),
            cells.rows,
            kind,
            softmax=decoder.softmax,
            precision=decoder.precision if self.training else torch.float32,
        )

    def elbo(self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None = None) -> Elbo:
        """The parts of the evidence lower bound of cells, at one draw of z (and of l, where it is learned)."""
        if isinstance(cells, SparseMinibatch):
            return self._sparse_elbo(cells, generator)
        drawn = self.reconstruct(cells, generator)
        prior = Normal(torch.zeros_like(drawn.posterior.loc), 1.0)
        kl_z = kl_divergence(drawn.posterior, prior).sum(-1)
        return Elbo(reconstruction=drawn.loss, kl_z=kl_z, kl_l=drawn.kl_l)

    def _sparse_elbo(self, cells: SparseMinibatch, generator: torch.Generator | None) -> Elbo:
        """The same where counts are sparse, by kernels."""
        mean, log_variance = self.z_encoder.raw(*self.encoder_input(cells), generator)
        log_library, kl_l = self._library(cells, generator)  # before z: in the order of plain torch's random numbers
        z, kl_z = draw_posterior(mean, log_variance, LEAST_VARIANCE, generator)
        return Elbo(self.fused_loss(cells, self.to_latent(z), log_library), kl_z, kl_l)

    def _library(self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The log library size, ``(n, 1)``, and its KL, ``(n,)``: zero where it is given."""
        if self.config.learns_library:
            return self._learned_library(cells, generator)
        return cells.library_n1.log(), cells.library_n1.new_zeros(len(cells))

    def _learned_library(
        self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        posterior = self.encode_library(cells, generator)
        batch = cells.codes_nc[:, :1]
        prior = Normal(self.library_log_mean[batch], self.library_log_variance[batch].sqrt(), validate_args=False)
        return draw_normal(posterior, generator), kl_divergence(posterior, prior).sum(-1)
