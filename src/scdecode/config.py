"""What a model is and how it is trained: frozen dataclasses, checked when made, to and from JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import Seed
from scdecode._utils.notebook import Shown
from scdecode.errors import ConfigError, check_choice, check_integer, check_number, suggestion

GeneLikelihood = Literal["zinb", "nb", "poisson", "normal"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
LatentDistribution = Literal["normal", "ln"]
BatchRepresentation = Literal["one-hot", "embedding"]
NormPlacement = Literal["encoder", "decoder", "both", "none"]
Precision = Literal["fp32", "bf16"]
DecoderKind = Literal["nonlinear", "linear"]

Config = TypeVar("Config", "ModelConfig", "ClassifierConfig", "TrainConfig")

_INTEGERS = ("int", "int | None", "Seed")  # types of fields
_LARGEST = {"n_hidden": 1_000_000, "n_latent": 100_000, "n_layers": 1_000, "batch_embedding_dim": 100_000}
"""Sizes of a network, far above any in use: a larger one in a damaged file is refused before it is made."""

NORM_PLACEMENTS = ("encoder", "decoder", "both", "none")


def from_dict(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a configuration of class ``kind`` from a mapping of its fields.

    Raises
    ------
    ConfigError
        Where a name is not a field, or a value is not allowed.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise ConfigError(f"{kind.__name__}: there is no option {name!r}{suggestion(name, known)}")
    return kind(**values)


def _check_booleans(config: ModelConfig | ClassifierConfig | TrainConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{field.name}: {value!r} came, True or False was expected")


def _to_python(config: ModelConfig | ClassifierConfig | TrainConfig) -> None:
    """Turn numpy's numbers, as a sweep over ``np.arange`` gives them, into Python's, which JSON takes.

    A whole number may be a float, 10.0 for 10, as of a table or of a search over options.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, np.generic):
            value = value.item()
        if field.type in _INTEGERS and isinstance(value, float) and value.is_integer():
            value = int(value)
        object.__setattr__(config, field.name, value)


