"""Decoded trends of simulated cells against the expression that they were simulated from, beside GAMs and averages.

The pseudotime is known to all methods. A lineage is the trunk and a branch; an error is the root mean square over 51
times, two lineages and all genes of log1p(expression per ten thousand), against the truth without batch effects.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from truth_methods import Trend, gam, nearest, overdispersion, pool
from truth_tables import Outcome, Sizes, table

import scdecode as sd
from scdecode.simulation import simulate_branching, true_scale

TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "default training": {},
    "warm-up 20": {"n_epochs_kl_warmup": 20},
}
NEAREST = (50, 100, 200, 300, 400, 600)
LINEAGES = ("branch_1", "branch_2")
N_TIMES = 51
DRAWS = 4  # of each cell's posterior, for the average of decoded cells

PEERS = ("GAM, UBRE (as pygam)", "GAM, REML (as mgcv)", "nearest cells, best k")


@dataclass(frozen=True)
class Score:
    error: float
    coverage: float  # NaN where there is no band


def run(sizes: Sizes) -> Outcome:
    settings = [(library, batches) for library in sizes.libraries for batches in sizes.batches]
    found: dict[tuple[int, int], list[dict[str, Score]]] = {}
    for library, batches in settings:
        for seed in range(sizes.seeds):
            start = time.perf_counter()
            found.setdefault((library, batches), []).append(compare(library, batches, seed, sizes))
            print(
                f"simulated: {library} counts, {batches} batches, seed {seed}: {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    return report(found)


def compare(library: int, n_batches: int, seed: int, sizes: Sizes) -> dict[str, Score]:
    """All methods on one set of cells."""
    cells = simulate_branching(
        sizes.cells, sizes.genes, library_size=library, n_batches=n_batches, seed=seed, truth_layers=False
    )
    pseudotime = cells.obs["pseudotime"].to_numpy()
    members = {b: cells.obs["branch"].isin(["trunk", b]).to_numpy().astype(float) for b in LINEAGES}
    at = np.linspace(pseudotime.min(), pseudotime.max(), N_TIMES)
    scores = peers(cells, members, at)
    for name, options in TRAININGS.items():
        sd.SCVI.setup_anndata(cells, batch_key="batch")
        model = sd.SCVI(cells, gene_likelihood="nb", seed=seed)
        model.train(sizes.epochs, seed=seed, device="cpu", progress=False, **options)
        scores |= {f"{what}, {name}": score for what, score in ours(model, cells, members, at).items()}
    return scores


def peers(cells: AnnData, members: Mapping[str, np.ndarray], at_t: np.ndarray) -> dict[str, Score]:
    counts, pseudotime = cells.X.toarray().astype(np.float64), cells.obs["pseudotime"].to_numpy()
    batch = cells.obs["batch"].cat.codes.to_numpy()
    trends: dict[str, list[Trend]] = {}
    for member in members.values():
        pooled = pool(counts, pseudotime, batch, member)
        extra = overdispersion(counts[member > 0], pseudotime[member > 0], pooled)
        fitted = gam(pooled, at_t, extra)
        for name in PEERS[:2]:
            trends.setdefault(name, []).append(fitted["UBRE" if "UBRE" in name else "REML"])
        for k, trend in nearest(counts, pseudotime, member, at_t, NEAREST).items():
            trends.setdefault(f"nearest {k} cells", []).append(trend)
    truth = truths(cells, at_t)
    scores = {name: score(trend, truth) for name, trend in trends.items()}
    averages = [scores.pop(f"nearest {k} cells") for k in NEAREST]
    return scores | {PEERS[2]: min(averages, key=lambda one: one.error), "nearest 100 cells": averages[1]}


def ours(model: sd.SCVI, cells: AnnData, members: Mapping[str, np.ndarray], at_t: np.ndarray) -> dict[str, Score]:
    posterior, pseudotime = model.posterior(cells), cells.obs["pseudotime"].to_numpy()
    decoded_cells = np.mean(
        [model.decode(z, quantity="scale").X for z in model.get_latent_representation(cells, n_samples=DRAWS, seed=0)],
        axis=0,
    )
    trends: dict[str, list[Trend]] = {}
    for member in members.values():
        # of cells without weight a path takes no notice, but it ends at the ends of those that have one
        path = sd.Trajectory.along_pseudotime(posterior, pseudotime, member, n_points=N_TIMES)
        line, tube = (model.decode(path, quantity="scale", spread=spread) for spread in (False, None))
        low, high = (_at(at_t, path.time, np.log(tube.layers[q] + 1e-12)) for q in ("q05", "q95"))
        trends.setdefault("line", []).append(Trend(_at(at_t, path.time, np.log(line.X))))
        trends.setdefault("tube", []).append(Trend(_at(at_t, path.time, np.log(tube.X)), low, high))
        refitted = sd.refit(model, path, cells, pseudotime=pseudotime, weights=member, quantity="scale")
        bands = (_at(at_t, path.time, np.log(refitted.layers[q] + 1e-12)) for q in ("q05", "q95"))
        trend = Trend(_at(at_t, path.time, np.log(refitted.X + 1e-12)), *bands)
        trends.setdefault("tube, refitted to the counts", []).append(trend)
        kernel = member * np.exp(-0.5 * ((pseudotime - at_t[:, None]) / 0.03) ** 2)
        average = kernel @ decoded_cells / kernel.sum(1, keepdims=True)
        trends.setdefault("average of decoded cells", []).append(Trend(np.log(average)))
    truth = truths(cells, at_t)
    return {name: score(trend, truth) for name, trend in trends.items()}


def _at(at_t: np.ndarray, time_n: np.ndarray, values_ng: np.ndarray) -> np.ndarray:
    return np.stack([np.interp(at_t, time_n, column) for column in values_ng.T], axis=1)


def truths(cells: AnnData, at_t: np.ndarray) -> list[np.ndarray]:
    return [np.log1p(1e4 * true_scale(cells, at_t, branch)) for branch in LINEAGES]


def score(trends: list[Trend], truths_tg: list[np.ndarray]) -> Score:
    def units(log_tg: np.ndarray) -> np.ndarray:
        return np.log1p(1e4 * np.exp(np.minimum(log_tg, 0.0)))  # no fraction is above one

    squares, covered = [], []
    for trend, truth in zip(trends, truths_tg, strict=True):
        squares.append(np.square(units(trend.log_tg) - truth).mean())
        if trend.low_tg is not None and trend.high_tg is not None:
            covered.append(((units(trend.low_tg) <= truth) & (truth <= units(trend.high_tg))).mean())
    return Score(float(np.sqrt(np.mean(squares))), float(np.mean(covered)) if covered else float("nan"))


def report(found: Mapping[tuple[int, int], list[dict[str, Score]]]) -> Outcome:
    """A column a setting: the mean over seeds with its range; then coverage, and the goals."""
    columns = list(found)
    names = list(next(iter(found.values()))[0])
    errors = {c: {n: [s[n].error for s in found[c]] for n in names} for c in columns}
    covers = {c: {n: float(np.mean([s[n].coverage for s in found[c]])) for n in names} for c in columns}

    def cell(column: tuple[int, int], name: str) -> str:
        values = errors[column][name]
        text = f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        return text if np.isnan(covers[column][name]) else f"{text}; {covers[column][name]:.0%}"

    head = ["", *(f"{library:,} counts, {b} batch{'es' if b > 1 else ''}" for library, b in columns)]
    lines = [[name, *(cell(column, name) for column in columns)] for name in names]
    goals = [["goal", "method", *head[1:]]]
    for name in (n for n in names if n.startswith("tube")):
        for peer_names, what in ((PEERS, "best of the peers"), ((PEERS[0], PEERS[2]), "best but for the GAM by REML")):
            ratios = []
            for column in columns:
                best = min(np.mean(errors[column][p]) for p in (*peer_names, f"line, {name.rsplit(', ', 1)[1]}"))
                bar = 1.05 if column[0] >= 1000 else 0.8
                ratio = float(np.mean(errors[column][name]) / best)
                ratios.append(f"{ratio:.2f} x, at most {bar} ({'met' if ratio <= bar else 'NOT met'})")
            goals.append([what, name, *ratios])
    data = {f"{c[0]} counts, {c[1]} batches": {"error": errors[c], "coverage": covers[c]} for c in columns}
    text = (__doc__ or "").split("\n\n", 1)[
        1
    ].strip() + " Mean (range) over seeds; coverage of the 90 % band after ';'."
    return Outcome("Simulated branches", text, table([head, *lines]) + "\n\n" + table(goals), data)
