"""How the cost of training grows with cells, genes and batches."""

from __future__ import annotations

import peer
from asked import DEFAULT_THREADS, Asked
from children import run_script
from counts import make_cells, make_counts
from report import HERE, Row, Section
from timing import Figure, alternate
from training import BATCH_SIZE, cells_of_epoch, ours, theirs

TAKES = ("threads",)
N_GENES = 2_000
CELLS = (1_000, 10_000, 100_000, 1_000_000)
GENES = (500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000)
BATCHES = (1, 10, 100, 1_000)
PEER_GENES = (500, 2_000, 10_000, 30_000)
ROUNDS = 3
N_STEPS = 50  # of an epoch, at most, however many cells there are

METHOD = (
    f"Training with the defaults of both packages (nb, minibatches of {BATCH_SIZE}, 8 % non-zero counts), time a cell "
    f"from one epoch's end to the next's. Cells: {N_GENES:,} genes, two batches, each point in a fresh process; an "
    f"epoch there is at most {N_STEPS} steps over cells drawn from all of them (train_size), as a whole epoch of a "
    "million cells would take scvi-tools minutes: so what is shown is the time of a step, and not that of reading the "
    "cells, which is done once. Memory: the peak above data and code, as in the section on memory; 8 % of 2,000 genes "
    "is 1.2 GiB for a million cells. Genes: two batches, the cells of the training section. Batches: "
    f"{N_GENES:,} genes, a column of the decoder's first layer for each batch."
)


def measure(asked: Asked) -> Section:
    """The points of the four lines."""
    return Section("How cost grows", [*_cells(asked), *_genes(asked), *_batches(asked)], METHOD)


def _row(axis: str, at: int, ours: Figure, theirs: Figure | None, *, unit: str = "µs/cell") -> Row:
    what = f"{'peak memory, ' if unit == 'MiB' else ''}{axis}: {at:,}"
    return Row(
        what, unit, ours, theirs, "" if theirs is None else peer.NAME, facts={"axis": axis, "at": at, "unit": unit}
    )


def _cells(asked: Asked) -> list[Row]:
    times, memory = [], []
    compiles = ["--genes=100", "--cells=1000"]  # where nothing is compiled yet
    run_script(HERE / "one_training.py", "ours", *compiles)
    for n_cells in CELLS[:1] if asked.quick else CELLS:
        options = [f"--genes={N_GENES}", f"--cells={n_cells}", f"--train-cells={N_STEPS * BATCH_SIZE}"]
        options += [f"--epochs={2 if asked.quick else 4}", f"--threads={asked.threads or DEFAULT_THREADS}"]
        found: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
        for _ in range(1 if asked.quick else ROUNDS):
            for side, numbers in found.items():
                numbers.append(run_script(HERE / "one_training.py", side, *options))
        seconds = [Figure(tuple(1e6 * numbers[0] for numbers in side)) for side in found.values()]
        peaks = [Figure(tuple(numbers[1] for numbers in side)) for side in found.values()]
        times.append(_row("cells", n_cells, *seconds))
        memory.append(_row("cells", n_cells, *peaks, unit="MiB"))
    return [*times, *memory]


def _genes(asked: Asked) -> list[Row]:
    return [
        _measure("genes", n_genes, n_genes, 2, asked, with_peer=n_genes in PEER_GENES)
        for n_genes in (PEER_GENES[:2] if asked.quick else GENES)
    ]


def _batches(asked: Asked) -> list[Row]:
    return [
        _measure("batches", n_batches, N_GENES, n_batches, asked, with_peer=True)
        for n_batches in (BATCHES[:2] if asked.quick else BATCHES)
    ]


def _measure(axis: str, at: int, n_genes: int, n_batches: int, asked: Asked, *, with_peer: bool) -> Row:
    cells = make_cells(make_counts(cells_of_epoch(n_genes, quick=asked.quick), n_genes), n_batches=n_batches)
    epochs = 1 if asked.quick else 2
    sides = {"ours": ours(cells, "nb", epochs)}
    if with_peer:
        sides["theirs"] = theirs(cells, "nb", epochs)
    found = alternate(sides, 1 if asked.quick else ROUNDS)
    figures = {name: Figure(tuple(1e6 / rate for rate in figure.values)) for name, figure in found.items()}
    return _row(axis, at, figures["ours"], figures.get("theirs"))
