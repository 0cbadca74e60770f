"""scdecode's own model directory: JSON and safetensors, digested, versioned, and never unpickled.

::

    model/
      model.json               format version, class, options, names, summary of the training, digest of each file
      weights.safetensors      the parameters
      reference.safetensors    up to 20,000 training latents with their conditions
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor

from scdecode import config as configs
from scdecode import schema as schemas
from scdecode.config import ModelConfig, TrainConfig
from scdecode.errors import ConfigError, CorruptModelError, ForeignModelError, FormatError, NewerFormatError, listing
from scdecode.files import replacing, sha256
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
        Where it cannot be written, or is there already and ``overwrite`` is not asked for.
    """
    with replacing(path, overwrite=overwrite) as folder:
        folder.mkdir()
        save_file({name: t.contiguous() for name, t in model.vae.state_dict().items()}, folder / _WEIGHTS)
        reference = {
            field.name: np.ascontiguousarray(getattr(model.reference, field.name))
            for field in dataclasses.fields(Reference)
        }
        save_arrays(reference, folder / _REFERENCE)
        manifest = {
            "format": "scdecode",
            "format_version": FORMAT_VERSION,
            "version": model.version,
            "class": "SCVI",
            "config": dataclasses.asdict(model.config),
            "train_config": dataclasses.asdict(model.train_config),
            "schema": schemas.to_dict(model.schema),
            "summary": model.summary,
            "sha256": {name: sha256(folder / name) for name in (_WEIGHTS, _REFERENCE)},
        }
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


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
    for name, digest in manifest["sha256"].items():
        if not (path / name).is_file():
            raise CorruptModelError(f"{path}: {name} is missing; copy the whole directory again")
        found = sha256(path / name)
        if found != digest:
            raise CorruptModelError(
                f"{path / name}: its sha256 is {found[:12]}..., {digest[:12]}... was expected: the file was truncated or "
                "edited; copy it again"
            )
    try:
        schema = schemas.from_dict(manifest["schema"])
        config = configs.from_dict(ModelConfig, manifest["config"])
        train_config = configs.from_dict(TrainConfig, manifest["train_config"])
        summary, version = manifest["summary"], manifest["version"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise CorruptModelError(f"{path / _MANIFEST}: {error}") from error
        raise CorruptModelError(f"{path / _MANIFEST}: a field is missing or of the wrong kind ({error!r})") from error
    vae = build_vae(config, schema)
    _load_weights(vae, _read_tensors(path / _WEIGHTS), path / _WEIGHTS)
    return StoredModel(
        config=config,
        schema=schema,
        vae=vae.eval().requires_grad_(False),
        reference=_read_reference(path / _REFERENCE, config, schema),
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
        there = listing(sorted(p.name for p in path.iterdir()), 5) if path.is_dir() else "no such directory"
        raise FormatError(
            f"{path}: there is no {_MANIFEST} ({there}); a directory that model.save(...) wrote was expected"
        )
    try:
        manifest = json.loads(manifest_path.read_text())
    except ValueError as error:
        raise CorruptModelError(f"{manifest_path}: it is no JSON ({error}): it was truncated or edited") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "scdecode":
        raise ForeignModelError(f"{manifest_path}: it does not say that it is scdecode's; another program wrote it")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise NewerFormatError(
            f"{manifest_path}: its format version is {version!r}, this scdecode reads up to {FORMAT_VERSION}; it was "
            f"written by scdecode {manifest.get('version', '?')}: pip install --upgrade scdecode"
        )
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or set(digests) != {_WEIGHTS, _REFERENCE}:
        raise CorruptModelError(f"{manifest_path}: it does not have the digests of {_WEIGHTS} and {_REFERENCE}")
    return manifest


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise CorruptModelError(f"{path}: it is no safetensors file ({error}): it was truncated or edited") from error


def _load_weights(vae: VAE, weights: dict[str, Tensor], path: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in vae.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not of this model" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]}, {shape} was expected"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise CorruptModelError(f"{path}: it does not fit {_MANIFEST}: {'; '.join(problems[:5])}")
    vae.load_state_dict(weights)


def _read_reference(path: Path, config: ModelConfig, schema: Schema) -> Reference:
    tensors = _read_tensors(path)
    names = {field.name for field in dataclasses.fields(Reference)}
    if set(tensors) != names:
        raise CorruptModelError(f"{path}: {listing(sorted(tensors))} came, {listing(sorted(names))} was expected")
    reference = Reference(**{name: tensor.numpy() for name, tensor in tensors.items()})
    if reference.latent_rk.shape[1:] != (config.n_latent,) or reference.codes_rc.shape[1:] != (len(schema.n_levels),):
        raise CorruptModelError(f"{path}: its latents {reference.latent_rk.shape} do not fit {_MANIFEST}")
    return reference
