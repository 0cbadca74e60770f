"""scdecode's own model directory: JSON and safetensors, digested, versioned, and never unpickled.

::

    model/
      model.json               format version, class, options, names, summary of the training, digest of each file
      weights.safetensors      the parameters
      reference.safetensors    up to 20,000 training latents with their conditions; not where they are not known
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from scdecode import config as configs
from scdecode import schema as schemas
from scdecode._utils.ranges import ranges_of
from scdecode._utils.snapshots import Folder, read_folder
from scdecode._utils.weights import problems_of
from scdecode.config import ClassifierConfig, ModelConfig, TrainConfig
from scdecode.errors import (
    ConfigError,
    CorruptModelError,
    ForeignModelError,
    FormatError,
    NewerFormatError,
    listing,
)
from scdecode.files import check_replaceable, replacing, restore, sha256
from scdecode.formats.stored import Origin, StoredModel, check_decodes, filled_classification, filled_vae, kind_of
from scdecode.reference import Reference
from scdecode.schema import Schema

FORMAT_VERSION = 2
"""1: the reference always there, the class always SCVI. 2: neither."""

CLASSES = ("SCVI", "LinearSCVI", "SCANVI")
MANIFEST = "model.json"
_WEIGHTS = "weights.safetensors"
_REFERENCE = "reference.safetensors"
# in the file of the weights, beside those of the VAE
_KEPT = "kept/"  # weights of another program
_CLASSIFICATION = "classification/"


def is_here(path: Path) -> bool:
    """Whether a directory holds a model of this format."""
    return (path / MANIFEST).is_file()


def write(
    path: str | Path,
    model: StoredModel,
    *,
    overwrite: bool = False,
    beside: Mapping[str, Callable[[Path], Any]] | None = None,
) -> None:
    """Write a model directory; it appears whole, or not at all.

    Parameters
    ----------
    path, model, overwrite
        Where, what, and whether in the place of what is there.
    beside
        Further files, each with the function that writes it.

    Raises
    ------
    OutputError
        Where it cannot be written, is there already and ``overwrite`` is not asked for, or holds other files too.
    """
    path = Path(path)
    reference = {} if model.reference is None else _present(model.reference)
    with replacing(path, overwrite=overwrite) as folder:
        folder.mkdir()
        # not with save_file, which has an error of its own for a full disk
        weights = model.vae.state_dict() | {_KEPT + name: t for name, t in model.kept.items()}
        if model.classification is not None:
            weights |= {_CLASSIFICATION + name: t for name, t in model.classification.state_dict().items()}
        (folder / _WEIGHTS).write_bytes(save_tensors({name: t.contiguous() for name, t in weights.items()}))
        if reference:
            (folder / _REFERENCE).write_bytes(save_arrays(reference))
        manifest: dict[str, Any] = {
            "format": "scdecode",
            "format_version": FORMAT_VERSION,
            "version": model.version,
            "class": model.class_name,
            "trained": model.trained,
            "origin": None if model.origin is None else dataclasses.asdict(model.origin),
            "config": dataclasses.asdict(model.config),
            "classifier": None if model.classification is None else dataclasses.asdict(model.classification.config),
            "train_config": None if model.train_config is None else dataclasses.asdict(model.train_config),
            "schema": schemas.to_dict(model.schema),
            "summary": model.summary | {"history": _without_nan(model.summary["history"])},
            "sha256": {name: sha256(folder / name) for name in (_WEIGHTS, _REFERENCE) if (folder / name).exists()},
        }
        manifest["sha256"][MANIFEST] = _digest_of(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for name, write_to in (beside or {}).items():
            write_to(folder / name)


def _present(reference: Reference) -> dict[str, np.ndarray]:
    arrays = {field.name: getattr(reference, field.name) for field in dataclasses.fields(Reference)}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputError` where :func:`write` would: best known before a training, and not after it."""
    check_replaceable(path, (_WEIGHTS, _REFERENCE, MANIFEST), overwrite=overwrite)


