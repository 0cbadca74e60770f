"""AnnData, in memory or backed, to :class:`Cells`: the one place that opens an AnnData.

Counts are kept as CSR until the minibatch. A second AnnData may have its genes in another order and more of them; what
it lacks is listed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype

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
from scdecode.matrices import check_counts, check_no_empty_cells, to_csr
from scdecode.schema import Category, Columns, LevelKind, Schema, tabulate_conditions

SETUP_KEY = "scdecode_setup"
"""Where in ``uns`` :func:`setup_anndata` notes the names of the columns."""

# what h5py, zarr and their codecs raise on a damaged or a foreign file
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, EOFError)

_PIECE = 2**18  # counts that are added up at once

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

    def __len__(self) -> int:
        return len(self.library_n)

    def at(self, rows: np.ndarray) -> Cells:
        """The cells at positions ``rows``, or where the mask ``rows`` is True."""
        rows = check_rows(rows, len(self))
        factors = None if self.size_factor_n is None else self.size_factor_n[rows]
        return Cells(self.counts[rows], self.library_n[rows], self.codes_nc[rows], self.continuous_nd[rows], factors)


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
        return anndata.io.read_zarr(path) if path.is_dir() else anndata.io.read_h5ad(path)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: it cannot be read as an AnnData ({reason}); an .h5ad or .zarr was expected"
        ) from error


def setup_anndata(adata: AnnData, columns: Columns) -> None:
    """Check that the layer and the columns are there, and note their names in ``adata.uns``.

    Raises
    ------
    InputError
        For a layer or a column that is not there; the message lists those that are.
    """
    if not isinstance(adata, AnnData):
        raise InputError(f"adata: {type(adata).__name__} came, an AnnData was expected")
    check_columns(adata, columns)
    named = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(columns).items()}
    # an .h5ad file holds no None; "" is a value, as of an unlabelled category
    adata.uns[SETUP_KEY] = {key: value for key, value in named.items() if value not in (None, [])}


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
    return Columns(**noted)


def check_columns(adata: AnnData, columns: Columns, optional: Sequence[str] = ()) -> None:
    """Raise :class:`InputError` for a layer or a column that is not there, unless it is ``optional``."""
    if columns.layer is not None and columns.layer not in adata.layers:
        raise InputError(unknown_name("layer", columns.layer, adata.layers.keys(), "layers of the AnnData"))
    names = [str(name) for name in adata.obs.columns]
    for field in dataclasses.fields(columns):
        value = getattr(columns, field.name)
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise InputError(f"{field.name}: {listing(value)} came, which names a column twice; each once was expected")
        for key in value if isinstance(value, tuple) else (value,):
            if field.name in ("layer", "unlabeled_category") or key is None:
                continue
            if key not in names and key not in optional:
                raise InputError(unknown_name(field.name, key, names, "columns of adata.obs"))
            if names.count(key) > 1:
                raise InputError(f"{field.name}: adata.obs has {names.count(key)} columns {key!r}; remove all but one")


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
    if adata.n_obs < 2 or adata.n_vars < 1:
        raise CountsError(
            f"adata: {adata.n_obs} cells x {adata.n_vars} genes came, at least two cells and a gene were expected"
        )
    genes = tuple(adata.var_names.astype(str))
    _check_unique(genes)
    batch = _levels(adata.obs, columns.batch_key) if columns.batch_key else None
    labels = read_labels(adata.obs, columns)
    categorical = tuple(_levels(adata.obs, key) for key in columns.categorical_covariate_keys)
    counts = to_csr(*_matrix(adata, columns.layer))
    cells = _assemble(adata.obs, counts, columns, batch, categorical, labels, optional=())
    _warn_of_many_levels((batch, *categorical, labels), len(cells))
    schema = Schema(
        genes=genes,
        columns=columns,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=columns.continuous_covariate_keys,
    )
    return knowing(schema, cells), cells


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
    )


def unknowing(schema: Schema) -> Schema:
    """The schema without what the training cells tell, but for how many there were."""
    return dataclasses.replace(
        schema, conditions=None, median_library=None, median_size_factor=None, max_size_factor=None
    )


def read_cells(
    adata: AnnData,
    schema: Schema,
    *,
    need_conditions: bool,
    need_all: bool = False,
    indices: np.ndarray | None = None,
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
    columns = schema.columns
    seen = (columns.batch_key, *columns.categorical_covariate_keys, *columns.continuous_covariate_keys)
    optional = [] if need_all else [key for key in columns.obs_keys if not (need_conditions and key in seen)]
    check_columns(adata, columns, optional)
    positions = _gene_positions(adata, schema)
    matrix, place = _matrix(adata, columns.layer)
    counts = to_csr(matrix, place)
    obs = adata.obs
    if indices is not None:
        indices = check_rows(indices, len(obs))
        counts, obs = counts[indices], obs.iloc[indices]
    if positions is not None:
        counts = sp.csr_matrix(counts[:, positions])
        counts.sort_indices()
    return _assemble(obs, counts, columns, schema.batch, schema.categorical, schema.labels, optional)


def check_rows(rows: Any, n: int) -> np.ndarray:
    """Positions of cells, or a mask of them, as positions among ``n`` cells.

    Raises
    ------
    InputError
        Where they are neither, or no cell has such a position.
    """
    array = np.asarray(rows)
    if array.dtype == bool and array.shape == (n,):
        return np.flatnonzero(array)
    if array.shape == (0,):
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"indices: an array of shape {array.shape} of {array.dtype} came; positions of cells, or a mask of {n:,} "
            "values, were expected"
        )
    if array.min() < -n or array.max() >= n:
        strange = array.max() if array.max() >= n else array.min()
        raise InputError(f"indices: {strange} came, but there are {n:,} cells: positions 0 to {n - 1:,}")
    return array


def _matrix(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    if layer is not None:
        return adata.layers[layer], f"adata.layers[{layer!r}]"
    if adata.X is None:
        raise CountsError(
            f"adata.X: there is none; say where the counts are with setup_anndata(adata, layer=...); the layers are "
            f"{listing(adata.layers)}"
        )
    return adata.X, "adata.X"


def _assemble(
    obs: pd.DataFrame,
    counts: sp.csr_matrix,
    columns: Columns,
    batch: Category | None,
    categorical: tuple[Category, ...],
    labels: Category | None,
    optional: Sequence[str],
) -> Cells:
    place = "adata.X" if columns.layer is None else f"adata.layers[{columns.layer!r}]"
    check_counts(counts, place, whole=False)
    n = counts.shape[0]
    total_n = _totals(counts)
    codes = [
        np.zeros(n, dtype=np.int64) if c is None else _codes(obs, c, optional) for c in (batch, *categorical, labels)
    ]
    continuous = [_numbers(obs, key, optional) for key in columns.continuous_covariate_keys]
    factors = None if columns.size_factor_key is None else _numbers(obs, columns.size_factor_key, optional)
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


def _totals(counts: sp.csr_matrix) -> np.ndarray:
    """Total counts of each cell, ``(n,)`` float32, added up in double precision without a copy of the counts."""
    total_n = np.zeros(counts.shape[0], dtype=np.float32)
    starts = np.searchsorted(counts.indptr, np.arange(0, counts.nnz, _PIECE), side="right") - 1
    for first, last in itertools.pairwise([*np.unique(starts), len(total_n)]):  # numpy turns all it adds into doubles
        indptr = counts.indptr[first : last + 1]
        filled_n = np.diff(indptr) > 0  # reduceat would take an empty row for the next one's first entry
        some = counts.data[indptr[0] : indptr[-1]]
        if filled_n.any():
            firsts = indptr[:-1][filled_n] - indptr[0]
            total_n[first:last][filled_n] = np.add.reduceat(some, firsts, dtype=np.float64)
    return total_n


def check_unchanged(cells: Cells) -> None:
    """Raise :class:`CountsError` where the counts are no longer those that were read.

    They share memory with the AnnData where they can; scanpy.pp.normalize_total and log1p change that in place.
    """
    changed = np.flatnonzero(_totals(cells.counts) != cells.library_n)
    if len(changed):
        raise CountsError(
            f"adata: the counts of {len(changed):,} of {len(cells):,} cells changed after the model was made, as by "
            "scanpy.pp.normalize_total; keep them in a layer, adata.layers['counts'] = adata.X.copy(), and make the "
            "model with setup_anndata(adata, layer='counts')"
        )


def check_cells(cells: Cells, config: ModelConfig) -> None:
    """Raise :class:`CountsError` for what a model of these options cannot take.

    That is fractions, where the likelihood is one of counts; and cells without counts, where the total is the library
    size.
    """
    check_counts(cells.counts, "adata", whole=config.has_counts)
    if config.use_observed_lib_size and not config.use_size_factor:
        check_no_empty_cells(cells.library_n, "adata")


def _check_unique(genes: Sequence[str] | pd.Index) -> None:
    index = pd.Index(genes)
    if not index.is_unique:
        twice = index[index.duplicated()].unique().tolist()
        raise CountsError(
            f"adata.var_names: {len(twice):,} genes are named more than once {listing(twice, 5)}; call "
            "adata.var_names_make_unique() first"
        )


def _gene_positions(adata: AnnData, schema: Schema) -> np.ndarray | None:
    """Where the model's genes are in the AnnData; None where they are the same in the same order."""
    names = pd.Index(adata.var_names.astype(str))
    if tuple(names) == schema.genes:
        return None
    wanted = np.flatnonzero(names.isin(schema.genes))
    _check_unique(names[wanted])
    found = names[wanted].get_indexer(pd.Index(schema.genes))
    missing = [schema.genes[i] for i in np.flatnonzero(found < 0)]
    if missing:
        raise CountsError(
            f"adata.var_names: {len(missing):,} of the model's {schema.n_genes:,} genes are missing "
            f"{listing(missing)}; give the AnnData before genes were selected, or check that both name genes alike "
            f"(symbols or identifiers: the AnnData begins {listing(names[:3])})"
        )
    return np.asarray(wanted[found])


