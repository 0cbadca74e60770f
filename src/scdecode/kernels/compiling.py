"""The loops compiled, or fetched from Numba's files on disk, before their first use."""

from __future__ import annotations

import numpy as np

from scdecode.kernels import adam_loops, likelihood_loops, sparse_loops
from scdecode.progress import notice


def compile_all() -> None:
    """Compile the loops for the types that training gives them, and say so where it takes long."""
    with notice("scdecode: compiling the fast loops for this machine; they are kept on disk"):
        for index in (np.int32, np.int64):  # of the counts; scipy takes the wider one for very many
            _run(index)


def _run(index: type) -> None:
    """Each loop once, on one count."""
    rows, indptr = np.zeros(1, np.int64), np.array([0, 1], np.int64)
    indices, values = np.zeros(1, np.int32), np.ones(1, np.float32)
    one, row, block = np.zeros((1, 1), np.float32), np.zeros(1, np.float32), (0, 1)
    ids, logs = indices.copy(), row.copy()
    sparse_loops.gather_rows(rows, indptr.astype(index), indices.astype(index), values, indptr.copy(), ids, row, logs)
    sparse_loops.turn_round(indptr, ids, logs, indptr.copy(), indices.copy(), row)
    sparse_loops.product_blocks(*block, indptr, ids, logs, one, row, one.copy())
    sparse_loops.gradient_blocks(*block, indptr, ids, logs, one, one.copy())
    adam_loops.adam_blocks(0, 1, row.copy(), row, row.copy(), row.copy(), *np.ones(6, np.float32))
    likelihood_loops.likelihood_blocks(
        *block, likelihood_loops.ZINB, True, False, True, one, row, one, one, indptr, ids, values, row,
        row.copy(), one.copy(), row.copy(), one.copy(), one.copy(),
    )  # fmt: skip
