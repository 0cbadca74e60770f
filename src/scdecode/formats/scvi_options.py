"""The options of a model of scvi-tools: from its weights and its ``init_params_`` to :class:`ModelConfig`, and back.

Sizes come from the weights; what leaves no trace in them (the likelihood, layer normalisation, dropout) from
``init_params_``. Where both speak, they must agree.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from scdecode.config import ClassifierConfig, ModelConfig
from scdecode.errors import ConfigError, CorruptModelError, ForeignModelError, listing
from scdecode.schema import Schema

CLASSES = ("SCVI", "LinearSCVI", "SCANVI")

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # options that would change the numbers in ways that are not offered here, with the values that do not
    "log_variational": (True,),
    "var_activation": (None,),
    "extra_encoder_kwargs": (None, {}),
    "extra_decoder_kwargs": (None, {}),
    "use_labels_groups": (False,),
    "labels_groups": (None,),
}
_IGNORED = {
    # what init_params_ also holds, and what says nothing of the network, or says it in the weights or the registry
    "adata", "registry", "datamodule", "use_cuda", "use_gpu", "unlabeled_category", "pretrained_model", "y_prior",
    "n_labels", "n_batch", "n_input", "n_cats_per_cov", "n_continuous_cov", "use_size_factor_key",
    "extra_payload_autotune", "library_log_means", "library_log_vars", "use_minified",
}  # fmt: skip
_TAKEN = {field.name for field in dataclasses.fields(ModelConfig)} - {"decoder", "linear_bias", "use_size_factor"}
_LAYER = "{}.fc_layers.Layer {}.{}.weight"


def class_of(weights: Mapping[str, Tensor]) -> str | None:
    """The class of model that has such weights; None where it is none that can be opened."""
    if not {"z_encoder.mean_encoder.weight", _LAYER.format("z_encoder.encoder", 0, 0)} <= weights.keys():
        return None
    if "decoder.factor_regressor.fc_layers.Layer 0.0.weight" in weights:
        return "LinearSCVI"
    if "decoder.px_scale_decoder.0.weight" not in weights:
        return None
    return "SCANVI" if "y_prior" in weights or "encoder_z2_z1.mean_encoder.weight" in weights else "SCVI"


def flattened(init_params: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a constructor, whichever layout ``init_params_`` has.

    Since 0.9 it is ``{"non_kwargs": {...}, "kwargs": {name of the ** argument: {...}}}``; before, one mapping with the
    ``**`` arguments as a mapping in it.
    """
    if set(init_params) == {"kwargs", "non_kwargs"}:
        nested = init_params["kwargs"].values() if isinstance(init_params["kwargs"], Mapping) else ()
        parts: list[Any] = [init_params["non_kwargs"], *nested]
    else:
        plain = {key: value for key, value in init_params.items() if not isinstance(value, Mapping)}
        parts = [plain, *(value for value in init_params.values() if isinstance(value, Mapping))]
    return {str(key): value for part in parts if isinstance(part, Mapping) for key, value in part.items()}


def read_options(
    class_name: str, said: Mapping[str, Any], weights: Mapping[str, Tensor], schema: Schema, place: str
) -> tuple[ModelConfig, ClassifierConfig | None]:
    """The options of a model, and those of its classifier where it is a ``SCANVI``.

    Parameters
    ----------
    class_name
        One of :data:`CLASSES`.
    said
        What :func:`flattened` gave.
    weights
        Under scvi-tools' names.
    schema
        Of the model; how many levels and covariates there are follows from it.
    place
        The file, for errors.

    Raises
    ------
    CorruptModelError
        Where ``init_params_`` and the weights disagree.
    ForeignModelError
        For an option that is not offered here.
    """
    said = dict(said)
    classifier = said.pop("classifier_parameters", None) or {}
    linear_classifier = said.pop("linear_classifier", None)
    embedding = said.pop("batch_embedding_kwargs", None) or {}
    if isinstance(embedding, Mapping) and "embedding_dim" in embedding:
        said["batch_embedding_dim"] = embedding["embedding_dim"]
    bias = said.pop("bias", False)
    _check_offered(said, place)
    seen = _seen(class_name, weights, schema)
    named = {key: value for key, value in said.items() if key in _TAKEN}
    if class_name == "LinearSCVI":  # its batch normalisation is that of the decoder alone: True or False
        named["use_batch_norm"] = "both" if named.get("use_batch_norm", True) else "encoder"
        seen["linear_bias"] = "decoder.factor_regressor.fc_layers.Layer 0.0.bias" in weights
        named["linear_bias"] = bool(bias)
        named.setdefault("gene_likelihood", "nb")
        named.setdefault("use_observed_lib_size", False)
    disagree = [
        f"{key} is {_short(named[key])} in init_params_ and {value!r} in the weights"
        for key, value in seen.items()
        if key in named and named[key] != value and not _is_old_library(key, value)
    ]
    if disagree:
        raise CorruptModelError(f"{place}: its options and its weights do not fit each other: {'; '.join(disagree)}")
    try:
        config = ModelConfig(
            **{**named, **seen},
            decoder="linear" if class_name == "LinearSCVI" else "nonlinear",
            use_size_factor=schema.columns.size_factor_key is not None,
        )
        if class_name != "SCANVI":
            return config, None
        linear = "classifier.classifier.0.weight" in weights
        if linear_classifier and not linear:
            raise CorruptModelError(f"{place}: linear_classifier is True, and its weights are those of another one")
        return config, _classifier_of(classifier, weights, linear=linear)
    except (ConfigError, TypeError) as error:
        raise CorruptModelError(f"{place}: its options are not those of a {class_name} ({error})") from error


