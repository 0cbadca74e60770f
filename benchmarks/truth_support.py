"""Whether the error of what is decoded grows with its support score, and whether points far from cells are flagged.

Simulated cells, some of them never shown to the model. Three kinds of points, whose true expression is that of a place
on a known lineage: ``pushed``: a cell's latent point pushed in a random direction by 0 to 8 times a typical cell's
distance to its neighbours (the true expression is that of the cell); ``between``: the middle between two cells of a
lineage, near or far apart in time (the true one is that at the middle of their times); ``dropped``: cells of a part of
one branch that was left out of training, and others that were not. The score is ``support_distance``, the distance to
reference cells behind ``obs["support"]``, which is its percentile. The correlation is Spearman's, over points.
"""

from __future__ import annotations

import anndata
import numpy as np
import torch
from scipy.stats import spearmanr
from truth_tables import DATA, Outcome, Sizes, per_ten_thousand, table

import scdecode as sd
from scdecode.simulation import simulate_branching, true_scale

N_POINTS = 1500
PUSHES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
DROPPED = (0.6, 0.8)  # of the pseudotime, on branch_1
SETTINGS = ((1000, 1), (100, 5))


def run(sizes: Sizes) -> Outcome:
    lines = [["points", "cells", "Spearman of error and support", "flagged", "error of the flagged", "of the others"]]
    data: dict[str, list[float]] = {}
    pushed = [["pushed by, typical distances", *(f"{push:g}" for push in PUSHES)]]
    for library, batches in SETTINGS[: sizes.folds]:
        for seed in range(sizes.seeds):
            for name, (score, support, error) in _points(library, batches, seed, sizes).items():
                kind, _, push = name.partition("|")
                key = f"{kind}, {library} counts, {batches} batches, seed {seed}"
                if push:
                    data.setdefault(f"{key}: flagged by push", []).append(float((support > 99).mean()))
                    continue
                flagged = support > 99
                rank = float(spearmanr(score, error).statistic)
                data[key] = [rank, float(flagged.mean())]
                means = [f"{error[of].mean():.3f}" if of.any() else "" for of in (flagged, ~flagged)]
                lines.append(
                    [
                        kind,
                        f"{library} counts, {batches} batches, seed {seed}",
                        f"{rank:.2f}",
                        f"{flagged.mean():.0%}",
                        *means,
                    ]
                )
            print(f"support: {library} counts, {batches} batches, seed {seed}", flush=True)
    for key, shares in data.items():
        if key.endswith("by push"):
            pushed.append([key.split(":")[0], *(f"{share:.0%} flagged" for share in shares)])
    if (DATA / "mixology_RNAmix_tian2019_hvg3000.h5ad").exists():
        score, support, error = _wells(sizes)
        flagged = support > 99
        rank = float(spearmanr(score, error).statistic)
        data["pushed, RNA mixtures"] = [rank, float(flagged.mean())]
        means = [f"{error[of].mean():.3f}" if of.any() else "" for of in (flagged, ~flagged)]
        lines.append(
            [
                "pushed",
                "RNA mixtures (truth: the mean of the wells of a kind)",
                f"{rank:.2f}",
                f"{flagged.mean():.0%}",
                *means,
            ]
        )
    return Outcome("Support", (__doc__ or "").strip(), table(lines) + "\n\n" + table(pushed), data)


Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Distance to reference cells, its percentile and the error, of points."""


def _points(library: int, batches: int, seed: int, sizes: Sizes) -> dict[str, Triple]:
    cells = simulate_branching(
        sizes.cells, sizes.genes, library_size=library, n_batches=batches, seed=seed, truth_layers=False
    )
    time, branch = cells.obs["pseudotime"].to_numpy(), cells.obs["branch"].astype(str).to_numpy()
    dropped = (branch == "branch_1") & (time > DROPPED[0]) & (time < DROPPED[1])
    train = cells[~dropped].copy()
    sd.SCVI.setup_anndata(train, batch_key="batch")
    model = sd.SCVI(train, gene_likelihood="nb", seed=seed)
    model.train(sizes.epochs, seed=seed, device="cpu", progress=False, n_epochs_kl_warmup=20)
    latent, rng = model.get_latent_representation(cells), np.random.default_rng(seed)
    found = {}

    def measured(points: np.ndarray, at: np.ndarray, on: np.ndarray) -> Triple:
        return _measure(model, points, true_scale(cells, at, list(on)))

    kept = np.flatnonzero(~dropped)
    chosen = rng.choice(kept, N_POINTS)
    push = rng.integers(len(PUSHES), size=N_POINTS)
    points = (
        latent[chosen] + _directions(rng, N_POINTS, latent.shape[1]) * _typical(model) * np.array(PUSHES)[push, None]
    )
    found["pushed"] = measured(points, time[chosen], branch[chosen])
    for i, size in enumerate(PUSHES):
        found[f"pushed|{size:g}"] = tuple(part[push == i] for part in found["pushed"])
    lineage = rng.choice(["branch_1", "branch_2"], N_POINTS)
    members = {b: kept[np.isin(branch[kept], ["trunk", b])] for b in ("branch_1", "branch_2")}
    pairs = np.stack([rng.choice(members[b], 2) for b in lineage])
    middle = latent[pairs].mean(1)
    found["between"] = measured(middle, time[pairs].mean(1), lineage)
    some = np.r_[np.flatnonzero(dropped), rng.choice(kept, dropped.sum())]
    found["dropped"] = measured(latent[some], time[some], branch[some])
    return found


def _wells(sizes: Sizes) -> Triple:
    wells = anndata.read_h5ad(DATA / "mixology_RNAmix_tian2019_hvg3000.h5ad")
    wells.obs["batch"] = wells.obs["batch"].astype(str).astype("category")
    sd.SCVI.setup_anndata(wells, batch_key="batch")
    model = sd.SCVI(wells, gene_likelihood="nb")
    model.train(sizes.epochs, device="cpu", progress=False, n_epochs_kl_warmup=20)
    latent, rng = model.get_latent_representation(wells), np.random.default_rng(0)
    counts = wells.X.toarray().astype(np.float64)
    fractions, kind = counts / counts.sum(1, keepdims=True), wells.obs["mix"].to_numpy()
    protocol = wells.obs["batch"].to_numpy()
    # as decoded by default, the truth is averaged over protocols by their cells
    shares = wells.obs["batch"].value_counts(normalize=True)
    truth = {
        m: sum(shares[p] * fractions[(kind == m) & (protocol == p)].mean(0) for p in shares.index) for m in set(kind)
    }
    chosen = rng.integers(len(latent), size=N_POINTS // 2)
    push = np.array(PUSHES)[rng.integers(len(PUSHES), size=len(chosen))]
    points = latent[chosen] + _directions(rng, len(chosen), latent.shape[1]) * _typical(model) * push[:, None]
    return _measure(model, points, np.stack([truth[m] for m in kind[chosen]]))


def _measure(model: sd.SCVI, points: np.ndarray, truth: np.ndarray) -> Triple:
    decoded = model.decode(points.astype(np.float32), quantity="scale")
    error = np.abs(per_ten_thousand(decoded.X) - per_ten_thousand(truth)).mean(1)
    return _distance(model, points), decoded.obs["support"].to_numpy().astype(float), error


def _distance(model: sd.SCVI, points: np.ndarray) -> np.ndarray:
    return model.support_index().distance(torch.from_numpy(points.astype(np.float32)))


def _typical(model: sd.SCVI) -> float:
    return model.support_index().typical


def _directions(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    drawn = rng.standard_normal((n, k))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
