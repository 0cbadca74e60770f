"""The hot loops of training on the CPU, fused and compiled by Numba; each equal to its form in plain torch.

Importing these modules imports no Numba: the loops' own files are imported at their first call.
"""

from __future__ import annotations

from functools import cache

from scdecode.errors import TrainingWarning, warn


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
