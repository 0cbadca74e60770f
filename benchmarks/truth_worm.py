"""Cells of the worm embryo that no model saw: one time bin left out, decoded from the path between its neighbours.

For each inner bin of ``embryo.time`` and each branch with at least 15 cells in it and in both neighbouring bins: the
path from the branch's cells in the bin before to those in the bin after, decoded at the left-out cells' mean time, in
their batches by their shares. What is scored is the summed profile of the left-out cells of the branch: multinomial
negative log-likelihood of its counts, in nats a count, above that of the profile itself (which no prediction attains).
Averages of cells have a pseudocount of the training cells' profile, and the best of several sizes of it; the nearest
cells in time, of the branch, have the best k. Both bests are taken over all branches and bins, after looking. The GAM
and the refit (see truth_methods.py) have the other cells of the branch and their times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
from anndata import AnnData
from truth_methods import gam, overdispersion, pool
from truth_tables import DATA, Outcome, Sizes, table

import scdecode as sd

FILE = "worm_embryo_packer2019.h5ad"
BRANCHES: Mapping[str, tuple[str, ...]] = {
    "ASG": ("Neuroblast_ASG_AWA", "ASG_AWA", "ASG"),
    "AWA": ("Neuroblast_ASG_AWA", "ASG_AWA", "AWA"),
    "ADL": ("ADL_parent", "ADL"),
    "AWB": ("AWB",),
    "AWC": ("AWC", "AWC_ON"),
}
N_GENES = 2000
EPOCHS = 200
ENOUGH = 15  # cells
WAYS = ("linear", "graph", "geodesic")
PSEUDOCOUNTS = (10.0, 100.0, 1000.0, 3000.0)
NEAREST = (20, 50, 100, 200)


def run(sizes: Sizes) -> Outcome:
    cells = _read()
    bins = list(cells.obs["bin"].cat.categories)
    found: dict[str, dict[str, float]] = {}
    for i in range(1, len(bins) - 1)[: sizes.folds]:
        at = [(cells.obs["bin"] == name).to_numpy() for name in bins[i - 1 : i + 2]]
        of = {b: cells.obs["cell.type"].isin(types).to_numpy() for b, types in BRANCHES.items()}
        usable = {b: own for b, own in of.items() if min((own & near).sum() for near in at) >= ENOUGH}
        if not usable:
            continue
        train = cells[~at[1]].copy()
        sd.SCVI.setup_anndata(train, batch_key="of_batch")
        model = sd.SCVI(train, gene_likelihood="nb")
        model.train(sizes.epochs or EPOCHS, device="cpu", progress=False, n_epochs_kl_warmup=20)
        for branch, own in usable.items():
            found[f"{bins[i]}, {branch}"] = _score(model, cells, train, own, at, sizes)
        print(f"worm: {bins[i]} left out, {len(usable)} branches", flush=True)
    return _report(found)


def _read() -> AnnData:
    """The genes that vary most, and cells that have any of their counts."""
    cells = anndata.read_h5ad(DATA / FILE)
    mean = np.asarray(cells.X.mean(0)).reshape(-1)
    variance = np.asarray(cells.X.multiply(cells.X).mean(0)).reshape(-1) - mean**2
    cells = cells[:, np.argsort(-variance)[:N_GENES]].copy()
    cells = cells[np.asarray(cells.X.sum(1)).reshape(-1) > 0].copy()
    cells.obs["of_batch"] = cells.obs["batch"].astype(str).astype("category")
    cells.obs["time"] = cells.obs["embryo.time"].astype(float)
    names = cells.obs["embryo.time.bin"].astype(str)
    order = cells.obs.groupby(names.to_numpy())["time"].mean().sort_values().index
    cells.obs["bin"] = names.astype("category").cat.set_categories(list(order), ordered=True)
    return cells


def _score(
    model: sd.SCVI, cells: AnnData, train: AnnData, own: np.ndarray, at: list[np.ndarray], sizes: Sizes
) -> dict[str, float]:
    before, left_out, after = (cells[own & near] for near in at)
    counts = _sums(left_out)
    times = [float(part.obs["time"].mean()) for part in (before, left_out, after)]
    place = (times[1] - times[0]) / (times[2] - times[0])
    shares = left_out.obs["of_batch"].value_counts(normalize=True)
    batch = {str(name): float(share) for name, share in shares.items() if share > 0}
    posterior = [model.posterior(part) for part in (before, after)]
    found = {}

    def decode(path: sd.Trajectory, share: float, spread: Any) -> np.ndarray:
        two = model.decode(path, batch=batch, quantity="scale", spread=spread).X.astype(np.float64)
        position = share * (len(two) - 1)
        low = min(int(position), len(two) - 2)
        return two[low] + (position - low) * (two[low + 1] - two[low])

    for how in WAYS:
        path = sd.Trajectory.between(model, *posterior, sizes.points, how)
        for what, spread in (("line", False), ("tube", None)):
            found[f"{how}, {what}"] = _excess(counts, decode(path, place, spread))
    branch = train[np.isin(train.obs_names, cells.obs_names[own])]
    path = sd.Trajectory.along_pseudotime(model.posterior(branch), branch.obs["time"].to_numpy(), n_points=sizes.points)
    share = float(np.interp(times[1], path.time, np.linspace(0, 1, len(path.time))))
    for what, spread in (("line", False), ("tube", None)):
        found[f"along the embryo's time, {what}"] = _excess(counts, decode(path, share, spread))
    found |= _along(model, path, branch, counts, times[1], batch)

    background = _sums(train) / _sums(train).sum()
    profiles = [_sums(part) for part in (before, after)]
    fractions = [profile / profile.sum() for profile in profiles]
    between = (1 - place) * fractions[0] + place * fractions[1]
    size = sum(profile.sum() for profile in profiles)
    near = branch[np.abs(branch.obs["time"].to_numpy() - times[1]).argsort()]
    for pseudo in PSEUDOCOUNTS:
        for name, fraction, total in (
            ("the neighbours' average, by time", between, size),
            ("the bin before", fractions[0], profiles[0].sum()),
            ("the bin after", fractions[1], profiles[1].sum()),
        ):
            found[f"{name}|{pseudo}"] = _excess(counts, _smooth(fraction, total, pseudo, background))
        for k in NEAREST:
            sums = _sums(near[:k])
            fraction = _smooth(sums / sums.sum(), sums.sum(), pseudo, background)
            found[f"nearest cells in time|{k}, {pseudo}"] = _excess(counts, fraction)
    found["all training cells"] = _excess(counts, background)
    return found


def _along(
    model: sd.SCVI, path: sd.Trajectory, branch: AnnData, counts: np.ndarray, at: float, batch: Mapping[str, float]
) -> dict[str, float]:
    """What a GAM of each gene says, and the decoded trend refitted to the counts; both of the branch's other cells."""
    extent = path.time[-1] - path.time[0]
    here = (path.time - path.time[0]) / extent
    time = np.clip((branch.obs["time"].to_numpy() - path.time[0]) / extent, 0, 1)
    cells = branch.X.toarray().astype(np.float64)
    pooled = pool(cells, time, np.zeros(len(time), dtype=int), np.ones(len(time)))
    place = np.array([(at - path.time[0]) / extent])
    found = {
        f"GAM, {name}": _excess(counts, np.exp(trend.log_tg[0]))
        for name, trend in gam(pooled, place, overdispersion(cells, time, pooled)).items()
    }
    refitted = sd.refit(model, path, branch, pseudotime="time", batch=dict(batch), quantity="scale")
    trend = np.log(refitted.X.astype(np.float64) + 1e-12)
    low = min(int(np.searchsorted(here, place[0], side="right")) - 1, len(here) - 2)
    step = (place[0] - here[low]) / (here[low + 1] - here[low])
    return found | {
        "along the embryo's time, tube, refitted": _excess(
            counts, np.exp((1 - step) * trend[low] + step * trend[low + 1])
        )
    }


