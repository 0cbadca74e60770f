"""What an AnnData was set up with, printed as tables.

``view_anndata_setup`` is the method of the same name of :class:`scdecode.SCVI`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.levels import Category
from scdecode.asked import OnCells
from scdecode.cells import check_columns
from scdecode.errors import InputError
from scdecode.schema import Columns

if TYPE_CHECKING:
    from rich.table import Table


@checked
def view_anndata_setup(model: OnCells, adata: AnnData | None = None, hide_state_registries: bool = False) -> None:
    """Print where the counts and the conditions of the model are in an AnnData, and which levels they have.

    Parameters
    ----------
    adata
        Cells with the columns of the model; by default those that it was made of.
    hide_state_registries
        Whether to leave out the tables of levels.

    Raises
    ------
    InputError
        For cells without the layer or a column of the model.
    """
    from rich.console import Console  # here, since importing rich takes a tenth of a second
    from rich.pretty import Pretty

    schema, columns = model.schema, model.schema.columns
    n_cells = schema.n_cells
    if adata is not None:
        if not isinstance(adata, AnnData):
            raise InputError(f"adata: {type(adata).__name__} came, an AnnData was expected")
        check_columns(adata, columns)
        n_cells = adata.n_obs
    console = Console()
    console.print(f"AnnData setup with scdecode version {version('scdecode')}.\n")
    console.print(f"Setup via `{type(model).__name__}.setup_anndata` with arguments:")
    arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(columns).items()}
    console.print(Pretty(arguments))
    counts = {
        "n_batch": schema.n_batches,
        "n_cells": n_cells,
        "n_extra_categorical_covs": len(schema.categorical),
        "n_extra_continuous_covs": len(schema.continuous),
        "n_labels": schema.n_labels,
        "n_vars": schema.n_genes,
    }
    always = ("n_batch", "n_cells", "n_labels", "n_vars")
    rows = [(name, str(count)) for name, count in counts.items() if count or name in always]
    console.print(_table("Summary Statistics", ("Summary Stat Key", "Value"), rows))
    console.print(_table("Data Registry", ("Registry Key", "Location"), _places(columns)))
    if hide_state_registries:
        return
    for name, category in (("batch", schema.batch), ("labels", schema.labels)):
        if category is not None:
            console.print(_levels(name, (category,)))
    if schema.categorical:
        console.print(_levels("extra_categorical_covs", schema.categorical))
    if schema.continuous:
        places = [(f"adata.obs[{key!r}]",) for key in schema.continuous]
        console.print(_table("extra_continuous_covs State Registry", ("Source Location",), places))


def _places(columns: Columns) -> list[tuple[str, str]]:
    places = [("X", "adata.X" if columns.layer is None else f"adata.layers[{columns.layer!r}]")]
    single = {"batch": columns.batch_key, "labels": columns.labels_key, "size_factor": columns.size_factor_key}
    places += [(name, f"adata.obs[{key!r}]") for name, key in single.items() if key is not None]
    lists = {
        "extra_categorical_covs": columns.categorical_covariate_keys,
        "extra_continuous_covs": columns.continuous_covariate_keys,
    }
    return places + [(name, f"adata.obs[{key!r}]") for name, keys in lists.items() for key in keys]


def _levels(name: str, categories: tuple[Category, ...]) -> Table:
    rows = []
    for category in categories:
        for code, level in enumerate(category.names):
            rows.append(("" if code else f"adata.obs[{category.key!r}]", level, str(code)))
    return _table(f"{name} State Registry", ("Source Location", "Categories", "Code"), rows)


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, min_width=len(title))  # a title is not broken in a word
    for name in head:
        table.add_column(name, justify="center", no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
