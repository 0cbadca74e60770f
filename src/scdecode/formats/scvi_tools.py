"""Model directories of scvi-tools: read without running anything in them, and written.

::

    model/                       0.15 and later           until 0.14
      model.pt                   everything               model_params.pt   the weights
      adata.h5ad                 the cells, where kept    attr.pkl          names and options
                                                          var_names.csv     the genes
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scdecode._utils.snapshots import Folder, read_folder
from scdecode.config import ModelConfig
from scdecode.draws import drawing_from, make_generator
from scdecode.errors import (
    ConditionWarning,
    CorruptModelError,
    ForeignModelError,
    FormatError,
    ScdecodeError,
    listing,
    warn,
)
from scdecode.files import check_replaceable, replacing, restore
from scdecode.formats.archives import read_archive, read_pickle_bytes
from scdecode.formats.frames import history_of
from scdecode.formats.scvi_names import CLASSIFICATION, to_ours, to_theirs
from scdecode.formats.scvi_options import CLASSES, class_of, flattened, init_params, read_options
from scdecode.formats.scvi_setup import read_schema, registry_of, unlabeled_value, write_registry
from scdecode.formats.stored import (
    Origin,
    StoredModel,
    build_vae,
    check_decodes,
    filled_classification,
    filled_vae,
    is_finite,
    kind_of,
    unfilled_vae,
)
from scdecode.schema import Schema
from scdecode.vae import VAE

_MODEL, _WEIGHTS, _ATTRIBUTES, _GENES = "model.pt", "model_params.pt", "attr.pkl", "var_names.csv"

_OTHERS = {
    "a scPoli of scArches": {"condition_keys_", "cell_type_keys_"},
    "a trVAE or expiMap of scArches": {"condition_key_", "conditions_"},
}
"""Models of another program that keeps its files like scvi-tools, by attributes that only they have."""

_TRAINED_BY = "trained_by_"  # an attribute of ours in what we write: the registry says scvi-tools, as it has to

WRITTEN_AS = "1.4.2"
"""The version of scvi-tools whose files :func:`write` writes."""


@dataclass(frozen=True, eq=False)
class _Files:
    """What the files hold, as plain data."""

    weights: Mapping[str, Any]
    attributes: Mapping[str, Any]
    var_names: Any
    place: str


def is_here(path: Path, prefix: str | None = None) -> bool:
    """Whether a directory holds a model of scvi-tools, or one that looks like it; maybe with another prefix."""
    return any((path / f"{prefix or ''}{name}").is_file() for name in (_MODEL, _WEIGHTS)) or bool(prefixes(path))


def prefix_of(path: Path, prefix: str | None) -> str:
    """The prefix that is meant: the one that was said, or, where none was and none is not there, the only one."""
    there = prefixes(path)
    plain = any((path / name).is_file() for name in (_MODEL, _WEIGHTS))
    return there[0] if prefix is None and not plain and len(there) == 1 else prefix or ""


def prefixes(path: Path) -> list[str]:
    """The prefixes of the models in a directory."""
    names = [file.name for file in path.iterdir() if file.is_file()] if path.is_dir() else []
    found = {name.removesuffix(kind) for name in names for kind in (_MODEL, _WEIGHTS) if name.endswith(kind)}
    return sorted(found - {""})


def read(path: str | Path, *, prefix: str | None = None) -> StoredModel:
    """Read a model directory of scvi-tools (0.8 to 1.5; ``SCVI``, ``LinearSCVI``, ``SCANVI``); nothing in it is run.

    The training cells are not in such files: neither how often each condition occurred, nor any latents of them.

    Raises
    ------
    FormatError
        Where there is no model.
    UnsafeModelError
        Where a file asks for code to be run.
    ForeignModelError
        For another class of model, another program's, or options that are not offered here.
    CorruptModelError
        Where a file is damaged, or one part does not fit another.
    """
    return read_folder(path, lambda folder: read_from(folder, prefix), restore)


def read_from(folder: Folder, prefix: str | None = None) -> StoredModel:
    """Read an open directory as :func:`read` does."""
    files = _read_files(folder, prefix_of(folder.path, prefix))
    try:
        return _stored(files)
    except ScdecodeError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        # of values of other kinds than scvi-tools writes, which only an edited file has
        raise CorruptModelError(f"{files.place}: it is not as scvi-tools writes it ({error!r:.200})") from error


def _stored(files: _Files) -> StoredModel:
    """What the files hold, as a model."""
    registry = registry_of(files.attributes)
    said = files.attributes.get("init_params_")
    name = registry.get("model_name")
    name = name if name is None or isinstance(name, str) else "model of no name"
    weights = {key: value for key, value in files.weights.items() if isinstance(key, str) and isinstance(value, Tensor)}
    class_name = class_of(weights)
    said_version = registry.get("scvi_version")
    version = said_version if isinstance(said_version, str) and len(said_version) < 50 else "of an unknown version"
    if class_name is None or name not in (None, class_name) or not isinstance(said, Mapping):
        raise ForeignModelError(_what_it_is(files, name, version))
    head = (
        "decoder.factor_regressor.fc_layers.Layer 0.0" if class_name == "LinearSCVI" else "decoder.px_scale_decoder.0"
    )
    options = flattened(said)
    n_genes = len(weights[f"{head}.weight"])
    schema = read_schema(registry, files.var_names, n_genes, weights, options.get("dispersion"), files.place)
    config, classifier = read_options(class_name, options, weights, schema, files.place)
    learned = not options.get("use_observed_lib_size", class_name != "LinearSCVI")  # which does so by default
    if learned and not (config.learns_library or config.use_size_factor):
        warn(
            f"{files.place}: it learned the library size, and this early version of scvi-tools did not keep the prior; "
            "the total counts are taken instead, which matters to the ELBO and to latent library sizes, and not to "
            "what is decoded with a library size that you give",
            ConditionWarning,
        )
    try:
        ours, kept = to_ours(weights, config)
    except KeyError as error:
        raise ForeignModelError(
            f"{files.place}: it has the weights {error}, which no {class_name} that scdecode knows has"
        ) from error
    files = dataclasses.replace(files, weights={})
    del weights  # a transposed dispersion need not be in memory twice
    ours, kept = ({key: _single(t) for key, t in some.items()} for some in (ours, kept))
    fits = "the names and options beside it"
    own = {key: value for key, value in ours.items() if not key.startswith(CLASSIFICATION)}
    vae = filled_vae(config, schema, own, files.place, fits)
    _check_kept(kept, config, schema, files.place)
    classification = None
    if classifier is not None:
        others = {key.removeprefix(CLASSIFICATION): value for key, value in ours.items() if key not in own}
        classification = filled_classification(config, classifier, schema, others, files.place, fits)
    check_decodes(vae, schema, None, files.place)
    trained_by = files.attributes.get(_TRAINED_BY)
    if not isinstance(trained_by, str):
        trained_by = f"scvi-tools {version}"
    elif "train_indices_" in files.attributes:  # which we do not write: it was trained after us
        trained_by += f", then scvi-tools {version}"
    program, _, of_version = trained_by.rpartition(" ")
    history = history_of(_by_epoch(files.attributes.get("history_")))
    return StoredModel(
        class_name=class_name,
        config=config,
        schema=schema,
        vae=vae,
        reference=None,
        train_config=None,
        summary={"history": history, "ending": f"trained by {trained_by}"},
        version="",
        trained=files.attributes.get("is_trained_", True) is not False,
        origin=Origin(program, of_version),
        kept=kept,
        classification=classification,
    )


def _read_files(folder: Folder, prefix: str) -> _Files:
    path = folder.path
    model, weights = path / f"{prefix}{_MODEL}", path / f"{prefix}{_WEIGHTS}"
    if folder.has(model.name):
        content = read_archive(model, folder.opener)
        if not isinstance(content, Mapping) or not {"model_state_dict", "attr_dict"} <= set(content):
            there = listing(content, 5) if isinstance(content, Mapping) else type(content).__name__
            raise ForeignModelError(
                f"{model}: it holds {there}, and not what scvi-tools saves; a directory that its model.save(...) wrote "
                "was expected"
            )
        state, attributes = content["model_state_dict"], content["attr_dict"]
        files = _Files(state, attributes, content.get("var_names"), str(model))
    elif folder.has(weights.name):
        pickled, genes = path / f"{prefix}{_ATTRIBUTES}", path / f"{prefix}{_GENES}"
        folder.hold(weights.name, pickled.name, genes.name)
        if not folder.has(pickled.name):
            raise CorruptModelError(f"{path}: there is {weights.name} but no {pickled.name}; copy the whole directory")
        var_names = None
        if folder.has(genes.name):
            listed = io.BytesIO(folder.read(genes.name))
            try:
                var_names = pd.read_csv(listed, header=None, dtype=str, keep_default_na=False)[0].tolist()
            except (ValueError, UnicodeDecodeError) as error:  # ParserError and EmptyDataError are ValueErrors
                raise CorruptModelError(f"{genes}: it is no list of genes ({error}); copy it again") from error
        attributes = read_pickle_bytes(folder.read(pickled.name), str(pickled))
        files = _Files(read_archive(weights, folder.opener), attributes, var_names, str(weights))
        folder.check()  # three files, and nothing in them says that they belong together
    else:
        others = prefixes(path)
        remedy = f"; pass prefix=..., one of {listing(others)}" if others else ""
        raise FormatError(
            f"{path}: there is no {model.name} and no {weights.name}; a directory of scvi-tools was expected{remedy}"
        )
    if not isinstance(files.weights, Mapping) or not isinstance(files.attributes, Mapping):
        raise ForeignModelError(f"{files.place}: its weights or its attributes are not what scvi-tools saves")
    return files


def _what_it_is(files: _Files, name: Any, version: str) -> str:
    """Which model it is that cannot be opened."""
    can = f"scdecode opens {listing(CLASSES)}"
    if name in CLASSES:
        return (
            f"{files.place}: it says that it is a {name} of scvi-tools {version}, and its weights are not those of one"
        )
    if name is not None:
        return f"{files.place}: it is a {name} of scvi-tools {version}; {can}"
    if "scvi_setup_dict_" in files.attributes or "registry_" in files.attributes:
        return f"{files.place}: it is of scvi-tools {version}, and no class that scdecode knows has such weights; {can}"
    for what, marks in _OTHERS.items():
        if marks <= set(files.attributes):
            return f"{files.place}: it is {what}, whose files have the same names as those of scvi-tools; {can}"
    attributes, weights = (listing(sorted(map(str, found)), 5) for found in (files.attributes, files.weights))
    return (
        f"{files.place}: it is not of scvi-tools, though its files have the same names; its attributes are "
        f"{attributes}, its weights {weights}; {can}"
    )


def _by_epoch(history: Any) -> Any:
    """A history without what is counted in steps, whose numbers would pass for epochs."""
    if not isinstance(history, Mapping):
        return history
    return {name: table for name, table in history.items() if not str(name).endswith("_step")}


def _single(tensor: Tensor) -> Tensor:
    """In single precision, as everything here; scvi-tools trains in it, and other precisions are not its own."""
    return tensor.float() if tensor.is_floating_point() else tensor


def write(path: str | Path, model: StoredModel, *, overwrite: bool = False) -> None:
    """Write a model directory that scvi-tools opens: ``scvi.model.SCVI.load(path, adata)``.

    The AnnData that it is opened with there needs the columns of the set-up. What scvi-tools has no place for is left
    out: the reference latents and the counts of the training conditions.

    Parameters
    ----------
    path
        The directory.
    model
        Of any class; one that scvi-tools trained comes back with all its weights.
    overwrite
        Whether to replace what is there.

    Raises
    ------
    OutputError
        Where it cannot be written, or is there already.
    """
    _warn_of_other_cells(model.schema, str(path))
    history = model.summary["history"]
    n_epochs = max((len(column) for column in history.values()), default=0)
    epochs = pd.RangeIndex(n_epochs, name="epoch")
    attributes = {
        "registry_": write_registry(model.class_name, model.schema, WRITTEN_AS),
        "init_params_": init_params(
            model.class_name, model.config, None if model.classification is None else model.classification.config
        ),
        "history_": {name: pd.DataFrame({name: column}, index=epochs) for name, column in history.items()},
        "is_trained_": model.trained,
        _TRAINED_BY: f"scdecode {model.version}" if model.origin is None else str(model.origin),
    }
    if model.class_name == "SCANVI":
        attributes |= {"unlabeled_category_": unlabeled_value(model.schema)}
    state = {name: t.contiguous() for name, t in weights_of(model).items()}
    content = {
        "model_state_dict": state,
        "var_names": np.array(model.schema.genes, dtype=object),
        "attr_dict": attributes,
    }
    with replacing(path, overwrite=overwrite) as folder:
        folder.mkdir()
        buffer = io.BytesIO()  # torch has an error of its own for a full disk
        torch.save(content, buffer)
        (folder / _MODEL).write_bytes(buffer.getbuffer())


def _warn_of_other_cells(schema: Schema, place: str) -> None:
    """Warn of what the AnnData needs before scvi-tools opens the model with it: it compares values, and has no raw."""
    categories = (schema.batch, *schema.categorical, schema.labels)
    keys = [category.key for category in categories if category is not None and category.kind == "other"]
    if keys:
        remedy = "; ".join(f"adata.obs[{key!r}] = adata.obs[{key!r}].map(str)" for key in keys)
        warn(
            f"{place}: the levels of {listing(keys)} are neither text nor numbers and are written as text; before "
            f"scvi-tools opens the model with an AnnData, make the columns text: {remedy}",
            ConditionWarning,
        )
    if schema.columns.use_raw:
        warn(
            f"{place}: the counts were in adata.raw, which scvi-tools does not read; open the model there with "
            "adata.raw.to_adata(), whose X they are",
            ConditionWarning,
        )


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise :class:`OutputError` where :func:`write` would."""
    check_replaceable(path, (_MODEL,), overwrite=overwrite)


