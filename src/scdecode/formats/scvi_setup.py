"""What a model of scvi-tools was set up with, by name: its ``registry_`` to a :class:`Schema`, and back.

Until 0.14 it was ``scvi_setup_dict_``, which is first brought into the shape of a registry.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from scdecode._utils.levels import Category, level_name
from scdecode.errors import ConditionError, ConditionWarning, CorruptModelError, listing, warn
from scdecode.formats.pandas_values import value_of
from scdecode.formats.scvi_options import class_of, count_batches, count_classes, count_labels
from scdecode.schema import Columns, Schema

_BATCH, _LABELS = "_scvi_batch", "_scvi_labels"
"""The columns that scvi-tools makes where the user named none: all cells are then of one level."""

_LEVELS = (str, int, float, np.generic, tuple, datetime.date, datetime.timedelta, pd.Period, pd.Interval, type(None))
"""What a level may be, once it is read; of any other type it is no name."""


def registry_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The registry of a model, in today's shape; empty where there is none."""
    registry = attributes.get("registry_")
    if isinstance(registry, Mapping):
        return registry
    old = attributes.get("scvi_setup_dict_")
    return _modern(old, attributes.get("unlabeled_category_")) if isinstance(old, Mapping) else {}


def _modern(old: Mapping[str, Any], unlabeled: Any) -> dict[str, Any]:
    mappings, extra = _mapping(old.get("categorical_mappings")), _mapping(old.get("extra_categoricals"))
    x = _mapping(_mapping(old.get("data_registry")).get("X"))

    def categorical(name: str) -> dict[str, Any]:
        entry = _mapping(mappings.get(name))
        return {"categorical_mapping": entry.get("mapping"), "original_key": entry.get("original_key")}

    states: dict[str, dict[str, Any]] = {
        "X": {},
        "batch": categorical(_BATCH),
        "labels": categorical(_LABELS),
        "extra_categorical_covs": {"mappings": extra.get("mappings"), "field_keys": extra.get("keys")},
        "extra_continuous_covs": {"columns": old.get("extra_continuous_keys")},
    }
    # the argument of a SCANVI then, who made no label of it where no cell had it
    if unlabeled is not None and str(unlabeled) in map(str, _list(states["labels"]["categorical_mapping"])):
        states["labels"]["unlabeled_category"] = unlabeled
    fields: dict[str, dict[str, Any]] = {
        name: {"state_registry": state, "data_registry": {}} for name, state in states.items()
    }
    fields["X"]["data_registry"] = {"attr_name": x.get("attr_name"), "attr_key": x.get("attr_key")}
    fields["X"]["summary_stats"] = _mapping(old.get("summary_stats"))
    return {"scvi_version": old.get("scvi_version"), "field_registries": fields}


def read_schema(
    registry: Mapping[str, Any],
    var_names: Any,
    n_genes: int,
    weights: Mapping[str, Tensor],
    dispersion: Any,
    place: str,
) -> Schema:
    """The names that a model was set up with.

    Parameters
    ----------
    registry
        As :func:`registry_of` gives it.
    var_names
        The names of the genes beside the weights: an array, or by modality; None where there are none.
    n_genes
        As many as the weights have.
    weights
        Under scvi-tools' names; they have the last word on how many levels there are.
    dispersion
        What ``init_params_`` says of it.
    place
        The file, for errors.

    Raises
    ------
    CorruptModelError
        Where the names do not fit the weights, or are no names.
    """
    fields = _mapping(registry.get("field_registries"))
    setup = _mapping(registry.get("setup_args"))

    def state(name: str) -> Mapping[str, Any]:
        return _mapping(_mapping(fields.get(name)).get("state_registry"))

    extra = state("extra_categorical_covs")
    levels = _mapping(extra.get("mappings"))
    keys = [str(key) for key in _list(extra.get("field_keys"))] or [str(key) for key in levels]
    categorical = []
    for key in keys:
        if key not in levels:
            raise CorruptModelError(f"{place}: the levels of the covariate {key!r} are missing in its registry")
        categorical.append(_named(key, _levels(levels[key]), place))
    continuous = tuple(str(name) for name in _list(state("extra_continuous_covs").get("columns")))
    n_batches = count_batches(weights, [len(c.names) for c in categorical], len(continuous))
    batch = _category(state("batch"), _BATCH, n_batches, place)
    labels = _category(state("labels"), _LABELS, count_labels(weights, dispersion), place)
    x = _mapping(_mapping(fields.get("X")).get("data_registry"))
    size_factor = _size_factor(_mapping(fields.get("size_factor")), setup)
    n_classes = unlabeled = None  # of SCANVI alone; a registry of a datamodule names one for every class
    if class_of(weights) == "SCANVI":
        unlabeled = state("labels").get("unlabeled_category", setup.get("unlabeled_category"))
    if unlabeled is not None:
        found = () if labels is None else labels.find(value_of(unlabeled))
        if labels is None or not found:
            raise CorruptModelError(f"{place}: the unlabelled category {unlabeled!r} is none of its labels")
        unlabeled = labels.names[found[0]]
        n_classes = count_classes(weights)
        if n_classes != len(labels.names):
            # where all labels but one are classes, that is the unlabelled one; before 1.2, it was one in any case
            if found[0] != len(labels.names) - 1 and not _before(registry.get("scvi_version"), 1, 2):
                raise CorruptModelError(f"{place}: the unlabelled category {unlabeled!r} is not the last of its labels")
            # any other number does not fit, and the weights say so when they are read
            n_classes = None if found[0] == len(labels.names) - 1 else len(labels.names) - 1
    n_cells = _mapping(_mapping(fields.get("X")).get("summary_stats")).get("n_cells")
    genes = _genes(var_names, state("X").get("column_names"), n_genes, place)
    return Schema(
        genes=genes,
        columns=Columns(
            layer=str(x["attr_key"]) if x.get("attr_name") == "layers" and x.get("attr_key") is not None else None,
            batch_key=None if batch is None else batch.key,
            labels_key=None if labels is None else labels.key,
            size_factor_key=size_factor,
            categorical_covariate_keys=tuple(keys),
            continuous_covariate_keys=continuous,
            unlabeled_category=unlabeled,
            n_classes=n_classes,
        ),
        batch=batch,
        labels=labels,
        categorical=tuple(categorical),
        continuous=continuous,
        n_cells=n_cells if type(n_cells) is int and 0 <= n_cells < 2**53 else None,
    )


