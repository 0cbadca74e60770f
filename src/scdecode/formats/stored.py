"""What a model directory holds, whichever program wrote it, and weights into the network that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scdecode._utils.memory import check_memory
from scdecode._utils.weights import problems_of
from scdecode.classification import Classification
from scdecode.config import ClassifierConfig, ModelConfig, TrainConfig
from scdecode.errors import ConfigError, CorruptModelError
from scdecode.reference import Reference
from scdecode.schema import Schema
from scdecode.vae import VAE


@dataclass(frozen=True)
class Origin:
    """The program that trained a model, where it was another one."""

    program: str
    version: str

    def __str__(self) -> str:
        return f"{self.program} {self.version}"

    def then_trained_by(self, program: str, version: str) -> Origin:
        """The same after a further training."""
        return self if self.program.endswith(program) else Origin(f"{self}, then {program}", version)


@dataclass(frozen=True, eq=False)
class StoredModel:
    """All that a model directory holds."""

    class_name: str  # "SCVI", "LinearSCVI" or "SCANVI"
    config: ModelConfig
    schema: Schema
    vae: VAE
    reference: Reference | None  # None: not known, as in the files of scvi-tools
    train_config: TrainConfig | None  # None where another program trained it last
    summary: dict[str, Any]  # of the training: the history and how it ended
    version: str  # of the scdecode that wrote it
    trained: bool = True
    origin: Origin | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Weights of another program that this one has no use for, under its names: they go back when it is written."""
    classification: Classification | None = None  # of a SCANVI


def build_vae(config: ModelConfig, schema: Schema, library_prior: tuple[Tensor, Tensor] | None = None) -> VAE:
    """The network that fits a schema; the prior of a learned library is a placeholder unless it is given."""
    if config.learns_library and library_prior is None:
        library_prior = (torch.zeros(schema.n_batches), torch.ones(schema.n_batches))
    check_size(config, schema)
    return VAE(config, schema.n_genes, schema.n_levels, len(schema.continuous), library_prior)


def check_size(config: ModelConfig, schema: Schema) -> None:
    """Raise :class:`ConfigError` if the weights of a network take more memory than the machine has.

    Counted are the matrices of the hidden layers, of the genes and of the heads: at most, all heads of a gene.
    """
    inputs = schema.n_genes + config.n_latent + sum(schema.n_levels) + len(schema.continuous)
    hidden = config.n_hidden + sum(schema.n_levels)
    n_weights = 2 * config.n_layers * config.n_hidden * hidden + 5 * config.n_hidden * inputs
    check_memory("n_hidden, n_layers", config.n_hidden, 4 * n_weights, "a smaller network")


class _Unfilled(TorchFunctionMode):
    """A network that is made within has no random weights, and no memory for them until they are written.

    They are replaced at once; the user's random numbers stay as they are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


_RANDOM = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)


def unfilled_vae(config: ModelConfig, schema: Schema) -> VAE:
    """The network with weights of no meaning, for their names and shapes."""
    try:
        with _Unfilled():
            return build_vae(config, schema)
    except ConfigError as error:
        raise CorruptModelError(f"model: its options cannot be those of a model: {error}") from error


def filled_vae(config: ModelConfig, schema: Schema, weights: Mapping[str, Tensor], place: str, fits: str) -> VAE:
    """The network with these weights, in evaluation mode.

    Parameters
    ----------
    config, schema
        What the network is made from.
    weights
        Under the names of our network.
    place, fits
        For errors: where the weights come from, and what they are to fit.

    Raises
    ------
    CorruptModelError
        Where the weights are not those of this network, or are no numbers.
    """
    try:
        _check_sizes(config, schema, weights)
        vae = unfilled_vae(config, schema)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes that no network has
        raise CorruptModelError(f"{place}: it does not fit {fits} ({error}); copy both again") from error
    fill(vae, weights, place, fits)
    return vae


def filled_classification(
    config: ModelConfig,
    classifier: ClassifierConfig,
    schema: Schema,
    weights: Mapping[str, Tensor],
    place: str,
    fits: str,
) -> Classification:
    """The networks that a SCANVI has beside those of SCVI, with these weights; see :func:`filled_vae`."""
    try:
        with _Unfilled():
            classification = Classification(config, schema.n_classes, classifier)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise CorruptModelError(f"{place}: it does not fit {fits} ({error}); copy both again") from error
    fill(classification, weights, place, fits)
    return classification


def fill(module: nn.Module, weights: Mapping[str, Tensor], place: str, fits: str) -> None:
    """Put weights into a network that has the same names and shapes; it is left in evaluation mode.

    Raises
    ------
    CorruptModelError
        Where names, shapes or types differ, or a weight is no number.
    """
    # whatever torch's default type is here, the weights are kept in single precision
    expected = {name: kind_of(t.float() if t.is_floating_point() else t) for name, t in module.state_dict().items()}
    found = {name: kind_of(t) for name, t in weights.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not of this model" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]}, {kind} was expected"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    same = [name for name in expected if expected[name] == found.get(name)]
    problems += problems_of({name: weights[name] for name in same})
    if problems:
        raise CorruptModelError(f"{place}: it does not fit {fits}: {'; '.join(problems[:5])}")
    module.load_state_dict(dict(weights), assign=True)
    module.eval().requires_grad_(False)


_MOST_TRIALS = 64
"""Points that :func:`check_decodes` decodes, some milliseconds for 30,000 genes."""


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite: a NaN is both extremes, and they take no memory, as a mask would."""
    if not tensor.numel():
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


