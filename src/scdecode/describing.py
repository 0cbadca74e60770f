"""What a model is, for people and for JSON; and what it is not, for those who come from scvi-tools."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from scdecode._utils.checks import checked
from scdecode._utils.notebook import brief, facts_html
from scdecode.cells import Cells
from scdecode.config import ModelConfig, TrainConfig
from scdecode.errors import listing
from scdecode.formats.stored import Origin
from scdecode.minibatches import Split
from scdecode.reference import Reference
from scdecode.schema import Schema
from scdecode.vae import VAE


class Describable(Protocol):
    """What is said of a model."""

    config: ModelConfig
    schema: Schema
    vae: VAE
    train_config: TrainConfig | None
    _origin: Origin | None
    _history: pd.DataFrame
    _split: Split | None
    _cells: Cells | None
    _ending: str

    @property
    def is_trained(self) -> bool:
        """Whether the model has trained weights."""

    def _known_reference(self) -> Reference | None:
        """The training cells that the model keeps, where it keeps some."""


@checked
def info(model: Describable) -> dict[str, Any]:
    """Return what the model is, for people and for JSON: genes, conditions, options, training.

    It is a dict of numbers, names and lists; printed, it shows the first of many names.
    """
    schema, last = model.schema, model._history.tail(1)
    reference = model._known_reference() if model.is_trained else None
    categories = [c for c in (schema.batch, *schema.categorical, schema.labels) if c is not None]
    facts = {
        "class": type(model).__name__,
        "trained_by": "scdecode" if model._origin is None else str(model._origin),
        "n_genes": schema.n_genes,
        "genes": list(schema.genes),
        "n_cells": schema.n_cells,
        "median_library_size": schema.median_library,
        "columns": dataclasses.asdict(schema.columns),
        "categories": {c.key: list(c.names) for c in categories},
        "continuous": list(schema.continuous),
        "n_conditions": None if schema.conditions is None else len(schema.conditions.n_cells_m),
        "options": dataclasses.asdict(model.config),
        "training": None if model.train_config is None else dataclasses.asdict(model.train_config),
        "epochs": len(model._history),
        "ending": model._ending,
        "last_epoch": {str(key): float(value) for key, value in last.iloc[0].dropna().items()} if len(last) else {},
        "n_reference": 0 if reference is None else len(reference.latent_rk),
    }
    return Info(facts)


def in_two_lines(model: Describable) -> str:
    """The size, the options and the state."""
    c, s = model.config, model.schema
    trained = "trained" if model.is_trained else "not trained"
    if model._origin is not None:
        trained += f" by {model._origin}"
    if len(model._history):
        trained += f" for {_count(len(model._history), 'epoch')}"
    cells = "" if s.n_cells is None else f"{s.n_cells:,} cells x "
    batches = "no batches" if s.batch is None else _count(s.n_batches, "batch", "batches")
    return (
        f"{type(model).__name__}: {cells}{s.n_genes:,} genes, {batches}, {trained}\n"
        f"  {c.gene_likelihood}, dispersion {c.dispersion}, {_count(c.n_latent, 'latent dimension')}, "
        f"{_count(c.n_layers, 'hidden layer')} of {c.n_hidden}"
    )


def in_html(model: Describable) -> str:
    """Return a table for a notebook: the names and numbers that matter, no list of genes."""
    facts = info(model)
    c, schema = model.config, model.schema
    cells = "" if schema.n_cells is None else f"{schema.n_cells:,} cells x "
    rows = [("trained on", f"{cells}{schema.n_genes:,} genes"), ("genes", listing(schema.genes, 5))]
    rows += [(f"{key} ({len(names):,})", listing(names, 5)) for key, names in facts["categories"].items()]
    if schema.continuous:
        rows.append(("continuous", listing(schema.continuous, 5)))
    options = f"{c.gene_likelihood}, dispersion {c.dispersion}, n_latent {c.n_latent}, n_hidden {c.n_hidden}"
    rows += [("options", options), ("training", f"{_count(facts['epochs'], 'epoch')}, {facts['ending']}")]
    if facts["last_epoch"]:
        rows.append(("last epoch", ", ".join(f"{name} {value:,.4g}" for name, value in facts["last_epoch"].items())))
    rows.append(("reference cells", f"{facts['n_reference']:,}"))
    return facts_html(in_two_lines(model).splitlines()[0], rows)


class Info(dict[str, Any]):
    """What a model is; printed, long lists of names are cut."""

    def __repr__(self) -> str:
        return "{" + ",\n ".join(f"{key!r}: {brief(value)}" for key, value in self.items()) + "}"

    def _repr_html_(self) -> str:
        return facts_html(str(self.get("class", "")), [(key, brief(value)) for key, value in self.items()])


def _device(model: Describable) -> torch.device:
    """Where the weights are; the methods compute where their ``device`` says, by default on the CPU."""
    return next(model.vae.parameters()).device


device = property(_device)
"""A property: where the weights of the model are."""


def positions(part: str) -> property:
    """A property: the positions among the model's cells of one part of the split of the last training."""

    def of(model: Describable) -> np.ndarray | None:
        if model._cells is not None and model._cells.state is not None:
            model._cells.state.check_cells()  # positions among cells in another order would be those of others
        return None if model._split is None else getattr(model._split, part)

    of.__doc__ = f"Positions of the {part} cells of the last training, ``(n,)`` int64; None where they are not known."
    return property(of)


