"""Peak memory of training above the data, each measurement in a process of its own (Linux alone tells it)."""

from __future__ import annotations

import peer
from asked import DEFAULT_THREADS, Asked
from children import run_script
from counts import make_counts, n_bytes
from report import HERE, Row, Section
from timing import Figure

CASES = ((2_000, 20_000), (20_000, 5_000))  # genes, cells
TAKES = ("genes", "threads")
WAYS = {  # what is counted, and its bar
    "above data and code": 0.5,
    "the same, with Numba and the compiled loops": 0.5,
    "above data, torch and anndata": 0.5,
}

METHOD = (
    "MiB of resident memory in a fresh process that holds the AnnData: the highest point (VmHWM, set back before) "
    "while the model is set up, made and trained (nb, one epoch, defaults), less what was resident before. 'Above data "
    "and code': before is after a tiny training, so that all code of either package is loaded, and after the allocator "
    "gave back what is free (malloc_trim), so that nothing freed earlier hides what training takes. 'With Numba and "
    "the compiled loops': to scdecode is added what importing Numba and loading its compiled loops took; to "
    "scvi-tools, nothing, though it loads Numba as well. 'Above data, torch and anndata': before is ahead of the "
    "import of the package, so that the code of each counts as its own. The counts take 8 bytes a non-zero entry."
)


def measure(asked: Asked) -> Section:
    """Three ways to count, at both sizes."""
    rows = []
    for n_genes, n_cells in _cases(asked):
        n_cells = n_cells // 10 if asked.quick else n_cells
        options = [f"--genes={n_genes}", f"--cells={n_cells}", f"--threads={asked.threads or DEFAULT_THREADS}"]
        if not rows:
            run_script(HERE / "one_training.py", "ours", *options)  # compiles, where nothing is compiled yet
        found: dict[str, list[list[float]]] = {"ours": [], "theirs": []}
        for _ in range(1 if asked.quick else 3):
            for side, numbers in found.items():
                numbers.append(run_script(HERE / "one_training.py", side, *options)[1:])
        size = n_bytes(make_counts(n_cells, n_genes)) / 2**20
        for i, (way, bar) in enumerate(WAYS.items()):
            what = f"{way}: nb, {n_genes:,} genes, {n_cells:,} cells ({size:,.0f} MiB)"
            ours, theirs = (Figure(tuple(numbers[i] for numbers in side)) for side in found.values())
            facts = {"genes": n_genes, "cells": n_cells, "way": way}
            rows.append(Row(what, "MiB", ours, theirs, peer.NAME, at_most=bar, facts=facts))
    return Section("Peak memory of training", rows, METHOD)


def _cases(asked: Asked) -> tuple[tuple[int, int], ...]:
    if asked.genes is not None:
        return ((asked.genes, 20_000),)
    return CASES[:1] if asked.quick else CASES
