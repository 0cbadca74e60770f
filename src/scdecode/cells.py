"""AnnData, in memory or backed, to :class:`Cells`: the one place that opens an AnnData.

Counts are kept as CSR until the minibatch. A second AnnData may have its genes in another order and more of them; what
it lacks is listed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scdecode._utils.anndata_state import AnnDataState, check_totals, state_of
from scdecode._utils.counts_place import counts_in, counts_matrix, gene_names, place_of_counts, place_of_genes
from scdecode._utils.gene_names import check_unique, positions_of
from scdecode._utils.levels import Category, level_name
from scdecode._utils.obs_columns import column_of, factorize, has_column, is_name, numbers_of
from scdecode._utils.ranges import ranges_of, warn_outside
from scdecode._utils.rows import check_rows
from scdecode._utils.snapshots import read_path
from scdecode.config import ModelConfig
from scdecode.errors import (
    ConditionError,
    ConditionWarning,
    CountsError,
    InputError,
    listing,
    suggestion,
    unknown_name,
    warn,
)
from scdecode.matrices import (
    SAY_WHERE,
    check_counts,
    check_no_empty_cells,
    counts_elsewhere,
    to_csr,
    totals,
    warn_of_fractions,
)
from scdecode.schema import Columns, Schema, columns_to_dict, tabulate_conditions

SETUP_KEY = "scdecode_setup"
"""Where in ``uns`` :func:`setup_anndata` notes the names of the columns."""

# what h5py, zarr and their codecs raise on a damaged or a foreign file
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, EOFError)

_KEYS = ("batch_key", "labels_key", "size_factor_key")
_LISTS = ("categorical_covariate_keys", "continuous_covariate_keys")

UNREAD = -1
"""The code of a condition that was neither needed nor there; as an index it fails, so it cannot pass for a level."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells in the order and the codes of a model."""

    counts: sp.csr_matrix  # (n, g) float32
    library_n: np.ndarray  # (n,) float32: total counts
    codes_nc: np.ndarray  # (n, c) int64: batch, each categorical covariate, label
    continuous_nd: np.ndarray  # (n, d) float32, in the units of the training data
    size_factor_n: np.ndarray | None  # (n,) float32
    state: AnnDataState | None = None  # of the AnnData that these are all cells of

    def __len__(self) -> int:
        return len(self.library_n)

    def at(self, rows: np.ndarray) -> Cells:
        """The cells at positions ``rows``, or where the mask ``rows`` is True."""
        rows = check_rows(rows, len(self))
        factors = None if self.size_factor_n is None else self.size_factor_n[rows]
        return Cells(self.counts[rows], self.library_n[rows], self.codes_nc[rows], self.continuous_nd[rows], factors)


def _read_anndata(path: Path) -> AnnData:
    return anndata.io.read_zarr(path) if path.is_dir() else anndata.io.read_h5ad(path)


