"""What a model is, for people and for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import pandas as pd

from scdecode.config import ModelConfig, TrainConfig
from scdecode.formats.stored import Origin
from scdecode.reference import Reference
from scdecode.schema import Schema


class Describable(Protocol):
    """What is said of a model."""

    config: ModelConfig
    schema: Schema
    train_config: TrainConfig
    _reference: Reference | None
    _origin: Origin | None
    _history: pd.DataFrame
    _ending: str

    @property
    def is_trained(self) -> bool:
        """Whether the model has trained weights."""


def info(model: Describable) -> dict[str, Any]:
    """What the model is, for people and for JSON: genes, conditions, options, training."""
    schema, last = model.schema, model._history.tail(1)
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
        "training": dataclasses.asdict(model.train_config) if _trained_here(model) else None,
        "epochs": len(model._history),
        "ending": model._ending,
        "last_epoch": {str(key): float(value) for key, value in last.iloc[0].dropna().items()} if len(last) else {},
        "n_reference": 0 if model._reference is None else len(model._reference.latent_rk),
    }


def _trained_here(model: Describable) -> bool:
    """Whether the last training was scdecode's, so that its options are known."""
    return model._origin is None or model._origin.program.endswith("scdecode")


def in_two_lines(model: Describable) -> str:
    """The size, the options and the state."""
    c, s = model.config, model.schema
    trained = "trained" if model.is_trained else "not trained"
    if model._origin is not None:
        trained += f" by {model._origin}"
    if len(model._history):
        trained += f" for {len(model._history)} epochs"
    cells = "" if s.n_cells is None else f"{s.n_cells:,} cells x "
    return (
        f"{type(model).__name__}: {cells}{s.n_genes:,} genes, {s.n_batches} batches, {trained}\n"
        f"  {c.gene_likelihood}, dispersion {c.dispersion}, {c.n_latent} latent dimensions, "
        f"{c.n_layers} hidden layer(s) of {c.n_hidden}"
    )
