"""What the user said of batch, covariates, labels and library size -> codes and weights for the network.

Each condition is one value for all points, one value per point, several values to average over, or nothing. Nothing
means the average over the combinations of the training cells, weighted by how many cells had them; where other
conditions are given, over those combinations that have the given values.

The outcome is a table of *slots*: every point belongs to a group, and a group has up to M slots, each a full
combination of codes with a weight. Decoding a point is the weighted mean over its group's slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch

from scdecode.errors import ConditionError, ConditionWarning, listing, unknown_name, warn
from scdecode.library_size import read_library_size
from scdecode.schema import Category, Schema

_LARGEST = 1e30
"""No covariate is near it, and far above it the network's sums overflow to NaN."""


@dataclass(frozen=True, eq=False)
class Conditions:
    """Resolved conditions of ``n`` points: their groups, the slots of each group, and their library sizes."""

    group_n: np.ndarray | None  # (n,) int64; None: one group for all points
    codes_gmc: np.ndarray  # (groups, slots, c) int64
    continuous_gmd: np.ndarray  # (groups, slots, d) float32
    given_nd: np.ndarray | None  # (n, d) float32, NaN where not given per point; None: nothing is
    weights_gm: np.ndarray  # (groups, slots), each row sums to one; unused slots have weight zero
    library_n: np.ndarray  # (n,) or (1,) float32, in counts or in units of the size factor
    covered_g: np.ndarray  # (groups,): the share of the training cells' weight that the kept slots have
    obs: pd.DataFrame  # what each point was decoded with, in words: (n, conditions)
    arguments: dict[str, Any]  # what was said, such that JSON holds it; {"per point": column} points into obs

    @property
    def n_slots(self) -> int:
        """Combinations that are averaged over, at most, for one point."""
        return self.weights_gm.shape[1]


