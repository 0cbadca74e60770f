"""What is added to expression before a logarithm is taken, so that genes near zero do not win every ranking."""

from __future__ import annotations

import numpy as np

from scdecode.conditions import Conditions
from scdecode.decoding import given_of, plan_of
from scdecode.errors import check_number
from scdecode.expression import Decodable
from scdecode.points import Points

PSEUDOCOUNT = 0.1
"""Counts per ten thousand that are added before a logarithm is taken: a gene counted in one of ten cells."""


def pseudocounts(
    model: Decodable, read: Points, conditions: Conditions, quantity: str, pseudocount: float
) -> np.ndarray:
    """Counts per ten thousand in the unit of a quantity, ``(n,)`` of each point or ``(1,)`` of all.

    Raises
    ------
    ConfigError
        For a pseudocount that is not above zero.
    """
    check_number("pseudocount", pseudocount, 0.0, open_minimum=True)
    per_one_n = np.ones(1) if quantity == "scale" else conditions.library_n.astype(np.float64)
    if model.schema.columns.size_factor_key is not None:
        per_one_n = per_one_n * _mean_total(model, read, conditions)
    return per_one_n * (pseudocount / 1e4)


def _mean_total(model: Decodable, read: Points, conditions: Conditions) -> float:
    """What the scale of all genes sums to at the points, on average: with a size factor that is not one."""
    plan = plan_of(model.vae, conditions, "scale", None)
    total = 0.0
    for start in range(0, len(read), 16):
        rows = slice(start, min(start + 16, len(read)))
        total += float(plan.compute(given_of(read.z_nk[rows], conditions, rows, "scale")).double().sum())
    return total / len(read)
