"""What a model was set up with, by name: its genes, its categories, its covariates and the conditions it saw.

Codes (whole numbers that index a category) exist only between this file and the network; whatever a user
says or sees is a name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scdecode._utils.levels import Category
from scdecode._utils.notebook import Shown
from scdecode._utils.ranges import Ranges, are_ranges


@dataclass(frozen=True)
class Columns:
    """Where in an AnnData the counts and the conditions are: what ``setup_anndata`` was told."""

    layer: str | None = None
    batch_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    unlabeled_category: str | None = None
    """The label of cells whose label is not known; of ``SCANVI`` alone."""
    use_raw: bool = False
    """Whether the counts, and the names of the genes, are those of ``adata.raw``."""
    allow_fractional_counts: bool = False
    """Whether counts may be fractions."""
    n_classes: int | None = None
    """Number of the first labels that are classes; None for all labels but the last, the unlabelled category.

    scvi-tools' models have another number if their column of labels had categories of no cell.
    """

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """Every column of ``obs`` that is read."""
        single = (self.batch_key, self.labels_key, self.size_factor_key)
        named = tuple(key for key in single if key is not None)
        return named + self.categorical_covariate_keys + self.continuous_covariate_keys


def columns_to_dict(columns: Columns) -> dict[str, Any]:
    """Return what was said of the columns as a mapping; what was not said has no entry."""
    named = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(columns).items()}
    return {key: value for key, value in named.items() if value not in (None, []) and value is not False}


@dataclass(frozen=True, eq=False, repr=False)
class TrainingConditions(Shown):
    """The conditions that occurred together in the training cells, one a row, with how many cells had them.

    Where there are continuous covariates, the cells of one combination of batch and covariates are cut into up to
    :data:`N_CONTINUOUS_GROUPS` groups of equal size along their main direction, a row each, whose covariates are the
    group's mean: averaging over the rows then follows the covariates' spread and not only their mean.
    """

    codes_mc: np.ndarray  # (rows, categories) int64: batch, each categorical covariate, label
    continuous_md: np.ndarray  # (rows, continuous covariates) float64, in the units of the training data
    n_cells_m: np.ndarray  # (rows,) int64


@dataclass(frozen=True, eq=False, repr=False)
class Schema(Shown):
    """Everything a model knows by name."""

    genes: tuple[str, ...]
    columns: Columns
    batch: Category | None
    labels: Category | None
    categorical: tuple[Category, ...]
    continuous: tuple[str, ...]
    conditions: TrainingConditions | None = None
    """None where the training cells are not known: another program's model, until a reference is attached."""
    n_cells: int | None = None
    median_library: float | None = None
    """Median total count of the training cells."""
    median_size_factor: float | None = None
    """Median size factor of the training cells, where the model was set up with one."""
    max_size_factor: float | None = None
    continuous_range: Ranges | None = None
    """Least and largest value of each continuous covariate in the training cells; None if they are not known."""

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return len(self.genes)

    @property
    def n_batches(self) -> int:
        """Number of batches; one where no batch key was given."""
        return 1 if self.batch is None else len(self.batch.names)

    @property
    def n_labels(self) -> int:
        """Number of labels; one where no labels key was given."""
        return 1 if self.labels is None else len(self.labels.names)

    @property
    def n_classes(self) -> int:
        """Number of labels that a cell can be found to have: the first ones, mostly all but the unlabelled category."""
        if self.columns.n_classes is not None:
            return self.columns.n_classes
        return self.n_labels - (self.columns.unlabeled_category is not None)

    @property
    def n_levels(self) -> tuple[int, ...]:
        """Number of levels of each column of codes: the batch, each categorical covariate, the label."""
        return (self.n_batches, *(len(c.names) for c in self.categorical), self.n_labels)

    @cached_property
    def gene_codes(self) -> dict[str, int]:
        """The position of each gene."""
        return {gene: code for code, gene in enumerate(self.genes)}


N_CONTINUOUS_GROUPS = 5


