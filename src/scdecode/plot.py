"""Pictures of decoded expression, of latents and of a training; each function returns the Axes it drew on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scdecode.errors import InputError, missing_extra, unknown_name
from scdecode.files import replacing
from scdecode.model import SCVI
from scdecode.points import read_points
from scdecode.support import FAR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people of every colour vision tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_FAR_COLOUR = "#BBBBBB"


def check_matplotlib() -> None:
    """Raise :class:`MissingExtraError` where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "plot", "scdecode.plot")


def _axes(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    check_matplotlib()
    import matplotlib.pyplot as plt  # an extra; and slow to import, so not before it is needed

    return plt.subplots(figsize=figsize, layout="constrained")[1]


PICTURES = (".png", ".pdf", ".svg")
"""What :func:`save` writes."""


def save(ax: Axes, path: str | Path) -> None:
    """Write the figure of Axes to a file (.png, .pdf, .svg) and close it.

    Raises
    ------
    InputError
        For an ending that matplotlib does not write.
    OutputError
        Where it cannot be written.
    """
    import matplotlib.pyplot as plt

    figure, path = cast("Figure", ax.get_figure(root=True)), Path(path)
    if path.suffix not in PICTURES:
        raise InputError(f"{path}: {path.suffix!r} came, a name that ends in .png, .pdf or .svg was expected")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def _unit(expression: AnnData) -> str:
    made = expression.uns.get("scdecode")
    if made is None:
        raise InputError("expression: it has no uns['scdecode']; a result of model.decode(...) was expected")
    if made["quantity"] == "scale":
        return "fraction of RNA" if made["library"] == "counts" else "expression at size factor one"
    sizes = expression.obs["library_size"].unique()
    if made["library"] == "counts":
        at = f"library of {sizes[0]:,.0f} counts" if len(sizes) == 1 else "library of each point"
    else:
        at = f"size factor {sizes[0]:.3g}" if len(sizes) == 1 else "size factor of each point"
    word = {"rate": "expected counts", "mean": "expected counts with zero inflation", "counts": "drawn counts"}
    return f"{word[made['quantity']]}, {at}"


def _along(expression: AnnData) -> tuple[np.ndarray, str, np.ndarray]:
    """Positions in order, what they are, and the order of the points."""
    if "time" in expression.obs:
        time = expression.obs["time"].to_numpy(dtype=float)
        order = np.argsort(time, kind="stable")
        return time[order], "position along the path (time)", order
    return np.arange(expression.n_obs), "point", np.arange(expression.n_obs)


def _columns(expression: AnnData, genes: Sequence[str]) -> list[int]:
    names = list(expression.var_names)
    for gene in genes:
        if gene not in names:
            raise InputError(unknown_name("genes", gene, names, "decoded genes"))
    return [names.index(gene) for gene in genes]


def _dense(matrix: Any, columns: list[int]) -> np.ndarray:
    """Columns of an expression matrix, in memory or on disk, dense or sparse."""
    if hasattr(matrix, "to_memory"):  # anndata's sparse matrices on disk
        matrix = matrix.to_memory()
    values = matrix[:, columns].toarray() if sp.issparse(matrix) else np.asarray(matrix[:])[:, columns]
    return np.asarray(values, dtype=np.float64)


def most_changing(expression: AnnData, n: int = 30) -> list[str]:
    """The genes whose log1p expression varies most over the points, ordered by where along them they peak.

    Parameters
    ----------
    expression
        From ``model.decode``.
    n
        How many, at most.
    """
    values = np.log1p(_dense(expression.X, list(range(expression.n_vars))))
    chosen = np.argsort(-values.std(axis=0))[:n]
    return [str(expression.var_names[i]) for i in chosen[np.argsort(values[:, chosen].argmax(axis=0), kind="stable")]]


def trends(expression: AnnData, genes: Sequence[str], *, ax: Axes | None = None, log: bool = False) -> Axes:
    """Expression of genes along the points, with the 5 to 95 % band where there is one.

    Stretches that are not supported by training cells are grey. Points without an order (no ``time`` in ``obs``) are
    dots and no line.

    Parameters
    ----------
    expression
        From ``model.decode``: points x genes.
    genes
        Names.
    ax
        Where to draw; by default a new figure.
    log
        Whether the vertical axis is ``log1p`` of the expression.
    """
    genes = [genes] if isinstance(genes, str) else list(genes)
    unit, columns = _unit(expression), _columns(expression, genes)
    ax = _axes(ax, (6.0, 3.6))
    x, label, order = _along(expression)
    change = np.log1p if log else np.asarray
    values = change(_dense(expression.X, columns))[order]
    if "q05" in expression.layers:
        low, high = (change(_dense(expression.layers[name], columns))[order] for name in ("q05", "q95"))
        for j in range(len(genes)):
            ax.fill_between(x, low[:, j], high[:, j], color=COLOURS[j % len(COLOURS)], alpha=0.18, linewidth=0)
    for j, gene in enumerate(genes):
        style: dict[str, Any] = {}
        if "time" not in expression.obs:
            style = {"linestyle": "none", "marker": ".", "markersize": 4}
        ax.plot(x, values[:, j], color=COLOURS[j % len(COLOURS)], label=gene, linewidth=1.8, **style)
    _mark_unsupported(ax, expression[order], _edges(x))
    ax.set_xlabel(label)
    ax.set_ylabel(f"log1p of {unit}" if log else unit)
    ax.margins(x=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        title="mean, 5–95 % band" if "q05" in expression.layers else None,
    )
    return ax


def _mark_unsupported(ax: Axes, expression: AnnData, edges: np.ndarray) -> None:
    """Grey stripes from edge to edge around the points that are not supported."""
    # where support is unknown nothing is marked
    far = np.flatnonzero(~expression.obs["supported"].fillna(True).to_numpy(dtype=bool))
    for number, i in enumerate(far):
        label = "far from training cells" if number == 0 else None
        ax.axvspan(edges[i], edges[i + 1], color=_FAR_COLOUR, alpha=0.35, linewidth=0, label=label)


def _edges(x: np.ndarray) -> np.ndarray:
    """The places half-way between sorted positions, and the ends."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middle = (x[1:] + x[:-1]) / 2
    return np.concatenate([x[:1], middle, x[-1:]])


def heatmap(expression: AnnData, genes: Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Genes x points, each gene's log1p expression from its lowest (0) to its highest (1).

    Genes are ordered by the tenth of the path in which they peak, then by where they cross half of their range.
    Stretches that are not supported by training cells are pale.

    Parameters
    ----------
    expression
        From ``model.decode``: points x genes.
    genes
        Names; by default the 30 that change most.
    ax
        Where to draw; by default a new figure.
    """
    genes = most_changing(expression) if genes is None else [genes] if isinstance(genes, str) else list(genes)
    x, label, along = _along(expression)
    values = np.log1p(_dense(expression.X, _columns(expression, genes)))[along]
    span = values.max(axis=0) - values.min(axis=0)
    shown = (values - values.min(axis=0)) / np.where(span > 0, span, 1.0)
    order = np.lexsort((_crossing(shown), shown.argmax(axis=0) * 10 // len(shown)))
    shown, genes = shown[:, order], [genes[i] for i in order]
    ax = _axes(ax, (6.0, 1.2 + 0.18 * len(genes)))
    mesh = ax.pcolormesh(_edges(x), np.arange(len(genes) + 1) - 0.5, shown.T, cmap="viridis", rasterized=True)
    ax.invert_yaxis()
    _mark_unsupported(ax, expression[along], _edges(x))
    ax.set_yticks(range(len(genes)), genes, fontsize=7)
    ax.set_xlabel(label)
    ax.figure.colorbar(mesh, ax=ax, label="log1p expression, of each gene\nits lowest 0 to its highest 1", shrink=0.8)
    return ax


def _crossing(shown_ng: np.ndarray) -> np.ndarray:
    """Where each gene is first past half of its range, on the way up or down."""
    above = shown_ng >= 0.5
    return np.asarray((above != above[0]).argmax(axis=0))


def latent(
    model: SCVI,
    points: Any = None,
    *,
    cells: np.ndarray | None = None,
    colour: Sequence[Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Training cells on the first two principal axes of the latent space, with points or a path on top.

    Parameters
    ----------
    model
        Trained.
    points
        A path or points to draw over the cells, in any form that ``model.decode`` takes; those that are not supported
        are hollow.
    cells
        Latents of the cells to show, ``(n, k)``; by default the model's reference cells.
    colour
        A category of each of the cells, or a number, such as a pseudotime.
    ax
        Where to draw; by default a new figure.
    """
    shown = model.reference_latents() if cells is None else np.asarray(cells)
    if colour is not None and len(colour) != len(shown):
        raise InputError(
            f"colour: {len(colour)} values came, one for each of the {len(shown)} "
            "cells was expected; pass cells=model.get_latent_representation(adata) for all cells of an AnnData"
        )
    ax = _axes(ax, (5.6, 4.4))
    centre = shown.mean(axis=0)
    _, singular, axes = np.linalg.svd(shown - centre, full_matrices=False)
    axes, share = axes[:2], singular[:2] ** 2 / (singular**2).sum()
    x, y = axes @ (shown - centre).T
    if colour is None:
        ax.scatter(x, y, s=6, color=_FAR_COLOUR, linewidths=0, label="training cells")
    elif pd.api.types.is_numeric_dtype(np.asarray(colour)) and len(set(colour)) > len(COLOURS):
        dots = ax.scatter(x, y, s=8, c=np.asarray(colour, dtype=float), cmap="viridis", linewidths=0, label="cells")
        ax.figure.colorbar(dots, ax=ax, label=getattr(colour, "name", None) or "colour", shrink=0.8)
    else:
        categories = pd.Categorical(colour)
        palette = _palette(len(categories.categories))
        for i, name in enumerate(categories.categories):
            at = categories.codes == i
            ax.scatter(x[at], y[at], s=8, color=palette[i], linewidths=0, label=str(name), alpha=0.7)
    if points is not None:
        read = read_points(points, model.config.n_latent, simplex=model.config.latent_distribution == "ln")
        along, across = axes @ (read.z_nk.numpy() - centre).T
        far = model.support(points).reshape(-1) > FAR
        ax.plot(along, across, color="black", linewidth=1.8, label="path")
        towards = np.array([along[-1] - along[0], across[-1] - across[0]])
        aside = 12 * towards / max(np.linalg.norm(towards), 1e-12)  # points beyond the ends, away from the path
        halo = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        for name, at, offset in (("start", 0, -aside), ("end", -1, aside)):
            text = ax.annotate(name, (along[at], across[at]), tuple(offset), textcoords="offset points", fontsize=8)
            text.set(ha="center", va="center", bbox=halo)
        if far.any():
            hollow = ax.scatter(along[far], across[far], s=14, color="white", label="far from training cells", zorder=3)
            hollow.set(edgecolor="black", linewidth=0.8)
    ax.set_xlabel(f"latent principal axis 1 ({share[0]:.0%} of variance)")
    ax.set_ylabel(f"latent principal axis 2 ({share[1]:.0%} of variance)" if len(share) > 1 else "")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.6)
    return ax


def _palette(n: int) -> list[Any]:
    """Colours for ``n`` categories: distinct ones while there are, then a map's."""
    if n <= len(COLOURS):
        return list(COLOURS)
    import matplotlib as mpl

    colours = mpl.colormaps["tab20"](np.arange(20)) if n <= 20 else mpl.colormaps["turbo"](np.linspace(0, 1, n))
    return list(colours)


def history(model: SCVI, *, ax: Axes | None = None) -> Axes:
    """The loss (negative ELBO, nats a cell) of training and validation cells by epoch."""
    table = model.history_table
    if table.empty:
        raise InputError("model: it has no history; train it first")
    ax = _axes(ax, (5.0, 3.2))
    for i, of in enumerate(("train", "validation")):
        column = f"elbo_{of}"
        if column in table:
            seen = table[column].dropna()
            ax.plot(seen.index + 1, seen, color=COLOURS[i], label=f"{of} cells")
    ax.set_xlabel("epoch")
    ax.set_ylabel("negative ELBO (nats a cell)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax
