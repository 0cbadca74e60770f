"""The demonstration: cells of a known branching to a model, two paths, their genes and pictures, in about a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode import plot
from scdecode.counterfactual import counterfactual
from scdecode.dynamics import cascade, compare, gene_dynamics
from scdecode.files import check_replaceable, replacing
from scdecode.model import SCVI
from scdecode.results import write_h5ad
from scdecode.simulation import BRANCH_POINT, simulate_branching, true_scale
from scdecode.tables import write_frame, write_table
from scdecode.trajectory import Trajectory

START, END, OTHER = "stem", "fate A", "fate B"
_BRANCHES = {END: "branch_1", OTHER: "branch_2"}
_EPOCHS = 80  # by then the validation ELBO is within a nat of its best, and the training ELBO beside it

PICTURES = ("latent.png", "trends.png", "heatmap.png", "change.png", "fates.png", "batches.png", "training.png")
WRITTEN = ("model", "expression.h5ad", "expression.csv", "genes.csv", "fates.csv", "batches.csv", *PICTURES)
"""What is in the folder afterwards."""


@dataclass(frozen=True)
class Demo:
    """What the demonstration wrote, and what it found."""

    files: dict[str, Path]
    n_cells: int
    n_genes: int
    epochs: int
    unsupported: int
    risen: list[tuple[str, float]]  # the genes that rise most from stem to fate A, with their log2 fold change
    fallen: list[tuple[str, float]]
    passing: list[str]  # genes that come and go on the way to fate A, the first peak first
    agreement: float  # correlation of decoded and true log2 expression along the paths
    gap: float  # validation less training loss at the end, nats a cell


def run_demo(
    out: str | Path,
    *,
    max_epochs: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    overwrite: bool = False,
) -> Demo:
    """Train on simulated cells that become one of two fates, decode the way to each, and draw it.

    The truth of these cells is known, so what is decoded is compared with it.

    Parameters
    ----------
    out
        The folder to write to.
    max_epochs
        Of the training; by default 80, or fewer if the validation ELBO stops improving.
    seed
        Seed of the cells, the training and the draws.
    say
        Function that is called with a line of text for each step.
    overwrite
        Whether to replace a folder of an earlier demonstration; by default that is an error.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    KeyboardInterrupt
        If the user interrupts; nothing is written then.
    OutputError
        If the folder cannot be written, or is there already and ``overwrite`` is False.
    """
    plot.check_matplotlib()
    check_replaceable(out, WRITTEN, overwrite=overwrite)  # before the training, not after it
    adata = _cells(seed)
    say(f"{adata.n_obs:,} simulated cells x {adata.n_vars} genes in two batches: {START} cells become {END} or {OTHER}")
    SCVI.setup_anndata(adata, batch_key="batch", labels_key="cell_type")
    model = SCVI(adata, n_latent=10, gene_likelihood="nb", seed=seed)
    model.train(max_epochs or _EPOCHS, n_epochs_kl_warmup=20, early_stopping=True, seed=seed)
    if model.info()["ending"] == "interrupted":  # after it, Ctrl-C is to end the demonstration, too
        raise KeyboardInterrupt
    last = model.history_table.iloc[-1]
    gap = float(last["elbo_validation"] - last["elbo_train"])
    say(
        f"trained for {len(model.history_table)} epochs: negative ELBO {last['elbo_train']:,.1f} nats a training cell, "
        f"{last['elbo_validation']:,.1f} a validation cell"
    )
    fates = pd.DataFrame(
        {name: adata.obs["branch"].isin(["trunk", branch]).to_numpy() for name, branch in _BRANCHES.items()},
        index=adata.obs_names,
    )
    paths = Trajectory.along_pseudotime(model.posterior(adata), adata.obs["pseudotime"], weights=fates)
    expression = model.decode(paths, library_size=1e4, seed=seed)
    agreement = _agreement(adata, expression)
    say(
        f"decoded {expression.n_obs} points of the ways to {END} and to {OTHER}, each averaged over the cells around "
        f"it: log2 expression correlates with the truth with r = {agreement:.3f}"
    )
    table = gene_dynamics(model, paths[END], library_size=1e4, seed=seed)
    parts = compare(model, paths[END], paths[OTHER], names=(END, OTHER), library_size=1e4, seed=seed)
    batches = counterfactual(model, paths[END], over="batch", library_size=1e4, seed=seed)
    order = cascade(table, n_top=40)
    passing = [str(gene) for gene in cascade(table, shapes=["transient"])["gene"]]
    ranked = table.sort_values("log2_fold_change")[["gene", "log2_fold_change"]]
    changes = [(str(gene), float(value)) for gene, value in ranked.itertuples(index=False)]
    parting = [str(gene) for gene in parts.table["gene"]]
    best_passing = [str(gene) for gene in table["gene"][(table["shape"] == "transient").to_numpy()]]
    shown = list(dict.fromkeys([changes[0][0], *best_passing[:2], *parting]))[:6]
    with replacing(out, overwrite=overwrite) as folder:
        folder.mkdir()
        model.save(folder / "model")
        write_h5ad(expression, folder / "expression.h5ad")
        write_table(folder / "expression.csv", expression)
        write_frame(folder / "genes.csv", table)
        write_frame(folder / "fates.csv", parts.table)
        write_frame(folder / "batches.csv", batches.table)
        pictures = {
            "latent.png": plot.latent(model, paths, cells=adata, colour="cell_type"),
            "trends.png": plot.trends(expression, shown, cells=adata, lineage="cell_type"),
            "heatmap.png": plot.heatmap(expression[(expression.obs["lineage"] == END).to_numpy()], order),
            "change.png": plot.change(table),
            "fates.png": plot.differences(parts),
            "batches.png": plot.volcano(batches),
            "training.png": plot.history(model),
        }
        for name, axes in pictures.items():
            plot.save(axes, folder / name)
    return Demo(
        files={name: Path(out) / name for name in WRITTEN},
        n_cells=adata.n_obs,
        n_genes=adata.n_vars,
        epochs=len(model.history_table),
        unsupported=int((~expression.obs["supported"]).sum()),
        risen=changes[:-6:-1],
        fallen=changes[:5],
        passing=passing,
        agreement=agreement,
        gap=gap,
    )


def _cells(seed: int) -> AnnData:
    """Cells whose types are named by their true branch and time."""
    adata = simulate_branching(1500, 300, n_batches=2, truth_layers=False, seed=seed)
    types = (
        adata.obs["branch"].astype(str).map({"trunk": "progenitor"} | {own: name for name, own in _BRANCHES.items()})
    )
    types = types.where(adata.obs["pseudotime"] >= BRANCH_POINT / 2, START)
    adata.obs["cell_type"] = pd.Categorical(types, categories=[START, "progenitor", END, OTHER])
    return adata


def _agreement(adata: AnnData, expression: AnnData) -> float:
    """Correlation of decoded and true log2 expression, over all points and genes."""
    branch = [_BRANCHES[str(name)] for name in expression.obs["lineage"]]
    truth = 1e4 * true_scale(adata, np.clip(expression.obs["time"].to_numpy(), 0, 1), branch)
    return float(np.corrcoef(np.log2(truth + 0.1).ravel(), np.log2(np.asarray(expression.X) + 0.1).ravel())[0, 1])
