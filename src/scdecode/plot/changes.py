"""How much genes change along a path, against how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import GeneTable
from scdecode.errors import InputError, check_integer, listing, unknown_name
from scdecode.plot import axes as ax_
from scdecode.plot.axes import Panels
from scdecode.plot.labels import beside_points
from scdecode.plot.palettes import COLOURS, tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHAPES = {
    "up": (COLOURS[1], "^"),
    "down": (COLOURS[0], "v"),
    "transient": (COLOURS[2], "D"),
    "valley": (COLOURS[3], "s"),
    "flat": ("#BBBBBB", "o"),
}
"""Colour and marker of what a gene does along a path."""

_NEEDED = ("log2_fold_change", "score", "shape")


@checked
def change(
    table: GeneTable, *, label: int | Sequence[str] = 12, threshold: float | None = None, ax: Axes | None = None
) -> Axes | Panels:
    """Draw each gene's log2 fold change from start to end of a path against the score of its change.

    Colour and marker are the shape of its trend; the names are those of the best genes. A transient gene may end where
    it began: its score is high at a fold change of none.

    Parameters
    ----------
    table
        From ``dynamics.gene_dynamics(...)``: columns ``gene`` (or the index), ``log2_fold_change``, ``score`` and
        ``shape``, perhaps ``rank`` and ``lineage``. Genes without a number in the first two are left out.
    label
        How many genes to name, the best first (lowest ``rank``, or else highest ``score``), or which.
    threshold
        A score to draw a line at; by default that below which genes were called flat (``attrs["least_score"]``).
    ax
        Where to draw; by default a new figure, with Axes for each lineage.

    Returns
    -------
    Axes, or a list of them
        Of several lineages a list of the Axes of each.

    Raises
    ------
    InputError
        For a table without these columns or without genes, unknown genes or shapes, or several lineages on one ``ax``.
    """
    threshold = getattr(table, "attrs", {}).get("least_score") if threshold is None else threshold
    missing = [name for name in _NEEDED if name not in getattr(table, "columns", ())]
    if missing:
        came = listing(getattr(table, "columns", [type(table).__name__]))
        raise InputError(
            f"table: it has no {listing(missing)} but {came}; what dynamics.gene_dynamics(...) returns was expected"
        )
    table = table.assign(gene=(table["gene"] if "gene" in table else pd.Series(table.index, table.index)).astype(str))
    for shape in table["shape"].unique():
        if shape not in SHAPES:
            raise InputError(unknown_name("table['shape']", shape, SHAPES, "shapes"))
    if isinstance(label, int):
        check_integer("label", label, minimum=0)
    else:
        label = [label] if isinstance(label, str) else list(label)
        for gene in label:
            if gene not in set(table["gene"]):
                raise InputError(unknown_name("label", gene, list(table["gene"].unique()), "genes of the table"))
    finite = np.isfinite(table[["log2_fold_change", "score"]].to_numpy(dtype=float)).all(axis=1)
    if not finite.any():
        raise InputError("table: it has no gene with a number for log2_fold_change and score")
    table = table[finite]
    parts: list[tuple[str | None, pd.DataFrame]] = [(None, table)]
    if "lineage" in table and table["lineage"].nunique() > 1:
        parts = [(str(name), part) for name, part in table.groupby("lineage", sort=False, observed=True)]
    if ax is not None and len(parts) > 1:
        raise InputError(f"ax: one Axes came for {len(parts)} lineages; leave it out, or pass a part of the table")
    size = (1.4 + 4.2 * len(parts), 4.4)
    axes = [ax] if ax is not None else ax_.grid(1, len(parts), size, sharex=True, sharey=True)[1]
    for (name, part), one in zip(parts, axes, strict=True):
        _draw(one, part, threshold)
        one.set_xlabel("log2 fold change, end over start")
        if name is not None:
            one.set_title(name, fontsize=10)
    axes[0].set_ylabel("score of the change")
    _shape_key(axes[-1], table, threshold, counted=len(parts) == 1)
    for (_, part), one in zip(parts, axes, strict=True):  # at the end, as it needs the final layout
        best = part.sort_values("rank") if "rank" in part else part.sort_values("score", ascending=False)
        chosen = best[best["shape"] != "flat"].head(label) if isinstance(label, int) else best[best["gene"].isin(label)]
        x, y = chosen["log2_fold_change"].to_numpy(dtype=float), chosen["score"].to_numpy(dtype=float)
        dots = part[["log2_fold_change", "score"]].to_numpy(dtype=float)
        beside_points(one, x, y, list(chosen["gene"]), others=dots)
    return ax_.panels_or_one(axes)


def _draw(ax: Axes, part: pd.DataFrame, threshold: float | None) -> None:
    for shape in ("flat", "up", "down", "transient", "valley"):  # what does not change behind what does
        own, (colour, marker) = part[part["shape"] == shape], SHAPES[shape]
        if len(own):
            ax.scatter(
                own["log2_fold_change"],
                own["score"],
                s=16,
                color=colour,
                marker=marker,
                linewidths=0.4,
                edgecolors="white",
                alpha=0.9,
                label=shape,
                rasterized=len(own) > 5_000,
            )
    ax.axvline(0, color=tone(ax, 0.4), linewidth=0.7, zorder=0)
    if threshold is not None:
        ax.axhline(threshold, color=tone(ax, 0.67), linewidth=0.8, linestyle="--", zorder=0)
    furthest = 1.15 * max(float(part["log2_fold_change"].abs().max()), 0.5)
    ax.set_xlim(-max(furthest, ax.get_xlim()[1]), max(furthest, ax.get_xlim()[1]))  # shared by the lineages
    ax.margins(y=0.12)
    ax.set_ylim(bottom=min(0.0, 1.1 * float(part["score"].min())))
    ax_.tidy(ax)


def _shape_key(ax: Axes, table: pd.DataFrame, threshold: float | None, *, counted: bool) -> None:
    from matplotlib.lines import Line2D

    entries = []
    for shape, (colour, marker) in SHAPES.items():
        number = int((table["shape"] == shape).sum())
        if number:
            handle = Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5)
            entries.append((handle, f"{shape} ({number:,})" if counted else shape))
    if threshold is not None:
        entries.append((Line2D([], [], color=tone(ax, 0.67), linewidth=0.8, linestyle="--"), f"score {threshold:g}"))
    ax_.key(
        ax,
        entries,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        title="shape (genes)" if counted else "shape",
        title_fontsize=8,
    )
