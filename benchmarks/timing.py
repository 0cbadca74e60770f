"""Timing on a machine that drifts: a warm-up, then the sides in turn (A B A B ...), and the median of each."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One number as it was measured: a value a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Figure]:
    """Call each side once to warm up and then ``rounds`` times in turn; a side returns what it measured of itself."""
    for side in sides.values():
        side()
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            gc.collect()
            values[name].append(side())
    return {name: Figure(tuple(numbers)) for name, numbers in values.items()}


def rate_of(work: Callable[[], object], n_items: int) -> Callable[[], float]:
    """A side that does ``work`` and returns items a second."""

    def side() -> float:
        start = time.perf_counter()
        work()
        return n_items / (time.perf_counter() - start)

    return side
