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
from typing import Any

import numpy as np
import pandas as pd
import torch

from scdecode.errors import ConditionError, ConditionWarning, listing, unknown_name, warn
from scdecode.library_size import read_library_size
from scdecode.schema import Category, Schema


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


@dataclass(frozen=True)
class _Said:
    """One condition as the user gave it: the values of each point, or values with weights, or nothing."""

    per_point: np.ndarray | None = None  # (n,) codes or numbers
    averaged: tuple[tuple[float, float], ...] | None = None  # (code or number, weight) pairs; one pair: one value


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
    if isinstance(max_conditions, bool) or not isinstance(max_conditions, int) or max_conditions < 1:
        raise ConditionError(f"max_conditions: {max_conditions!r} came, a whole number of at least 1 was expected")
    said = _read_categories(schema, n_points, batch, labels, categorical)
    numbers = _read_numbers(schema, n_points, continuous)
    if labels is not None and not label_matters:
        warn(
            "labels: the model's dispersion does not depend on the label, so it changes nothing that is decoded",
            ConditionWarning,
        )
    relevant = [True] * (len(said) - 1) + [label_matters]
    group_n, given_gc = _groups(said, n_points)
    slots = [_slots(schema, said, numbers, given, relevant, max_conditions) for given in given_gc]
    n_slots = max(len(s.weights) for s in slots)
    weights_gm = np.zeros((len(slots), n_slots))
    codes_gmc = np.zeros((len(slots), n_slots, len(said)), dtype=np.int64)
    continuous_gmd = np.zeros((len(slots), n_slots, len(numbers)), dtype=np.float32)
    for g, s in enumerate(slots):
        weights_gm[g, : len(s.weights)] = s.weights
        codes_gmc[g, : len(s.weights)] = s.codes
        continuous_gmd[g, : len(s.weights)] = s.continuous
    _warn_of_unseen(schema, codes_gmc, weights_gm, said, relevant)
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
        covered_g=np.array([s.covered for s in slots]),
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
        return _Said(averaged=tuple(zip(codes.tolist(), _weights(place, list(value.values())), strict=True)))
    if isinstance(value, list | tuple | set | frozenset):
        values = list(value)
        if len(set(map(str, values))) < len(values) or not values:
            raise ConditionError(
                f"{place}: a list of {len(values)} came in which values repeat or which is empty; a list is averaged "
                "over; for one value per point pass a numpy array, for weights a mapping of names to weights"
            )
        if len(values) == n_points > 1:
            warn(
                f"{place}: the list of {n_points} values is averaged over; for one value per point pass a numpy array",
                ConditionWarning,
            )
        codes = _values(place, values, category)
        return _Said(averaged=tuple((code, 1 / len(values)) for code in codes.tolist()))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | pd.Series | pd.Index | pd.Categorical) and np.ndim(value) > 0:
        values = np.asarray(value)
        if values.shape != (n_points,):
            raise ConditionError(
                f"{place}: an array of shape {values.shape} came, one value per point, ({n_points},), was expected"
            )
        return _Said(per_point=_values(place, values, category))
    return _Said(averaged=((_values(place, [value], category)[0].item(), 1.0),))


def _values(place: str, values: Sequence[Any] | np.ndarray, category: Category | None) -> np.ndarray:
    missing = np.flatnonzero(pd.isna(np.asarray(values, dtype=object)))
    if len(missing):
        raise ConditionError(f"{place}: {len(missing)} values are missing (the first at {missing[0]}); fill them in")
    if category is not None:
        return category.encode(values, place, f"training levels of {category.key!r}")
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConditionError(f"{place}: {values!r} came, numbers were expected") from error
    if not np.isfinite(numbers).all():
        raise ConditionError(
            f"{place}: {listing(numbers[~np.isfinite(numbers)], 3)} came, finite numbers were expected"
        )
    return numbers


def _weights(place: str, weights: list[Any]) -> list[float]:
    try:
        numbers = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConditionError(f"{place}: the weights {weights!r} came, numbers were expected") from error
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.sum() > 0):
        raise ConditionError(f"{place}: the weights {weights!r} came, numbers >= 0 with a positive sum were expected")
    return (numbers / numbers.sum()).tolist()  # type: ignore[no-any-return]


# -- from what was said to slots ---------------------------------------------------------------------------------------


def _groups(said: list[_Said], n_points: int) -> tuple[np.ndarray | None, list[tuple[int | None, ...]]]:
    """Points that have the same values of all conditions given per point; each group as those values, None elsewhere."""
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


def _slots(
    schema: Schema,
    said: list[_Said],
    numbers: list[_Said],
    given: tuple[int | None, ...],
    relevant: list[bool],
    max_conditions: int,
) -> _Slots:
    """The combinations of one group, with weights: those said, times those of the training cells for what was not."""
    rows = pd.DataFrame({"weight": [1.0]})
    free: list[str] = []
    for j, s in enumerate(said):
        value = given[j]
        pairs = ((value, 1.0),) if value is not None else s.averaged
        if pairs is None and relevant[j]:
            free.append(f"c{j}")
        else:
            rows = _times(rows, f"c{j}", pairs or ((0, 1.0),))
    for j, s in enumerate(numbers):
        if s.per_point is not None:
            rows[f"d{j}"] = np.nan  # filled in point by point
        elif s.averaged is not None:
            rows = _times(rows, f"d{j}", s.averaged)
        else:
            free.append(f"d{j}")
    if free:
        match = [f"c{j}" for j in range(len(said)) if relevant[j] and f"c{j}" not in free]
        rows = _join_training(schema, rows, free, match)
    rows = rows[rows["weight"] > 0].sort_values("weight", ascending=False, kind="stable")
    kept = rows.head(max_conditions)
    covered = float(kept["weight"].sum() / rows["weight"].sum())
    return _Slots(
        codes=kept[[f"c{j}" for j in range(len(said))]].to_numpy(dtype=np.int64),
        continuous=kept[[f"d{j}" for j in range(len(numbers))]].to_numpy(dtype=np.float32),
        weights=(kept["weight"] / kept["weight"].sum()).to_numpy(),
        covered=covered,
    )