def _before(version: Any, *other: int) -> bool:
    """Whether a version, as ``"0.20.3"``, is an earlier one."""
    parts = version.split(".")[: len(other)] if isinstance(version, str) and len(version) < 50 else []
    return all(part.isdecimal() for part in parts) and (0,) < tuple(map(int, parts)) < other


def _category(state: Mapping[str, Any], unnamed: str, n_levels: int | None, place: str) -> Category | None:
    """A category; None where the user named no column, so that all cells were of one level."""
    values, key = _levels(state.get("categorical_mapping")), state.get("original_key")
    key = unnamed if key is None else str(key)
    if n_levels is not None and len(values) != n_levels and (len(values) or n_levels > 1):
        if len(values):
            raise CorruptModelError(
                f"{place}: {key!r} has {len(values):,} levels in its registry and {n_levels:,} in its weights"
            )
        key = key.removeprefix("_scvi_")
        warn(
            f"{place}: it does not name the {n_levels:,} levels of {key!r}; they are called '0' to '{n_levels - 1}', "
            "as they are numbered in the weights",
            ConditionWarning,
        )
        return Category(key, tuple(str(code) for code in range(n_levels)), "int")
    if not len(values) or (key == unnamed and len(values) == 1):
        return None
    return _named(key, values, place)


def _levels(mapping: Any) -> np.ndarray:
    """The levels in the order of their codes: an array or a list, or of a datamodule a mapping of levels to codes."""
    if isinstance(mapping, Mapping):
        codes = {code: value for value, code in mapping.items() if isinstance(code, int | np.integer)}
        mapping = [codes[code] for code in range(len(mapping))] if set(codes) == set(range(len(mapping))) else []
    if isinstance(mapping, np.ndarray) and mapping.dtype.kind in "biufmM":
        return mapping.reshape(-1)
    levels = [value_of(item) for item in _list(mapping)]
    array = np.empty(len(levels), dtype=object)
    array[:] = levels  # of tuples, numpy would make a table
    return array


def _named(key: str, values: np.ndarray, place: str) -> Category:
    if not all(isinstance(value, _LEVELS) for value in values):
        raise CorruptModelError(f"{place}: the levels of {key!r} are no names, each once: {listing(values)}")
    try:
        return Category.of(key, values)
    except ConditionError as error:
        names = [level_name(value) for value in values]
        raise CorruptModelError(f"{place}: the levels of {key!r} are no names, each once: {listing(names)}") from error


