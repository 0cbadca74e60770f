"""What the rooms of truth.py take and give: how much is to be measured, a title, words, tables, numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("SCDECODE_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Sizes:
    """How much is measured; less in a quick run, which only shows that it runs."""

    seeds: int = 3  # of simulated cells
    model_seeds: int = 1  # of models of real cells, a left-out part each
    cells: int = 2000
    genes: int = 1000
    libraries: tuple[int, ...] = (1000, 100)
    batches: tuple[int, ...] = (1, 5)
    epochs: int | None = None
    folds: int | None = None  # what is left out in turn: so many; None: all
    points: int = 100  # of a path


QUICK = Sizes(seeds=1, cells=300, genes=60, libraries=(1000,), batches=(2,), epochs=3, folds=1, points=12)


@dataclass(frozen=True)
class Outcome:
    title: str
    text: str
    tables: str
    data: dict[str, Any]  # the numbers, for JSON


def table(lines: Sequence[Sequence[str]]) -> str:
    """In markdown, the first line the head."""
    head, *rest = lines
    rows = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def per_ten_thousand(fractions: np.ndarray) -> np.ndarray:
    """log1p of expression per ten thousand."""
    return np.log1p(1e4 * fractions)
