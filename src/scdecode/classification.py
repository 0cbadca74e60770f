"""Cell types in the latent space of scVI: the model scANVI (Xu et al. 2021, Mol Syst Biol 17:e9620, Methods).

Above the latent state of scVI, here z1, stands another, z2, that knows nothing of the cell type y (as in the model
M1 + M2 of Kingma et al. 2014, Advances in Neural Information Processing Systems 27):

    y ~ Categorical(prior)                    the class, here all of them alike unless the prior says otherwise
    z2 ~ Normal(0, I)                         the state of the cell beside its type
    z1 ~ Normal(m(z2, y), v(z2, y))           the latent state that scVI's decoder takes: ``decoder_z1_z2``
    q(y | z1) = softmax(c(z1))                the classifier
    q(z2 | z1, y) = Normal                    ``encoder_z2_z1``

What becomes of a cell's bound: the KL of z gives way to ``log q(z1|x)`` and, averaged over the classes by q(y | z1), to
``-log p(z1|z2,y)`` and ``KL(q(z2|z1,y) || p(z2))``; and there is ``KL(q(y|z1) || p(y))``. Labelled cells add the
cross-entropy of the classifier at the mean of their z1. This file knows tensors and codes, and neither names nor data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, log_softmax

from scdecode.config import ClassifierConfig, ModelConfig
from scdecode.draws import draw_normal
from scdecode.minibatches import Minibatch, SparseMinibatch
from scdecode.networks import MLP, Encoder
from scdecode.vae import VAE


@dataclass(frozen=True, eq=False)
class SemiSupervisedElbo:
    """The parts of the evidence lower bound, in nats a cell, each ``(n,)``; classes averaged by q(y | z1)."""

    reconstruction: Tensor  # -log p(x | z1, l)
    latent: Tensor  # log q(z1 | x) - log p(z1 | z2, y)
    kl_z2: Tensor
    kl_y: Tensor
    kl_l: Tensor

    def loss(self, kl_weight: float) -> Tensor:
        """What training minimises: the mean over cells, with the KL of z2, y and l weighted.

        (SCVI gives the KL of l its full weight from the start; scvi-tools' SCANVI, and so this, does not.)
        """
        return (self.reconstruction + self.latent + kl_weight * (self.kl_z2 + self.kl_y + self.kl_l)).mean()

    def sums(self) -> Tensor:
        """The parts added up over cells, ``(3,)``: reconstruction with the terms of z1, KL of z2 and y, KL of l."""
        parts = (self.reconstruction + self.latent, self.kl_z2 + self.kl_y, self.kl_l)
        return torch.stack([part.sum() for part in parts])


@dataclass(frozen=True, eq=False)
class Answers:
    """What the classifier says of labelled cells."""

    cross_entropy: Tensor  # (n,): nats
    right: Tensor  # (n,) bool: whether the likeliest class is the cell's

    def sums(self) -> Tensor:
        """Added up over cells, ``(2,)``."""
        return torch.stack([self.cross_entropy.sum(), self.right.sum()])


class Classifier(nn.Module):
    """From a latent point to the logits of the classes: hidden layers, or one linear map."""

    def __init__(self, mlp: MLP | None, n_in: int, n_classes: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.logits = nn.Linear(n_in, n_classes)

    def forward(self, latent: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map ``latent`` (..., k) to (..., n_classes); ``generator`` draws what dropout keeps in training."""
        return self.logits(latent if self.mlp is None else self.mlp(latent, None, generator))


class LatentDecoder(nn.Module):
    """From z2 and the class to the normal distribution of z1."""

    def __init__(self, mlp: MLP, n_hidden: int, n_latent: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)

    def forward(self, z2: Tensor, classes: Tensor) -> Normal:
        """p(z1 | z2, y) for ``z2`` (..., k) and ``classes`` (..., 1); its variance has no floor."""
        hidden = self.mlp(z2, classes)
        return Normal(self.mean(hidden), (0.5 * self.log_variance(hidden)).exp(), validate_args=False)


class Classification(nn.Module):
    """The networks that scANVI has beside those of scVI.

    Parameters
    ----------
    config
        The options of the model.
    n_classes
        Number of classes: the labels without the unlabelled category.
    classifier
        The options of the classifier.
    """

    def __init__(self, config: ModelConfig, n_classes: int, classifier: ClassifierConfig) -> None:
        super().__init__()
        self.config = classifier
        self.n_classes = n_classes

        def mlp(part: str, n_levels: tuple[int, ...], dropout: float, n_hidden: int, n_layers: int) -> MLP:
            return MLP(
                config.n_latent,
                n_hidden,
                n_layers,
                n_levels,
                inject=True,
                batch_norm=config.use_batch_norm in (part, "both"),
                layer_norm=config.use_layer_norm in (part, "both"),
                dropout=dropout,
            )

        hidden, layers = classifier.n_hidden or config.n_hidden, classifier.n_layers or config.n_layers
        dropout = config.dropout_rate if classifier.dropout_rate is None else classifier.dropout_rate
        classifier_mlp = None if classifier.linear else mlp("encoder", (), dropout, hidden, layers)
        self.classifier = Classifier(classifier_mlp, config.n_latent if classifier.linear else hidden, n_classes)
        hidden, layers = config.n_hidden, config.n_layers
        encoder_mlp = mlp("encoder", (n_classes,), config.dropout_rate, hidden, layers)
        self.encoder_z2_z1 = Encoder(encoder_mlp, hidden, config.n_latent)
        decoder_mlp = mlp("decoder", (n_classes,), 0.0, hidden, layers)
        self.decoder_z1_z2 = LatentDecoder(decoder_mlp, hidden, config.n_latent)
        self.y_prior: Tensor  # a buffer, as it is not trained
        self.register_buffer("y_prior", torch.full((1, n_classes), 1.0 / n_classes))

    def probabilities(self, latent: Tensor) -> Tensor:
        """q(y | z1): the probability of each class at latent points ``(..., k)``, ``(..., n_classes)``."""
        return torch.softmax(self.classifier(latent), dim=-1)

    def answers(self, latent: Tensor, class_n: Tensor, generator: torch.Generator | None = None) -> Answers:
        """The classifier's answers at latent points ``(n, k)`` of cells of the classes ``class_n`` (n,)."""
        logits = self.classifier(latent, generator)
        right = logits.argmax(dim=-1) == class_n
        return Answers(cross_entropy(logits, class_n, reduction="none"), right)

    def bound(
        self, posterior: Normal, z1: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The terms that stand in the place of the KL of z, each ``(n,)``.

        Parameters
        ----------
        posterior
            q(z1 | x), ``(n, k)``.
        z1
            The draw of it, ``(n, k)``.
        generator
            Of the draws of z2, and of what dropout keeps in training; by default torch's global generator.

        Returns
        -------
        latent, kl_z2, kl_y
            ``log q(z1|x) - log p(z1|z2,y)``, and the KL of z2 and of y; see :class:`SemiSupervisedElbo`.
        """
        classes_y11 = torch.arange(self.n_classes, device=z1.device)[:, None, None]
        z1_1nk = z1[None]  # beside every class in turn: what follows has the axes (classes, n, k)
        mean, variance = self.encoder_z2_z1(z1_1nk, classes_y11, generator)
        q_z2 = Normal(mean, variance.sqrt(), validate_args=False)
        p_z1 = self.decoder_z1_z2(draw_normal(q_z2, generator), classes_y11)
        log_p_z1_ny = p_z1.log_prob(z1_1nk).sum(-1).t()
        kl_z2_ny = kl_divergence(q_z2, Normal(torch.zeros_like(mean), 1.0)).sum(-1).t()
        log_q_y = log_softmax(self.classifier(z1, generator), dim=-1)
        q_y = log_q_y.exp()
        kl_y = (q_y * (log_q_y - (self.y_prior / self.y_prior.sum()).log())).sum(-1)
        latent = posterior.log_prob(z1).sum(-1) - (q_y * log_p_z1_ny).sum(-1)
        return latent, (q_y * kl_z2_ny).sum(-1), kl_y


class SemiSupervised(nn.Module):
    """The whole of scANVI, as training takes it: scVI and the networks beside it.

    Parameters
    ----------
    vae, classification
        Of the same number of latent dimensions.
    unlabeled_code
        Code of the label that stands for none, if it is among the classes; by default it is the one after them.
    """

    def __init__(self, vae: VAE, classification: Classification, unlabeled_code: int | None = None) -> None:
        super().__init__()
        self.unlabeled_code = classification.n_classes if unlabeled_code is None else unlabeled_code
        self.vae = vae
        self.classification = classification

    @property
    def config(self) -> ModelConfig:
        """The options of the model."""
        return self.vae.config

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.vae.n_genes

    def elbo(self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None = None) -> SemiSupervisedElbo:
        """The parts of the bound of cells, labelled or not, at one draw of z1, z2 (and l, where it is learned).

        With the latent distribution ``"ln"`` z1 is the softmax of the draw, and q(z1 | x) is evaluated there, as in
        scvi-tools: what is then minimised is no bound.
        """
        drawn = self.vae.reconstruct(cells, generator)
        latent, kl_z2, kl_y = self.classification.bound(drawn.posterior, drawn.latent, generator)
        return SemiSupervisedElbo(drawn.loss, latent, kl_z2=kl_z2, kl_y=kl_y, kl_l=drawn.kl_l)

    def answers(self, cells: Minibatch | SparseMinibatch, generator: torch.Generator | None = None) -> Answers:
        """What the classifier says of labelled cells, at the mean of their z1 (for ``"ln"``: before its softmax)."""
        mean_nk = self.vae.encode(cells, generator).mean
        return self.classification.answers(mean_nk, cells.codes_nc[:, -1], generator)