def _genes(var_names: Any, column_names: Any, n_genes: int, place: str) -> tuple[str, ...]:
    """The names of the genes: those of the file, or else of its registry, or else numbers."""
    candidates = [*var_names.values()] if isinstance(var_names, Mapping) else [var_names]
    named = [names for names in (_list(value) for value in (*candidates, column_names)) if names]
    fitting = [names for names in named if len(names) == n_genes]
    if named and not fitting:
        raise CorruptModelError(
            f"{place}: it names {len(named[0]):,} genes, and its weights are of {n_genes:,}; copy the directory again"
        )
    if not fitting:
        warn(
            f"{place}: it does not name its genes; they are called 'gene_0' to 'gene_{n_genes - 1}', in the order of "
            "the weights",
            ConditionWarning,
        )
        return tuple(f"gene_{i}" for i in range(n_genes))
    genes = tuple(str(name) for name in fitting[0])
    if len(set(genes)) < n_genes:
        raise CorruptModelError(f"{place}: it names a gene twice")
    return genes


def _size_factor(field: Mapping[str, Any], setup: Mapping[str, Any]) -> str | None:
    key = setup.get("size_factor_key")
    if key is None and _mapping(field.get("data_registry")):
        key = _mapping(field["data_registry"]).get("attr_key")
    return None if key is None else str(key)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return list(value.reshape(-1).tolist())
    return list(value) if isinstance(value, list | tuple) else []


# -- the other way -----------------------------------------------------------------------------------------------------


def write_registry(class_name: str, schema: Schema, version: str) -> dict[str, Any]:
    """The registry that scvi-tools makes of such a set-up, as 1.4 has it."""
    columns = schema.columns
    size_factor = {"attr_name": "obs", "attr_key": columns.size_factor_key} if columns.size_factor_key else {}
    labels = _categorical("labels", _LABELS, schema.labels)
    unlabeled = unlabeled_value(schema)
    if unlabeled is not None:
        labels["state_registry"]["unlabeled_category"] = unlabeled
    x = (
        {"attr_name": "X", "attr_key": None}
        if columns.layer is None
        else {"attr_name": "layers", "attr_key": columns.layer}
    )
    n_cells = schema.n_cells or 0
    genes = np.array(schema.genes, dtype=object)
    fields: dict[str, Any] = {
        "X": {
            "data_registry": x,
            "state_registry": {"n_obs": n_cells, "n_vars": schema.n_genes, "column_names": genes},
            "summary_stats": {"n_vars": schema.n_genes, "n_cells": n_cells},
        },
        "batch": _categorical("batch", _BATCH, schema.batch),
        "labels": labels,
    }
    setup: dict[str, Any] = {"layer": columns.layer, "batch_key": columns.batch_key, "labels_key": columns.labels_key}
    if class_name != "LinearSCVI":
        keys, continuous = list(columns.categorical_covariate_keys), list(columns.continuous_covariate_keys)
        fields["size_factor"] = {"data_registry": size_factor, "state_registry": {}, "summary_stats": {}}
        fields["extra_categorical_covs"] = _joint(
            "extra_categorical_covs",
            {
                "mappings": {c.key: c.values for c in schema.categorical},
                "field_keys": keys,
                "n_cats_per_key": [len(c.names) for c in schema.categorical],
            },
            len(keys),
        )
        columns_of = {"columns": np.array(continuous, dtype=object)}
        fields["extra_continuous_covs"] = _joint("extra_continuous_covs", columns_of, len(continuous))
        setup |= {
            "size_factor_key": columns.size_factor_key,
            "categorical_covariate_keys": keys or None,
            "continuous_covariate_keys": continuous or None,
        }
    if class_name == "SCANVI":
        setup["unlabeled_category"] = unlabeled
    return {
        "scvi_version": version,
        "model_name": class_name,
        "setup_args": setup,
        "field_registries": fields,
        "setup_method_name": "setup_anndata",
    }


def unlabeled_value(schema: Schema) -> Any:
    """Return the unlabelled category as the column has it, -1 of whole numbers; None if there is none."""
    name = schema.columns.unlabeled_category
    if name is None or schema.labels is None:
        return None
    value = schema.labels.values[schema.labels.codes[name]]
    return value.item() if isinstance(value, np.number | np.bool_) else value


def _categorical(name: str, unnamed: str, category: Category | None) -> dict[str, Any]:
    values = np.zeros(1, dtype=np.int64) if category is None else category.values
    return {
        "data_registry": {"attr_name": "obs", "attr_key": unnamed},
        "state_registry": {
            "categorical_mapping": values,
            "original_key": unnamed if category is None else category.key,
        },
        "summary_stats": {f"n_{name}": len(values)},
    }


def _joint(name: str, state: dict[str, Any], n: int) -> dict[str, Any]:
    registry = {"attr_name": "obsm", "attr_key": f"_scvi_{name}"}
    return {
        "data_registry": registry if n else {},
        "state_registry": state if n else {},
        "summary_stats": {f"n_{name}": n},
    }
