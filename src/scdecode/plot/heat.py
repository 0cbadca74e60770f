"""The cascade: genes in the order in which they change, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import NamesLike
from scdecode.errors import InputError
from scdecode.plot import axes as ax_
from scdecode.plot.axes import FAR_WORDS
from scdecode.plot.reading import (
    Line,
    columns_of,
    dense,
    is_difference,
    lines_of,
    log_expression,
    most_changing,
    time_label,
    unit_of,
)
from scdecode.pseudocounts import PSEUDOCOUNT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 60
"""Genes that are named, at most; of more, every second, third, ..."""


@checked
def heatmap(
    expression: AnnData,
    genes: NamesLike | pd.DataFrame | str | None = None,
    *,
    sort: bool | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Genes x points, each gene's log expression from its lowest (0) to its highest (1).

    The logarithm is log2 of counts per ten thousand, plus 0.1 as of all fold changes, whatever the library size and the
    quantity. A difference (``sd.counterfactual(...).difference``) is shown in its unit, all genes on one scale that is
    symmetric about 0, ordered by where they differ most.

    Genes are ordered by the tenth of the path in which they peak, then by where they cross half of their range; the
    genes of a table keep its order. Stretches that are not supported by training cells are hatched. Several lineages or
    conditions are side by side, each gene on the same scale in all of them, ordered by the first.

    Parameters
    ----------
    expression
        From ``model.decode``: points x genes.
    genes
        Names, or a table of genes in the order of their changes (a column ``gene``, or else its index), such as
        ``dynamics.cascade(...)``, whose ``time`` of the change is marked; by default the 30 genes that change most.
    sort
        Whether to order the genes; by default unless a table came.
    ax
        Where to draw; by default a new figure.

    Returns
    -------
    Axes
        Of the first lineage; ``.figure.axes`` are all, and that of the colours.

    Raises
    ------
    InputError
        For what is no result of ``model.decode``, unknown genes, or several lineages on one ``ax``.
    """
    unit = unit_of(expression)  # of a result of decode, or an error
    apart = is_difference(expression)
    sort = not isinstance(genes, pd.DataFrame) if sort is None else sort
    names = most_changing(expression) if genes is None else _names(genes)
    if isinstance(genes, pd.DataFrame) and not names:
        raise InputError(
            "genes: the cascade is empty: no gene changes by more than the error bars (shape 'flat'); train longer, or "
            "pass gene_dynamics(..., least_score=...) less"
        )
    lines = lines_of(expression)
    if ax is not None and len(lines) > 1:
        raise InputError(
            f"ax: one Axes came for {len(lines)} lineages or conditions; leave it out, or pass a part of the expression"
        )
    columns = columns_of(expression, names)
    shown_ng = dense(expression.X, columns) if apart else _scaled(log_expression(expression, columns))
    if sort:
        first_ng = _scaled(np.abs(shown_ng[lines[0].rows])) if apart else shown_ng[lines[0].rows]
        order = np.lexsort((_crossing(first_ng), first_ng.argmax(axis=0) * 10 // len(first_ng)))
        shown_ng, names = shown_ng[:, order], [names[i] for i in order]
    across = len(lines)
    # inches
    size = (2.6 + 3.4 * across, 1.5 + max(0.18 * min(len(names), _NAMED), 0.6))
    axes = [ax] if ax is not None else ax_.grid(1, across, size, sharey=True)[1]
    for line, one in zip(lines, axes, strict=True):
        mesh = _draw(one, line, shown_ng, apart)
    entries: list[tuple[Any, str]] = []
    if isinstance(genes, pd.DataFrame) and "time" in genes and not sort:
        time_g = genes["time"].to_numpy(dtype=float)
        marked = (
            axes if len(lines) == 1 else [one for one, line in zip(axes, lines, strict=True) if _is_of(line, genes)]
        )
        for one in marked:
            one.plot(time_g, np.arange(len(names)), **_MARK, label="_time of change")
        entries += [(_mark_key(), "time of change")] if marked else []
    axes[0].invert_yaxis()  # shared
    step = -(-len(names) // _NAMED)
    axes[0].set_yticks(range(0, len(names), step), names[::step], fontsize=7, style="italic")
    if step > 1:
        axes[0].set_ylabel(f"{len(names):,} genes, one in {step} named")
    axes[across // 2 if across % 2 else 0].set_xlabel(time_label(expression))
    if across % 2 == 0:
        axes[0].set_xlabel("")
        axes[0].figure.supxlabel(time_label(expression), fontsize=10)
    words = f"log2 (counts per 10,000 + {PSEUDOCOUNT:g}),\nof each gene its lowest 0 to its highest 1"
    words = unit if apart else words
    bar = axes[0].figure.colorbar(mesh, ax=axes, label=words, shrink=0.8, aspect=25)
    bar.outline.set_visible(False)
    if any(line.far.any() for line in lines):
        entries.append((_veil_patch(), FAR_WORDS))
    above = 1.0 + 0.3 * (lines[0].name is not None) / size[1]  # inches for the title
    ax_.key(axes[0], entries, loc="lower left", bbox_to_anchor=(0.0, above), ncols=2)
    return axes[0]


def _names(genes: Sequence[str] | pd.DataFrame | str) -> list[str]:
    if isinstance(genes, pd.DataFrame):
        genes = list(genes.get("gene", genes.index))
    return [genes] if isinstance(genes, str) else [str(gene) for gene in genes]


def _scaled(values_ng: np.ndarray) -> np.ndarray:
    """Each gene from 0 to 1."""
    span_g = np.ptp(values_ng, axis=0)
    return np.asarray((values_ng - values_ng.min(axis=0)) / np.where(span_g > 0, span_g, 1.0))


def _draw(ax: Axes, line: Line, shown_ng: np.ndarray, apart: bool) -> Any:
    sides, n_genes = ax_.edges(line.x), shown_ng.shape[1]
    look: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1}
    if apart:
        most = float(np.abs(shown_ng).max()) or 1.0
        look = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    mesh = ax.pcolormesh(sides, np.arange(n_genes + 1) - 0.5, shown_ng[line.rows].T, rasterized=True, **look)
    for first, last in ax_.runs(line.far):
        veil = ax.axvspan(sides[first], sides[last + 1], **_VEIL | ({"edgecolor": "#667788"} if apart else {}))
        veil.set_label("_" + FAR_WORDS)
    ax.tick_params(length=2)
    ax.spines[:].set_visible(False)
    if line.name is not None:
        ax.set_title(line.name, fontsize=10)
    return mesh


# lines and a pale ground: the colours below stay legible, and no colour looks like it
_VEIL: dict[str, Any] = {"facecolor": (1, 1, 1, 0.35), "edgecolor": "white", "hatch": "////", "linewidth": 0}


_MARK: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 3.4,
    "markerfacecolor": "white",
    "markeredgecolor": "black",
    "markeredgewidth": 0.7,
}


def _mark_key() -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **_MARK)


def _is_of(line: Line, table: pd.DataFrame) -> bool:
    """Whether a table that names its lineage is of this one."""
    return "lineage" in table and line.lineage in set(table["lineage"].astype(str))


def _veil_patch() -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor="#8899AA", edgecolor="white", hatch="//////", linewidth=0)


def _crossing(shown_ng: np.ndarray) -> np.ndarray:
    """Where each gene is first past half of its range, on the way up or down."""
    above = shown_ng >= 0.5
    return np.asarray((above != above[0]).argmax(axis=0))
