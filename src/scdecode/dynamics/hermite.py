"""Curves through values whose derivatives are known: where they are highest, lowest, and steepest, between the points.

Between two points the curve is the cubic that has both values and both derivatives (Hermite); its derivative is a
quadratic, whose roots are the turning points, and whose own turning point is where the curve is steepest. All is for
many genes at once, ``(n, g)``, in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Extremes:
    """Of each gene's curve; each array is ``(g,)``."""

    peak: np.ndarray
    peak_time: np.ndarray
    trough: np.ndarray
    trough_time: np.ndarray
    fastest_rate: np.ndarray  # the derivative that is largest in size, with its sign
    fastest_time: np.ndarray


def extremes(time_n: np.ndarray, value_ng: np.ndarray, slope_ng: np.ndarray, *, between: bool = True) -> Extremes:
    """The highest, the lowest and the steepest place of each curve; of equal ones the first.

    Parameters
    ----------
    time_n, value_ng, slope_ng
        Increasing times; values and their derivatives there.
    between
        Whether to look between the points, too: the derivatives must then be those of one smooth curve.
    """
    places = [(np.broadcast_to(time_n[:, None], value_ng.shape), value_ng)]
    steepest = [(places[0][0], slope_ng)]
    if between:
        h = np.diff(time_n)[:, None]
        start, first, last = value_ng[:-1], h * slope_ng[:-1], h * slope_ng[1:]
        rise = np.diff(value_ng, axis=0)
        c, e = 3 * rise - 2 * first - last, first + last - 2 * rise  # start + first s + c s^2 + e s^3
        for s in _turns(first, c, e):
            at = time_n[:-1, None] + h * s
            places.append((at, start + s * (first + s * (c + s * e))))
        with np.errstate(divide="ignore", invalid="ignore"):
            s = -c / (3 * e)
        s = np.where((s > 0) & (s < 1), s, 0.0)
        steepest.append((time_n[:-1, None] + h * s, (first + s * (2 * c + 3 * s * e)) / h))
    peak, peak_time = _best(places, 1)
    trough, trough_time = _best(places, -1)
    sizes = [(at, np.abs(slope)) for at, slope in steepest]
    _, fastest_time, which, row = _first_best(sizes, 1)
    columns = np.arange(value_ng.shape[1])
    rates = np.stack([slope[np.minimum(row, len(slope) - 1), columns] for _, slope in steepest])
    return Extremes(peak, peak_time, trough, trough_time, rates[which, columns], fastest_time)


def _turns(first: np.ndarray, c: np.ndarray, e: np.ndarray) -> list[np.ndarray]:
    """Both roots of ``first + 2 c s + 3 e s^2`` in (0, 1); 0, where the curve is known anyway, where there is none."""
    square = c * c - 3 * e * first
    # the sum of two terms of one sign, from which both roots follow without cancellation
    q = -(c + np.copysign(np.sqrt(np.maximum(square, 0.0)), c))
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = [q / (3 * e), first / q]
    return [np.where((square >= 0) & (s > 0) & (s < 1), s, 0.0) for s in roots]


def _best(places: list[tuple[np.ndarray, np.ndarray]], sign: int) -> tuple[np.ndarray, np.ndarray]:
    value, at, _, _ = _first_best(places, sign)
    return value, at


def _first_best(
    places: list[tuple[np.ndarray, np.ndarray]], sign: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The best value, where it is, and which of the lists and which row it stands in; each ``(g,)``."""
    columns = np.arange(places[0][1].shape[1])
    rows = np.stack([(sign * values).argmax(axis=0) for _, values in places])
    found = np.stack([values[row, columns] for (_, values), row in zip(places, rows, strict=True)])
    times = np.stack([at[row, columns] for (at, _), row in zip(places, rows, strict=True)])
    which = (sign * found).argmax(axis=0)
    return found[which, columns], times[which, columns], which, rows[which, columns]
