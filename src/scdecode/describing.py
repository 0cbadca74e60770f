"""What a model is, for people and for JSON; and what it is not, for those who come from scvi-tools."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode.config import ModelConfig, TrainConfig
from scdecode.formats.stored import Origin
from scdecode.minibatches import Split
from scdecode.reference import Reference
from scdecode.schema import Schema


class Describable(Protocol):
    """What is said of a model."""

    config: ModelConfig
    schema: Schema
    train_config: TrainConfig | None
    _origin: Origin | None
    _history: pd.DataFrame
    _split: Split | None
    _ending: str

    @property
    def is_trained(self) -> bool:
        """Whether the model has trained weights."""

    def _known_reference(self) -> Reference | None:
        """The training cells that the model keeps, where it keeps some."""


@checked
def info(model: Describable) -> dict[str, Any]:
    """What the model is, for people and for JSON: genes, conditions, options, training."""
    schema, last = model.schema, model._history.tail(1)
    reference = model._known_reference() if model.is_trained else None
    categories = [c for c in (schema.batch, *schema.categorical, schema.labels) if c is not None]
    return {
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


def positions(part: str) -> property:
    """A property: the positions among the model's cells of one part of the split of the last training."""

    def of(model: Describable) -> np.ndarray | None:
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
_INSTEAD = {
    "module": "model.vae is the network",
    "adata_manager": "model.schema has the names of everything, model.adata the cells",
    "get_anndata_manager": "model.schema has the names of everything, model.adata the cells",
    "registry": "model.schema has the names of everything",
    "registry_": "model.schema has the names of everything",
    "summary_stats": "model.schema has the numbers of cells, genes, batches and labels",
    "init_params_": "model.config has the options",
    "history_": "model.history has it",
    "is_trained_": "model.is_trained has it",
    "labels_": "model.adata.obs has them",
    "unlabeled_category_": "model.schema.columns.unlabeled_category has it",
    "n_labels": "model.schema.n_labels has it",
    "summary_string": "print(model)",
    "get_var_names": "model.schema.genes has them",
    "view_registry": "view_anndata_setup() prints it",
    "device": "each method is told where to compute: device=...",
    "to_device": "each method is told where to compute: device=...",
    "differential_expression": _THERE,
    "differential_abundance": _THERE,
    "get_aggregated_posterior": _THERE,
    "minify_adata": _THERE,
    "get_importance_weights": _THERE,
    "load_query_data": _THERE,
    "shap_predict": _THERE,
    "prepare_query_anndata": "genes may be in any order here, and there may be more of them; none may be missing",
    "load_registry": "scdecode.load(directory).schema has the names",
    "convert_legacy_save": "scdecode.load opens files of 0.8 on; scdecode.convert(..., to='scvi-tools') writes today's",
}
"""What scvi-tools' models have and ours have not, and what to do."""


def missing_attribute(kind: str, name: str) -> str:
    """The message for an attribute that a model of class ``kind`` does not have."""
    hint = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
    return f"{kind!r} object has no attribute {name!r}{hint}"
