"""Decoded points a second beside scvi-tools: its generative half in a loop, and its get_normalized_expression."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import peer
import scvi
import torch
from asked import Asked
from counts import DENSITY, make_cells, make_counts
from models import points_near, train_ours, train_theirs
from report import Row, Section, number
from timing import alternate, rate_of

CASES = ((2_000, 100_000), (20_000, 10_000))  # genes, points
TAKES = ("genes", "threads")
MINIBATCHES = (256, 1024, 4096)
N_SUBSET = 50  # genes
LIBRARY = 1e4
N_TRAINED = 512  # cells
N_NORMALISED = 20_000  # cells given to get_normalized_expression, at most
LOOP_BAR, NORMALIZED_BAR, DREAM_GB = 2.5, 20.0, 4.0  # of the rate, at 2,000 genes

METHOD = (
    "Points near the cells of a model that was trained for one epoch (nb, two batches, one of them given by name), to "
    'numpy. scdecode: `model.decode(points, batch="batch_1", library_size=1e4)`, the rate, with all that it does: '
    "checks, support, names, AnnData; and `model.decoder(batch=..., ...)(points)`, which gives an array. "
    "scvi-tools: `module.generative(...)` in evaluation and inference mode, minibatch "
    f"by minibatch, `px.mu` into one numpy array; its best minibatch of {', '.join(map(str, MINIBATCHES))}, which the "
    f"row names. get_normalized_expression: of cells with {DENSITY:.0%} non-zero counts, `return_numpy=True, "
    f"library_size=1e4`, its other defaults; it encodes the cells first, as that is its only way to points. {N_SUBSET} "
    "genes: of each package the columns of those alone. GB/s: bytes of the result, over the time of the whole call."
)


def measure(asked: Asked) -> Section:
    """All genes and a subset of them, at both sizes."""
    rows = []
    table = [("what", "scdecode, GB/s", "generative in a loop, GB/s", "worth dreaming of")]
    for n_genes, n_points in CASES if asked.genes is None else ((asked.genes, 200_000_000 // asked.genes),):
        n_points = n_points // 10 if asked.quick else n_points
        for wanted in (None, N_SUBSET):
            some = _measure_case(n_genes, n_points, wanted, quick=asked.quick)
            rows += some
            n_bytes = 4 * (wanted or n_genes)
            ours, theirs = (number(n_bytes * figure.median / 1e9) for figure in (some[0].ours, some[0].other))
            table.append((some[0].what, ours, theirs, f"{DREAM_GB:g} GB/s" if wanted is None else ""))
    return Section("Decoding", rows, METHOD, table)


def _measure_case(n_genes: int, n_points: int, wanted: int | None, *, quick: bool) -> list[Row]:
    cells = make_cells(make_counts(N_TRAINED, n_genes))
    ours, theirs = train_ours(cells), train_theirs(cells)
    points = points_near(ours, n_points)
    genes = None if wanted is None else [str(name) for name in cells.var_names[:: n_genes // wanted][:wanted]]
    columns = None if genes is None else torch.arange(0, n_genes, n_genes // len(genes))[: len(genes)]

    loops = {size: rate_of(generative_loop(theirs, points, size, columns), n_points) for size in MINIBATCHES}
    tried = alternate({str(size): loop for size, loop in loops.items()}, 1 if quick else 2)
    best = max(MINIBATCHES, key=lambda size: tried[str(size)].median)

    some = make_cells(make_counts(min(n_points, N_NORMALISED), n_genes, seed=1))
    sides = {
        "decode": rate_of(lambda: ours.decode(points, batch="batch_1", library_size=LIBRARY, genes=genes), n_points),
        "decoder": rate_of(lambda: ours.decoder(batch="batch_1", library_size=LIBRARY, genes=genes)(points), n_points),
        "loop": loops[best],
        "normalized": rate_of(
            lambda: theirs.get_normalized_expression(some, library_size=LIBRARY, gene_list=genes, return_numpy=True),
            len(some),
        ),
    }
    found = alternate(sides, 1 if quick else 5)
    has_bar = n_genes == 2_000 and wanted is None
    what = f"rate, {n_genes:,} genes, {n_points:,} points{'' if wanted is None else f', {wanted} genes wanted'}"
    others = {
        "loop": (f"{peer.NAME}, generative in minibatches of {best:,}", LOOP_BAR),
        "normalized": (f"{peer.NAME}, get_normalized_expression", NORMALIZED_BAR),
    }
    return [
        Row(
            f"{what}, by {call}",
            "points/s",
            found[call],
            found[key],
            name,
            at_least=bar if has_bar else None,
            facts={"genes": n_genes, "points": n_points, "wanted": wanted, "against": key, "by": call},
        )
        for key, (name, bar) in others.items()
        for call in ("decode", "decoder")
    ]


def generative_loop(
    model: scvi.model.SCVI, points: np.ndarray, size: int, columns: torch.Tensor | None
) -> Callable[[], np.ndarray]:
    """The rate of points by scvi-tools' generative half, ``(points, genes)``."""
    module = model.module
    n_columns = module.n_input if columns is None else len(columns)

    def work() -> np.ndarray:
        out = np.empty((len(points), n_columns), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(points), size):
                z = torch.from_numpy(points[start : start + size])
                rate = module.generative(z=z, **constants(len(z)))["px"].mu
                out[start : start + size] = (rate if columns is None else rate[:, columns]).numpy()
        return out

    return work


def constants(n: int) -> dict[str, torch.Tensor]:
    """What the generative half takes beside the points: their library size, batch and label."""
    return {
        "library": torch.full((n, 1), math.log(LIBRARY)),
        "batch_index": torch.zeros((n, 1), dtype=torch.int64),
        "y": torch.zeros((n, 1), dtype=torch.int64),
    }