def open_anndata(path: str | Path) -> AnnData:
    """Open an ``.h5ad`` file or a ``.zarr`` store.

    Raises
    ------
    InputError
        Where there is no such file, or it is no AnnData.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; an .h5ad file or a .zarr store was expected")
    try:
        return read_path(path, _read_anndata, _UNREADABLE)
    except Exception as error:
        newer = type(error).__module__.partition(".")[0] == "anndata"  # its error for an unknown encoding
        if not newer and not isinstance(error, _UNREADABLE):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "expected an .h5ad file or a .zarr store"
        if "MuData" in reason:
            remedy = "expected an AnnData; write one of its modalities to a file: mdata['rna'].write_h5ad('cells.h5ad')"
        elif newer:
            remedy += " of the installed anndata or an older one; to read a newer one: pip install -U anndata"
        raise InputError(f"{path}: it cannot be read as an AnnData ({reason}); {remedy}") from error


def setup_anndata(adata: AnnData, columns: Columns, layer: str | None = None, use_raw: bool = False) -> None:
    """Check that the layer and the columns are there, and note their names in ``adata.uns``.

    Parameters
    ----------
    adata
        Cells.
    columns
        Of ``adata.obs``, and whether counts may be fractions.
    layer, use_raw
        Where the counts are, as for :func:`counts_in`.

    Raises
    ------
    InputError
        For a layer or a column that is not there; the message lists those that are.
    """
    if not isinstance(adata, AnnData):
        raise InputError(f"adata: {type(adata).__name__} came, an AnnData was expected")
    allowed = columns.allow_fractional_counts
    if not isinstance(allowed, bool | np.bool_):
        raise InputError(f"allow_fractional_counts: got {allowed!r}, expected True or False")
    columns = dataclasses.replace(columns, allow_fractional_counts=bool(allowed))
    columns = counts_in(adata, columns, layer, use_raw)
    check_columns(adata, columns)
    as_text: dict[str, Any] = {name: str(key) for name in _KEYS if (key := getattr(columns, name)) is not None}
    as_text |= {name: tuple(map(str, getattr(columns, name))) for name in _LISTS}
    note_columns(adata, dataclasses.replace(columns, **as_text))


def note_columns(adata: AnnData, columns: Columns) -> None:
    """Note in ``adata.uns`` what was said of its columns; an .h5ad file holds no None, so that has no entry."""
    adata.uns[SETUP_KEY] = columns_to_dict(columns)


def note_unlabeled(adata: AnnData, unlabeled_category: Any) -> None:
    """Note the name of the level that unlabelled cells have: "-1.0" of a column of numbers, where -1 was said."""
    columns = setup_of(adata)
    labels = read_labels(adata.obs, columns, unlabeled_category)
    assert labels is not None, "the column of labels was checked"
    note_columns(adata, dataclasses.replace(columns, unlabeled_category=labels.names[-1]))


def setup_of(adata: AnnData) -> Columns:
    """The columns that :func:`setup_anndata` noted.

    Raises
    ------
    InputError
        Where it was not called on this AnnData.
    """
    if not isinstance(adata, AnnData):
        raise InputError(f"adata: {type(adata).__name__} came, an AnnData was expected")
    if SETUP_KEY not in adata.uns:
        raise InputError("adata: it was not set up; call SCVI.setup_anndata(adata, layer=..., batch_key=...) first")
    found = adata.uns[SETUP_KEY]
    if not isinstance(found, Mapping) or not set(found) <= {field.name for field in dataclasses.fields(Columns)}:
        raise InputError(f"adata.uns[{SETUP_KEY!r}]: {found!r} came, which setup_anndata did not write; call it again")
    noted: dict[str, Any] = dict(found)
    for key in ("categorical_covariate_keys", "continuous_covariate_keys"):
        noted[key] = tuple(str(name) for name in np.atleast_1d(noted.get(key, ())))
    for key in ("use_raw", "allow_fractional_counts"):
        noted[key] = bool(noted.get(key, False))  # of a file, it is numpy's
    noted.pop("n_classes", None)  # of another program's model, and not of an AnnData
    return Columns(**noted)


def check_columns(adata: AnnData, columns: Columns, optional: Sequence[str] = ()) -> None:
    """Raise :class:`InputError` for a layer or a column that is not there, unless it is ``optional``."""
    if columns.use_raw and adata.raw is None:
        raise InputError(
            "use_raw: adata.raw is None, and its counts are asked for; expected an AnnData with adata.raw; leave "
            f"use_raw out for the counts in adata.X, or name one of the layers {listing(adata.layers)}"
        )
    if columns.layer is not None and columns.layer not in adata.layers:
        raw = "; adata.raw is there: pass use_raw=True for its counts" if adata.raw is not None else ""
        raise InputError(unknown_name("layer", columns.layer, adata.layers.keys(), "layers of the AnnData") + raw)
    names = [str(name) for name in adata.obs.columns]
    for field in (*_KEYS, *_LISTS):
        value = getattr(columns, field)
        if isinstance(value, tuple) and len(set(map(str, value))) < len(value):
            raise InputError(f"{field}: {listing(value)} came, which names a column twice; each once was expected")
        for key in value if isinstance(value, tuple) else (value,):
            if key is None and not isinstance(value, tuple):
                continue
            if not is_name(key) or (str(key) not in names and key not in optional):
                raise InputError(unknown_name(field, key, names, "columns of adata.obs"))
            if names.count(str(key)) > 1:
                raise InputError(f"{field}: adata.obs has {names.count(key)} columns {key!r}; remove all but one")


def read_training_cells(adata: AnnData, *, classes: bool = False) -> tuple[Schema, Cells]:
    """Cells to train on, and what a model that is trained on them knows by name.

    Parameters
    ----------
    adata
        Cells that :func:`setup_anndata` was called on.
    classes
        Whether the labels are classes, of which one may be the unlabelled category; otherwise they are names like
        any other, whatever class of model the cells were set up for.

    Raises
    ------
    InputError, CountsError, ConditionError
        Where the AnnData was not set up; for genes named twice, values that are no counts, values that are missing.
    """
    columns = setup_of(adata)
    if not classes:
        columns = dataclasses.replace(columns, unlabeled_category=None)
    check_columns(adata, columns)
    n_genes = len(gene_names(adata, columns))
    if adata.n_obs < 2 or n_genes < 1:
        raise CountsError(
            f"adata: {adata.n_obs} cells x {n_genes} genes came, at least two cells and a gene were expected"
        )
    genes = tuple(gene_names(adata, columns).astype(str))
    check_unique(genes, place_of_genes(columns))
    batch = _levels(adata.obs, columns.batch_key) if columns.batch_key else None
    labels = read_labels(adata.obs, columns)
    if labels is not None and columns.unlabeled_category is not None:  # other cells may be of another type
        columns = dataclasses.replace(columns, unlabeled_category=labels.names[-1])
    categorical = tuple(_levels(adata.obs, key) for key in columns.categorical_covariate_keys)
    counts = to_csr(*counts_matrix(adata, columns))
    cells = _assemble(adata, adata.obs, counts, columns, batch, categorical, labels, optional=())
    _warn_of_many_levels((batch, *categorical, labels), len(cells))
    schema = Schema(
        genes=genes,
        columns=columns,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=columns.continuous_covariate_keys,
    )
    return knowing(schema, cells), dataclasses.replace(cells, state=state_of(adata, columns, None))


def knowing(schema: Schema, cells: Cells) -> Schema:
    """The schema with what the training cells tell: which conditions occurred, and how large the cells are."""
    factors = cells.size_factor_n
    return dataclasses.replace(
        schema,
        conditions=tabulate_conditions(cells.codes_nc, cells.continuous_nd, n_aside=1),  # the label
        n_cells=len(cells),
        median_library=float(np.median(cells.library_n)),
        median_size_factor=None if factors is None else float(np.median(factors)),
        max_size_factor=None if factors is None else float(factors.max()),
        continuous_range=ranges_of(cells.continuous_nd),
    )


def unknowing(schema: Schema) -> Schema:
    """The schema without what the training cells tell, but for how many there were."""
    return dataclasses.replace(
        schema,
        conditions=None,
        median_library=None,
        median_size_factor=None,
        max_size_factor=None,
        continuous_range=None,
    )


def read_cells(
    adata: AnnData,
    schema: Schema,
    *,
    need_conditions: bool,
    need_all: bool = False,
    indices: np.ndarray | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
) -> Cells:
    """Cells of any AnnData in the gene order and the codes of a trained model.

    Parameters
    ----------
    adata
        Genes may be in another order, and there may be more of them.
    schema
        Of the model.
    need_conditions
        Whether a batch or a covariate that is not there is an error. An encoder that does not look at them does not
        need them, and none needs labels or a size factor. A column that is there is always read, and an unknown level
        is an error.
    need_all
        Whether labels and a size factor that are not there are an error, too: these are cells to train on.
    indices
        Cells to keep, positions or a mask; by default all.
    layer, use_raw
        Where the counts of this AnnData are; by default where those of the training cells were.

    Raises
    ------
    InputError
        For a layer or a column that is not there.
    CountsError
        For genes that are missing; the message lists them.
    ConditionError
        For levels that the model was not trained with, or values that are missing.
    """
    if not isinstance(adata, AnnData):
        raise InputError(f"adata: {type(adata).__name__} came, an AnnData was expected")
    columns = counts_in(adata, schema.columns, layer, use_raw)
    seen = (columns.batch_key, *columns.categorical_covariate_keys, *columns.continuous_covariate_keys)
    optional = [] if need_all else [key for key in columns.obs_keys if not (need_conditions and key in seen)]
    check_columns(adata, columns, optional)
    more_names = None if columns.use_raw or adata.raw is None else adata.raw.var_names
    positions = positions_of(schema.genes, gene_names(adata, columns), place_of_genes(columns), more_names)
    matrix, place = counts_matrix(adata, columns)
    counts = to_csr(matrix, place)
    obs = adata.obs
    if indices is not None:
        indices = check_rows(indices, len(obs), obs.index)
        counts, obs = counts[indices], obs.iloc[indices]
    if positions is not None:
        counts = sp.csr_matrix(counts[:, positions])
        counts.sort_indices()
    cells = _assemble(adata, obs, counts, columns, schema.batch, schema.categorical, schema.labels, optional)
    if need_conditions and not need_all and schema.continuous_range is not None:
        for values_n, key, known in zip(cells.continuous_nd.T, schema.continuous, schema.continuous_range, strict=True):
            warn_outside(f"adata.obs[{key!r}]", values_n, known)
    return cells if indices is not None else dataclasses.replace(cells, state=state_of(adata, columns, positions))


def _assemble(
    adata: AnnData,
    obs: pd.DataFrame,
    counts: sp.csr_matrix,
    columns: Columns,
    batch: Category | None,
    categorical: tuple[Category, ...],
    labels: Category | None,
    optional: Sequence[str],
) -> Cells:
    place = place_of_counts(columns)
    check_counts(counts, place, whole=False, remedy=lambda: counts_elsewhere(adata, place))
    n = counts.shape[0]
    total_n = totals(counts)
    codes = [
        np.zeros(n, dtype=np.int64) if c is None else _codes(obs, c, optional) for c in (batch, *categorical, labels)
    ]
    continuous = [numbers_of(obs, key, optional) for key in columns.continuous_covariate_keys]
    factors = None if columns.size_factor_key is None else numbers_of(obs, columns.size_factor_key, optional)
    if factors is not None and (factors <= 0).any():
        bad = np.flatnonzero(factors <= 0)
        raise ConditionError(
            f"size_factor_key: {columns.size_factor_key!r} has {len(bad):,} values of zero or below (rows "
            f"{listing(bad.tolist(), 5)}); positive size factors were expected"
        )
    return Cells(
        counts=counts,
        library_n=total_n,
        codes_nc=np.stack(codes, axis=1),
        continuous_nd=np.stack(continuous, axis=1) if continuous else np.zeros((n, 0), np.float32),
        size_factor_n=factors,
    )


def check_unchanged(cells: Cells, *, labels: bool = False) -> None:
    """Raise an error if the AnnData of the cells no longer holds what was read from it.

    Raises
    ------
    CountsError
        For other counts.
    InputError
        For other cells, genes or conditions (labels: if they are needed), or these in another order.
    """
    check_totals(cells.counts, cells.library_n)
    if cells.state is not None:
        cells.state.check(cells.counts, labels=labels)


def check_cells(
    cells: Cells,
    config: ModelConfig,
    columns: Columns = Columns(),  # noqa: B008  # it is frozen
    adata: AnnData | None = None,
    *,
    need_library: bool = True,
    foreign: bool = False,
) -> None:
    """Refuse what a model cannot take: fractions, and cells without counts where the total is the library size.

    Parameters
    ----------
    cells, config
        What is checked, and for which model; with a size factor or a learned library size, any cell will do.
    columns
        Where the counts were, and whether they may be fractions.
    adata
        What the cells are of, for advice.
    need_library
        Whether library sizes are needed: to encode, they are not.
    foreign
        Whether another program trained the model. scvi-tools takes fractions with a warning and keeps no note of them.

    Raises
    ------
    CountsError
        If the model cannot take them; the message names the cells.
    """
    place = place_of_counts(columns)

    def remedy() -> str:
        return SAY_WHERE if adata is None else counts_elsewhere(adata, place)

    if config.has_counts and foreign and not columns.allow_fractional_counts:
        warn_of_fractions(cells.counts, place, remedy)
    elif config.has_counts and not columns.allow_fractional_counts:
        check_counts(cells.counts, place, whole=True, remedy=remedy)
    if need_library:
        names = None if adata is None or adata.n_obs != len(cells) else adata.obs_names
        check_libraries(cells, config, names)


def check_libraries(cells: Cells, config: ModelConfig, names: pd.Index | None) -> None:
    """Refuse cells without counts where their total is the library size, which has no logarithm then.

    Raises
    ------
    CountsError
        If there are such cells; the message lists their rows, and their ``names`` if they are known.
    """
    if config.use_observed_lib_size and not config.use_size_factor:
        check_no_empty_cells(cells.library_n, "adata", names)


def read_labels(obs: pd.DataFrame, columns: Columns, unlabeled_category: Any = None) -> Category | None:
    """Return the labels that occur; None without a column of labels.

    Parameters
    ----------
    obs, columns
        Of the cells.
    unlabeled_category
        The level of cells without a label, which comes last; by default that of ``columns``, where it has one.
    """
    if columns.labels_key is None:
        return None
    labels = _levels(obs, columns.labels_key)
    unlabeled_category = columns.unlabeled_category if unlabeled_category is None else unlabeled_category
    return labels if unlabeled_category is None else labels.with_last(unlabeled_category)


def _levels(obs: pd.DataFrame, key: str) -> Category:
    """The levels of a column that occur, in pandas' order."""
    return Category.of(key, factorize(column_of(obs, key), key)[0])


