"""One training of one package, in a process of its own: its time a cell and its memory. Run by memory.py and growth.py.

Imports are late here on purpose: what a package's own code takes is measured, and neither has to carry the other.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import anndata  # noqa: F401  (with torch, what both packages stand on)
import numpy as np
import torch
from anndata import AnnData
from asked import DEFAULT_THREADS
from counts import make_cells, make_counts

MIB = 2**20

Train = Callable[[AnnData, float, int], Sequence[float]]
"""From cells, the fraction to train on and the epochs, to when each epoch ended."""


def resident(key: str) -> float:
    """VmRSS or VmHWM in MiB; not getrusage, where a child begins with the peak of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def settled() -> float:
    """Resident MiB after what is free was given back: memory that was used before must not hide what is used next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def import_ours() -> tuple[Train, float]:
    """How scdecode trains, and the MiB of Numba with the compiled loops, which it loads before the first step."""
    import scdecode as sd
    from scdecode.kernels import usable

    before = settled()
    warnings.simplefilter(
        "error", sd.errors.TrainingWarning
    )  # without the loops, what is measured is not what is meant
    usable()
    loops = settled() - before

    def train(cells: AnnData, train_size: float, n_epochs: int) -> list[float]:
        sd.SCVI.setup_anndata(cells, batch_key="batch")
        model = sd.SCVI(cells, gene_likelihood="nb")
        times: list[float] = []
        # a fraction is trained on where there are very many cells; the others are then not validated on either
        validation = {} if train_size == 0.9 else {"validation_size": 0.0}
        model.train(
            n_epochs,
            train_size=train_size,
            device="cpu",
            progress=False,
            on_epoch=lambda *_: times.append(time.perf_counter()),
            **validation,
        )
        return times

    return train, loops


def import_theirs() -> tuple[Train, float]:
    """How scvi-tools trains; it compiles nothing."""
    import peer
    import scvi

    peer.quiet()

    def train(cells: AnnData, train_size: float, n_epochs: int) -> list[float]:
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        model = scvi.model.SCVI(cells, gene_likelihood="nb")
        return peer.train(model, n_epochs, train_size=train_size)

    return train, 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=("ours", "theirs"))
    parser.add_argument("--genes", type=int, required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--train-cells", type=int, help="of an epoch; by default 90 %% of the cells")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=DEFAULT_THREADS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cells = make_cells(make_counts(given.cells, given.genes))
    train_size = 0.9 if given.train_cells is None else min(1.0, given.train_cells / given.cells)

    stood = settled()  # torch, anndata and the cells
    train, loops = {"ours": import_ours, "theirs": import_theirs}[given.package]()
    train(cells[:200, :100].copy(), 0.9, 1)  # so that all code is loaded
    before = settled()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    times = train(cells, train_size, given.epochs)
    peak = resident("VmHWM")
    epochs = np.diff(times)
    seconds = float(np.median(epochs)) / (train_size * given.cells) if len(epochs) else float("nan")
    print(seconds, peak - before, peak - before + loops, peak - stood)


if __name__ == "__main__":
    main()