def _digest_of(manifest: dict[str, Any]) -> str:
    """Of a manifest but for its own digest."""
    others = {name: digest for name, digest in manifest["sha256"].items() if name != MANIFEST}
    return hashlib.sha256(json.dumps(manifest | {"sha256": others}, sort_keys=True).encode()).hexdigest()


def read(path: str | Path) -> StoredModel:
    """Read a model directory, checking its version, its digests and its shapes.

    Raises
    ------
    FormatError
        Where there is no model.
    ForeignModelError
        Where it is another program's.
    NewerFormatError
        Where a later scdecode wrote it.
    CorruptModelError
        Where a file is missing, was truncated or edited, or does not fit the others.
    """
    return read_folder(path, read_from, restore)


def read_from(folder: Folder) -> StoredModel:
    """Read an open directory as :func:`read` does; each file is read once, and those bytes are checked and parsed."""
    path = folder.path
    folder.hold(MANIFEST, _WEIGHTS, _REFERENCE)
    manifest = _read_manifest(folder)
    contents: dict[str, bytes] = {}
    for name, digest in manifest["sha256"].items():
        if name == MANIFEST:
            continue
        if not folder.has(name):
            raise CorruptModelError(f"{path}: {name} is missing; copy the whole directory again")
        contents[name] = folder.read(name)
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != digest:
            raise CorruptModelError(
                f"{path / name}: its sha256 is {found[:12]}..., {digest[:12]}... was expected: the file was truncated "
                "or edited; copy it again"
            )
    try:
        schema = schemas.from_dict(manifest["schema"])
        config = configs.from_dict(ModelConfig, manifest["config"])
        said = manifest["train_config"]
        train_config = None if said is None else configs.from_dict(TrainConfig, said)
        summary, version = _checked_summary(manifest["summary"]), str(manifest["version"])
        if config.use_size_factor != (schema.columns.size_factor_key is not None):
            raise ValueError("use_size_factor does not fit the columns")
        classifier = None
        if manifest["class"] == "SCANVI":
            classifier = configs.from_dict(ClassifierConfig, manifest["classifier"])
        origin = None if manifest.get("origin") is None else Origin(**manifest["origin"])
        trained = manifest.get("trained", True)
        if not isinstance(trained, bool):
            raise ValueError("trained: True or False was expected")
    except ConfigError as error:
        raise CorruptModelError(f"{path / MANIFEST}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptModelError(
            f"{path / MANIFEST}: a field is missing or of the wrong kind ({error!r}); it was edited; copy it again"
        ) from error
    weights = _read_tensors(contents.pop(_WEIGHTS), path / _WEIGHTS)
    kept, own_classification = (_take(weights, prefix) for prefix in (_KEPT, _CLASSIFICATION))
    place = str(path / _WEIGHTS)
    vae = filled_vae(config, schema, weights, place, MANIFEST)
    classification = None
    if classifier is not None:
        classification = filled_classification(config, classifier, schema, own_classification, place, MANIFEST)
    with_reference = _REFERENCE in manifest["sha256"]
    reference = None
    if with_reference:
        reference = _read_reference(contents.pop(_REFERENCE), path / _REFERENCE, config, schema)
    check_decodes(vae, schema, reference, str(path))
    if schema.continuous_range is None and reference is not None and reference.continuous_rd is not None:
        schema = dataclasses.replace(schema, continuous_range=ranges_of(reference.continuous_rd))  # an older file
    if _digest_of(manifest) != manifest["sha256"][MANIFEST]:  # last, as the checks above can say what is wrong
        raise CorruptModelError(f"{path / MANIFEST}: it was edited after it was written; copy the model again")
    return StoredModel(
        class_name=manifest["class"],
        config=config,
        schema=schema,
        vae=vae,
        reference=reference,
        train_config=train_config,
        summary=summary,
        version=version,
        trained=trained,
        origin=origin,
        kept=kept,
        classification=classification,
    )