def count_batches(weights: Mapping[str, Tensor], n_levels: Sequence[int], n_continuous: int) -> int | None:
    """As many batches as the decoder has columns for.

    Parameters
    ----------
    weights
        Under scvi-tools' names.
    n_levels
        Levels of each categorical covariate.
    n_continuous
        Continuous covariates.

    Returns
    -------
    int or None
        None where the weights have no decoder of a shape that tells.
    """
    embedding = weights.get("_embeddings_dict.batch.weight")
    if embedding is not None and embedding.dim() == 2:
        return embedding.shape[0]
    for module in ("decoder.px_decoder", "decoder.factor_regressor"):
        first, mean = weights.get(_LAYER.format(module, 0, 0)), weights.get("z_encoder.mean_encoder.weight")
        if first is not None and mean is not None and first.dim() == 2:
            n_columns = first.shape[1] - mean.shape[0] - n_continuous - sum(n for n in n_levels if n > 1)
            return max(n_columns, 1)
    return None


def count_labels(weights: Mapping[str, Tensor], dispersion: Any) -> int | None:
    """As many labels as there are dispersions of a gene, where ``init_params_`` says that they are those of labels."""
    px_r = weights.get("px_r")
    of_labels = isinstance(dispersion, str) and dispersion == "gene-label"
    return px_r.shape[1] if of_labels and px_r is not None and px_r.dim() == 2 else None


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """As many classes as the prior of the label has probabilities; None for weights without one.

    They are not always all labels but one: scvi-tools counts the categories of the column, also those of no cell.
    """
    prior = weights.get("y_prior")
    return prior.shape[1] if prior is not None and prior.dim() == 2 else None


def _check_offered(said: Mapping[str, Any], place: str) -> None:
    """Raise :class:`ForeignModelError` for an option that may change the numbers in a way that is unknown here."""
    for key, value in said.items():
        neutral = _NEUTRAL.get(key, (None, {}))
        same = any(type(value) is type(one) and value == one for one in neutral)
        if key not in _TAKEN | _IGNORED and not same:
            raise ForeignModelError(
                f"{place}: it was made with {key}={_short(value)}, which scdecode does not offer; it would decode to "
                "other numbers than in scvi-tools"
            )


def _short(value: Any) -> str:
    """A value of a stranger's file in a message: its beginning."""
    words = reprlib.Repr()
    words.maxother = 100
    return words.repr(value)


def _is_old_library(key: str, value: Any) -> bool:
    """Early versions kept the prior of a learned library with the cells, and so it is lost: the totals are taken."""
    return key == "use_observed_lib_size" and value is True