def weights_of(model: StoredModel) -> dict[str, Tensor]:
    """The weights of a model under scvi-tools' names, all that its network has."""
    weights = dict(model.vae.state_dict())
    if model.classification is not None:
        weights |= {CLASSIFICATION + name: t for name, t in model.classification.state_dict().items()}
    unused = model.kept
    if not model.config.learns_library and not unused:
        unused = _library_encoder(model)
    return to_theirs(weights, unused, model.config)


def _library_encoder(model: StoredModel) -> dict[str, Tensor]:
    """An encoder of the library size, which scvi-tools has in every model and uses in those that learn it."""
    with drawing_from(make_generator(0)):
        return _of_the_library(build_vae(_learning(model.config), model.schema), model.config)


def _learning(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, use_observed_lib_size=False, use_size_factor=False)


def _of_the_library(vae: VAE, config: ModelConfig) -> dict[str, Tensor]:
    """The weights of the encoder of the library size, under scvi-tools' names."""
    named = {name: tensor for name, tensor in vae.state_dict().items() if name.startswith("library_encoder.")}
    return to_theirs(named, {}, _learning(config))


def _check_kept(kept: Mapping[str, Tensor], config: ModelConfig, schema: Schema, place: str) -> None:
    """Raise :class:`CorruptModelError` for weights without a use here that scvi-tools would not take back."""
    expected = _of_the_library(unfilled_vae(_learning(config), schema), config) if kept else {}
    for name, tensor in kept.items():
        if name not in expected or tensor.shape != expected[name].shape or not is_finite(tensor):
            raise CorruptModelError(f"{place}: {name} is {kind_of(tensor)}, which does not fit the others, or has NaN")
