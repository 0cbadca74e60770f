"""How long one decoded point takes: what a slider in a picture waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import peer
import torch
from asked import Asked
from counts import make_cells, make_counts
from decoding import LIBRARY, N_TRAINED, constants
from models import points_near, train_ours, train_theirs
from report import Row, Section
from timing import alternate

GENES = (2_000, 20_000)
TAKES = ("genes", "threads")
N_CALLS = 100  # a round

METHOD = (
    f"Milliseconds of a call, warm: the median of {N_CALLS} calls in a row is a round. scdecode: the whole of "
    '`model.decode(z, batch="batch_1", library_size=1e4)` for one point, as one uses it: checks, support, names, '
    "AnnData; and a call of `decode = model.decoder(batch=..., library_size=...)`, which gives an array. "
    "scvi-tools: `module.generative(...)` alone, in inference mode, with every tensor made beforehand, and no "
    "name of a gene."
)


def measure(asked: Asked) -> Section:
    """Both packages, at both sizes."""
    rows = []
    for n_genes in asked.pick("genes", GENES):
        cells = make_cells(make_counts(N_TRAINED, n_genes))
        ours, theirs = train_ours(cells), train_theirs(cells)
        point, others = points_near(ours, 1), constants(1)
        z, module = torch.from_numpy(point), theirs.module

        decode = ours.decoder(batch="batch_1", library_size=LIBRARY)
        sides = {
            "model.decode": _milliseconds(lambda m=ours, p=point: m.decode(p, batch="batch_1", library_size=LIBRARY)),
            "model.decoder": _milliseconds(lambda d=decode, p=point: d(p)),
            "theirs": torch.inference_mode()(_milliseconds(lambda m=module, z=z, o=others: m.generative(z=z, **o))),
        }
        found = alternate(sides, 2 if asked.quick else 5)
        for name in ("model.decode", "model.decoder"):
            rows.append(
                Row(
                    f"one point, {n_genes:,} genes, {name}",
                    "ms",
                    found[name],
                    found["theirs"],
                    f"{peer.NAME}, generative alone",
                    at_most=1.0,
                    dream=0.2,
                    bar_on_ours=True,
                    facts={"genes": n_genes, "call": name},
                )
            )
    return Section("Latency of one decoded point", rows, METHOD)


def _milliseconds(call: Callable[[], object]) -> Callable[[], float]:
    def side() -> float:
        taken = []
        for _ in range(N_CALLS):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return 1e3 * statistics.median(taken)

    return side