def _read_manifest(folder: Folder) -> dict[str, Any]:
    path, manifest_path = folder.path, folder.path / MANIFEST
    if not folder.has(MANIFEST):
        raise FormatError(f"{path}: there is no {MANIFEST}; a directory that model.save(...) wrote was expected")
    try:
        manifest = json.loads(folder.read(MANIFEST).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{manifest_path}: it is no JSON ({error}): it was truncated or edited") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "scdecode":
        raise ForeignModelError(f"{manifest_path}: it does not say that it is scdecode's; another program wrote it")
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise CorruptModelError(f"{manifest_path}: its format version is {version!r}, a whole number was expected")
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{manifest_path}: its format version is {version!r}, this scdecode reads up to {FORMAT_VERSION}; it was "
            f"written by scdecode {manifest.get('version', '?')}: pip install --upgrade scdecode"
        )
    if manifest.get("class") not in CLASSES:
        raise NewerFormatError(
            f"{manifest_path}: it is a {manifest.get('class')!r}, this scdecode reads {listing(CLASSES)}; "
            "pip install --upgrade scdecode"
        )
    digests = manifest.get("sha256")
    names = set(digests) if isinstance(digests, dict) and all(isinstance(d, str) for d in digests.values()) else set()
    if names - {_REFERENCE} != {_WEIGHTS, MANIFEST}:
        raise CorruptModelError(f"{manifest_path}: it does not have the digests of {_WEIGHTS} and of itself")
    return manifest


def _take(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the weights of a prefix, and give them without it."""
    names = [name for name in weights if name.startswith(prefix)]
    return {name.removeprefix(prefix): weights.pop(name) for name in names}


def _read_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(data)
    except (SafetensorError, RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise CorruptModelError(f"{path}: it is no safetensors file ({error}): it was truncated or edited") from error


def _without_nan(history: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Epochs without a validation are NaN here, and null in JSON, which has no NaN."""
    return {key: [None if math.isnan(x) else x for x in column] for key, column in history.items()}


def _checked_summary(summary: dict[str, Any]) -> dict[str, Any]:
    history = summary["history"]
    numbers = all(x is None or isinstance(x, int | float) for column in history.values() for x in column)
    if not numbers or len({len(column) for column in history.values()}) > 1 or not isinstance(summary["ending"], str):
        raise ValueError("summary: not as scdecode writes it")
    return summary | {
        "history": {key: [math.nan if x is None else float(x) for x in column] for key, column in history.items()}
    }


def _read_reference(data: bytes, path: Path, config: ModelConfig, schema: Schema) -> Reference:
    tensors = _read_tensors(data, path)
    names = {field.name for field in dataclasses.fields(Reference)}
    if set(tensors) not in (names, {"latent_rk"}):
        raise CorruptModelError(f"{path}: {listing(sorted(tensors))} came, {listing(sorted(names))} was expected")
    sizes = {"k": config.n_latent, "c": len(schema.n_levels), "d": len(schema.continuous)}
    n_cells = tensors["latent_rk"].shape[:1]
    for name, tensor in tensors.items():
        axes = name.rpartition("_")[2]  # "r": cells, then one of the above
        shape = (*n_cells, *(sizes[axis] for axis in axes[1:]))
        dtype = torch.int64 if name == "codes_rc" else torch.float32
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not torch.isfinite(tensor).all():
            raise CorruptModelError(
                f"{path}: {name} is {kind_of(tensor)}, {dtype} {shape} without NaN was expected, as {MANIFEST} has it"
            )
        if name in ("variance_rk", "library_r") and bool((tensor < 0).any()):
            raise CorruptModelError(f"{path}: {name} has negative numbers, numbers of at least 0 were expected")
        if problems_of({name: tensor}):
            raise CorruptModelError(f"{path}: {problems_of({name: tensor})[0]}")
    if not n_cells or n_cells[0] == 0:
        raise CorruptModelError(f"{path}: it has no cells")
    codes_rc = tensors.get("codes_rc")
    if codes_rc is not None and ((codes_rc < 0) | (codes_rc >= torch.tensor(schema.n_levels))).any():
        raise CorruptModelError(f"{path}: its conditions do not fit {MANIFEST}")
    return Reference(**{name: tensor.numpy() for name, tensor in tensors.items()})
