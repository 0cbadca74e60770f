"""scdecode's own model directory: JSON and safetensors, digested, versioned, and never unpickled.

::

    model/
      model.json               format version, class, options, names, summary of the training, digest of each file
      weights.safetensors      the parameters
      reference.safetensors    up to 20,000 training latents with their conditions
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors
from torch import Tensor

from scdecode import config as configs
from scdecode import schema as schemas
from scdecode.config import ModelConfig, TrainConfig
from scdecode.devices import seeded
from scdecode.errors import (
    ConfigError,
    CorruptModelError,
    ForeignModelError,
    FormatError,
    NewerFormatError,
    listing,
)
from scdecode.files import check_replaceable, replacing, sha256
from scdecode.reference import Reference
from scdecode.schema import Schema
from scdecode.vae import VAE

FORMAT_VERSION = 1
_MANIFEST = "model.json"
_WEIGHTS = "weights.safetensors"
_REFERENCE = "reference.safetensors"
_FOREIGN = {
    "model.pt": "scvi-tools",
    "model_params.pt": "scvi-tools (before 0.15) or scArches",
    "attr.pkl": "scvi-tools",
}


@dataclass(frozen=True, eq=False)
class StoredModel:
    """All that a model directory holds."""

    config: ModelConfig
    schema: Schema
    vae: VAE
    reference: Reference
    train_config: TrainConfig
    summary: dict[str, Any]  # of the training: the history and how it ended
    version: str  # of the scdecode that wrote it


def write(path: str | Path, model: StoredModel, *, overwrite: bool = False) -> None:
    """Write a model directory; it appears whole, or not at all.

    Raises
    ------
    OutputError
        Where it cannot be written, is there already and ``overwrite`` is not asked for, or holds other files too.
    """
    path = Path(path)
    reference = {
        field.name: np.ascontiguousarray(getattr(model.reference, field.name))
        for field in dataclasses.fields(Reference)
    }
    with replacing(path, overwrite=overwrite or _is_empty(Path(path))) as folder:
        folder.mkdir()
        # not with save_file, which has an error of its own for a full disk
        weights = {name: t.contiguous() for name, t in model.vae.state_dict().items()}
        (folder / _WEIGHTS).write_bytes(save_tensors(weights))
        (folder / _REFERENCE).write_bytes(save_arrays(reference))
        manifest: dict[str, Any] = {
            "format": "scdecode",
            "format_version": FORMAT_VERSION,
            "version": model.version,
            "class": "SCVI",
            "config": dataclasses.asdict(model.config),
            "train_config": dataclasses.asdict(model.train_config),
            "schema": schemas.to_dict(model.schema),
            "summary": model.summary | {"history": _without_nan(model.summary["history"])},
            "sha256": {name: sha256(folder / name) for name in (_WEIGHTS, _REFERENCE)},
        }
        manifest["sha256"][_MANIFEST] = _digest_of(manifest)
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputError` where :func:`write` would: best known before a training, and not after it."""
    check_replaceable(path, (_WEIGHTS, _REFERENCE, _MANIFEST), overwrite=overwrite or _is_empty(Path(path)))


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _digest_of(manifest: dict[str, Any]) -> str:
    """Of a manifest but for its own digest."""
    others = {name: digest for name, digest in manifest["sha256"].items() if name != _MANIFEST}
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
    path = Path(path)
    manifest = _read_manifest(path)
    for name in (_WEIGHTS, _REFERENCE):
        digest = manifest["sha256"][name]
        if not (path / name).is_file():
            raise CorruptModelError(f"{path}: {name} is missing; copy the whole directory again")
        found = sha256(path / name)
        if found != digest:
            raise CorruptModelError(
                f"{path / name}: its sha256 is {found[:12]}..., {digest[:12]}... was expected: the file was truncated "
                "or edited; copy it again"
            )
    try:
        schema = schemas.from_dict(manifest["schema"])
        config = configs.from_dict(ModelConfig, manifest["config"])
        train_config = configs.from_dict(TrainConfig, manifest["train_config"])
        summary, version = _checked_summary(manifest["summary"]), str(manifest["version"])
        if config.use_size_factor != (schema.columns.size_factor_key is not None):
            raise ValueError("use_size_factor does not fit the columns")
    except ConfigError as error:
        raise CorruptModelError(f"{path / _MANIFEST}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptModelError(
            f"{path / _MANIFEST}: a field is missing or of the wrong kind ({error!r}); it was edited; copy it again"
        ) from error
    vae = _read_vae(path / _WEIGHTS, config, schema)
    reference = _read_reference(path / _REFERENCE, config, schema)
    if _digest_of(manifest) != manifest["sha256"][_MANIFEST]:  # last, as the checks above can say what is wrong
        raise CorruptModelError(f"{path / _MANIFEST}: it was edited after it was written; copy the model again")
    return StoredModel(
        config=config,
        schema=schema,
        vae=vae,
        reference=reference,
        train_config=train_config,
        summary=summary,
        version=version,
    )


