"""What ``precision="bf16"`` costs: held-out likelihood of models trained in it and in single precision, on real cells.

benchmarks/precision.py                                     # kang, nb and zinb, four seeds: ten minutes
benchmarks/precision.py --cells worm --seeds 2 --epochs 20
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import peer
import torch
from heldout import CASES, DATA, N_DRAWS, TRAIN_SIZE, Case, evidence
from report import HERE, Section, number, record

import scdecode as sd
from scdecode.cells import read_cells
from scdecode.minibatches import gather, split_cells

PRECISIONS = ("bf16", "fp32")
BAR = 0.1
"""Percent by which bf16 may be worse."""

METHOD = (
    "scdecode alone, trained twice on the same cells with the same seed, once with each precision, one after the other "
    "in turn; otherwise as the held-out comparison with scvi-tools. Nats a cell of the validation cells: -ELBO is the "
    f"mean over {N_DRAWS} draws, -log p(x) is importance-weighted with the same draws; both are computed in single "
    "precision. Mean and standard deviation over seeds; the difference is taken seed by seed. The rounding of bf16 "
    "leads training another way, as another seed would, so a part of the spread is that of training."
)
HEADER = ["cells", "what", *PRECISIONS, "difference", "bar", "met"]

Scores = tuple[float, float, float]
"""-ELBO, -log p(x), nats a cell, and the seconds that training took."""


def score(case: Case, likelihood: str, seed: int, max_epochs: int, precision: str) -> Scores:
    """Train one model and evaluate it."""
    cells = anndata.io.read_h5ad(DATA / case.file)
    cells = cells[np.random.default_rng(seed).permutation(cells.n_obs)].copy()
    sd.SCVI.setup_anndata(cells, batch_key=case.batch_key)
    model = sd.SCVI(cells, gene_likelihood=likelihood, seed=seed)
    split = {"train_size": TRAIN_SIZE, "shuffle_set_split": False}
    start = time.perf_counter()
    model.train(max_epochs, seed=seed, device="cpu", progress=False, precision=precision, **split)
    seconds = time.perf_counter() - start
    held_out = read_cells(cells, model.schema, need_conditions=True).at(
        split_cells(cells.n_obs, model.train_config).validation
    )
    return *evidence(model.vae, gather(held_out, slice(None), torch.device("cpu")), seed), seconds


def lines_of(name: str, likelihood: str, max_epochs: int, scores: dict[str, list[Scores]]) -> list[list[str]]:
    """A line of the table each for the bound, the likelihood and the time."""
    lines = []
    for i, what in enumerate(("-ELBO, nats a cell", "-log p(x), nats a cell", "training, seconds")):
        low, full = ([one[i] for one in scores[precision]] for precision in PRECISIONS)
        apart = [100 * (a / b - 1) for a, b in zip(low, full, strict=True)]
        spread = f" ± {statistics.stdev(apart):.2f}" if len(apart) > 1 else ""
        bar = [f"worse by at most {BAR:g} %", "yes" if statistics.mean(apart) <= BAR else "**no**"] if i < 2 else []
        lines.append(
            [f"{name}, {likelihood}, {max_epochs} epochs", what]
            + [number(statistics.mean(values)) for values in (low, full)]
            + [f"{statistics.mean(apart):+.2f}{spread} %", *(bar or ["", ""])]
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", default="kang", choices=CASES)
    parser.add_argument("--likelihoods", default="nb,zinb")
    parser.add_argument("--seeds", type=int, default=4, help="how many (default 4)")
    parser.add_argument("--epochs", type=int, default=200, help="of every training (default 200)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and README.md")
    given = parser.parse_args(arguments)
    if not DATA.is_dir():
        parser.error(f"{DATA}: no such folder; set SCDECODE_DATA to the folder with {CASES['kang'].file}")
    torch.set_num_threads(given.threads)
    peer.quiet()
    table = [HEADER]
    for likelihood in given.likelihoods.split(","):
        scores: dict[str, list[Scores]] = {precision: [] for precision in PRECISIONS}
        for seed in range(given.seeds):
            for precision in PRECISIONS if seed % 2 else reversed(PRECISIONS):
                scores[precision].append(score(CASES[given.cells], likelihood, seed, given.epochs, precision))
                print(f"{given.cells} {likelihood} seed {seed} {precision}: {scores[precision][-1]}", flush=True)
        table += lines_of(given.cells, likelihood, given.epochs, scores)
    section = Section("Precision: bf16 beside single", [], METHOD, table)
    record("precision", section, " ".join(["benchmarks/precision.py", *sys.argv[1:]]), folder=given.out)


if __name__ == "__main__":
    main()