@dataclass(frozen=True, eq=False)
class _Said:
    """One condition as the user gave it: the values of each point, or values with weights, or nothing."""

    per_point: np.ndarray | None = None  # (n,) codes or numbers
    averaged: tuple[tuple[float, float], ...] | None = None  # (code or number, weight) pairs; one pair: one value

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was said: the average of the training cells."""
        return self.per_point is None and self.averaged is None


def resolve(
    schema: Schema,
    n_points: int,
    *,
    batch: Any = None,
    labels: Any = None,
    categorical: Mapping[str, Any] | None = None,
    continuous: Mapping[str, Any] | None = None,
    library_size: Any = None,
    max_conditions: int = 100,
    label_matters: bool = False,
) -> Conditions:
    """Turn what the user said into codes, weights and library sizes.

    Parameters
    ----------
    schema
        Of the model.
    n_points
        Number of points.
    batch, labels
        A name; a numpy array, pandas Series or Categorical of ``n_points`` names, one per point; a list of names to
        average over equally, or a mapping of names to weights; None for the average of the training cells.
    categorical
        A mapping of covariate names to values, each in one of those forms.
    continuous
        A mapping of covariate names to numbers, in the units of the training data, each in one of those forms.
    library_size
        In counts (or in units of the size factor): a number, an array of one per point, ``"observed"`` for the median
        of the training cells, or None for 1e4 counts (for a model with a size factor: their median).
    max_conditions
        Combinations to average over, at most; the most frequent are kept.
    label_matters
        Whether the model looks at the label at all: only with ``dispersion="gene-label"``.

    Raises
    ------
    ConditionError
        For an unknown name, a wrong length, a value that is missing, or a weight or library size that is no positive
        number.
    """
    asked: Any = max_conditions
    if isinstance(asked, bool) or not isinstance(asked, Integral) or asked < 1:
        raise ConditionError(f"max_conditions: {asked!r} came, a whole number of at least 1 was expected")
    max_conditions = int(asked)
    said = _read_categories(schema, n_points, batch, labels, categorical)
    numbers = _read_numbers(schema, n_points, continuous)
    if labels is not None and not label_matters:
        warn(
            "labels: the model's dispersion does not depend on the label, so it changes nothing that is decoded",
            ConditionWarning,
        )
    relevant = [True] * (len(said) - 1) + [label_matters]
    group_n, given_gc = _groups(said, n_points)
    make_slots = _SlotMaker(schema, said, numbers, relevant, max_conditions)
    slots = [make_slots(given) for given in given_gc]
    n_slots = max(len(s.weights) for s in slots)
    weights_gm = np.zeros((len(slots), n_slots))
    codes_gmc = np.zeros((len(slots), n_slots, len(said)), dtype=np.int64)
    continuous_gmd = np.zeros((len(slots), n_slots, len(numbers)), dtype=np.float32)
    for g, s in enumerate(slots):
        weights_gm[g, : len(s.weights)] = s.weights
        codes_gmc[g, : len(s.weights)] = s.codes
        continuous_gmd[g, : len(s.weights)] = s.continuous
    _warn_of_unseen(schema, codes_gmc, weights_gm, relevant)
    covered_g = np.array([s.covered for s in slots])
    n_asked = int((make_slots.weights > 0).sum())
    if n_asked > max_conditions:
        warn(
            f"max_conditions: {n_asked:,} combinations were asked for, and the {max_conditions:,} of the largest "
            "weight are averaged; raise max_conditions for all of them",
            ConditionWarning,
        )
    per_point = [number.per_point for number in numbers]
    given_nd = None
    if any(values is not None for values in per_point):
        unknown = np.full(n_points, np.nan)
        given_nd = np.stack([unknown if v is None else v for v in per_point], axis=1).astype(np.float32)
    library_n = read_library_size(schema, n_points, library_size)
    return Conditions(
        group_n=group_n,
        codes_gmc=codes_gmc,
        continuous_gmd=continuous_gmd,
        given_nd=given_nd,
        weights_gm=weights_gm,
        library_n=library_n,
        covered_g=covered_g,
        obs=_in_words(schema, n_points, said, numbers, library_n, label_matters=label_matters),
        arguments=_arguments(schema, said, numbers, library_n, max_conditions),
    )


# -- reading what was said ---------------------------------------------------------------------------------------------


def _read_categories(
    schema: Schema, n_points: int, batch: Any, labels: Any, categorical: Mapping[str, Any] | None
) -> list[_Said]:
    known = {category.key: category for category in schema.categorical}
    given = _mapping("categorical", categorical, known, "categorical covariates")
    places: list[tuple[str, Category | None, Any]] = [
        ("batch", schema.batch, batch),
        *((f"categorical[{key!r}]", category, given.get(key)) for key, category in known.items()),
        ("labels", schema.labels, labels),
    ]
    said = []
    for place, category, value in places:
        if category is None:
            if value is not None:
                raise ConditionError(f"{place}: {value!r} came, but the model was set up without {place}; leave it out")
            said.append(_Said(averaged=((0, 1.0),)))
        else:
            said.append(_read(place, value, n_points, category))
    return said


def _read_numbers(schema: Schema, n_points: int, continuous: Mapping[str, Any] | None) -> list[_Said]:
    given = _mapping("continuous", continuous, schema.continuous, "continuous covariates")
    return [_read(f"continuous[{key!r}]", given.get(key), n_points, None) for key in schema.continuous]


def _mapping(place: str, value: Any, known: Any, kind: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, pd.DataFrame):
        value = {str(key): value[key] for key in value.columns}
    if not isinstance(value, Mapping):
        raise ConditionError(f"{place}: {value!r} came, a mapping of covariate names to values was expected")
    for key in value:
        if key not in known:
            raise ConditionError(unknown_name(place, key, known, kind))
    return value


def _read(place: str, value: Any, n_points: int, category: Category | None) -> _Said:
    """One condition in any of its forms; ``category`` is None for a continuous covariate."""
    if value is None:
        return _Said()
    if isinstance(value, Mapping):
        codes = _values(place, list(value), category)
        if len(np.unique(codes)) < len(codes):
            raise ConditionError(f"{place}: {dict(value)!r} came, which has a value twice; each once was expected")
        return _Said(averaged=tuple(zip(codes.tolist(), _weights(place, list(value.values())), strict=True)))
    if isinstance(value, list | tuple | set | frozenset | range):
        values = list(value)
        codes = _values(place, values, category)
        if len(np.unique(codes)) < len(values) or not values:
            raise ConditionError(
                f"{place}: a list of {len(values)} came in which values repeat or which is empty; a list is averaged "
                "over; for one value per point pass a numpy array, for weights a mapping of names to weights"
            )
        if len(values) == n_points > 1:
            warn(
                f"{place}: the list of {n_points} values is averaged over; for one value per point pass a numpy array",
                ConditionWarning,
            )
        return _Said(averaged=tuple((code, 1 / len(values)) for code in codes.tolist()))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(value)
        value = value.data.astype(object)
        value[masked] = None  # what is masked is missing
    if isinstance(value, np.ndarray | pd.Series | pd.Index | pd.api.extensions.ExtensionArray) and np.ndim(value) > 0:
        array = np.asarray(value)
        if array.shape != (n_points,):
            raise ConditionError(
                f"{place}: an array of shape {array.shape} came, one value per point, ({n_points},), was expected"
            )
        return _Said(per_point=_values(place, array, category))
    return _Said(averaged=((_values(place, [value], category)[0].item(), 1.0),))


def _values(place: str, values: Sequence[Any] | np.ndarray, category: Category | None) -> np.ndarray:
    objects = np.asarray(values, dtype=object)
    if objects.ndim != 1:
        raise ConditionError(f"{place}: {listing(objects.tolist(), 3)} came, single names or numbers were expected")
    missing = np.flatnonzero(pd.isna(objects))
    if len(missing):
        raise ConditionError(f"{place}: {len(missing)} values are missing (the first at {missing[0]}); fill them in")
    if category is not None:
        return category.encode(values, place, f"training levels of {category.key!r}")
    try:
        numbers = objects.astype(np.float64)  # by way of objects, as complex numbers and dates would pass for numbers
    except (TypeError, ValueError) as error:
        raise ConditionError(f"{place}: {listing(objects.tolist(), 3)} came, numbers were expected") from error
    bad = numbers[~(np.abs(numbers) < _LARGEST)].tolist()
    if bad:
        raise ConditionError(f"{place}: {listing(bad, 3)} came, finite numbers below {_LARGEST:g} were expected")
    return numbers


def _weights(place: str, weights: list[Any]) -> list[float]:
    try:
        numbers = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConditionError(f"{place}: the weights {weights!r} came, numbers were expected") from error
    if numbers.ndim != 1:
        raise ConditionError(f"{place}: the weights {weights!r} came, single numbers were expected")
    if not ((numbers >= 0).all() and (numbers < _LARGEST).all() and numbers.sum() > 0):
        raise ConditionError(f"{place}: the weights {weights!r} came, numbers >= 0 with a positive sum were expected")
    total = numbers.sum()
    # weights that were normalised before stay as they are, to the last bit, so that a result can be made again
    shares = numbers if abs(total - 1) < 1e-12 else numbers / total
    return shares.tolist()


# -- from what was said to slots ---------------------------------------------------------------------------------------


def _groups(said: list[_Said], n_points: int) -> tuple[np.ndarray | None, list[tuple[int | None, ...]]]:
    """Points with the same values of all conditions given per point; each group as those values, None elsewhere."""
    columns = [s.per_point for s in said]
    given = [c for c in columns if c is not None]
    if not given:
        return None, [(None,) * len(said)]
    values_gc, group_n = np.unique(np.stack(given, axis=1), axis=0, return_inverse=True)
    groups = []
    for row in values_gc.tolist():
        values = iter(row)
        groups.append(tuple(None if c is None else next(values) for c in columns))
    return group_n.reshape(n_points), groups


@dataclass(frozen=True, eq=False)
class _Slots:
    codes: np.ndarray  # (m, c)
    continuous: np.ndarray  # (m, d)
    weights: np.ndarray  # (m,)
    covered: float


class _SlotMaker:
    """The combinations of a group, with weights: those said, times those of the training cells for what was not.

    A combination is a row: a code of each category, then a value of each continuous covariate.
    """

    def __init__(
        self, schema: Schema, said: list[_Said], numbers: list[_Said], relevant: list[bool], max_conditions: int
    ) -> None:
        self.n_codes = len(said)
        self.max_conditions = max_conditions
        self.rows = np.zeros((1, len(said) + len(numbers)))
        self.weights = np.ones(1)
        self.free: list[int] = []
        for j, s in enumerate((*said, *numbers)):
            if s.averaged is not None:
                self._times(j, s.averaged)
            elif s.per_point is None and (j >= self.n_codes or relevant[j]):
                self.free.append(j)
        # a number of each point is filled in point by point
        self.rows[:, [self.n_codes + j for j, s in enumerate(numbers) if s.per_point is not None]] = np.nan
        self.match = [j for j in range(len(said)) if relevant[j] and j not in self.free]
        table = schema.conditions
        self.training = np.concatenate([table.codes_mc, table.continuous_md], axis=1)
        self.n_cells_m = table.n_cells_m.astype(np.float64)

    def _times(self, column: int, pairs: Sequence[tuple[float, float]]) -> None:
        """Every row with every value."""
        values, weights = np.array(pairs).T
        n_rows = len(self.rows)
        self.rows = np.repeat(self.rows, len(values), axis=0)
        self.rows[:, column] = np.tile(values, n_rows)
        self.weights = np.repeat(self.weights, len(values)) * np.tile(weights, n_rows)

    def __call__(self, given: tuple[int | None, ...]) -> _Slots:
        """The combinations of the points that have the values ``given`` of their own, None elsewhere."""
        rows, weights = self.rows.copy(), self.weights
        for j, value in enumerate(given):
            if value is not None:
                rows[:, j] = value
        if self.free:
            rows, weights = self._join_training(rows, weights)
        order = np.argsort(-weights, kind="stable")
        kept = order[: self.max_conditions]
        kept = kept[weights[kept] > 0]
        covered = 1.0 if (weights[order[len(kept) :]] == 0).all() else float(weights[kept].sum() / weights.sum())
        return _Slots(
            codes=rows[kept, : self.n_codes].astype(np.int64),
            continuous=rows[kept, self.n_codes :].astype(np.float32),
            weights=weights[kept] / weights[kept].sum(),
            covered=covered,
        )

    def _join_training(self, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Complete each row by the training combinations that have its codes, in proportion to their cells."""
        completed, shares = [], []
        for row, weight in zip(rows, weights, strict=True):
            fitting = (self.training[:, self.match] == row[self.match]).all(axis=1)
            if not fitting.any():  # never together in training: the best that is known is the average over all
                fitting[:] = True
            free, which = np.unique(self.training[fitting][:, self.free], axis=0, return_inverse=True)
            cells = np.bincount(which.reshape(-1), weights=self.n_cells_m[fitting])
            full = np.repeat(row[None], len(free), axis=0)
            full[:, self.free] = free
            completed.append(full)
            shares.append(weight * cells / cells.sum())
        return np.concatenate(completed), np.concatenate(shares)


