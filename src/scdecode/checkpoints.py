"""The state of a training on disk, so that a killed run goes on: one safetensors file, replaced whole at each epoch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scdecode.errors import ConfigError, CorruptModelError
from scdecode.files import replacing


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a training needs to go on."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # of Adam: "parameter/name"
    progress: dict[str, Any]  # the history and the state of early stopping
    identity: dict[str, Any]  # the options and the data it belongs to


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the last one.

    Raises
    ------
    OutputError
        Where it cannot be written.
    """
    tensors = {f"weights/{name}": value.contiguous() for name, value in checkpoint.weights.items()}
    tensors |= {f"moments/{name}": value.contiguous() for name, value in checkpoint.moments.items()}
    metadata = {"progress": json.dumps(checkpoint.progress), "identity": json.dumps(checkpoint.identity)}
    with replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(save(tensors, metadata=metadata))  # save_file has an error of its own for a full disk


def read_checkpoint(path: str | Path, identity: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint of the training that ``identity`` describes.

    Raises
    ------
    CorruptModelError
        Where the file is no checkpoint.
    ConfigError
        Where it is of another training; the message says which options differ.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        progress, found = json.loads(metadata["progress"]), json.loads(metadata["identity"])
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise CorruptModelError(
            f"{path}: it is no checkpoint of scdecode, or was truncated; pass another file name, or delete it"
        ) from error
    differences = [
        f"{key}: {found.get(key)!r} there, {value!r} here" for key, value in identity.items() if found.get(key) != value
    ]
    if differences:
        raise ConfigError(
            f"checkpoint: {path} is of another training ({'; '.join(differences)}); "
            "pass the same options and cells to go on with it, or another file name to begin anew"
        )
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
    for name, value in tensors.items():
        part, key = name.split("/", 1)
        parts[part][key] = value
    return Checkpoint(weights=parts["weights"], moments=parts["moments"], progress=progress, identity=found)
