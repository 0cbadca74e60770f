"""How long paths take: decoding with draws, geodesics, curves along a pseudotime, sensitivities, gene dynamics."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from asked import Asked
from report import Row, Section
from timing import alternate

import scdecode as sd

N_GENES, N_CELLS, N_POINTS, N_DRAWS = 2_000, 2_000, 100, 200
N_ORDERED = 100_000  # cells along a pseudotime
TAKES = ("threads",)

METHOD = (
    f"Seconds of a call, warm; medians of rounds. {N_CELLS:,} simulated cells of two branches, {N_GENES:,} genes, one "
    f"model (nb, 10 latents, 128 hidden units, 100 epochs). decode: {N_POINTS} points of a path along the pseudotime, "
    f"{N_DRAWS} draws of the cells around each, one batch, with support, quantiles and the noise of counting. "
    f"geodesic: {N_POINTS} points from the root to the end of a branch, the graph and the search. along_pseudotime: "
    f"{N_ORDERED:,} cells x 10 latents with posterior variances, the choice of the bandwidth included. gene_dynamics: "
    "the table of all genes, 128 draws. sensitivity: all genes and latent dimensions, mean and root mean square over "
    f"the {N_POINTS} points. tube: the spread around {N_POINTS} points from the reference cells."
)


def measure(asked: Asked) -> Section:
    """Each call, by itself."""
    warnings.simplefilter("ignore", sd.errors.SupportWarning)
    cells = sd.datasets.simulate_branching(N_CELLS, N_GENES, n_batches=2, library_size=2_000)
    sd.SCVI.setup_anndata(cells, batch_key="batch")
    model = sd.SCVI(cells, gene_likelihood="nb")
    model.train(5 if asked.quick else 100, n_epochs_kl_warmup=20, device="cpu", progress=False)
    time_n, branch_n = cells.obs["pseudotime"].to_numpy(), cells.obs["branch"].astype(str).to_numpy()
    root, tip = np.flatnonzero(time_n < 0.05), np.flatnonzero((time_n > 0.95) & (branch_n == "branch_1"))
    ends = [model.posterior(cells, indices=some) for some in (root, tip)]
    path = sd.Trajectory.along_pseudotime(
        model.posterior(cells), time_n, np.isin(branch_n, ["trunk", "branch_1"]) * 1.0
    )
    ordered = _ordered(model, cells, 10_000 if asked.quick else N_ORDERED)
    calls: list[tuple[str, Callable[[], object], float | None]] = [
        ("decode, 200 draws", lambda: model.decode(path, batch="batch_1", n_samples=N_DRAWS), 1.0),
        ("geodesic", lambda: sd.Trajectory.between(model, *ends, how="geodesic", batch="batch_1"), 5.0),
        ("along_pseudotime, 100,000 cells", lambda: sd.Trajectory.along_pseudotime(*ordered), 2.0),
        ("gene_dynamics", lambda: sd.dynamics.gene_dynamics(model, path, batch="batch_1"), None),
        ("sensitivity", lambda: sd.geometry.sensitivity(model, path, batch="batch_1"), None),
        ("tube", lambda: sd.Trajectory.from_points(path.points, model=model), None),
    ]
    rows = []
    for name, call, bar in calls:
        found = alternate({"ours": _seconds(call)}, 1 if asked.quick else 3)["ours"]
        rows.append(Row(name, "s", found, at_most=bar))
    return Section("Paths", rows, METHOD)


def _ordered(model: sd.SCVI, cells: object, n: int) -> tuple[torch.distributions.Normal, np.ndarray]:
    """Many cells: those that there are, again and again, each moved a little."""
    posterior = model.posterior()
    rng = np.random.default_rng(0)
    which = torch.from_numpy(rng.integers(0, len(posterior.mean), n))
    mean = posterior.mean[which] + 0.05 * torch.from_numpy(rng.normal(size=(n, posterior.mean.shape[1]))).float()
    times = np.asarray(cells.obs["pseudotime"])[which.numpy()] + 0.005 * rng.normal(size=n)
    return torch.distributions.Normal(mean, posterior.stddev[which]), times


def _seconds(call: Callable[[], object]) -> Callable[[], float]:
    def side() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return side
