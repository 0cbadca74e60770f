"""The demonstration: real cells to a model, a path, its genes and pictures, without a network and in under a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scdecode import plot
from scdecode.datasets import pbmc68k_reduced
from scdecode.dynamics import cascade, gene_dynamics
from scdecode.files import check_replaceable, replacing
from scdecode.model import SCVI
from scdecode.results import write_h5ad
from scdecode.tables import write_frame, write_table
from scdecode.trajectory import Trajectory

START, END = "CD34+", "CD14+ Monocyte"
GENES = ("CD34", "SOX4", "STMN1", "LYZ", "S100A9", "TYROBP")
"""Of progenitors, then of monocytes; those that are not among the cells' genes are left out."""


PICTURES = ("trends.png", "heatmap.png", "change.png", "latent.png", "training.png")
WRITTEN = ("model", "expression.h5ad", "expression.csv", "genes.csv", *PICTURES)
"""What is in the folder afterwards."""


@dataclass(frozen=True)
class Demo:
    """What the demonstration wrote, and what it found."""

    files: dict[str, Path]
    n_cells: int
    n_genes: int
    epochs: int
    unsupported: int
    risen: list[tuple[str, float]]  # the genes that rise most along the path, with their log2 fold change
    fallen: list[tuple[str, float]]


def run_demo(
    out: str | Path,
    *,
    max_epochs: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    overwrite: bool = False,
) -> Demo:
    """Train on 700 real PBMC, decode a path from CD34+ progenitors to CD14+ monocytes, and draw it.

    Parameters
    ----------
    out
        The folder to write to.
    max_epochs
        Of the training; by default 400 for so few cells.
    seed
        Of the training.
    say
        Told of each step.
    overwrite
        Whether to replace a folder of an earlier demonstration; by default that is an error.

    Raises
    ------
    MissingExtraError
        Where scanpy, which brings the cells, or matplotlib is not installed.
    OutputError
        If the folder cannot be written, or is there already and ``overwrite`` is False.
    """
    plot.check_matplotlib()
    check_replaceable(out, WRITTEN, overwrite=overwrite)  # before the training, not after it
    adata = pbmc68k_reduced()
    n_types = adata.obs["cell_type"].nunique()
    say(f"{adata.n_obs} real PBMC x {adata.n_vars} genes (Zheng et al. 2017), {n_types} cell types")
    SCVI.setup_anndata(adata, labels_key="cell_type")
    model = SCVI(adata, n_latent=10, gene_likelihood="nb", seed=seed)
    # few cells: so the KL term is at its full weight well before the end, and the latent space is filled evenly
    model.train(max_epochs, n_epochs_kl_warmup=50, seed=seed)
    if model.info()["ending"] == "interrupted":  # a model of few epochs tells no story
        raise KeyboardInterrupt
    loss = model.history_table["elbo_validation"].iloc[-1]
    say(f"trained for {len(model.history_table)} epochs: {loss:,.1f} nats a validation cell (negative ELBO)")
    cell_type = adata.obs["cell_type"].to_numpy()
    posterior = {name: model.posterior(adata[cell_type == name]) for name in (START, END)}
    path = Trajectory.between(model, posterior[START], posterior[END], n_points=100)
    expression = model.decode(path, library_size=1e4, seed=seed)
    say(f"decoded {expression.n_obs} points of a path from {START} to {END}, each averaged over the cells around it")

    table = gene_dynamics(model, path, library_size=1e4, seed=seed)
    change = table.set_index("gene")["log2_fold_change"].sort_values()
    ranked = [(str(gene), float(value)) for gene, value in change.items()]
    genes = [gene for gene in GENES if gene in expression.var_names]
    with replacing(out, overwrite=overwrite) as folder:
        folder.mkdir()
        model.save(folder / "model")
        write_h5ad(expression, folder / "expression.h5ad")
        write_table(folder / "expression.csv", expression)
        write_frame(folder / "genes.csv", table)
        latents = model.get_latent_representation()
        pictures = {
            "trends.png": plot.trends(expression, genes),
            "heatmap.png": plot.heatmap(expression, cascade(table, n_top=40)),
            "change.png": plot.change(table),
            "latent.png": plot.latent(model, points=path, cells=latents, colour=cell_type),
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
        risen=ranked[:-6:-1],
        fallen=ranked[:5],
    )