def _warn_of_many_levels(categories: Sequence[Category | None], n_cells: int) -> None:
    for category in categories:
        if category is not None and len(category.names) > max(10, n_cells / 2):
            warn(
                f"adata.obs[{category.key!r}]: it has {len(category.names):,} levels for {n_cells:,} cells; a column "
                "of samples, donors or the like was expected: a level of one or two cells teaches the model nothing",
                ConditionWarning,
            )


def _codes(obs: pd.DataFrame, category: Category, optional: Sequence[str]) -> np.ndarray:
    key = category.key
    if not has_column(obs, key) and key in optional:
        return np.full(len(obs), UNREAD, dtype=np.int64)
    levels, position_n = factorize(column_of(obs, key), key)
    unknown = [level for level in levels if not category.find(level)]
    if unknown:
        remedy = "; to encode, the column is not needed: you may delete it" if key in optional else ""
        names = [level_name(level) for level in unknown]
        raise ConditionError(
            f"adata.obs[{key!r}]: {listing(names)} came, not among the {len(category.names):,} levels of the "
            f"training data {listing(category.names)}{remedy}{suggestion(names[0], category.names)}"
        )
    codes = category.encode(levels, f"adata.obs[{key!r}]", "levels of the training data")
    if len(np.unique(codes)) < len(codes):
        twice = next(code for code in codes if (codes == code).sum() > 1)
        warn(
            f"adata.obs[{key!r}]: got the levels {' and '.join(map(repr, levels[codes == twice].tolist()))}, which are "
            f"both read as the training level {category.names[twice]!r}",
            ConditionWarning,
        )
    return codes[position_n]
