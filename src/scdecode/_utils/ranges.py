"""The range of a continuous covariate in the training cells, and values outside of it."""

from __future__ import annotations

import numpy as np

from scdecode.errors import ConditionWarning, warn

Ranges = tuple[tuple[float, float], ...]
"""The least and the largest value of each continuous covariate."""

MARGIN = 0.1  # of the width of the range: that of some cells falls short of that of all, and nearby values are usual
_ROUNDING = 1e-5  # of a value: covariates are kept in single precision


def ranges_of(values_nd: np.ndarray) -> Ranges | None:
    """Return the ranges of ``(n, d)`` continuous covariates, None if there are no cells."""
    if not len(values_nd):
        return None
    extremes = values_nd.min(axis=0), values_nd.max(axis=0)
    return tuple((float(low), float(high)) for low, high in zip(*extremes, strict=True))


def are_ranges(ranges: Ranges | None, n_covariates: int) -> bool:
    """Return whether they are the ranges of so many covariates, or None."""
    return ranges is None or (
        len(ranges) == n_covariates and all(np.isfinite(pair).all() and pair[0] <= pair[1] for pair in ranges)
    )


def warn_outside(place: str, values: np.ndarray, known: tuple[float, float]) -> None:
    """Warn of values of a continuous covariate that lie outside of its range in training by more than a tenth of it.

    Parameters
    ----------
    place
        Where the values stand, for the message.
    values
        Numbers; NaN is outside of nothing.
    known
        The least and the largest value in training.
    """
    low, high = known
    margin = max(MARGIN * (high - low), _ROUNDING * max(abs(low), abs(high)))
    outside = values[(values < low - margin) | (values > high + margin)]
    if len(outside):
        first, last = float(outside.min()), float(outside.max())
        came = f"{first:g}" if first == last else f"values from {first:g} to {last:g}"
        share = f" ({len(outside):,} of {len(values):,} values)" if len(values) > 1 else ""
        warn(
            f"{place}: got {came}{share}, outside of the range of the training cells, {low:g} to {high:g}; expected "
            "values within it: what is decoded there is extrapolation, however well supported the points are",
            ConditionWarning,
        )
