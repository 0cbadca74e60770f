"""Decoded points a second beside scvi-tools: its generative half in a loop, and its get_normalized_expression."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import peer
import scvi
import torch
from anndata import AnnData
from counts import DENSITY, make_cells, make_counts
from report import Row, Section
from timing import alternate, rate_of

import scdecode as sd

CASES = ((2_000, 100_000), (20_000, 10_000))  # genes, points
MINIBATCHES = (256, 1024, 4096)
LIBRARY = 1e4
N_TRAINED = 512  # cells; how well the model is trained does not matter to its speed
N_NORMALISED = 20_000  # cells given to get_normalized_expression, at most

METHOD = (
    "Points near the cells of a model that was trained for one epoch (nb, two batches, one of them given by name), to "
    'numpy. scdecode: `model.decode(points, batch="batch_1", library_size=1e4)`, the rate, with all that it does: '
    "checks, support, names, AnnData. scvi-tools: `module.generative(...)` in evaluation and inference mode, minibatch "
    f"by minibatch, `px.mu` into one numpy array; its best minibatch of {', '.join(map(str, MINIBATCHES))}, which the "
    f"row names. get_normalized_expression: of cells with {DENSITY:.0%} non-zero counts, `return_numpy=True, "
    "library_size=1e4`, its other defaults; it encodes the cells first, as that is its only way to points."
)


def measure(*, quick: bool) -> Section:
    warnings.simplefilter("ignore", sd.errors.SupportWarning)
    rounds = 2 if quick else 7
    rows = []
    for n_genes, n_points in CASES:
        n_points = n_points // 10 if quick else n_points
        cells = make_cells(make_counts(N_TRAINED, n_genes))
        ours, theirs = _train_ours(cells), _train_theirs(cells)
        points = _points(ours, n_points)

        loops = {size: rate_of(_loop(theirs, points, size), n_points) for size in MINIBATCHES}
        tried = alternate({str(size): loop for size, loop in loops.items()}, 1 if quick else 2)
        best = max(MINIBATCHES, key=lambda size: tried[str(size)].median)

        some = make_cells(make_counts(min(n_points, N_NORMALISED), n_genes, seed=1))
        sides = {
            "decode": rate_of(lambda m=ours, z=points: m.decode(z, batch="batch_1", library_size=LIBRARY), n_points),
            "loop": loops[best],
            "normalized": rate_of(_normalized(theirs, some), len(some)),
        }
        found = alternate(sides, rounds)
        what = f"rate, {n_genes:,} genes, {n_points:,} points"
        loop_name = f"{peer.NAME}, generative in minibatches of {best:,}"
        rows.append(Row(what, "points/s", found["decode"], found["loop"], loop_name, at_least=1.0))
        rows.append(
            Row(what, "points/s", found["decode"], found["normalized"], f"{peer.NAME}, get_normalized_expression")
        )
    return Section("Decoding", rows, METHOD)


def _train_ours(cells: AnnData) -> sd.SCVI:
    sd.SCVI.setup_anndata(cells, batch_key="batch")
    model = sd.SCVI(cells, gene_likelihood="nb")
    model.train(1, device="cpu", progress=False)
    return model


def _train_theirs(cells: AnnData) -> scvi.model.SCVI:
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    peer.train(model, 1)
    return model


def _points(model: sd.SCVI, n_points: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    latent = model.reference_latents()
    noise = rng.normal(0, 0.1 * latent.std(), (n_points, latent.shape[1]))
    return (latent[rng.integers(0, len(latent), n_points)] + noise).astype(np.float32)


def _loop(model: scvi.model.SCVI, points: np.ndarray, size: int) -> Callable[[], np.ndarray]:
    module = model.module.eval()

    def work() -> np.ndarray:
        out = np.empty((len(points), module.n_input), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(points), size):
                z = torch.from_numpy(points[start : start + size])
                outputs = module.generative(
                    z=z,
                    library=torch.full((len(z), 1), math.log(LIBRARY)),
                    batch_index=torch.zeros((len(z), 1), dtype=torch.int64),
                    y=torch.zeros((len(z), 1), dtype=torch.int64),
                )
                out[start : start + size] = outputs["px"].mu.numpy()
        return out

    return work


def _normalized(model: scvi.model.SCVI, cells: AnnData) -> Callable[[], np.ndarray]:
    return lambda: model.get_normalized_expression(cells, library_size=LIBRARY, return_numpy=True)