@torch.no_grad()
def check_decodes(vae: VAE, schema: Schema, reference: Reference | None, place: str) -> None:
    """Raise :class:`CorruptModelError` unless a few latent points decode to finite numbers, in each condition of 64.

    Parameters
    ----------
    vae, schema, reference
        The network in evaluation mode, its conditions, and its training cells if they are known.
    place
        For the error: where the weights come from.
    """
    n_points = min(max(2, *schema.n_levels), _MOST_TRIALS)
    if reference is not None:
        rows = np.linspace(0, len(reference.latent_rk) - 1, n_points).astype(np.int64)
        latent = torch.from_numpy(reference.latent_rk[rows])
    else:
        ramp = torch.linspace(-2, 2, n_points)[:, None].expand(n_points, vae.config.n_latent)
        latent = vae.to_latent(ramp * torch.tensor([1.0, -1.0]).repeat(vae.config.n_latent)[: vae.config.n_latent])
    codes = torch.stack([torch.arange(n_points) % n for n in schema.n_levels], dim=1)
    continuous = torch.zeros(n_points, len(schema.continuous), dtype=torch.float32)
    decoded = vae.decode(latent.float(), codes, continuous)
    seen, one_hot = torch.zeros(n_points, vae.n_genes, dtype=torch.float32), None
    if vae.config.encode_covariates:
        seen, one_hot = vae.conditioned(seen, codes, continuous)
    mean, variance = vae.z_encoder(seen, one_hot)
    log_theta = decoded.log_theta if vae.log_theta is None else vae.log_theta
    found = {
        "the scale of a gene": decoded.log_scale.exp(),
        "the zero inflation of a gene": decoded.zi_logits,
        "the latent point of an empty cell": mean,
        "its variance": variance,
    }
    wrong = [what for what, values in found.items() if values is not None and not is_finite(values)]
    if log_theta is not None and vae.config.has_counts:
        theta = log_theta.exp()
        wrong += ["the dispersion of a gene"] if not (is_finite(theta) and bool((theta > 0).all())) else []
    if wrong:
        raise CorruptModelError(
            f"{place}: its weights give no finite number for {wrong[0]}: they were edited or damaged, or the training "
            "had failed; copy the model again, or train it anew"
        )


def kind_of(tensor: Tensor) -> str:
    """A tensor's type and shape, in words."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _check_sizes(config: ModelConfig, schema: Schema, weights: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` where a network of these sizes has more weights than there are, before memory is taken.

    (torch's meta device would build it without memory, too, but takes a second to import what it needs.)
    """
    total = sum(tensor.numel() for tensor in weights.values())
    sizes = {
        "n_layers": config.n_layers,
        "n_hidden x n_genes": config.n_hidden * schema.n_genes,
        "n_hidden x n_hidden x (n_layers - 1)": config.n_hidden**2 * (config.n_layers - 1),
        "n_hidden x n_latent": config.n_hidden * config.n_latent,
        "n_hidden": config.n_hidden,
    }
    if config.batch_representation == "embedding":
        sizes["n_batches x batch_embedding_dim"] = schema.n_batches * config.batch_embedding_dim
    for name, size in sizes.items():
        if size > total:
            raise ValueError(f"{name} is {size:,}, and there are {total:,} weights in all")