def tabulate_conditions(codes_nc: np.ndarray, continuous_nd: np.ndarray, *, n_aside: int = 0) -> TrainingConditions:
    """Count the combinations of conditions in the training cells.

    Parameters
    ----------
    codes_nc
        ``(n, c)`` whole numbers, a column for each category.
    continuous_nd
        ``(n, d)`` continuous covariates, ``d`` may be 0.
    n_aside
        How many of the last columns play no part in the cutting of the continuous covariates into groups. The label is
        such a one: an average over rows that differ in nothing else is then the same without it.
    """
    n_covariates = continuous_nd.shape[1]
    if n_covariates == 0:
        codes_mc, n_cells_m = np.unique(codes_nc, axis=0, return_counts=True)
        return TrainingConditions(codes_mc, np.zeros((len(codes_mc), 0)), n_cells_m)
    values_nd = continuous_nd.astype(np.float64)
    spread_d = values_nd.std(axis=0)
    standard_nd = (values_nd - values_nd.mean(axis=0)) / np.where(spread_d > 0, spread_d, 1.0)
    leading_nc = codes_nc[:, : codes_nc.shape[1] - n_aside]
    _, combination_n, sizes_m = np.unique(leading_nc, axis=0, return_inverse=True, return_counts=True)
    by_combination = np.argsort(combination_n.reshape(-1), kind="stable")  # numpy 2.0 gave it an extra axis
    group_n = np.empty(len(codes_nc), dtype=np.int64)
    means: list[np.ndarray] = []
    for cells in np.split(by_combination, np.cumsum(sizes_m)[:-1]):
        for group in _equal_groups(standard_nd[cells]):
            group_n[cells[group]] = len(means)
            means.append(values_nd[cells[group]].mean(axis=0))
    rows, n_cells_m = np.unique(np.column_stack([codes_nc, group_n]), axis=0, return_counts=True)
    return TrainingConditions(rows[:, :-1], np.stack(means)[rows[:, -1]], n_cells_m)


def _equal_groups(values_nd: np.ndarray) -> list[np.ndarray]:
    """Rows in up to ``N_CONTINUOUS_GROUPS`` groups along the main direction; equal rows stay together."""
    centred = values_nd - values_nd.mean(axis=0)
    if not centred.any():
        return [np.arange(len(values_nd))]
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    score_n = centred @ direction
    edges = np.unique(np.quantile(score_n, np.arange(1, N_CONTINUOUS_GROUPS) / N_CONTINUOUS_GROUPS))
    group_n = np.searchsorted(edges, score_n, side="left")
    return [np.flatnonzero(group_n == group) for group in np.unique(group_n)]


def to_dict(schema: Schema) -> dict[str, Any]:
    """The schema as a mapping that JSON can hold."""
    defaults = dataclasses.asdict(Columns())
    return {
        "genes": list(schema.genes),
        # these fields are written where they say something: older versions know none of them
        "columns": {k: v for k, v in dataclasses.asdict(schema.columns).items() if k not in _NEW or v != defaults[k]},
        "batch": None if schema.batch is None else dataclasses.asdict(schema.batch),
        "labels": None if schema.labels is None else dataclasses.asdict(schema.labels),
        "categorical": [dataclasses.asdict(category) for category in schema.categorical],
        "continuous": list(schema.continuous),
        "conditions": None if schema.conditions is None else _conditions_to_dict(schema.conditions),
        "n_cells": schema.n_cells,
        "median_library": schema.median_library,
        "median_size_factor": schema.median_size_factor,
        "max_size_factor": schema.max_size_factor,
        "continuous_range": None if schema.continuous_range is None else [list(r) for r in schema.continuous_range],
    }


_NEW = ("use_raw", "allow_fractional_counts", "n_classes")


def _conditions_to_dict(conditions: TrainingConditions) -> dict[str, Any]:
    return {
        "codes": conditions.codes_mc.tolist(),
        "continuous": conditions.continuous_md.tolist(),
        "n_cells": conditions.n_cells_m.tolist(),
    }


def from_dict(values: Mapping[str, Any]) -> Schema:
    """The schema that :func:`to_dict` wrote.

    Raises
    ------
    KeyError, TypeError, ValueError
        Where a field is missing, of another kind, or does not fit the others; the reader of the file explains it.
    """
    keys: dict[str, Any] = {key: _names(v) if isinstance(v, list) else v for key, v in values["columns"].items()}
    categorical = tuple(_category(c) for c in values["categorical"])
    continuous = _names(values["continuous"])
    known = values["conditions"] is not None
    schema = Schema(
        genes=_names(values["genes"]),
        columns=Columns(**keys),
        batch=None if values["batch"] is None else _category(values["batch"]),
        labels=None if values["labels"] is None else _category(values["labels"]),
        categorical=categorical,
        continuous=continuous,
        conditions=_conditions(values["conditions"], 2 + len(categorical), len(continuous)) if known else None,
        n_cells=values["n_cells"],
        median_library=values["median_library"],
        median_size_factor=values["median_size_factor"],
        max_size_factor=values["max_size_factor"],
        continuous_range=_ranges(values.get("continuous_range")),  # older files have none
    )
    _check_consistent(schema)
    return schema


