"""Where in an AnnData the counts and the names of their genes are: ``X``, a layer, or ``raw``."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode.errors import CountsError, InputError
from scdecode.matrices import counts_elsewhere
from scdecode.schema import Columns


def counts_in(adata: AnnData, columns: Columns, layer: str | None, use_raw: bool | None) -> Columns:
    """Return the columns with the place of the counts that was asked for.

    Parameters
    ----------
    adata
        Cells.
    columns
        Where the counts are by default.
    layer
        A layer; ``"raw"`` means ``adata.raw``, unless there is a layer of that name.
    use_raw
        Whether the counts are in ``adata.raw``; None for the default.

    Raises
    ------
    InputError
        If both a layer and ``adata.raw`` are asked for.
    """
    if use_raw is not None and not isinstance(use_raw, bool | np.bool_):
        raise InputError(f"use_raw: got {use_raw!r}, expected True or False")
    if layer is not None and not isinstance(layer, str):
        raise InputError(f"layer: got {layer!r}, expected the name of a layer of the AnnData, or None for adata.X")
    named_raw = layer == "raw" and "raw" not in adata.layers and adata.raw is not None
    if use_raw and layer is not None and layer != "raw":
        raise InputError(f"layer, use_raw: got {layer!r} and True, expected one of them; leave one out")
    if layer is None and use_raw is None:
        return columns
    if use_raw or named_raw:
        return dataclasses.replace(columns, layer=None, use_raw=True)
    return dataclasses.replace(columns, layer=layer, use_raw=False)


def gene_names(adata: AnnData, columns: Columns) -> pd.Index:
    """Return the names of the genes of the counts: ``adata.raw`` has its own."""
    return adata.raw.var_names if columns.use_raw else adata.var_names


def place_of_genes(columns: Columns) -> str:
    """Return where the names of the genes are, for messages."""
    return "adata.raw.var_names" if columns.use_raw else "adata.var_names"


def place_of_counts(columns: Columns) -> str:
    """Return where the counts are, for messages."""
    if columns.use_raw:
        return "adata.raw.X"
    return "adata.X" if columns.layer is None else f"adata.layers[{columns.layer!r}]"


def counts_matrix(adata: AnnData, columns: Columns) -> tuple[Any, str]:
    """Return the matrix of counts, and where it is.

    Raises
    ------
    CountsError
        If there is none.
    """
    if columns.use_raw:
        return adata.raw.X, place_of_counts(columns)
    if columns.layer is not None:
        return adata.layers[columns.layer], place_of_counts(columns)
    if adata.X is None:
        raise CountsError(f"adata.X: there is none; {counts_elsewhere(adata, place_of_counts(columns))}")
    return adata.X, place_of_counts(columns)
