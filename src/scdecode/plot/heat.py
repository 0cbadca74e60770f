"""The cascade: genes in the order in which they change, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import NamesLike
from scdecode.dynamics.shapes import name_shapes
from scdecode.errors import InputError, unknown_name
from scdecode.plot import axes as ax_
from scdecode.plot.axes import FAR_WORDS, Panels
from scdecode.plot.palettes import tone
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
    unit_words,
)
from scdecode.pseudocounts import PSEUDOCOUNT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 60
"""Genes that are named, at most; of more, every second, third, ..."""
_LETTERS = (24, 40)  # of a name, at most; the second if names would be the same with the first
_TOP = 0.95  # of its range: from there on a gene is at its peak, wherever in it the largest value is
ORDERS = ("peak", "shape", "given")
_GROUPS = ("down", "transient", "valley", "up", "flat")
_WORDS = {"down": "falling", "transient": "passing", "valley": "dipping", "up": "rising", "flat": "flat"}


@checked
def heatmap(
    expression: AnnData,
    genes: NamesLike | pd.DataFrame | str | None = None,
    *,
    order: str | None = None,
    sort: bool | None = None,
    ax: Axes | None = None,
) -> Axes | Panels:
    """Genes x points, each gene's log expression from its lowest (0) to its highest (1).

    The logarithm is log2 of counts per ten thousand, plus 0.1 as of all fold changes, whatever the library size and the
    quantity. A difference (``sd.counterfactual(...).difference``) is shown in its unit, all genes on one scale that is
    symmetric about 0, ordered by where they differ most.

    Stretches that are not supported by training cells are hatched. Several lineages or conditions are side by side,
    each gene on the same scale in all of them. Genes are ordered by the first, or by the one that a table of genes is
    of (its column ``lineage``); those that do nothing there follow, ordered by the line in which they are highest.

    Parameters
    ----------
    expression
        From ``model.decode``: points x genes.
    genes
        Names, or a table of genes (a column ``gene``, or else its index), such as ``dynamics.cascade(...)``; by default
        the 30 genes that change most. Of a table with the shapes of the genes, a mark shows where the colours change:
        where a gene that rises or falls crosses half of its range, the peak of one that passes, the trough of one that
        dips. Of another table with a column ``time``, the mark is there.
    order
        ``"peak"``: by where along the path genes are highest (the middle of the stretch within 5 % of it), so that the
        picture is a diagonal. ``"shape"``: falling, passing, dipping, rising genes, each group
        from early to late. ``"given"``: as they are given. By default ``"peak"``; for a table without the shapes of its
        genes, ``"given"``.
    sort
        False is ``order="given"``, True is ``order="peak"``.
    ax
        Where to draw; by default a new figure.

    Returns
    -------
    Axes, or a list of them
        Of several lineages a list of the Axes of each; ``.figure.axes`` has that of the colours, too.

    Raises
    ------
    InputError
        For what is no result of ``model.decode``, unknown genes or orders, or several lineages on one ``ax``.
    """
    unit = unit_of(expression)  # of a result of decode, or an error
    apart = is_difference(expression)
    order = _order(order, sort, genes)
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
    log_ng = dense(expression.X, columns) if apart else log_expression(expression, columns)
    shown_ng = log_ng if apart else _scaled(log_ng)
    lead, known = _leading(lines, genes)
    leading = np.abs(shown_ng[lines[lead].rows]) if apart else log_ng[lines[lead].rows]
    shapes = _shapes(genes, leading)
    at_g = _moments(lines[lead].x, leading, shapes)
    if order != "given":
        keys = _by_peak(lines, lead, shown_ng if apart else log_ng, apart)
        keys = keys if order == "peak" else [at_g, np.array([_GROUPS.index(each) for each in shapes])]
        rank = np.lexsort(keys)
        shown_ng, names, shapes, at_g = shown_ng[:, rank], [names[i] for i in rank], shapes[rank], at_g[rank]
    else:
        rank = np.arange(len(names))
    size, letters = _size(lines, names)
    axes = [ax] if ax is not None else ax_.grid(1, len(lines), size, sharey=True)[1]
    for line, one in zip(lines, axes, strict=True):
        mesh = _draw(one, line, shown_ng, apart)
    entries: list[tuple[Any, str]] = []
    if isinstance(genes, pd.DataFrame) and ("shape" in genes or "time" in genes):
        of_shape = "shape" in genes
        time_g = at_g if of_shape else genes["time"].to_numpy(dtype=float)[rank]
        words = "half-way through the change, or at its peak or trough" if of_shape else "time of change"
        if known:
            axes[lead].plot(time_g, np.arange(len(names)), **_MARK, label="_time of change")
            entries.append((_mark_key(), words))
    if order == "shape":
        _name_groups(axes, shapes)
    axes[0].invert_yaxis()  # shared
    step = -(-len(names) // _NAMED)
    shown_names = _short(names)[::step]
    axes[0].set_yticks(range(0, len(names), step), shown_names, fontsize=letters, style="italic")
    if step > 1:
        axes[0].set_ylabel(f"{len(names):,} genes, one in {step} named")
    for one in axes:
        one.set_xlabel(time_label(expression))
    bar = axes[0].figure.colorbar(mesh, ax=axes, shrink=0.6, aspect=18, pad=0.02)
    low = len(names) > 12
    bar.set_label(unit if apart else "log expression" + "\n(each gene from lowest to highest)" * low, fontsize=8)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    if any(line.far.any() for line in lines):
        entries.append((_veil_patch(), FAR_WORDS))
    if ax is None:
        figure = ax_.figure_of(axes[0])
        ax_.key(figure, entries, loc="outside upper left", ncols=1 if size[0] < 5.5 else 2)
        words = "" if apart else f"Colour: log2 (counts per 10,000 + {PSEUDOCOUNT:g}), each gene from 0 to 1."
        ax_.caption(figure, [words, unit_words(expression)])
    else:
        ax_.key(ax, entries, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return ax_.panels_or_one(axes)


def _order(order: str | None, sort: bool | None, genes: Any) -> str:
    if order is not None and sort is not None:
        raise InputError("sort: got sort and order, expected one of them; leave sort out")
    if order is not None and order not in ORDERS:
        raise InputError(unknown_name("order", order, ORDERS, "orders"))
    if sort is not None:
        return "peak" if sort else "given"
    given = isinstance(genes, pd.DataFrame) and "shape" not in genes
    return order or ("given" if given else "peak")


def _leading(lines: Sequence[Line], genes: Any) -> tuple[int, bool]:
    """The line that genes are ordered by, and whether it is the one that a table is of; the first, if none is named."""
    named = set(genes["lineage"].astype(str)) if isinstance(genes, pd.DataFrame) and "lineage" in genes else set()
    found = [number for number, line in enumerate(lines) if line.lineage in named]
    return (found[0], True) if len(found) == 1 else (0, len(lines) == 1)


def _short(names: Sequence[str]) -> list[str]:
    """Names that are not too long for the picture, and as different from one another as they were."""
    for most in _LETTERS:
        short = [ax_.shortened(name, most) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def _size(lines: Sequence[Line], names: Sequence[str]) -> tuple[tuple[float, float], float]:
    """Inches of the figure, and points of the letters of its genes."""
    row = 0.16 if len(names) <= 30 else 0.12
    letters = 7.5 if len(names) <= 30 else 6.5
    wide = 3.0 if len(lines) < 3 else 2.2
    longest = max(len(name) for name in _short(names)) * 0.0085 * letters
    return (1.2 + longest + wide * len(lines), 1.5 + max(row * min(len(names), _NAMED), 1.2)), letters


def _shapes(genes: Any, leading_ng: np.ndarray) -> np.ndarray:
    """What each gene does, ``(g,)``: as the table says, or else as the first line of the picture does."""
    if isinstance(genes, pd.DataFrame) and "shape" in genes:
        shapes = genes["shape"].to_numpy().astype(str)
        for shape in shapes:
            if shape not in _GROUPS:
                raise InputError(unknown_name("genes['shape']", shape, _GROUPS, "shapes"))
        return np.asarray(shapes)
    ends = leading_ng[0], leading_ng[-1], leading_ng.max(axis=0), leading_ng.min(axis=0)
    return name_shapes(*ends, np.zeros(leading_ng.shape[1])).astype(str)


def _by_peak(lines: Sequence[Line], lead: int, values_ng: np.ndarray, apart: bool) -> list[np.ndarray]:
    """Keys for a diagonal, the last first.

    A gene is highest at the middle of the stretch in which it is within 5 % of its peak, and genes of the same peak go
    by where they cross half of their range. Those that have less than half of their range in the leading line follow
    it, ordered by the line in which they are highest.
    """
    values_ng = np.abs(values_ng) if apart else values_ng
    span_lg = np.stack([np.ptp(values_ng[line.rows], axis=0) for line in lines])
    top_lg = np.stack([values_ng[line.rows].max(axis=0) for line in lines])
    of_g = np.where(2 * span_lg[lead] >= np.ptp(values_ng, axis=0), lead, top_lg.argmax(axis=0))
    peak_g, crossing_g = np.empty(len(of_g)), np.empty(len(of_g))
    for number in np.unique(of_g):
        own = of_g == number
        scaled_ng = _scaled(values_ng[lines[number].rows][:, own])
        peak_g[own], crossing_g[own] = _peaks(scaled_ng), _crossing(scaled_ng)
    return [crossing_g, peak_g, np.where(of_g == lead, -1, of_g)]


def _peaks(scaled_ng: np.ndarray) -> np.ndarray:
    """The middle of the stretch around the largest value of each gene in which it is at its peak, in places."""
    middles = []
    for value_n in scaled_ng.T:
        at = int(value_n.argmax())
        first, last = next((low, high) for low, high in ax_.runs(value_n >= _TOP) if low <= at <= high)
        middles.append((first + last) / 2)
    return np.array(middles)


def _moments(x: np.ndarray, leading_ng: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Where the eye sees each gene change, ``(g,)``: half-way of a rise or fall, the peak, the trough."""
    scaled_ng = _scaled(leading_ng)
    crossing = _crossing(scaled_ng, from_end=True)
    low, share = np.floor(crossing).astype(int), crossing % 1
    at_g = x[low] + share * (x[np.minimum(low + 1, len(x) - 1)] - x[low])
    at_g = np.where(shapes == "transient", x[scaled_ng.argmax(axis=0)], at_g)
    return np.asarray(np.where(shapes == "valley", x[scaled_ng.argmin(axis=0)], at_g))