def _count(n: int, one: str, several: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def history_tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A table of one row an epoch as scvi-tools gives it: a table of one column for each quantity.

    Each has the epochs in which its quantity is known. The divergence of what is no cell's own is zero here.
    """
    columns = {str(name): table[name] for name in table.columns if name != "seconds"}
    for of in ("train", "validation"):
        if f"elbo_{of}" in columns:
            columns.setdefault(f"kl_global_{of}", columns[f"elbo_{of}"] * 0.0)
    known = {name: values.dropna().rename(name) for name, values in columns.items()}
    return {name: values.to_frame().rename_axis(index="epoch") for name, values in known.items() if len(values)}


_THERE = "scdecode.convert(..., to='scvi-tools') writes the model for scvi-tools, which has it"
_NAMES = "model.schema has the names of everything"
_CELLS = f"{_NAMES}, model.adata the cells"
_SETUP = "model.schema.columns has the arguments of setup_anndata; view_anndata_setup() prints them"
_SOURCE = "a model belongs to no registry: pass adata= to the methods that read cells"
_TRACKED = "models and runs are not tracked; name the directory that a model is saved to"
_INSTEAD = {
    "module": "model.vae is the network, model.distribution(z) its likelihood",
    "trainer": "train() runs the epochs itself; model.history has the losses, on_epoch= is called after each",
    "adata_manager": _CELLS,
    "get_anndata_manager": _CELLS,
    "data_registry": _SETUP,
    "get_from_registry": "read the AnnData itself: model.schema.columns says where in it everything is",
    "get_setup_arg": _SETUP,
    "get_state_registry": _NAMES,
    "get_var_names": "model.schema.genes has them",
    "registry": _NAMES,
    "registry_": _NAMES,
    "view_registry": "view_anndata_setup() prints it",
    "view_setup_args": _SETUP,
    "view_setup_method_args": _SETUP,
    "update_setup_method_args": _SETUP,
    "register_manager": _SOURCE,
    "deregister_manager": _SOURCE,
    "transfer_fields": _SOURCE,
    "summary_stats": "model.schema has the numbers of cells, genes, batches and labels",
    "summary_string": "print(model)",
    "init_params_": "model.config has the options",
    "history_": "model.history has it",
    "is_trained_": "model.is_trained has it",
    "train_indices_": "model.train_indices has them",
    "validation_indices_": "model.validation_indices has them",
    "test_indices_": "model.test_indices has them",
    "labels_": "model.adata.obs has them",
    "unlabeled_category_": "model.schema.columns.unlabeled_category has it",
    "n_labels": "model.schema.n_labels has it",
    "to_device": "each method is told where to compute: device=...",
    "id": _TRACKED,
    "run_id": _TRACKED,
    "run_id_": _TRACKED,
    "run_name": _TRACKED,
    "run_name_": _TRACKED,
    "get_normalized_function_name": "the method is get_normalized_expression",
    "get_normalized_function_name_": "the method is get_normalized_expression",
    "minified_data_type": "cells are never minified; a saved model needs no cells to decode",
    "minify_adata": "cells are never minified; a saved model needs no cells to decode",
    "differential_expression": _THERE,
    "differential_abundance": _THERE,
    "get_aggregated_posterior": _THERE,
    "get_importance_weights": _THERE,
    "load_query_data": _THERE,
    "shap_predict": _THERE,
    "shap_adata_predict": _THERE,
    "get_ranked_features": _THERE,
    "prepare_query_anndata": "genes may be in any order here, and there may be more of them; none may be missing",
    "prepare_query_mudata": "models here are of one AnnData: mdata['rna']",
    "load_registry": "scdecode.load(directory).schema has the names",
    "convert_legacy_save": "scdecode.load opens files of 0.8 on; scdecode.convert(..., to='scvi-tools') writes today's",
}
"""What scvi-tools' models have and ours have not, and what to do."""


def missing_attribute(kind: str, name: str) -> str:
    """Return the message for an attribute that a model of class ``kind`` does not have."""
    hint = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
    return f"{kind!r} object has no attribute {name!r}{hint}"