def build_vae(config: ModelConfig, schema: Schema, library_prior: tuple[Tensor, Tensor] | None = None) -> VAE:
    """The network that fits a schema; the prior of a learned library is a placeholder unless it is given."""
    if config.learns_library and library_prior is None:
        library_prior = (torch.zeros(schema.n_batches), torch.ones(schema.n_batches))
    return VAE(config, schema.n_genes, schema.n_levels, len(schema.continuous), library_prior)


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest_path = path / _MANIFEST
    if not manifest_path.is_file():
        for name, program in _FOREIGN.items():
            if (path / name).exists():
                raise ForeignModelError(
                    f"{path}: it holds {name}, a model of {program}, and no {_MANIFEST}; a directory that "
                    "scdecode's model.save(...) wrote was expected"
                )
        if path.is_dir():
            there = f"it holds {listing(sorted(p.name for p in path.iterdir()), 5)}"
        else:
            there = "it is a file" if path.exists() else "no such directory"
        raise FormatError(
            f"{path}: there is no {_MANIFEST} ({there}); a directory that model.save(...) wrote was expected"
        )
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
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
    if manifest.get("class") != "SCVI":
        raise NewerFormatError(
            f"{manifest_path}: it is a {manifest.get('class')!r}, this scdecode reads 'SCVI'; "
            "pip install --upgrade scdecode"
        )
    digests = manifest.get("sha256")
    names = set(digests) if isinstance(digests, dict) and all(isinstance(d, str) for d in digests.values()) else set()
    if names != {_WEIGHTS, _REFERENCE, _MANIFEST}:
        raise CorruptModelError(f"{manifest_path}: it does not have the digests of {_WEIGHTS}, {_REFERENCE} and itself")
    return manifest


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # copies, as the tensors are the file's own pages, and a file may change
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
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


def _read_vae(path: Path, config: ModelConfig, schema: Schema) -> VAE:
    weights = _read_tensors(path)
    try:
        _check_sizes(config, schema, weights)
        with seeded(0, torch.device("cpu")):  # weights that are replaced; the user's random numbers stay as they are
            vae = build_vae(config, schema)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes that no network has
        raise CorruptModelError(f"{path}: it does not fit {_MANIFEST} ({error}); copy both again") from error
    # whatever torch's default type is here, the weights are kept in single precision
    expected = {name: _kind(t.float() if t.is_floating_point() else t) for name, t in vae.state_dict().items()}
    found = {name: _kind(t) for name, t in weights.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not of this model" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]}, {kind} was expected"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    same = [name for name in expected if expected[name] == found.get(name)]
    problems += [f"{name} has NaN or infinite values" for name in same if not torch.isfinite(weights[name]).all()]
    if problems:
        raise CorruptModelError(f"{path}: it does not fit {_MANIFEST}: {'; '.join(problems[:5])}")
    vae.load_state_dict(weights, assign=True)
    return vae.eval().requires_grad_(False)


def _check_sizes(config: ModelConfig, schema: Schema, weights: dict[str, Tensor]) -> None:
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


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _read_reference(path: Path, config: ModelConfig, schema: Schema) -> Reference:
    tensors = _read_tensors(path)
    names = {field.name for field in dataclasses.fields(Reference)}
    if set(tensors) != names:
        raise CorruptModelError(f"{path}: {listing(sorted(tensors))} came, {listing(sorted(names))} was expected")
    sizes = {"k": config.n_latent, "c": len(schema.n_levels), "d": len(schema.continuous)}
    n_cells = tensors["latent_rk"].shape[:1]
    for name, tensor in tensors.items():
        axes = name.rpartition("_")[2]  # "r": cells, then one of the above
        shape = (*n_cells, *(sizes[axis] for axis in axes[1:]))
        dtype = torch.int64 if name == "codes_rc" else torch.float32
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not torch.isfinite(tensor).all():
            raise CorruptModelError(
                f"{path}: {name} is {_kind(tensor)}, {dtype} {shape} without NaN was expected, as {_MANIFEST} has it"
            )
    levels_c = torch.tensor(schema.n_levels)
    if ((tensors["codes_rc"] < 0) | (tensors["codes_rc"] >= levels_c)).any() or not n_cells or n_cells[0] == 0:
        raise CorruptModelError(f"{path}: its conditions do not fit {_MANIFEST}, or it has no cells")
    return Reference(**{name: tensor.numpy() for name, tensor in tensors.items()})
