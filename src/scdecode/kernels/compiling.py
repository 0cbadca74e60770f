"""The loops compiled, or fetched from Numba's files on disk, before their first use."""

from __future__ import annotations

import numpy as np
import torch

from scdecode._utils.progress import notice
from scdecode.kernels import adam_loops, decode_loops, likelihood_loops, sparse_loops
from scdecode.kernels.small_layers import ConditionedLinear, Draw, normal_relu_dropout


def compile_all() -> None:
    """Compile the loops for the types that training gives them, and say so where it takes long."""
    text = "scdecode: compiling the fast loops for this machine, once: some 15 seconds; they are kept on disk"
    with notice(text, after=4.0):  # to fetch them from there takes a second or two
        for index in (np.int32, np.int64):  # of the counts; scipy takes the wider one for very many
            _run(index)
        _run_small()
        _run_decoding()


def _run(index: type) -> None:
    """Each loop once, on one count."""
    rows, indptr = np.zeros(1, np.int64), np.array([0, 1], np.int64)
    indices, values = np.zeros(1, np.int32), np.ones(1, np.float32)
    one, row, block = np.zeros((1, 1), np.float32), np.zeros(1, np.float32), (0, 1)
    ids, logs = indices.copy(), row.copy()
    sparse_loops.gather(
        rows, indptr.astype(index), indices.astype(index), values,
        indptr.copy(), ids, row, logs, indptr.copy(), indices.copy(), row.copy(),
    )  # fmt: skip
    sparse_loops.product(*block, indptr, ids, logs, one, row, one.copy())
    sparse_loops.gradient(*block, indptr, ids, logs, one, one.copy())
    numbers = np.ones(7, np.float32)
    sparse_loops.gradient_and_step(*block, indptr, ids, logs, one, one.copy(), one.copy(), one.copy(), *numbers)
    adam_loops.adam(row.copy(), row, row.copy(), row.copy(), *np.ones(7, np.float32))
    likelihood_loops.thetas(row, row.copy(), row.copy())
    likelihood_loops.finish_theta(one, row, row.copy())
    likelihood_loops.likelihood_blocks(
        *block, likelihood_loops.ZINB, True, False, True, row, row, one, row, one, one, one, indptr, ids, values, row,
        row.copy(), one.copy(), row.copy(), one.copy(), one.copy(),
    )  # fmt: skip


@torch.enable_grad()
def _run_small() -> None:
    """The small layers once, there and back; without a random number, which would be missing elsewhere."""
    x = torch.ones(2, 1, requires_grad=True)
    weight, bias, codes = torch.ones(1, 2, requires_grad=True), torch.ones(1), torch.zeros(2, 1, dtype=torch.int64)
    out = ConditionedLinear.apply(x, codes, weight, bias, [(0, 1)])  # type: ignore[no-untyped-call]
    out = normal_relu_dropout(out, torch.nn.BatchNorm1d(1), None)
    z, kl = Draw.apply(out, out, torch.zeros(2, 1), 1e-4)  # type: ignore[no-untyped-call]
    torch.autograd.backward(z.sum() + kl.sum())


def _run_decoding() -> None:
    """The loops of decoding once, on one point and one gene."""
    one, row, place = np.zeros((1, 1), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
    decode_loops.shift_rows(one, one, place, 0, 1, True, one.copy())
    decode_loops.finish_rows(True, one, one, one, one, place, place, 0, 1, np.ones(1), row, one.copy())
