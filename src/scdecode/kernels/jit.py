"""How the loops are compiled: kept on disk where there is a place for it, and without Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from scdecode.kernels.cache import check_files_of


def jit(*, fastmath: set[str], forceinline: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator; ``fastmath`` are LLVM's flags of what rounding may change."""
    options: dict[str, Any] = {"fastmath": fastmath, "forceinline": forceinline, "error_model": "numpy", "nogil": True}

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            dispatcher = njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's can be written: every process compiles anew
            return njit(**options)(function)
        check_files_of(dispatcher)
        return dispatcher

    return compiled
