"""Cell types of cells whose label was hidden: SCANVI of both packages, trained alike, on real cells.

Nine labels in ten are hidden; what is scored is how many of the hidden ones are found, and the mean over types of F1.
One thread, so that both packages are as fast alone as side by side.

    benchmarks/labels.py                                # kang, five seeds of 30 epochs: two minutes
    benchmarks/labels.py --cells worm --epochs 25 --seeds 13
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import anndata
import numpy as np
import peer
import scvi
import torch
from anndata import AnnData
from report import HERE
from sklearn.metrics import f1_score

import scdecode as sd

DATA = Path(os.environ.get("SCDECODE_DATA", HERE.parents[1] / "shared" / "data"))
CELLS = {
    "kang": ("kang_muscat_4samples.h5ad", "sample_id", "cluster_id"),
    "worm": ("worm_embryo_packer2019.h5ad", "batch", "cell.type"),
}
N_GENES, HIDDEN, UNKNOWN = 1300, 0.9, "Unknown"


def read_cells(name: str) -> tuple[AnnData, np.ndarray]:
    """The cells, of the genes that vary most where there are many, and their types."""
    file, batch_key, type_key = CELLS[name]
    adata = anndata.read_h5ad(DATA / file)
    if adata.n_vars > N_GENES:
        variance_g = np.asarray(adata.X.multiply(adata.X).mean(0) - np.square(adata.X.mean(0))).reshape(-1)
        adata = adata[:, np.argsort(-variance_g)[:N_GENES]].copy()
        adata = adata[np.asarray(adata.X.sum(1)).reshape(-1) > 0].copy()
    adata.obs["of_batch"] = adata.obs[batch_key].astype(str).astype("category")
    return adata, adata.obs[type_key].astype(str).to_numpy()


def score(model: object, truth_n: np.ndarray, hidden_n: np.ndarray) -> tuple[float, float]:
    """Accuracy and macro F1 of the hidden labels."""
    found_n = np.asarray(model.predict())  # type: ignore[attr-defined]
    right = (found_n == truth_n)[hidden_n].mean()
    return float(right), float(f1_score(truth_n[hidden_n], found_n[hidden_n], average="macro"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Hidden cell types, found by SCANVI of both packages.")
    parser.add_argument("--cells", choices=CELLS, default="kang")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    peer.quiet()
    torch.set_num_threads(1)
    adata, truth_n = read_cells(given.cells)
    setup = {"labels_key": "shown", "unlabeled_category": UNKNOWN, "batch_key": "of_batch"}
    rows = []
    for seed in range(given.seeds):
        hidden_n = np.random.default_rng(seed).random(adata.n_obs) < HIDDEN
        adata.obs["shown"] = np.where(hidden_n, UNKNOWN, truth_n)
        sd.SCANVI.setup_anndata(adata, **setup)
        ours = sd.SCANVI(adata, gene_likelihood="nb", seed=seed)
        ours.train(given.epochs, seed=seed, device="cpu", progress=False)
        scvi.settings.seed = seed
        scvi.model.SCANVI.setup_anndata(adata, **setup)
        theirs = scvi.model.SCANVI(adata, gene_likelihood="nb")
        peer.train(theirs, given.epochs, train_size=0.9)
        rows.append([*score(ours, truth_n, hidden_n), *score(theirs, truth_n, hidden_n)])
        print(f"seed {seed}: accuracy {rows[-1][0]:.3f} / {rows[-1][2]:.3f}, F1 {rows[-1][1]:.3f} / {rows[-1][3]:.3f}")
    table = np.array(rows)
    (accuracy, f1, *theirs_mean), points = table.mean(0), 100 * (table[:, 0] - table[:, 2])
    print(f"{given.cells}, {given.epochs} epochs, {given.seeds} seeds, scdecode / scvi-tools {scvi.__version__}:")
    print(f"accuracy {accuracy:.3f} / {theirs_mean[0]:.3f}, F1 {f1:.3f} / {theirs_mean[1]:.3f}")
    print(f"accuracy differs by {points.mean():+.1f} points (standard deviation {points.std(ddof=1):.1f})")


if __name__ == "__main__":
    main()
