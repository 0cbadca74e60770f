"""The hot loops of training on the CPU, fused and compiled by Numba; each equal to its form in plain torch.

Importing these modules imports no Numba: the loops' own files are imported at their first call.
"""

from __future__ import annotations

from functools import cache

import torch

from scdecode.errors import ConfigError, TrainingWarning, warn


@cache
def usable() -> bool:
    """Whether the loops can be compiled here; where not, one warning says why."""
    try:
        from scdecode.kernels.compiling import compile_all

        compile_all()
    except Exception as error:  # whatever it is: without the kernels training is slower, and nothing else
        warn(
            f"train: Numba cannot compile the fast loops here ({type(error).__name__}: {error}), so training runs in "
            "plain torch, several times slower; a working installation of numba was expected",
            TrainingWarning,
        )
        return False
    return True


def precision_of(name: str) -> torch.dtype:
    """What the processor computes the large products in for ``precision="fp32"`` or ``"bf16"``.

    Raises
    ------
    ConfigError
        Where it has no instructions for ``"bf16"``: it would be slower, and no better.
    """
    if name == "fp32":
        return torch.float32
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        raise ConfigError(
            "precision: 'bf16' came, but this processor has neither AVX512-BF16 nor AMX; pass precision='fp32', "
            "which is faster here"
        )
    return torch.bfloat16
