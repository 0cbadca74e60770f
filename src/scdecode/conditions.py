"""What the user said of batch, covariates, labels and library size -> codes and weights for the network.

Each condition is one value for all points, one value per point, several values to average over, or nothing. Nothing
means the average over the combinations of the training cells, weighted by how many cells had them; where other
conditions are given, over those combinations that have the given values. Where the training cells are not known, it
means the plain average over the levels.

The outcome is a table of *slots*: every point belongs to a group, and a group has up to M slots, each a full
combination of codes with a weight. Decoding a point is the weighted mean over its group's slots.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from scdecode._utils.ranges import warn_outside
from scdecode.errors import ConditionError, ConditionWarning, listing, warn
from scdecode.library_size import read_library_size
from scdecode.said import Said, arguments_again, in_words, obs_columns, read_categories, read_numbers
from scdecode.schema import Schema, TrainingConditions

LITTLE = 0.9
"""An average over the training conditions that covers less of their cells is warned of."""


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
    point_names: pd.Index | None = None,
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
    point_names
        Names of the points; a Series that has the same in another order is an error.

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
    said = read_categories(schema, n_points, batch, labels, categorical, point_names)
    numbers = read_numbers(schema, n_points, continuous, point_names)
    _warn_of_range(schema, numbers)
    if labels is not None and not label_matters:
        warn(
            "labels: the model's dispersion does not depend on the label, so it changes nothing that is decoded",
            ConditionWarning,
        )
    relevant = [True] * (len(said) - 1) + [label_matters]
    _check_averageable(schema, numbers)
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
    if schema.conditions is None:
        _warn_of_uniform(schema, make_slots)
    else:
        _warn_of_unseen(schema.conditions, schema, codes_gmc, weights_gm, relevant)
    covered_g = np.array([s.covered for s in slots])
    n_asked = int((make_slots.weights > 0).sum())
    if n_asked > max_conditions:
        warn(
            f"max_conditions: {n_asked:,} combinations were asked for, and the {max_conditions:,} of the largest "
            "weight are averaged; raise max_conditions for all of them",
            ConditionWarning,
        )
    elif covered_g.min() < LITTLE and schema.conditions is not None:
        warn(
            f"max_conditions: the {max_conditions:,} most frequent combinations, which are averaged, cover "
            f"{covered_g.min():.0%} of the training cells that have what was given; raise max_conditions, or say more",
            ConditionWarning,
        )
    per_point = [number.per_point for number in numbers]
    given_nd = None
    if any(values is not None for values in per_point):
        unknown = np.full(n_points, np.nan)
        given_nd = np.stack([unknown if v is None else v for v in per_point], axis=1).astype(np.float32)
    library_n = read_library_size(schema, n_points, library_size, point_names)
    return Conditions(
        group_n=group_n,
        codes_gmc=codes_gmc,
        continuous_gmd=continuous_gmd,
        given_nd=given_nd,
        weights_gm=weights_gm,
        library_n=library_n,
        covered_g=covered_g,
        obs=in_words(schema, n_points, said, numbers, library_n, label_matters=label_matters),
        arguments=arguments_again(schema, said, numbers, library_n, max_conditions),
    )


def _groups(said: list[Said], n_points: int) -> tuple[np.ndarray | None, list[tuple[int | None, ...]]]:
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
        self, schema: Schema, said: list[Said], numbers: list[Said], relevant: list[bool], max_conditions: int
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
        self.n_levels = schema.n_levels
        self.training = None
        if (table := schema.conditions) is not None:
            self.training = np.concatenate([table.codes_mc, table.continuous_md], axis=1)
            self.n_cells_m = table.n_cells_m.astype(np.float64)

    @property
    def n_free(self) -> int:
        """Combinations of levels of what was not said."""
        return math.prod(self.n_levels[j] for j in self.free)

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
        if self.training is None and self.n_free > 1:
            rows, weights, covered = self._join_levels(rows, weights)
            return self._slots(rows, weights, covered)
        if self.training is not None and self.free:
            rows, weights = self._join_training(self.training, rows, weights)
        order = np.argsort(-weights, kind="stable")
        kept = order[: self.max_conditions]
        kept = kept[weights[kept] > 0]
        covered = 1.0 if (weights[order[len(kept) :]] == 0).all() else float(weights[kept].sum() / weights.sum())
        return self._slots(rows[kept], weights[kept], covered)

    def _slots(self, rows: np.ndarray, weights: np.ndarray, covered: float) -> _Slots:
        return _Slots(
            codes=rows[:, : self.n_codes].astype(np.int64),
            continuous=rows[:, self.n_codes :].astype(np.float32),
            weights=weights / weights.sum(),
            covered=covered,
        )

    def _join_levels(self, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Complete each row by all combinations of levels of what was not said, or a fair choice of as many as may be.

        The choice is the same in each call: what is decoded must not depend on it.
        """
        rows, weights = rows[weights > 0], weights[weights > 0]
        order = np.argsort(-weights, kind="stable")[: self.max_conditions]
        kept = min(self.n_free, self.max_conditions // len(order))
        codes = _combinations([self.n_levels[j] for j in self.free], kept)
        full = np.repeat(rows[order], kept, axis=0)
        full[:, self.free] = np.tile(codes, (len(order), 1))
        share = float(weights[order].sum() / weights.sum()) * kept / self.n_free
        return full, np.repeat(weights[order], kept), share

    def _join_training(
        self, training: np.ndarray, rows: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Complete each row by the training combinations that have its codes, in proportion to their cells."""
        completed, shares = [], []
        for row, weight in zip(rows, weights, strict=True):
            fitting = (training[:, self.match] == row[self.match]).all(axis=1)
            if not fitting.any():  # never together in training: the best that is known is the average over all
                fitting[:] = True
            free, which = np.unique(training[fitting][:, self.free], axis=0, return_inverse=True)
            cells = np.bincount(which.reshape(-1), weights=self.n_cells_m[fitting])
            full = np.repeat(row[None], len(free), axis=0)
            full[:, self.free] = free
            completed.append(full)
            shares.append(weight * cells / cells.sum())
        return np.concatenate(completed), np.concatenate(shares)


def _combinations(n_levels: list[int], n: int) -> np.ndarray:
    """Codes of ``n`` combinations of levels, ``(n, categories)``: all, if there are no more, or a fair choice."""
    chosen, total = random.Random(0), math.prod(n_levels)
    if total > 2**62:  # more than numpy counts; that one is drawn twice is out of the question
        return np.array([[chosen.randrange(levels) for levels in n_levels] for _ in range(n)])
    return np.stack(np.unravel_index(sorted(chosen.sample(range(total), n)), n_levels), axis=1)


def _warn_of_range(schema: Schema, numbers: list[Said]) -> None:
    if schema.continuous_range is None:
        return
    for key, number, known in zip(schema.continuous, numbers, schema.continuous_range, strict=True):
        values = number.per_point
        if number.averaged is not None:
            values = np.array([value for value, weight in number.averaged if weight > 0])
        if values is not None:
            warn_outside(f"continuous[{key!r}]", values, known)


def _check_averageable(schema: Schema, numbers: list[Said]) -> None:
    """Raise :class:`ConditionError` for a continuous covariate of which nobody can tell the average."""
    unsaid = [
        name
        for name, number in zip(schema.continuous, numbers, strict=True)
        if number.averaged is None and number.per_point is None
    ]
    if unsaid and schema.conditions is None:
        raise ConditionError(
            f"continuous: {listing(unsaid)} were not given, and this model keeps no training cells whose values could "
            f"be averaged (files of scvi-tools have none); pass continuous={{{unsaid[0]!r}: ...}}, or call "
            "model.attach_reference(adata) once"
        )


def _warn_of_uniform(schema: Schema, make_slots: _SlotMaker) -> None:
    if make_slots.n_free < 2:
        return
    categories = [schema.batch, *schema.categorical, schema.labels]
    names = [c.key for j in make_slots.free if (c := categories[j]) is not None and len(c.names) > 1]
    n_asked = len(make_slots.rows) * make_slots.n_free
    few = ""
    if n_asked > make_slots.max_conditions:
        few = f" over {make_slots.max_conditions:,} of the {n_asked:,} combinations (max_conditions), chosen at random"
    warn(
        f"conditions: {listing(names)} not given, and this model keeps no training cells to weigh the levels by: the "
        f"result is the plain average{few}; say which you want, or call model.attach_reference(adata) once",
        ConditionWarning,
    )


def _warn_of_unseen(
    training: TrainingConditions,
    schema: Schema,
    codes_gmc: np.ndarray,
    weights_gm: np.ndarray,
    relevant: list[bool],
) -> None:
    columns = np.flatnonzero(relevant)
    seen = {tuple(row) for row in training.codes_mc[:, columns].tolist()}
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