def _seen(class_name: str, weights: Mapping[str, Tensor], schema: Schema) -> dict[str, Any]:
    """The options that leave a trace in the weights."""

    def layer(module: str, i: int, part: int) -> Tensor | None:
        return weights.get(_LAYER.format(module, i, part))

    encoder, decoder = "z_encoder.encoder", "decoder.px_decoder"
    linear = class_name == "LinearSCVI"
    first = layer(encoder, 0, 0)
    assert first is not None, "class_of looked at the encoder"
    n_layers = sum(layer(encoder, i, 0) is not None for i in range(len(weights)))
    embedding = weights.get("_embeddings_dict.batch.weight")
    seen: dict[str, Any] = {
        "n_hidden": first.shape[0],
        "n_latent": weights["z_encoder.mean_encoder.weight"].shape[0],
        "n_layers": n_layers,
        "use_observed_lib_size": "library_log_means" not in weights,
        "batch_representation": "one-hot" if embedding is None else "embedding",
    }
    if embedding is not None and embedding.dim() == 2:
        seen["batch_embedding_dim"] = embedding.shape[1]
    norm_of_decoder = layer("decoder.factor_regressor" if linear else decoder, 0, 1) is not None
    norms = (layer(encoder, 0, 1) is not None, norm_of_decoder)
    placements = {(True, True): "both", (True, False): "encoder", (False, True): "decoder", (False, False): "none"}
    seen["use_batch_norm"] = placements[norms]
    one_hot = schema.n_levels[:-1] if embedding is None else schema.n_levels[1:-1]
    n_one_hot = sum(n for n in one_hot if n > 1)
    n_covariates = n_one_hot + len(schema.continuous) + (0 if embedding is None else embedding.shape[-1])
    if not linear and n_covariates:
        seen["encode_covariates"] = first.shape[1] == schema.n_genes + n_covariates
    second = layer(decoder, 1, 0)
    if second is not None and n_one_hot:
        seen["deeply_inject_covariates"] = second.shape[1] == first.shape[0] + n_one_hot
    dispersion = _dispersion(weights.get("px_r"), schema)
    if dispersion is not None:
        seen["dispersion"] = dispersion
    return seen


def _dispersion(px_r: Tensor | None, schema: Schema) -> str | None:
    """What the dispersion depends on; None where the shape does not tell."""
    if px_r is None:
        return "gene-cell"
    if px_r.dim() == 1:
        return "gene"
    of = {"gene-batch": schema.n_batches, "gene-label": schema.n_labels}
    fitting = [name for name, n in of.items() if n == px_r.shape[1]]
    return fitting[0] if len(fitting) == 1 else None


def _classifier_of(said: Mapping[str, Any], weights: Mapping[str, Tensor], *, linear: bool) -> ClassifierConfig:
    unknown = set(said) - {"n_layers", "n_hidden", "dropout_rate", "logits"}
    if unknown:
        raise ConfigError(f"classifier_parameters: {listing(sorted(unknown))} came, which scdecode does not offer")
    if linear:
        return ClassifierConfig(linear=True, dropout_rate=said.get("dropout_rate"))
    first = weights[_LAYER.format("classifier.classifier.0", 0, 0)]
    n_layers = sum(_LAYER.format("classifier.classifier.0", i, 0) in weights for i in range(len(weights)))
    return ClassifierConfig(n_layers=n_layers, n_hidden=first.shape[0], dropout_rate=said.get("dropout_rate"))


def init_params(class_name: str, config: ModelConfig, classifier: ClassifierConfig | None) -> dict[str, Any]:
    """``init_params_`` as scvi-tools 1.4 has it, with every option said, so that no other version's default counts."""
    plain = ["n_hidden", "n_latent", "n_layers", "dropout_rate", "dispersion", "gene_likelihood"]
    plain += ["use_observed_lib_size"] if class_name == "SCANVI" else ["use_observed_lib_size", "latent_distribution"]
    non_kwargs: dict[str, Any] = {name: getattr(config, name) for name in plain}
    if class_name == "LinearSCVI":
        kwargs: dict[str, Any] = {"use_batch_norm": config.use_batch_norm == "both", "bias": config.linear_bias}
        return {"kwargs": {"model_kwargs": kwargs}, "non_kwargs": non_kwargs}
    kwargs = {
        "encode_covariates": config.encode_covariates,
        "deeply_inject_covariates": config.deeply_inject_covariates,
        "use_batch_norm": config.use_batch_norm,
        "use_layer_norm": config.use_layer_norm,
    }
    if config.batch_representation == "embedding":
        kwargs |= {
            "batch_representation": "embedding",
            "batch_embedding_kwargs": {"embedding_dim": config.batch_embedding_dim},
        }
    if class_name == "SCVI":
        return {"kwargs": {"kwargs": kwargs}, "non_kwargs": non_kwargs}
    assert classifier is not None, "a SCANVI has a classifier"
    own = dataclasses.asdict(classifier)
    linear = own.pop("linear")
    parameters = {name: value for name, value in own.items() if value is not None}
    if parameters:
        kwargs["classifier_parameters"] = parameters
    if config.latent_distribution != "normal":
        kwargs["latent_distribution"] = config.latent_distribution
    return {"kwargs": {"model_kwargs": kwargs}, "non_kwargs": non_kwargs | {"linear_classifier": linear}}