def _warn_of_unseen(schema: Schema, codes_gmc: np.ndarray, weights_gm: np.ndarray, relevant: list[bool]) -> None:
    columns = np.flatnonzero(relevant)
    seen = {tuple(row) for row in schema.conditions.codes_mc[:, columns].tolist()}
    used = {tuple(row) for row in codes_gmc[weights_gm > 0][:, columns].tolist()}
    unseen = sorted(used - seen)
    if unseen:
        categories = [schema.batch, *schema.categorical, schema.labels]
        names = [
            ", ".join(f"{c.key}={c.names[code]}" for j, code in zip(columns, row, strict=True) if (c := categories[j]))
            for row in unseen
        ]
        warn(
            f"conditions: {len(names)} combinations never occurred together in training {listing(names, 5)}; "
            "they are decoded, but nothing in the training data supports how their effects combine",
            ConditionWarning,
        )


# -- in words ----------------------------------------------------------------------------------------------------------

AVERAGE = "average"
"""What a table says of a condition that was averaged over."""

OUR_COLUMNS = ("library_size", "time", "support", "supported", "point", "draw", "weight")
"""What the tables say beside the conditions; so are ``axis_0``, ``axis_1`` and so on."""


def obs_columns(schema: Schema) -> list[str | None]:
    """The column of each condition: batch, categorical covariates, labels, continuous covariates; None: there is none.

    It is the condition's own name, as it was set up, with ``condition_`` before it where that is taken.
    """
    columns: list[str | None] = []
    categories = (schema.batch, *schema.categorical, schema.labels)
    for key in (*(None if c is None else c.key for c in categories), *schema.continuous):
        name = key
        while name is not None and (name in OUR_COLUMNS or name.startswith("axis_") or name in columns):
            name = f"condition_{name}"
        columns.append(name)
    return columns