@checked
@dataclass(frozen=True, kw_only=True)
class ModelConfig(Shown):
    """The options of the generative model; names and defaults are those of scvi-tools' ``SCVI``."""

    n_hidden: int = 128
    """Units in each hidden layer of the encoder and of the decoder."""

    n_latent: int = 10
    """Dimensions of the latent space."""

    n_layers: int = 1
    """Hidden layers of the encoder and of the decoder."""

    dropout_rate: float = 0.1
    """Probability that a hidden unit of the encoder is dropped in training; the decoder drops none."""

    dispersion: Dispersion = "gene"
    """What the inverse dispersion depends on: the gene alone, or also the batch, the label or the cell."""

    gene_likelihood: GeneLikelihood = "zinb"
    """Zero-inflated negative binomial, negative binomial, Poisson or normal."""

    latent_distribution: LatentDistribution = "normal"
    """Normal, or logistic normal (the softmax of a normal: points of the latent space sum to one)."""

    use_observed_lib_size: bool = True
    """Take a cell's total count as its library size; otherwise learn a log-normal one. A size factor goes first."""

    use_size_factor: bool = False
    """Take the library size from a column of ``obs``; the scale is then a softplus and does not sum to one."""

    encode_covariates: bool = False
    """Show the batch and the covariates to the encoder."""

    deeply_inject_covariates: bool = True
    """Show the batch and the categorical covariates to every hidden layer rather than to the first alone."""

    batch_representation: BatchRepresentation = "one-hot"
    """One column a batch, or a learned embedding of the batch."""

    batch_embedding_dim: int = 5
    """Dimensions of the batch embedding; used with ``batch_representation="embedding"`` alone."""

    use_batch_norm: NormPlacement = "both"
    """Where the hidden layers have batch normalisation."""

    use_layer_norm: NormPlacement = "none"
    """Where the hidden layers have layer normalisation (without weights), after batch normalisation."""

    decoder: DecoderKind = "nonlinear"
    """Hidden layers, or one linear map from the latent point to the logits of the scale: that of ``LinearSCVI``."""

    linear_bias: bool = False
    """Whether the linear map has a bias; used with ``decoder="linear"`` alone."""

    def __post_init__(self) -> None:
        _to_python(self)
        _check_booleans(self)
        for name, most in _LARGEST.items():
            check_integer(name, getattr(self, name), minimum=1, maximum=most)
        check_choice("dispersion", self.dispersion, ("gene", "gene-batch", "gene-label", "gene-cell"))
        check_choice("gene_likelihood", self.gene_likelihood, ("zinb", "nb", "poisson", "normal"))
        check_choice("latent_distribution", self.latent_distribution, ("normal", "ln"))
        check_choice("batch_representation", self.batch_representation, ("one-hot", "embedding"))
        check_choice("use_batch_norm", self.use_batch_norm, NORM_PLACEMENTS)
        check_choice("use_layer_norm", self.use_layer_norm, NORM_PLACEMENTS)
        check_choice("decoder", self.decoder, ("nonlinear", "linear"))
        _check_dropout(self.dropout_rate)
        if self.decoder == "linear":
            self._check_linear()
        elif self.linear_bias:
            raise ConfigError("linear_bias: True came, but only decoder='linear' has such a bias")

    def _check_linear(self) -> None:
        """Raise :class:`ConfigError` for what a linear decoder, here as in scvi-tools, has no place for."""
        allowed: dict[str, tuple[Any, ...]] = {
            "dispersion": ("gene", "gene-batch"),
            "gene_likelihood": ("zinb", "nb", "poisson"),
            "use_size_factor": (False,),
            "encode_covariates": (False,),
            "batch_representation": ("one-hot",),
            "batch_embedding_dim": (5,),
            "use_batch_norm": ("both", "encoder"),
            "use_layer_norm": ("none",),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                among = " or ".join(repr(value) for value in values)
                raise ConfigError(
                    f"{name}: {getattr(self, name)!r} came, but a linear decoder takes {among} alone; SCVI takes it"
                )

    @property
    def learns_library(self) -> bool:
        """Whether the library size is a latent variable with an encoder of its own."""
        return not (self.use_observed_lib_size or self.use_size_factor)

    @property
    def has_counts(self) -> bool:
        """Whether the likelihood is one of counts (whole numbers)."""
        return self.gene_likelihood != "normal"


def _check_dropout(rate: float) -> None:
    check_number("dropout_rate", rate, 0.0, 1.0)
    if rate == 1.0:
        raise ConfigError("dropout_rate: 1.0 came, which drops every unit; a number below 1 was expected")


@checked
@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The options of the classifier of ``SCANVI``; None stands for the model's own."""

    linear: bool = False
    """One linear map from the latent point to the logits of the classes, and no hidden layer."""

    n_layers: int | None = None
    """Hidden layers."""

    n_hidden: int | None = None
    """Units in each hidden layer."""

    dropout_rate: float | None = None
    """Probability that a hidden unit is dropped in training."""

    def __post_init__(self) -> None:
        _to_python(self)
        _check_booleans(self)
        for name in ("n_layers", "n_hidden"):
            value = getattr(self, name)
            if value is not None:
                check_integer(f"classifier_parameters: {name}", value, minimum=1, maximum=_LARGEST[name])
                if self.linear:
                    raise ConfigError(
                        f"classifier_parameters: {name} came, but a linear classifier has no hidden layer"
                    )
        if self.dropout_rate is not None:
            _check_dropout(self.dropout_rate)


@checked
@dataclass(frozen=True, kw_only=True)
class TrainConfig(Shown):
    """How a model is trained; names and defaults are those of scvi-tools."""

    max_epochs: int | None = None
    """Passes over the training cells; by default ``min(round(20000 / n_cells * 400), 400)``, at least one."""

    train_size: float = 0.9
    """Fraction of the cells to train on."""

    validation_size: float | None = None
    """Fraction of the cells to validate on; by default all that are not trained on. What is left is a test set."""

    shuffle_set_split: bool = True
    """Draw the split at random; otherwise the first cells are validated on, the next trained on, as in scvi-tools."""

    batch_size: int = 128
    """Cells in a minibatch."""

    lr: float = 1e-3
    """Learning rate of Adam; 0 leaves the weights as they are, and batch normalisation still counts the cells."""

    weight_decay: float = 1e-6
    """L2 penalty of Adam."""

    eps: float = 0.01
    """Term that keeps Adam's denominator from zero."""

    precision: Precision = "fp32"
    """Of the large matrix products in training; ``"bf16"`` is faster where the processor has instructions for it.

    Everything else stays in single precision: the likelihood, the weights, Adam, validation.
    """

    n_epochs_kl_warmup: int | None = 400
    """Epochs over which the weight of the KL term rises from 0 to 1; None: it is 1 from the start."""

    early_stopping: bool = False
    """Stop once the validation ELBO no longer improves."""

    early_stopping_patience: int = 45
    """Validations without an improvement before training stops; 0 is as 1."""

    early_stopping_min_delta: float = 0.0
    """By how much (nats a cell) the validation ELBO must fall to count as an improvement."""

    early_stopping_warmup_epochs: int = 0
    """Epochs before early stopping begins to look."""

    check_val_every_n_epoch: int = 1
    """Epochs from one validation to the next."""

    classification_ratio: float = 50.0
    """Weight of the cross-entropy of the labelled cells beside the bound; of ``SCANVI`` alone."""

    n_samples_per_label: int | None = None
    """Labelled cells of each class in an epoch, at most, drawn anew each time; None: all. Of ``SCANVI`` alone."""

    seed: Seed = 0
    """Seed of the split, the order of the cells, the dropout and the latent draws."""

    def __post_init__(self) -> None:
        _to_python(self)
        _check_booleans(self)
        if self.max_epochs is not None:
            check_integer("max_epochs", self.max_epochs, minimum=1, maximum=10_000_000)
        if self.n_epochs_kl_warmup is not None:
            check_integer("n_epochs_kl_warmup", self.n_epochs_kl_warmup, minimum=0)
        check_number("train_size", self.train_size, 0.0, 1.0, open_minimum=True)
        if self.validation_size is not None:
            check_number("validation_size", self.validation_size, 0.0, 1.0)
            if self.train_size + self.validation_size > 1.0 + 1e-9:
                raise ConfigError(
                    f"train_size, validation_size: {self.train_size} and {self.validation_size} came, "
                    "a sum of at most 1 was expected"
                )
        check_integer("batch_size", self.batch_size, minimum=2)
        check_number("lr", self.lr, 0.0)
        check_number("weight_decay", self.weight_decay, 0.0)
        check_number("eps", self.eps, 0.0)
        check_choice("precision", self.precision, ("fp32", "bf16"))
        check_integer("early_stopping_patience", self.early_stopping_patience, minimum=0)
        check_number("early_stopping_min_delta", self.early_stopping_min_delta, 0.0)
        check_integer("early_stopping_warmup_epochs", self.early_stopping_warmup_epochs, minimum=0)
        check_integer("check_val_every_n_epoch", self.check_val_every_n_epoch, minimum=1)
        check_number("classification_ratio", self.classification_ratio, 0.0)
        if self.n_samples_per_label is not None:
            check_integer("n_samples_per_label", self.n_samples_per_label, minimum=1)
        check_integer("seed", self.seed, minimum=0)

    @checked
    def epochs(self, n_cells: int) -> int:
        """Epochs to train for with ``n_cells`` cells: ``max_epochs``, or the default for that many cells."""
        check_integer("n_cells", n_cells, minimum=1)
        if self.max_epochs is not None:
            return self.max_epochs
        return max(min(round(20_000 / n_cells * 400), 400), 1)

    @checked
    def kl_weight(self, epoch: int) -> float:
        """Weight of the KL term in epoch ``epoch`` (the first is 0)."""
        if not self.n_epochs_kl_warmup:
            return 1.0
        return min(epoch / self.n_epochs_kl_warmup, 1.0)
