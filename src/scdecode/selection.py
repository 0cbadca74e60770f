"""Which reference cells are meant by a label and a condition, and draws among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdecode._utils.levels import Category
from scdecode.errors import ConditionError
from scdecode.reference import Reference
from scdecode.said import read_categories
from scdecode.schema import Schema

_LISTED = 8  # combinations that an error lists


@dataclass(frozen=True)
class Asked:
    """The levels of one condition that reference cells are to have."""

    place: str
    column: int  # of the codes
    category: Category
    codes: tuple[int, ...]
    weights: tuple[float, ...] | None  # None: in proportion to the cells

    def again(self) -> Any:
        """What was said, such that JSON holds it."""
        names = [self.category.names[code] for code in self.codes]
        if self.weights is not None:
            return dict(zip(names, self.weights, strict=True))
        return names[0] if len(names) == 1 else names


def read_asked(schema: Schema, labels: Any, batch: Any, categorical: Any) -> list[Asked]:
    """Everything that was asked for, the label first, as it is the first that people ask for.

    Parameters
    ----------
    schema
        Of the model.
    labels, batch
        A name, a list of names, a mapping of names to weights, or None.
    categorical
        A mapping of covariate names to values, each in one of these forms, or None.

    Raises
    ------
    ConditionError
        For names that the model does not know, for arrays, for weights that are none.
    """
    columns: list[tuple[str, Category | None]] = [
        ("batch", schema.batch),
        *((f"categorical[{c.key!r}]", c) for c in schema.categorical),
        ("labels", schema.labels),
    ]
    if labels is not None and schema.labels is None:
        raise ConditionError(
            f"labels: {labels!r} came, but the model was set up without labels; leave it out, or train a model that "
            "knows them: setup_anndata(adata, labels_key=...)"
        )
    mapping = categorical if isinstance(categorical, Mapping) else {}
    for value in (labels, batch, categorical, *mapping.values()):
        if hasattr(value, "shape") and np.ndim(value) > 0:
            raise ConditionError(
                f"generate: an array of shape {value.shape} came where names were expected; pass a list of names, or "
                "a mapping of names to weights: series.value_counts().to_dict() keeps the proportions of a column"
            )
    given = {"batch": batch, "labels": labels, **{f"categorical[{str(key)!r}]": v for key, v in mapping.items()}}
    asked = []
    for column, ((place, category), said) in enumerate(
        zip(columns, read_categories(schema, 0, batch, labels, categorical), strict=True)
    ):
        if category is None or said.averaged is None:
            continue
        pairs = sorted((int(code), weight) for code, weight in said.averaged if weight > 0)
        weighted = isinstance(given.get(place), Mapping)
        weights = tuple(weight for _, weight in pairs) if weighted else None
        asked.append(Asked(place, column, category, tuple(code for code, _ in pairs), weights))
    return sorted(asked, key=lambda a: a.place != "labels")


def shares_of(schema: Schema, reference: Reference, asked: list[Asked]) -> np.ndarray:
    """The share that each reference cell has of the cells to be generated, ``(r,)``, which sum to one.

    Raises
    ------
    ConditionError
        Where no cell has a name that was asked for, or a combination of names with weights.
    """
    if reference.codes_rc is None:
        return np.full(len(reference.latent_rk), 1 / len(reference.latent_rk))
    has = {a.place: reference.codes_rc[:, [a.column]] == np.array(a.codes) for a in asked}  # (r, levels)
    chosen_r = np.ones(len(reference.latent_rk), dtype=bool)
    for each in has.values():
        chosen_r &= each.any(axis=1)
    for a in asked:
        # of two lists, some pairs may have no cell; but a name that was asked for and is nowhere in the result would
        # not be noticed
        for i, code in enumerate(a.codes):
            if not (chosen_r & has[a.place][:, i]).any():
                raise ConditionError(_no_cell(schema, reference, asked, {a.place: code}))
    weighted = [a for a in asked if a.weights is not None]
    shares_r = np.zeros(len(chosen_r))
    for levels in itertools.product(*(range(len(a.codes)) for a in weighted)):
        members_r = chosen_r.copy()
        for a, i in zip(weighted, levels, strict=True):
            members_r &= has[a.place][:, i]
        if not members_r.any():
            codes = {a.place: a.codes[i] for a, i in zip(weighted, levels, strict=True)}
            raise ConditionError(_no_cell(schema, reference, asked, codes))
        share = math.prod(a.weights[i] for a, i in zip(weighted, levels, strict=True) if a.weights is not None)
        shares_r[members_r] = share / members_r.sum()
    return shares_r / shares_r.sum()


def _no_cell(schema: Schema, reference: Reference, asked: list[Asked], codes: dict[str, int]) -> str:
    """The message for a combination without cells: the nearest that have some, the most frequent first."""
    assert reference.codes_rc is not None, "they were looked at"
    wanted = [(codes[a.place],) if a.place in codes else a.codes for a in asked]
    names = [
        ", ".join(repr(a.category.names[code]) for code in some) if len(some) < 4 else f"{len(some)} names"
        for a, some in zip(asked, wanted, strict=True)
    ]
    combination = ", ".join(f"{a.place}={name}" for a, name in zip(asked, names, strict=True))
    found, count_m = np.unique(reference.codes_rc[:, [a.column for a in asked]], axis=0, return_counts=True)
    matches_m = np.array([sum(code in some for code, some in zip(row, wanted, strict=True)) for row in found.tolist()])
    # one condition right is nearer than none: of many cell types, those in the donor that was asked for
    order = np.lexsort([-count_m, -matches_m])
    shown = "; ".join(
        ", ".join(f"{a.place}={a.category.names[code]!r}" for a, code in zip(asked, found[m], strict=True))
        + f" ({count_m[m]:,} {'cell' if count_m[m] == 1 else 'cells'})"
        for m in order[:_LISTED]
    )
    more = f"; and {len(order) - _LISTED:,} more" if len(order) > _LISTED else ""
    n_kept = len(reference.latent_rk)
    kept = f" {n_kept:,}" if schema.n_cells is None else f" {n_kept:,} (of {schema.n_cells:,} cells of the model)"
    advice = "; or decode_as=..." if len(asked) > 1 else ""
    return f"{combination}: none of the{kept} reference cells; nearest: {shown}{more}{advice}"


def draw_rows(
    reference: Reference, asked: list[Asked], shares_r: np.ndarray, n: int, generator: np.random.Generator
) -> np.ndarray:
    """Rows of ``n`` reference cells, ``(n,)``, each drawn as often as its share says, up or down to a whole number.

    It is systematic sampling: a comb of ``n`` teeth, at a place by chance, along the shares laid end to end. With the
    cells of a combination side by side, each combination has its proportion, too, to within a cell.
    """
    candidates = generator.permutation(np.flatnonzero(shares_r))
    if reference.codes_rc is not None:
        weighted = [a.column for a in asked if a.weights is not None]
        others = [column for column in range(reference.codes_rc.shape[1]) if column not in weighted]
        keys = [reference.codes_rc[candidates, column] for column in (*others, *weighted)]  # the last counts first
        candidates = candidates[np.lexsort(keys)]
    edges = np.cumsum(shares_r[candidates])
    teeth = (generator.random() + np.arange(n)) / n * edges[-1]
    place_n = np.searchsorted(edges, teeth, side="right").clip(max=len(edges) - 1)
    return generator.permutation(candidates[place_n])
