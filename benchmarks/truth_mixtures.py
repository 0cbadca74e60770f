"""RNA of three cell lines mixed in known proportions: a mixture that no model saw, decoded from a path to it.

Wells of one 0.68 / 0.16 / 0.16 mixture are left out of training. The path runs from its pure line to the even mixture;
the mixture's place on it is its share of the way in proportions, (1 - 0.68) / (1 - 1/3) = 0.48. What is decoded there,
in each protocol, is compared with the mean of the left-out wells. The error is the mean |difference of log1p| per ten
thousand over the 200 genes that differ most between the two ends; correlation and slope are of the changes of these
genes since the pure line, decoded against measured (1 and 1 are right). "best place" takes the point of the path of the
least error, which nobody knows. The mean of the k training wells nearest in the latent space to the same place of the
straight path has the best k of several; the arithmetic mixture is 0.68, 0.16 and 0.16 of the three pure lines' mean
rates. "noise" is the error of one half of the left-out wells against the other, by two: what the truth itself is off.
Mean over mixtures, seeds and protocols, with the range over mixtures and seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from truth_tables import DATA, Outcome, Sizes, per_ten_thousand, table

import scdecode as sd

FILE = "mixology_RNAmix_tian2019_hvg3000.h5ad"
LINES = ("H2228_prop", "H1975_prop", "HCC827_prop")
MOST, REST, EVEN = 0.68, 0.16, 0.33
PLACE = (1 - MOST) / (1 - 1 / 3)
N_GENES = 200
NEAREST = (5, 10, 20, 40)
WAYS = ("linear", "graph", "geodesic")
TRAININGS: Mapping[str, Mapping[str, int]] = {"default": {}, "warm-up 20": {"n_epochs_kl_warmup": 20}}


@dataclass(frozen=True)
class Score:
    error: float
    correlation: float
    slope: float
    best_error: float = float("nan")  # at the best place of the path


@dataclass(frozen=True)
class Held:
    """What is left out, in one protocol, and what is near it; log1p per ten thousand of the 200 genes."""

    truth: np.ndarray
    start: np.ndarray  # the pure line
    noise: float


def run(sizes: Sizes) -> Outcome:
    wells = anndata.read_h5ad(DATA / FILE)
    wells.obs["batch"] = wells.obs["batch"].astype(str).astype("category")
    lines = LINES[: sizes.folds]
    found: dict[str, list[list[Score]]] = {}
    for line in lines:
        for seed in range(sizes.model_seeds):
            for name, scores in _hold_out(wells, line, seed, sizes).items():
                found.setdefault(name, []).append(scores)
            print(f"mixtures: {line} {MOST} left out, seed {seed}", flush=True)
    head = ["", "error", "correlation", "slope", "error at the best place"]
    rows = []
    for name, runs in found.items():
        each = np.array([np.mean([astuple(score) for score in scores], axis=0) for scores in runs])
        mean, low, high = each.mean(0), each.min(0), each.max(0)
        cells = [f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(mean, low, high, strict=True)]
        rows.append([name, *("" if "nan" in cell else cell for cell in cells)])
    data = {name: [[astuple(score) for score in scores] for scores in runs] for name, runs in found.items()}
    return Outcome("RNA mixtures", (__doc__ or "").strip(), table([head, *rows]), data)


def _is(obs: pd.DataFrame, line: str, most: float, rest: float) -> np.ndarray:
    others = [name for name in LINES if name != line]
    near = np.isclose(obs[line], most) & np.isclose(obs[others], rest).all(axis=1)
    return np.asarray(near)


def _hold_out(wells: AnnData, line: str, seed: int, sizes: Sizes) -> dict[str, list[Score]]:
    left_out = _is(wells.obs, line, MOST, REST)
    train, held = wells[~left_out].copy(), wells[left_out].copy()
    pure, even = _is(train.obs, line, 1.0, 0.0), _is(train.obs, line, EVEN, EVEN)
    protocols = list(wells.obs["batch"].cat.categories)
    apart = np.abs(per_ten_thousand(_profile(train[pure])) - per_ten_thousand(_profile(train[even])))
    genes = np.argsort(-apart)[:N_GENES]
    truths = {p: _held(train[pure & _in(train, p)], held[_in(held, p)], genes) for p in protocols}
    scores: dict[str, list[Score]] = {"noise": [Score(t.noise, np.nan, np.nan) for t in truths.values()]}
    mixed = []
    for p in protocols:
        share = {name: MOST if name == line else REST for name in LINES}
        sets = {name: train[_is(train.obs, name, 1.0, 0.0) & _in(train, p)] for name in LINES}
        profile = sum(share[name] * _profile(sets[name]) for name in LINES)
        mixed.append(_score(truths[p], per_ten_thousand(profile)[genes]))
    scores["arithmetic mixture of the pure lines"] = mixed
    for training, options in TRAININGS.items():
        sd.SCVI.setup_anndata(train, batch_key="batch")
        model = sd.SCVI(train, gene_likelihood="nb", seed=seed)
        model.train(sizes.epochs, seed=seed, device="cpu", progress=False, **options)
        scores |= _decoded(model, train, pure, even, truths, genes, training, sizes)
    return scores


def _decoded(
    model: sd.SCVI,
    train: AnnData,
    pure: np.ndarray,
    even: np.ndarray,
    truths: Mapping[str, Held],
    genes: np.ndarray,
    training: str,
    sizes: Sizes,
) -> dict[str, list[Score]]:
    scores: dict[str, list[Score]] = {}
    ends = [model.posterior(train[of]) for of in (pure, even)]
    for how in WAYS:
        path = sd.Trajectory.between(model, *ends, sizes.points, how)
        # even steps: the share of points that lie behind is the share of the way
        at = round(PLACE * (sizes.points - 1))
        for what, spread in (("line", False), ("tube", None)):
            for p, truth in truths.items():
                decoded = model.decode(path, batch=p, quantity="scale", spread=spread).X[:, genes]
                values = per_ten_thousand(decoded)
                best = min(float(np.abs(value - truth.truth).mean()) for value in values)
                one = _score(truth, values[at])
                scores.setdefault(f"{how}, {what}, {training}", []).append(
                    Score(one.error, one.correlation, one.slope, best)
                )
    latent = model.get_latent_representation(train)
    middle = np.stack([end.mean.numpy().mean(0) for end in ends])
    order = ((latent - (middle[0] + PLACE * (middle[1] - middle[0]))) ** 2).sum(1).argsort()
    averages = []
    for k in NEAREST:
        each = []
        for p, truth in truths.items():
            own = order[_in(train, p)[order]][:k]
            each.append(_score(truth, per_ten_thousand(_profile(train[own]))[genes]))
        averages.append(each)
    scores[f"nearest wells, best k, {training}"] = min(averages, key=lambda each: np.mean([s.error for s in each]))
    return scores


def _in(wells: AnnData, protocol: str) -> np.ndarray:
    return (wells.obs["batch"] == protocol).to_numpy()


def _profile(wells: AnnData) -> np.ndarray:
    """The mean fraction of RNA over wells, each alike."""
    counts = wells.X.toarray().astype(np.float64)
    return (counts / counts.sum(1, keepdims=True)).mean(0)


def _held(pure: AnnData, held: AnnData, genes: np.ndarray) -> Held:
    halves = [per_ten_thousand(_profile(held[i::2]))[genes] for i in (0, 1)]
    noise = float(np.abs(halves[0] - halves[1]).mean()) / 2
    return Held(per_ten_thousand(_profile(held))[genes], per_ten_thousand(_profile(pure))[genes], noise)


def _score(held: Held, decoded: np.ndarray) -> Score:
    measured, found = held.truth - held.start, decoded - held.start
    slope = np.polyfit(measured, found, 1)[0]
    return Score(float(np.abs(decoded - held.truth).mean()), float(np.corrcoef(measured, found)[0, 1]), float(slope))
