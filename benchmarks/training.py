"""Training cells a second in the steady state, beside scvi-tools, over sizes, sparsities, likelihoods and threads."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import peer
import scvi
from anndata import AnnData
from asked import Asked, threads
from counts import make_cells, make_counts
from report import Row, Section
from timing import alternate

import scdecode as sd

GENES, NONZERO, LIKELIHOODS, THREADS = (2_000, 20_000), (2, 8, 20), ("nb", "zinb"), (1, 2)
TAKES = ("genes", "likelihood", "nonzero", "threads")
BATCH_SIZE = 128
ROUNDS = {1: 3, 2: 5}  # by threads; the bars are of two
N_STEPS = {2_000: 50, 20_000: 20}  # of an epoch, so that one of scvi-tools takes a second or a few
BARS = {  # likelihood, genes, per cent non-zero, threads: at least, worth dreaming of
    ("nb", 2_000, 8, 2): (5.0, 8.0),
    ("zinb", 2_000, 8, 2): (4.5, 8.0),
    ("nb", 20_000, 8, 2): (6.0, 10.0),
}
SPLIT_CASE = ("nb", 2_000, 8, 2)  # measured with the default split, too

METHOD = (
    f"Synthetic counts, two batches, the defaults of both packages, minibatches of {BATCH_SIZE}, 50 steps an epoch at "
    "2,000 genes and 20 at 20,000. Five rounds, with one thread three; one less at 20,000 genes, but for the case with "
    "a bar. A round trains each package for a few epochs and takes the median time from one epoch's end to the next's: "
    "setting up, the first epoch and what comes after the last (scdecode then encodes the cells that the model keeps) "
    "count for neither. train_size=1, so that neither validates. In the row with the default split both train on 90 % "
    "of the cells; scdecode validates on the others after each epoch, scvi-tools does not. scvi-tools runs without a "
    "progress bar and with its default logger."
)


def measure(asked: Asked) -> Section:
    """The grid, or the part of it that was asked for."""
    epochs = 1 if asked.quick else 2
    rows = []
    for n_genes, nonzero in itertools.product(
        asked.pick("genes", GENES), asked.pick("nonzero", (8,) if asked.quick else NONZERO)
    ):
        cells = make_cells(make_counts(cells_of_epoch(n_genes, quick=asked.quick), n_genes, density=nonzero / 100))
        for likelihood, n_threads in itertools.product(
            asked.pick("likelihood", LIKELIHOODS), asked.pick("threads", THREADS[-1:] if asked.quick else THREADS)
        ):
            case = (likelihood, n_genes, nonzero, n_threads)
            for train_size in (1.0, 0.9) if case == SPLIT_CASE else (1.0,):
                sides = {
                    "ours": ours(cells, likelihood, epochs, train_size),
                    "theirs": theirs(cells, likelihood, epochs, train_size),
                }
                with threads(n_threads):
                    n_rounds = ROUNDS[min(n_threads, 2)] - (1 if n_genes > 2_000 and case not in BARS else 0)
                    found = alternate(sides, 1 if asked.quick else n_rounds)
                bar, dream = BARS.get(case, (None, None)) if train_size == 1 else (None, None)
                facts = {"likelihood": likelihood, "genes": n_genes, "nonzero": nonzero, "threads": n_threads}
                rows.append(
                    Row(
                        f"{likelihood}, {n_genes:,} genes, {nonzero} % non-zero, {n_threads} "
                        f"{'thread' if n_threads == 1 else 'threads'}{'' if train_size == 1 else ', default split'}",
                        "cells/s",
                        found["ours"],
                        found["theirs"],
                        peer.NAME,
                        at_least=bar,
                        dream=dream,
                        facts={**facts, "train_size": train_size},
                    )
                )
    return Section("Training", rows, METHOD)


def cells_of_epoch(n_genes: int, *, quick: bool) -> int:
    """So many that an epoch is not all its beginning and end."""
    n_steps = N_STEPS.get(n_genes, max(20, 100_000 // n_genes))
    return BATCH_SIZE * (max(2, n_steps // 5) if quick else n_steps)


def ours(cells: AnnData, likelihood: str, epochs: int, train_size: float = 1.0) -> Callable[[], float]:
    """A side: cells a second of scdecode."""
    sd.SCVI.setup_anndata(cells, batch_key="batch")
    model = sd.SCVI(cells, gene_likelihood=likelihood)

    def side() -> float:
        times: list[float] = []
        model.train(
            1 + epochs,
            batch_size=BATCH_SIZE,
            train_size=train_size,
            device="cpu",
            progress=False,
            on_epoch=lambda *_: times.append(time.perf_counter()),
        )
        return _rate(times, len(cells), train_size)

    return side


def theirs(cells: AnnData, likelihood: str, epochs: int, train_size: float = 1.0) -> Callable[[], float]:
    """A side: cells a second of scvi-tools."""
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, gene_likelihood=likelihood)

    def side() -> float:
        times = peer.train(model, 1 + epochs, batch_size=BATCH_SIZE, train_size=train_size)
        return _rate(times, len(cells), train_size)

    return side


def _rate(times: list[float], n_cells: int, train_size: float) -> float:
    return train_size * n_cells / float(np.median(np.diff(times)))
