"""Training cells a second in the steady state, beside scvi-tools."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import peer
import scvi
from anndata import AnnData
from counts import DENSITY, make_cells, make_counts
from report import Row, Section
from timing import alternate

import scdecode as sd

CASES = (("nb", 2_000, 6_400), ("zinb", 2_000, 6_400), ("nb", 20_000, 1_280))  # likelihood, genes, cells
BATCH_SIZE = 128

METHOD = (
    f"Synthetic counts, {DENSITY:.0%} non-zero, two batches, the defaults of both packages, minibatches of "
    f"{BATCH_SIZE}. A round trains each package for a few epochs and takes the median time from one epoch's end to the "
    "next's: setting up, the first epoch and what comes after the last (scdecode then encodes the cells that the model "
    "keeps) count for neither. train_size=1, so that neither validates. In the row with the default split both train "
    "on 90 % of the cells; scdecode validates on the others after each epoch, scvi-tools does not. scvi-tools runs "
    "without a progress bar and with its default logger."
)


def measure(*, quick: bool) -> Section:
    rows = []
    rounds, epochs = (2, 2) if quick else (7, 4)
    for likelihood, n_genes, n_cells in CASES:
        n_cells = n_cells // 5 if quick else n_cells
        cells = make_cells(make_counts(n_cells, n_genes))
        for train_size in (1.0, 0.9) if (likelihood, n_genes) == ("nb", 2_000) else (1.0,):
            sides = {
                "ours": _ours(cells, likelihood, train_size, epochs),
                "theirs": _theirs(cells, likelihood, train_size, epochs),
            }
            found = alternate(sides, rounds)
            validation = "" if train_size == 1 else ", default split"
            what = f"{likelihood}, {n_genes:,} genes{validation}"
            rows.append(Row(what, "cells/s", found["ours"], found["theirs"], peer.NAME, at_least=1.0))
    return Section("Training", rows, METHOD)


def _rate(times: list[float], n_cells: int, train_size: float) -> float:
    return train_size * n_cells / float(np.median(np.diff(times)))


def _ours(cells: AnnData, likelihood: str, train_size: float, epochs: int) -> Callable[[], float]:
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


def _theirs(cells: AnnData, likelihood: str, train_size: float, epochs: int) -> Callable[[], float]:
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, gene_likelihood=likelihood)

    def side() -> float:
        times = peer.train(model, 1 + epochs, batch_size=BATCH_SIZE, train_size=train_size)
        return _rate(times, len(cells), train_size)

    return side
