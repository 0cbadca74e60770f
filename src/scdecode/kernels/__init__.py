"""The hot loops on the CPU, fused and compiled by Numba; each equal to its form in plain torch.

Importing these modules imports no Numba: the loops' own files are imported at their first call.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch

from scdecode.errors import ConfigError, TrainingWarning, warn

# besides Numba's own errors, those of files that it keeps and that are damaged
_CANNOT_COMPILE = (
    OSError, RuntimeError, SystemError, TypeError, ValueError, LookupError, AttributeError, ImportError, AssertionError,
    EOFError, UnpicklingError,
)  # fmt: skip


@cache
def usable() -> bool:
    """Whether the loops can be compiled here; where not, one warning says why."""
    error = _failure()
    if error is not None:
        warn(
            f"scdecode: Numba cannot compile the fast loops here ({type(error).__name__}: {error}), so training, "
            "decoding and encoding run in plain torch, several times slower; `pip install numba` "
            f"is the remedy where it is missing, and to delete {Path(__file__).parent / '__pycache__'} where its files "
            "are damaged",
            TrainingWarning,
        )
    return error is None


def _failure() -> Exception | None:
    """What keeps the loops from being compiled."""
    try:
        from numba.core.errors import NumbaError

        from scdecode.kernels.compiling import compile_all
    except (ImportError, OSError, SystemError, AttributeError, RuntimeError) as error:  # missing, or not for this numpy
        return error
    try:
        compile_all()
    except (NumbaError, *_CANNOT_COMPILE) as error:
        return error
    return None


def precision_of(name: str) -> torch.dtype:
    """What the processor computes the large products in for ``precision="fp32"`` or ``"bf16"``.

    Raises
    ------
    ConfigError
        Where it has no instructions for ``"bf16"``: it would be slower, and no better.
    """
    if name == "fp32":
        return torch.float32
    tests = (getattr(torch.cpu, test, None) for test in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if not any(test is not None and test() for test in tests):  # an older torch cannot tell
        raise ConfigError(
            "precision: 'bf16' came, but this processor has neither AVX512-BF16 nor AMX; pass precision='fp32', "
            "which is faster here"
        )
    return torch.bfloat16
