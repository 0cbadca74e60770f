"""The state of a training on disk, so that a killed run goes on: one safetensors file, replaced whole at each epoch.

The metadata of the file has a SHA-256 digest of all its bytes, tensors, names, shapes and metadata alike, computed with
zeros in the place of the digest.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from scdecode._utils.weights import problems_of
from scdecode.errors import ConfigError, CorruptModelError
from scdecode.files import locked, replacing

FORMAT_VERSION = 2
"""1: without a digest. 2: with one."""

_DIGEST = b'"sha256":"'  # as JSON of the header has it; a quotation mark within a value is written \"
_N_DIGITS = 64
_HEADER = struct.Struct("<Q")  # of a safetensors file: the bytes of the JSON that follows


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a training needs to go on."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # of Adam: "parameter/name"
    progress: dict[str, Any]  # the history and the state of early stopping
    identity: dict[str, Any]  # the options and the data it belongs to


@contextmanager
def training_lock(path: str | Path | None) -> Iterator[None]:
    """Keep other trainings from the checkpoint ``path``, if there is one, for the duration of a training.

    Raises
    ------
    OutputError
        If another training uses it, or no file can be made beside it.
    """
    if path is None:
        yield
        return
    busy = (
        f"checkpoint: another training is writing {path}; wait until it has ended, or pass another file name for this "
        "training"
    )
    with locked(path, "training", busy):
        yield


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the last one.

    Raises
    ------
    OutputError
        Where it cannot be written.
    """
    tensors = {f"weights/{name}": value.contiguous() for name, value in checkpoint.weights.items()}
    tensors |= {f"moments/{name}": value.contiguous() for name, value in checkpoint.moments.items()}
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "progress": json.dumps(checkpoint.progress),
        "identity": json.dumps(checkpoint.identity),
        "sha256": "0" * _N_DIGITS,
    }
    data = bytearray(save(tensors, metadata=metadata))  # save_file has an error of its own for a full disk
    place = _place_of_digest(data)
    assert place is not None, "it was just written"
    data[place : place + _N_DIGITS] = hashlib.sha256(data).hexdigest().encode()
    with replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(data)


def read_checkpoint(path: str | Path, identity: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint of the training that ``identity`` describes.

    Raises
    ------
    CorruptModelError
        If the file is no checkpoint, or any byte of it has changed since it was written.
    ConfigError
        Where it is of another training; the message says which options differ.
    """
    try:
        data = bytearray(Path(path).read_bytes())
        _check_digest(data, path)
        metadata = _header(data)["__metadata__"]
        progress, found = json.loads(metadata["progress"]), json.loads(metadata["identity"])
        tensors = load(bytes(data))
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        for name, value in tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = value
    except (SafetensorError, KeyError, OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, CorruptModelError):
            raise
        raise CorruptModelError(
            f"{path}: it is no checkpoint of scdecode, or was truncated; pass another file name, or delete it"
        ) from error
    problems = problems_of(parts["weights"])
    if problems:
        raise CorruptModelError(
            f"{path}: its weights cannot be right: {'; '.join(problems[:3])}; pass another file name to begin anew"
        )
    differences = [
        f"{key}: {found.get(key)!r} there, {value!r} here" for key, value in identity.items() if found.get(key) != value
    ]
    if differences:
        raise ConfigError(
            f"checkpoint: {path} is of another training ({'; '.join(differences)}); "
            "pass the same options and cells to go on with it, or another file name to begin anew"
        )
    return Checkpoint(weights=parts["weights"], moments=parts["moments"], progress=progress, identity=found)


def moments_of(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return a copy of the state of an optimizer, by ``"parameter/name"``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}/{name}": value.clone() for i, of_one in state.items() for name, value in of_one.items()}


def restore(path: str | Path, checkpoint: Checkpoint, network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Put a checkpoint into a network and its optimizer; return its progress.

    Raises
    ------
    CorruptModelError
        If names or sizes are not those of the network.
    """
    try:
        network.load_state_dict(checkpoint.weights)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.moments.items():
            i, name = key.split("/")
            state.setdefault(int(i), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        rows, best, since_best = (checkpoint.progress[name] for name in ("rows", "best", "since_best"))
        return {"rows": list(rows), "best": float(best), "since_best": int(since_best)}
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise CorruptModelError(
            f"{path}: it does not fit the model ({error!r:.200}); pass another file name"
        ) from error


def _header(data: bytearray) -> dict[str, Any]:
    """The JSON at the beginning of a safetensors file."""
    (size,) = _HEADER.unpack_from(data)
    header = json.loads(data[_HEADER.size : _HEADER.size + size])
    if not isinstance(header, dict):
        raise ValueError("the header is no mapping")
    return header


def _place_of_digest(data: bytearray) -> int | None:
    """Where the digest is within the header; None if there is none."""
    if len(data) < _HEADER.size:
        return None
    (size,) = _HEADER.unpack_from(data)
    place = data.find(_DIGEST, 0, min(len(data), _HEADER.size + size))
    return None if place < 0 else place + len(_DIGEST)


def _check_digest(data: bytearray, path: str | Path) -> None:
    """Raise :class:`CorruptModelError` unless the bytes are those that were written."""
    place = _place_of_digest(data)
    if place is None:
        if b'"identity":"' in data and b'"progress":"' in data:
            raise CorruptModelError(
                f"{path}: this checkpoint has no digest: it was damaged, or written by an earlier version of "
                "scdecode, and cannot be checked; finish the training with that version, or pass another file name "
                "to begin anew"
            )
        raise ValueError("there is no digest")
    said = bytes(data[place : place + _N_DIGITS])
    blank = bytearray(data)
    blank[place : place + _N_DIGITS] = b"0" * _N_DIGITS
    if hashlib.sha256(blank).hexdigest().encode() != said:
        raise CorruptModelError(
            f"{path}: its sha256 is not the one that was written: the checkpoint was truncated or edited, or the disk "
            "damaged it; restore it from a copy, or pass another file name to begin anew"
        )
