"""What a run of the benchmarks was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

DEFAULT_THREADS = 2


@dataclass(frozen=True)
class Asked:
    """Small or whole, and the part of a grid; None is all of it."""

    quick: bool = False
    genes: int | None = None
    likelihood: str | None = None
    nonzero: int | None = None  # per cent
    threads: int | None = None

    @property
    def is_part(self) -> bool:
        """Whether only a part of a grid was asked for, which is no record of the grid."""
        return any(value is not None for value in (self.genes, self.likelihood, self.nonzero, self.threads))

    def pick(self, name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The values of one side of a grid: those given, or the one that was asked for."""
        chosen = getattr(self, name)
        return values if chosen is None else (chosen,)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Both packages in ``n`` threads: scdecode's kernels take as many as torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