def _conditions(values: Mapping[str, Any], n_categories: int, n_continuous: int) -> TrainingConditions:
    n_rows = len(values["n_cells"])
    return TrainingConditions(
        codes_mc=_array(values["codes"], np.int64, (n_rows, n_categories)),
        continuous_md=_array(values["continuous"], np.float64, (n_rows, n_continuous)),
        n_cells_m=_array(values["n_cells"], np.int64, (n_rows,)),
    )


def _category(values: Mapping[str, Any]) -> Category:
    category = Category(values["key"], _names(values["names"]), values.get("kind", "str"))
    _ = category.values  # ValueError or KeyError where they are of another kind
    return category


def _ranges(values: Any) -> Ranges | None:
    if values is None:
        return None
    return tuple((float(low), float(high)) for low, high in _array(values, np.float64, (len(values), 2)).tolist())


def _names(values: Any) -> tuple[str, ...]:
    named = isinstance(values, list | tuple) and all(isinstance(v, str) for v in values)
    if not named or len(set(values)) < len(values):
        raise ValueError("a list of names, each once, was expected")
    return tuple(values)


def _array(values: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of one kind in a shape; neither truncated nor from text."""
    array = np.array(values)
    if array.size and array.dtype.kind not in ("i" if dtype is np.int64 else "if"):
        raise ValueError(f"numbers of the kind {dtype.__name__} were expected, {array.dtype} came")
    return array.astype(dtype).reshape(shape)


def _check_consistent(schema: Schema) -> None:
    """Raise ``ValueError`` where one part of a schema does not fit another."""
    columns, conditions = schema.columns, schema.conditions
    known = conditions is not None
    keys = (None if schema.batch is None else schema.batch.key, None if schema.labels is None else schema.labels.key)
    factors = (schema.median_size_factor, schema.max_size_factor)
    numbers = [n for n in (schema.n_cells, schema.median_library, *factors) if n is not None]
    single = [columns.layer, columns.batch_key, columns.labels_key, columns.size_factor_key]
    fits = {
        "genes": len(schema.genes) > 0,
        "columns": all(key is None or isinstance(key, str) for key in single)
        and isinstance(columns.categorical_covariate_keys, tuple)
        and isinstance(columns.continuous_covariate_keys, tuple),
        "batch, labels": keys == (columns.batch_key, columns.labels_key),
        "unlabeled_category": columns.unlabeled_category is None
        or (
            schema.labels is not None
            and columns.unlabeled_category in schema.labels.names
            and (columns.n_classes is not None or schema.labels.names[-1] == columns.unlabeled_category)
        ),
        "n_classes": columns.n_classes is None
        or (type(columns.n_classes) is int and 0 < columns.n_classes <= schema.n_labels),
        "use_raw, allow_fractional_counts": isinstance(columns.use_raw, bool)
        and isinstance(columns.allow_fractional_counts, bool),
        "categorical": tuple(c.key for c in schema.categorical) == columns.categorical_covariate_keys,
        "continuous": schema.continuous == columns.continuous_covariate_keys,
        "names of levels": min(schema.n_levels) > 0,
        "conditions": conditions is None
        or (
            len(conditions.n_cells_m) > 0
            and bool((conditions.n_cells_m > 0).all())
            and bool(np.isfinite(conditions.continuous_md).all())
            and bool(((conditions.codes_mc >= 0) & (conditions.codes_mc < np.array(schema.n_levels))).all())
        ),
        "continuous_range": are_ranges(schema.continuous_range, len(schema.continuous)),
        "n_cells": isinstance(schema.n_cells, int) or (schema.n_cells is None and not known),
        "median_library": (schema.median_library is not None) == known,
        "n_cells, median_library, size factors": all(
            isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e38 for n in numbers
        ),
        "size factors": all(
            (factor is not None) == (known and columns.size_factor_key is not None) for factor in factors
        ),
    }
    for part, fitting in fits.items():
        if not fitting:
            raise ValueError(f"{part}: not as scdecode writes it")
