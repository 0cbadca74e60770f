"""What the user said of batch, covariates and labels: read and checked, and back into words and arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from scdecode._utils.levels import Category
from scdecode._utils.names import check_names
from scdecode.errors import ConditionError, ConditionWarning, listing, unknown_name, warn
from scdecode.points import LARGEST
from scdecode.schema import Schema


@dataclass(frozen=True, eq=False)
class Said:
    """One condition as the user gave it: the values of each point, or values with weights, or nothing."""

    per_point: np.ndarray | None = None  # (n,) codes or numbers
    averaged: tuple[tuple[float, float], ...] | None = None  # (code or number, weight) pairs; one pair: one value

    @property
    def is_nothing(self) -> bool:
        """Whether nothing was said: the average of the training cells."""
        return self.per_point is None and self.averaged is None


# -- reading what was said ---------------------------------------------------------------------------------------------


def read_categories(
    schema: Schema,
    n_points: int,
    batch: Any,
    labels: Any,
    categorical: Mapping[str, Any] | None,
    point_names: pd.Index | None = None,
) -> list[Said]:
    """What was said of the batch, each categorical covariate and the label."""
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
            said.append(Said(averaged=((0, 1.0),)))
        else:
            said.append(_read(place, value, n_points, category, point_names))
    return said


def read_numbers(
    schema: Schema, n_points: int, continuous: Mapping[str, Any] | None, point_names: pd.Index | None = None
) -> list[Said]:
    """What was said of each continuous covariate."""
    given = _mapping("continuous", continuous, schema.continuous, "continuous covariates")
    return [_read(f"continuous[{key!r}]", given.get(key), n_points, None, point_names) for key in schema.continuous]


def _mapping(place: str, value: Any, known: Any, kind: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, pd.DataFrame):
        value = {str(key): value[key] for key in value.columns}
    if not isinstance(value, Mapping):
        raise ConditionError(f"{place}: {value!r} came, a mapping of covariate names to values was expected")
    for key in value:
        if str(key) not in known:
            raise ConditionError(unknown_name(place, key, known, kind))
    return {str(key): v for key, v in value.items()}  # columns may be named by whole numbers


def _read(place: str, value: Any, n_points: int, category: Category | None, point_names: pd.Index | None) -> Said:
    """One condition in any of its forms; ``category`` is None for a continuous covariate."""
    if value is None:
        return Said()
    if category is not None and isinstance(value, tuple) and category.find(value):  # a level may be a tuple
        return Said(averaged=((category.find(value)[0], 1.0),))
    if isinstance(value, Mapping):
        codes = _values(place, list(value), category)
        if len(np.unique(codes)) < len(codes):
            raise ConditionError(f"{place}: {dict(value)!r} came, which has a value twice; each once was expected")
        return Said(averaged=tuple(zip(codes.tolist(), read_weights(place, list(value.values())), strict=True)))
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
        return Said(averaged=tuple((code, 1 / len(values)) for code in codes.tolist()))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    check_names(place, value, point_names)
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
        return Said(per_point=_values(place, array, category))
    return Said(averaged=((_values(place, [value], category)[0].item(), 1.0),))


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
    bad = numbers[~(np.abs(numbers) < LARGEST)].tolist()
    if bad:
        raise ConditionError(f"{place}: {listing(bad, 3)} came, finite numbers below {LARGEST:g} were expected")
    return numbers


def read_weights(place: str, weights: list[Any]) -> list[float]:
    """Return weights that sum to one.

    Raises
    ------
    ConditionError
        For what are no numbers, negative ones, or weights that sum to zero.
    """
    try:
        numbers = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConditionError(f"{place}: the weights {weights!r} came, numbers were expected") from error
    if numbers.ndim != 1:
        raise ConditionError(f"{place}: the weights {weights!r} came, single numbers were expected")
    if not ((numbers >= 0).all() and (numbers < LARGEST).all() and numbers.sum() > 0):
        raise ConditionError(f"{place}: the weights {weights!r} came, numbers >= 0 with a positive sum were expected")
    total = numbers.sum()
    # weights that were normalised before stay as they are, to the last bit, so that a result can be made again
    shares = numbers if abs(total - 1) < 1e-12 else numbers / total
    return shares.tolist()


# -- in words ----------------------------------------------------------------------------------------------------------

AVERAGE = "average"
"""What a table says of a condition that was averaged over."""

OUR_COLUMNS = (
    "library_size",
    "time",
    "lineage",
    "condition",
    "support",
    "supported",
    "point",
    "draw",
    "weight",
    "reference_cell",
)
"""What the tables say beside the conditions; so are ``axis_0``, ``axis_1`` and so on."""


def obs_columns(schema: Schema) -> list[str | None]:
    """The column of each condition: batch, categorical covariates, labels, continuous covariates; None: there is none.

    It is the condition's own name, as it was set up, with ``condition_`` before it where that is taken. A slash becomes
    an underscore: in the files of results, it would make a folder.
    """
    columns: list[str | None] = []
    categories = (schema.batch, *schema.categorical, schema.labels)
    for key in (*(None if c is None else c.key for c in categories), *schema.continuous):
        name = None if key is None else key.replace("/", "_")
        while name is not None and (name in OUR_COLUMNS or name.startswith("axis_") or name in columns):
            name = f"condition_{name}"
        columns.append(name)
    return columns


def in_words(
    schema: Schema,
    n_points: int,
    said: list[Said],
    numbers: list[Said],
    library_n: np.ndarray,
    *,
    label_matters: bool,
) -> pd.DataFrame:
    """What each point is decoded with, ``(n, conditions)``, by name."""
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


def arguments_again(
    schema: Schema, said: list[Said], numbers: list[Said], library_n: np.ndarray, max_conditions: int
) -> dict[str, Any]:
    """What was said, such that JSON holds it; ``{"per point": column}`` points into ``obs``."""

    def again(s: Said, column: str | None, names: Sequence[str] | None) -> Any:
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