def _times(rows: pd.DataFrame, name: str, pairs: Sequence[tuple[float, float]]) -> pd.DataFrame:
    """Every row with every value."""
    values = pd.DataFrame(pairs, columns=[name, "times"])
    rows = rows.merge(values, how="cross")
    rows["weight"] *= rows.pop("times")
    return rows


def _join_training(schema: Schema, rows: pd.DataFrame, free: list[str], match: list[str]) -> pd.DataFrame:
    """Complete each row by the training combinations that have its codes, in proportion to their cells."""
    table = schema.conditions
    training = pd.DataFrame(table.codes_mc, columns=[f"c{j}" for j in range(table.codes_mc.shape[1])])
    for j in range(table.continuous_md.shape[1]):
        training[f"d{j}"] = table.continuous_md[:, j]
    training["cells"] = table.n_cells_m.astype(np.float64)
    completed = []
    for index in range(len(rows)):
        row = rows.iloc[[index]]
        fitting = training[(training[match] == row[match].iloc[0]).all(axis=1)]
        if fitting.empty:  # never together in training: the best that is known is the average over all
            fitting = training
        share = fitting.groupby(free, as_index=False)["cells"].sum()
        full = row.merge(share, how="cross")
        full["weight"] *= full.pop("cells") / share["cells"].sum()
        completed.append(full)
    return pd.concat(completed, ignore_index=True)


def _warn_of_unseen(
    schema: Schema, codes_gmc: np.ndarray, weights_gm: np.ndarray, said: list[_Said], relevant: list[bool]
) -> None:
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


def _in_words(
    schema: Schema,
    n_points: int,
    said: list[_Said],
    numbers: list[_Said],
    library_n: np.ndarray,
    *,
    label_matters: bool,
) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for s, category in zip(said, (schema.batch, *schema.categorical, schema.labels), strict=True):
        unsaid_label = category is schema.labels and s == _Said() and not label_matters
        if category is None or unsaid_label:
            continue
        if s.per_point is not None:
            columns[category.key] = pd.Categorical.from_codes(s.per_point.astype(int), categories=category.names)
        else:
            one = s.averaged is not None and len(s.averaged) == 1
            name = category.names[int(s.averaged[0][0])] if s.averaged and one else AVERAGE
            columns[category.key] = pd.Categorical.from_codes(np.zeros(n_points, dtype=int), categories=[name])
    for s, key in zip(numbers, schema.continuous, strict=True):
        one_number = s.averaged[0][0] if s.averaged is not None and len(s.averaged) == 1 else np.nan
        columns[key] = s.per_point if s.per_point is not None else np.full(n_points, one_number)
    columns["library_size"] = np.broadcast_to(library_n, (n_points,)).copy()
    return pd.DataFrame(columns)


def _arguments(
    schema: Schema, said: list[_Said], numbers: list[_Said], library_n: np.ndarray, max_conditions: int
) -> dict[str, Any]:
    def again(s: _Said, key: str, names: Sequence[str] | None) -> Any:
        if s.per_point is not None:
            return {"per point": key}
        if s.averaged is None:
            return None
        pairs = {value if names is None else names[int(value)]: weight for value, weight in s.averaged}
        return next(iter(pairs)) if len(pairs) == 1 else pairs

    said_again = {c.key: again(s, c.key, c.names) for s, c in zip(said[1:-1], schema.categorical, strict=True)}
    numbers_again = {key: again(s, key, None) for s, key in zip(numbers, schema.continuous, strict=True)}
    batch, labels = schema.batch, schema.labels
    return {
        "batch": None if batch is None else again(said[0], batch.key, batch.names),
        "labels": None if labels is None else again(said[-1], labels.key, labels.names),
        "categorical": {key: value for key, value in said_again.items() if value is not None},
        "continuous": {key: value for key, value in numbers_again.items() if value is not None},
        "library_size": float(library_n[0]) if len(library_n) == 1 else {"per point": "library_size"},
        "max_conditions": max_conditions,
    }


def slots_in_words(schema: Schema, conditions: Conditions) -> list[dict[str, Any]]:
    """The combinations of the first group with their weights, by name: what an average was taken over."""
    categories = [schema.batch, *schema.categorical, schema.labels]
    rows = []
    for codes, numbers, weight in zip(
        conditions.codes_gmc[0], conditions.continuous_gmd[0], conditions.weights_gm[0], strict=True
    ):
        if weight > 0:
            named = {c.key: c.names[code] for c, code in zip(categories, codes, strict=True) if c is not None}
            valued = {key: float(v) for key, v in zip(schema.continuous, numbers, strict=True) if np.isfinite(v)}
            rows.append({**named, **valued, "weight": float(weight)})
    return rows