def _name_groups(axes: Sequence[Axes], shapes: np.ndarray) -> None:
    """A line between the groups, and the name of each at the right."""
    starts = [0, *(np.flatnonzero(shapes[1:] != shapes[:-1]) + 1), len(shapes)]
    for first, last in pairwise(starts):
        for one in axes:
            if first:
                one.axhline(first - 0.5, color="white", linewidth=1.6, label="_group")
        words = _WORDS[str(shapes[first])] if last - first > 2 else ""
        where: dict[str, Any] = {
            "xytext": (4, 0),
            "textcoords": "offset points",
            "rotation": 90,
            "va": "center",
            "fontsize": 7,
        }
        at = (1.0, (first + last - 1) / 2)
        axes[-1].annotate(words, at, xycoords=axes[-1].get_yaxis_transform(), color=tone(axes[-1], 0.73), **where)


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
    ax.tick_params(labelsize=8)
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


def _veil_patch() -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor="#8899AA", edgecolor="white", hatch="//////", linewidth=0)


def _crossing(shown_ng: np.ndarray, *, from_end: bool = False) -> np.ndarray:
    """Where each gene crosses half of its range, in places along the line, between them by interpolation.

    The first time; or the last, after which it stays on that side.
    """
    above = shown_ng >= 0.5
    turned = above[1:] != above[:-1]
    n = len(turned)
    if not n:
        return np.zeros(shown_ng.shape[1])
    before = n - 1 - turned[::-1].argmax(axis=0) if from_end else turned.argmax(axis=0)
    gene = np.arange(shown_ng.shape[1])
    left, right = shown_ng[before, gene], shown_ng[before + 1, gene]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((0.5 - left) / (right - left), 0.0, 1.0)
    return np.where(turned.any(axis=0), before + np.nan_to_num(share), 0.0)