def _in_words(
    schema: Schema,
    n_points: int,
    said: list[_Said],
    numbers: list[_Said],
    library_n: np.ndarray,
    *,
    label_matters: bool,
) -> pd.DataFrame:
    names = obs_columns(schema)
    columns: dict[str, Any] = {}
    categories = (schema.batch, *schema.categorical, schema.labels)
    for s, category, column in zip(said, categories, names, strict=False):
        unsaid_label = category is schema.labels and s.is_nothing and not label_matters
        if category is None or column is None or unsaid_label:
            continue
        if s.per_point is not None:
            columns[column] = pd.Categorical.from_codes(s.per_point.astype(int), categories=category.names)
        else:
            one = s.averaged is not None and len(s.averaged) == 1
            name = category.names[int(s.averaged[0][0])] if s.averaged and one else AVERAGE
            columns[column] = pd.Categorical.from_codes(np.zeros(n_points, dtype=int), categories=[name])
    for s, column in zip(numbers, names[len(said) :], strict=True):
        assert column is not None, "a continuous covariate has a name"
        one_number = s.averaged[0][0] if s.averaged is not None and len(s.averaged) == 1 else np.nan
        columns[column] = s.per_point if s.per_point is not None else np.full(n_points, one_number)
    columns["library_size"] = np.broadcast_to(library_n, (n_points,)).copy()
    return pd.DataFrame(columns)