def _smooth(fraction: np.ndarray, total: float, pseudo: float, background: np.ndarray) -> np.ndarray:
    return (total * fraction + pseudo * background) / (total + pseudo)


def _sums(cells: AnnData) -> np.ndarray:
    return np.asarray(cells.X.sum(0)).reshape(-1).astype(np.float64)


def _excess(counts_g: np.ndarray, fraction_g: np.ndarray) -> float:
    """Nats a count above those of the counts' own profile; of the genes that any training cell expresses."""
    profile = counts_g / counts_g.sum()
    used = counts_g > 0
    fraction = np.maximum(fraction_g / fraction_g.sum(), 1e-9)
    return float((profile[used] * np.log(profile[used] / fraction[used])).sum())


def _report(found: Mapping[str, Mapping[str, float]]) -> Outcome:
    names = list(next(iter(found.values())))
    plain = [name for name in names if "|" not in name]

    def mean(name: str) -> float:
        return float(np.mean([scores[name] for scores in found.values()]))

    best = {}
    for name in dict.fromkeys(name.split("|")[0] for name in names if "|" in name):
        best[f"{name}, at best"] = min((n for n in names if n.split("|")[0] == name), key=mean)
    rows = {name: name for name in plain} | best
    lines = [["", "mean", "won against the neighbours' average", *found]]
    reference = best["the neighbours' average, by time, at best"]
    for name, key in rows.items():
        wins = sum(scores[key] < scores[reference] for scores in found.values())
        each = [f"{scores[key]:.3f}" for scores in found.values()]
        lines.append([name, f"{mean(key):.3f}", "" if key == reference else f"{wins} of {len(found)}", *each])
    data = {"excess": found, "best": best}
    return Outcome("Held-out cells of the worm embryo", (__doc__ or "").strip(), table(lines), data)
