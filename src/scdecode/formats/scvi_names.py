"""The parameters of scvi-tools' networks and those of ours: one table, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from scdecode.config import ModelConfig

# Modules of scvi-tools, and of ours; {} is the number of a layer. Their parameters and buffers have the same names.
_HIDDEN = {
    "z_encoder.encoder": "z_encoder.mlp",
    "l_encoder.encoder": "library_encoder.mlp",
    "decoder.px_decoder": "decoder.mlp",
    "classifier.classifier.0": "classification.classifier.mlp",
    "encoder_z2_z1.encoder": "classification.encoder_z2_z1.mlp",
    "decoder_z1_z2.decoder": "classification.decoder_z1_z2.mlp",
}
_LINEAR_HEADS = {"decoder.factor_regressor": "decoder.scale", "decoder.px_dropout_decoder": "decoder.zi_logits"}
MODULES = {
    **{f"{theirs}.fc_layers.Layer {{}}.0": f"{ours}.layers.{{}}.linear" for theirs, ours in _HIDDEN.items()},
    **{f"{theirs}.fc_layers.Layer {{}}.1": f"{ours}.layers.{{}}.batch_norm" for theirs, ours in _HIDDEN.items()},
    **{f"{theirs}.fc_layers.Layer 0.0": f"{ours}.linear" for theirs, ours in _LINEAR_HEADS.items()},
    **{f"{theirs}.fc_layers.Layer 0.1": f"{ours}.batch_norm" for theirs, ours in _LINEAR_HEADS.items()},
    "z_encoder.mean_encoder": "z_encoder.mean",
    "z_encoder.var_encoder": "z_encoder.log_variance",
    "l_encoder.mean_encoder": "library_encoder.mean",
    "l_encoder.var_encoder": "library_encoder.log_variance",
    "decoder.px_scale_decoder.0": "decoder.scale",
    "decoder.px_r_decoder": "decoder.log_theta",
    "decoder.px_dropout_decoder": "decoder.zi_logits",
    "_embeddings_dict.batch": "batch_embedding",
    "encoder_z2_z1.mean_encoder": "classification.encoder_z2_z1.mean",
    "encoder_z2_z1.var_encoder": "classification.encoder_z2_z1.log_variance",
    "decoder_z1_z2.mean_decoder": "classification.decoder_z1_z2.mean",
    "decoder_z1_z2.var_decoder": "classification.decoder_z1_z2.log_variance",
    # behind hidden layers, or, in a linear classifier, the only one
    "classifier.classifier.1": "classification.classifier.logits",
    "classifier.classifier.0": "classification.classifier.logits",
}
"""In the other direction, of several rows for one of ours the first is meant."""

TENSORS = {
    "px_r": "log_theta",
    "library_log_means": "library_log_mean",
    "library_log_vars": "library_log_variance",
    "y_prior": "classification.y_prior",
}
"""Parameters and buffers outside of any module; :func:`to_ours` has their shapes."""

CLASSIFICATION = "classification."
"""How the names of the networks that SCANVI has beside those of SCVI begin, in :func:`to_ours`."""


def to_ours(theirs: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights under our names, and those that ours has no place for, under theirs.

    scvi-tools has an encoder of the library size in every model; ours where the library size is learned.

    Raises
    ------
    KeyError
        For a name that stands in no table.
    """
    ours: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name.startswith("l_encoder.") and not config.learns_library:
            _renamed(name, MODULES)  # KeyError where nobody has such weights
            unused[name] = tensor
        elif name == "px_r":  # (genes,) or (genes, batches or labels)
            ours[TENSORS[name]] = tensor.reshape(len(tensor), -1).t().contiguous()
        elif name in ("library_log_means", "library_log_vars"):  # (1, batches)
            ours[TENSORS[name]] = tensor.reshape(-1)
        elif name in TENSORS:
            ours[TENSORS[name]] = tensor
        else:
            ours[_renamed(name, MODULES)] = tensor
    return ours, unused


def to_theirs(ours: Mapping[str, Tensor], unused: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The reverse of :func:`to_ours`."""
    modules = {our: their for their, our in reversed(MODULES.items())}
    tensors = {our: their for their, our in TENSORS.items()}
    if not any(name.startswith("classification.classifier.mlp") for name in ours):
        modules["classification.classifier.logits"] = "classifier.classifier.0"
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name == "log_theta":
            theirs["px_r"] = tensor[0] if config.dispersion == "gene" else tensor.t().contiguous()
        elif name in ("library_log_mean", "library_log_variance"):
            theirs[tensors[name]] = tensor.reshape(1, -1)
        elif name in tensors:
            theirs[tensors[name]] = tensor
        else:
            theirs[_renamed(name, modules)] = tensor
    return theirs | dict(unused)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    module, _, parameter = name.rpartition(".")
    number = re.search(r"(?<=[. ])\d+(?=\.(?:[01]|linear|batch_norm)$)", module)  # of a layer, where there is one
    general = module if number is None else f"{module[: number.start()]}{{}}{module[number.end() :]}"
    for known in (module, general):
        if known in table:
            return f"{table[known].format(number.group() if number else '')}.{parameter}"
    raise KeyError(name)