def read_labels(obs: pd.DataFrame, columns: Columns) -> Category | None:
    """The labels that occur, the unlabelled category last, where there is one; None without a column of labels."""
    if columns.labels_key is None:
        return None
    labels = _levels(obs, columns.labels_key)
    return labels if columns.unlabeled_category is None else labels.with_last(columns.unlabeled_category)


def _levels(obs: pd.DataFrame, key: str) -> Category:
    """The levels of a column that occur, in pandas' order."""
    names, _ = _factorize(obs[key], key)
    if len(set(names)) < len(names):
        raise ConditionError(f"adata.obs[{key!r}]: two of its levels have the same name as text {listing(names)}")
    return Category(key, names, _kind_of(obs[key]))


def _kind_of(column: pd.Series) -> LevelKind:
    levels = column.cat.categories.dtype if isinstance(column.dtype, pd.CategoricalDtype) else column.dtype
    kinds: tuple[tuple[LevelKind, Any], ...] = (
        ("bool", is_bool_dtype),
        ("int", is_integer_dtype),
        ("float", is_float_dtype),
    )
    return next((kind for kind, belongs in kinds if belongs(levels)), "str")


def _factorize(column: pd.Series, key: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the levels of a column that occur, and the position of each cell's among them."""
    _check_present(column, key)
    try:
        levels = column.astype("category").cat.remove_unused_categories().cat
    except TypeError as error:  # lists and the like have no hash
        raise ConditionError(f"adata.obs[{key!r}]: its values are no names ({error}); names were expected") from error
    return tuple(str(level) for level in levels.categories), levels.codes.to_numpy()


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
    if key not in obs.columns and key in optional:
        return np.full(len(obs), UNREAD, dtype=np.int64)
    names, position_n = _factorize(obs[key], key)
    unknown = [name for name in names if name not in category.codes]
    if unknown:
        remedy = "; to encode, the column is not needed: you may delete it" if key in optional else ""
        raise ConditionError(
            f"adata.obs[{key!r}]: {listing(unknown)} came, not among the {len(category.names):,} levels of the "
            f"training data {listing(category.names)}{remedy}{suggestion(unknown[0], category.names)}"
        )
    return np.array([category.codes[name] for name in names], dtype=np.int64)[position_n]


def _numbers(obs: pd.DataFrame, key: str, optional: Sequence[str]) -> np.ndarray:
    if key not in obs.columns and key in optional:
        return np.full(len(obs), np.nan, dtype=np.float32)
    column = obs[key]
    try:
        if column.dtype.kind in "mMc":  # dates would be nanoseconds
            raise TypeError(column.dtype)
        with np.errstate(over="ignore"):
            values = column.to_numpy(dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        _check_present(column, key)
        raise ConditionError(
            f"adata.obs[{key!r}]: {column.dtype} came, numbers were expected; a covariate of names is a categorical one"
        ) from error
    _check_present(pd.Series(values).where(np.isfinite(values)), key)
    return values


def _check_present(column: pd.Series, key: str) -> None:
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise ConditionError(
            f"adata.obs[{key!r}]: {len(missing):,} of {len(column):,} values are missing or infinite (rows "
            f"{listing(missing.tolist(), 5)}); fill them in, or leave those cells out"
        )