def _arguments(
    schema: Schema, said: list[_Said], numbers: list[_Said], library_n: np.ndarray, max_conditions: int
) -> dict[str, Any]:
    def again(s: _Said, column: str | None, names: Sequence[str] | None) -> Any:
        if s.per_point is not None:
            return {"per point": column}
        if s.averaged is None:
            return None
        pairs = {value if names is None else names[int(value)]: weight for value, weight in s.averaged}
        return next(iter(pairs)) if len(pairs) == 1 else pairs

    columns = obs_columns(schema)
    batch, labels, categorical = schema.batch, schema.labels, schema.categorical
    said_again = {
        c.key: again(s, column, c.names)
        for s, c, column in zip(said[1:-1], categorical, columns[1 : len(said) - 1], strict=True)
    }
    numbers_again = {
        key: again(s, column, None)
        for s, key, column in zip(numbers, schema.continuous, columns[len(said) :], strict=True)
    }
    return {
        "batch": None if batch is None else again(said[0], columns[0], batch.names),
        "labels": None if labels is None else again(said[-1], columns[len(said) - 1], labels.names),
        "categorical": {key: value for key, value in said_again.items() if value is not None},
        "continuous": {key: value for key, value in numbers_again.items() if value is not None},
        "library_size": float(library_n[0]) if len(library_n) == 1 else {"per point": "library_size"},
        "max_conditions": max_conditions,
    }


def slots_in_words(schema: Schema, conditions: Conditions) -> list[dict[str, Any]]:
    """The combinations with their weights, by name: what an average was taken over.

    Where points have conditions of their own, and so combinations of their own, there are none to list.
    """
    if conditions.group_n is not None:
        return []
    categories = [schema.batch, *schema.categorical, schema.labels]
    columns = obs_columns(schema)
    rows = []
    for codes, numbers, weight in zip(
        conditions.codes_gmc[0], conditions.continuous_gmd[0], conditions.weights_gm[0], strict=True
    ):
        named: dict[str, Any] = {
            str(column): c.names[code]
            for c, code, column in zip(categories, codes, columns, strict=False)
            if c is not None and column in conditions.obs  # it is not where the label changes nothing
        }
        valued = {
            str(column): float(v)
            for column, v in zip(columns[len(codes) :], numbers, strict=True)
            if np.isfinite(v)  # numbers of each point are in obs
        }
        rows.append({**named, **valued, "weight": float(weight)})
    return rows
