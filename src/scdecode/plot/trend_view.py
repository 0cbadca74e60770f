"""Expression of genes along a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import LibrarySize, NamesLike, Values
from scdecode.errors import InputError
from scdecode.plot import axes as ax_
from scdecode.plot.axes import FAR_WORDS, STYLES, Panels
from scdecode.plot.bands import Band, bands_of, changed
from scdecode.plot.labels import line_ends
from scdecode.plot.observed import Observed, bins_of, read_observed
from scdecode.plot.palettes import ink, palette, paper, tone
from scdecode.plot.panels import label_panels, lay_panels
from scdecode.plot.reading import (
    Line,
    columns_of,
    dense,
    is_before_zeros,
    is_line,
    lines_of,
    time_label,
    unit_of,
    unit_words,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOTS = 3_000  # cells shown as dots, at most; their means are of all
_COVERED = 0.98  # of the dots are within the axes: the rest would press the lines to the ground


@dataclass(frozen=True, eq=False)
class _Scene:
    """Everything there is to draw, on one Axes or on several."""

    genes: list[str]
    lines: list[Line]
    values_ng: np.ndarray
    bands: list[Band]
    observed: Observed | None
    joined: bool  # points are a line
    together: bool  # all genes on the same Axes
    before_zeros: bool  # of a zero-inflated model, without its zeros
    words: str  # what the unit does not say

    @property
    def by_gene(self) -> bool:
        """Whether colours tell genes apart, or else lineages and conditions."""
        return self.together and len(self.genes) > 1

    def look(self, gene: int, line: int, ax: Axes) -> tuple[Any, Any]:
        """Colour and line style."""
        colour, style = (gene, gene if len(self.lines) == 1 else line) if self.by_gene else (line, line)
        n = len(self.genes) if self.by_gene else len(self.lines)
        return palette(n, ax, lines=True)[colour], STYLES[style % len(STYLES)]


@checked
def trends(
    expression: AnnData,
    genes: NamesLike | str,
    *,
    cells: Annotated[AnnData | None, "an AnnData with counts, or None"] = None,
    time: Values = None,
    lineage: Values = None,
    layer: str | None = None,
    library_size: LibrarySize = None,
    band: str | None = None,
    panels: bool | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes | Panels:
    """Draw the expression of genes along the points, with bands, and the observed cells behind them if given.

    Each gene has a panel of its own. The vertical axis names the unit; what else is to be known of it is in the caption
    below.

    Several lineages (``obs["lineage"]``) or conditions (``obs["condition"]``) are lines of their own. Stretches that
    are not supported by training cells are grey; of one of several lines, they are hollow. Points without an order (no
    ``time`` in ``obs``), and several draws of a point, are dots and no line.

    Parameters
    ----------
    expression
        From ``model.decode``: points x genes.
    genes
        Names.
    cells
        Observed cells with counts, drawn as dots and as means of up to 20 bins of equally many cells with their
        standard errors, all in the unit of the expression: ``counts * library size of the expression / counts of the
        cell in the model's genes``. What was decoded for one batch goes with the cells of that batch.
    time
        Of the cells, in the units of the path's time: a column of ``cells.obs``, or an array; by default the column of
        the name of the path's time (``uns["scdecode"]["time_name"]``). Cells before or after the path, or without a
        time, are left out.
    lineage
        Of the cells, to show them in the colour of their line: a column of ``cells.obs``, or an array, with names of
        lineages or conditions; cells of other names are grey. By default all are.
    layer
        Of the cells' counts; by default ``X``.
    library_size
        Of the cells, a column of ``cells.obs`` or an array, in counts; for a model with a size factor, that.
    band
        ``"cells"``: the 5 to 95 % of the cells' spread. ``"models"``, ``"counts"``: one standard deviation between
        models, or of the model's count noise. ``"parts"``: these three, one around the other (variances add up).
        ``"none"``. By default the cells' spread and, darker in it, that between models, where there are.
    panels
        Whether each gene has Axes of its own, with its own vertical axis, as by default; False draws all on the same
        Axes. Always False on ``ax``.
    log
        Whether the vertical axis is ``log1p`` of the expression.
    ax
        Where to draw; by default a new figure.

    Returns
    -------
    Axes, or a list of them
        With one panel its Axes; with several a list of theirs in the order of the genes; its ``.figure`` is the whole.

    Raises
    ------
    InputError
        For what is no result of ``model.decode``, unknown genes, layers or columns, lengths that do not fit, a
        band that the expression does not have, or panels on one ``ax``.
    CountsError
        For cells whose counts are none.
    """
    genes = [genes] if isinstance(genes, str) else list(genes)
    unit, columns, lines = unit_of(expression), columns_of(expression, genes), lines_of(expression)
    if panels and ax is not None:
        raise InputError("panels: True came with ax, which is one Axes; leave one of them out")
    values_ng = dense(expression.X, columns)
    bands = bands_of(expression, columns, values_ng, band)
    observed = None
    if cells is not None:
        how = {"time": time, "lineage": lineage, "layer": layer, "library_size": library_size}
        observed = read_observed(expression, lines, genes, cells, **how)
    panels = ax is None if panels is None else panels
    if log and (values_ng < 0).any():
        raise InputError("log: the expression has negative values, as differences have; leave it out")
    if log:
        values_ng, bands = np.log1p(values_ng), [changed(each, np.log1p) for each in bands]
    scene = _Scene(
        genes,
        lines,
        values_ng,
        bands,
        observed,
        joined=is_line(expression, lines),
        together=len(genes) == 1 or not panels,
        before_zeros=is_before_zeros(expression),
        words=unit_words(expression),
    )
    x_label, y_label = time_label(expression), f"log1p of {unit}" if log else unit
    return _panels(scene, x_label, y_label, log) if panels else _together(scene, ax, x_label, y_label, log)


def _together(scene: _Scene, ax: Axes | None, x_label: str, y_label: str, log: bool) -> Axes:
    given, n = ax, len(scene.genes)
    if ax is None:
        (ax,) = lay_panels([scene.genes[0] if n == 1 else ""])
    elif n == 1:
        ax.set_title(scene.genes[0], fontsize=10, loc="left", style="italic")
    above = _draw(scene, ax, range(n), log)
    entries = _keys(scene, ax)
    names_beside = given is None and scene.by_gene and scene.joined
    if given is not None and scene.by_gene and scene.joined:  # beside the axes there may be no room
        entries = _gene_keys(scene, ax) + entries
    if given is None:
        label_panels([ax], x_label, y_label, entries, _caption(scene, above))
    else:
        ax_.label_given(ax, x_label, y_label + "\n(before zero inflation)" * scene.before_zeros, entries)
    if names_beside:
        first = scene.lines[0]
        rows = np.concatenate([line.rows[-1:] for line in scene.lines if line.x[-1] == first.x[-1]])
        looks = [scene.look(gene, 0, ax)[0] for gene in range(n)]
        line_ends(ax, list(scene.values_ng[rows].mean(axis=0)), scene.genes, looks)
    return ax


def _panels(scene: _Scene, x_label: str, y_label: str, log: bool) -> Axes | Panels:
    axes = lay_panels(scene.genes)
    above = max(_draw(scene, ax, [gene], log) for gene, ax in enumerate(axes))
    label_panels(axes, x_label, y_label, _keys(scene, axes[0]), _caption(scene, above))
    return ax_.panels_or_one(axes)


def _caption(scene: _Scene, above: float) -> list[str]:
    """Sentences on what no label and no key says."""
    seen = scene.observed
    words = [scene.words]
    if seen is not None:
        words.append(f"Observed cells are scaled to the same unit{_cut(above)}.")
        if scene.before_zeros:  # so that the means of cells lie below the line
            words.append("They have more zeros than the line; the quantity “mean” is the one that compares with them.")
    return words


def _cut(above: float) -> str:
    return f"; up to {100 * above:.1f} % of them lie above the axes" if above else ""


def _draw(scene: _Scene, ax: Axes, genes: Sequence[int], log: bool) -> float:
    """Draw genes on Axes; the share of the dots that is above them."""
    from matplotlib.colors import to_rgba

    single = len(scene.lines) == 1
    tops = []
    for gene in genes:
        for number, line in enumerate(scene.lines):
            colour, style = scene.look(gene, number, ax)
            for band in scene.bands if scene.joined else ():
                low, high = band.low_ng[line.rows, gene], band.high_ng[line.rows, gene]
                face, edge = to_rgba(colour, band.alpha), to_rgba(colour, 0.6)
                ax.fill_between(line.x, low, high, facecolor=face, edgecolor=edge, linewidth=0.6, zorder=2)
                tops.append(high.max())
            dots: dict[str, Any] = {} if scene.joined else {"linestyle": "none", "marker": ".", "markersize": 4}
            drawn = {"linestyle": style, "linewidth": 1.8, "zorder": 4} | dots
            values = scene.values_ng[line.rows, gene]
            label = ", ".join(part for part in (scene.genes[gene], line.name) if part is not None)
            # all of it is within the limits, whose frame would cut a line along it in half
            ax.plot(line.x, values, color=colour, label=label, clip_on=False, **drawn)
            tops.append(values.max())
            if scene.joined and not single:
                ax_.hollow(ax, line.x, values, line.far, colour, zorder=4.1)
    if single:
        ax_.stripes(ax, scene.lines[0].x, scene.lines[0].far)
    parts = [_dots(scene, ax, gene, log) for gene in genes]
    seen = np.concatenate([value_n for value_n, _ in parts])
    tops += [top for _, top in parts]
    lowest = min(float(scene.values_ng[:, list(genes)].min()), float(seen.min(initial=0)))
    first, last = min(line.x[0] for line in scene.lines), max(line.x[-1] for line in scene.lines)
    if scene.joined and last > first:
        ax.set_xlim(first, last)
    if lowest >= 0:
        ax.set_ylim(bottom=0)
    else:
        ax.axhline(0, color=tone(ax, 0.4), linewidth=0.7, zorder=0.5)
    if max(*tops, float(seen.max(initial=0))) <= 0 <= lowest:  # nothing is expressed, and no axis shows how little
        ax.set_ylim(0, 1)
    ax_.tidy(ax)
    ax_.plain_ticks(ax)
    if not len(seen):
        return 0.0
    top = 1.05 * max(*tops, float(np.quantile(seen, _COVERED)), 1e-12)
    ax.set_ylim(top=top)
    return float((seen > top).mean())


def _dots(scene: _Scene, ax: Axes, gene: int, log: bool) -> tuple[np.ndarray, float]:
    """Draw the observed cells, and their means; return where they are on the vertical axis, and the highest mean."""
    seen, top = scene.observed, 0.0
    if seen is None:
        return np.zeros(0), top
    change = np.log1p if log else np.asarray
    value_n = seen.values_ng[:, gene]
    some = np.random.default_rng(0).permutation(len(value_n))[:_DOTS]
    for number in np.unique(seen.group_n):
        grey = number < 0 and not scene.by_gene
        colour = tone(ax, 0.5) if grey else scene.look(gene, max(number, 0), ax)[0]
        own = some[seen.group_n[some] == number]
        ax.scatter(
            seen.x[own], change(value_n[own]), s=4, color=colour, alpha=0.35, linewidths=0, zorder=1, rasterized=True
        )
        own = seen.group_n == number
        bins = bins_of(seen.x[own], value_n[own])
        if bins is None or (number < 0 and len(scene.lines) > 1):  # a mean over lineages is that of none
            continue
        low, high = (change(np.maximum(bins.mean + sign * bins.error, 0)) for sign in (-1, 1))
        edge = ink(ax) if grey else colour
        top = max(top, float(high.max()))
        ax.vlines(bins.x, low, high, color=edge, linewidth=0.9, zorder=5, clip_on=False)
        ax.plot(
            bins.x,
            change(bins.mean),
            "o",
            markersize=3.2,
            color=paper(ax),
            markeredgecolor=edge,
            zorder=5.1,
            clip_on=False,
            label="_means",
        )
    return np.asarray(change(value_n)), top


def _gene_keys(scene: _Scene, ax: Axes) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    looks = [scene.look(gene, 0, ax) for gene in range(len(scene.genes))]
    single = len(scene.lines) == 1
    return [
        (Line2D([], [], color=colour, linestyle=style if single else "-", linewidth=1.8), name)
        for (colour, style), name in zip(looks, scene.genes, strict=True)
    ]


def _keys(scene: _Scene, ax: Axes) -> list[tuple[Any, str]]:
    """Handles and words for everything that no label says."""
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = []
    several = len(scene.lines) > 1
    band_colour = ink(ax) if scene.by_gene or several else palette(1, ax)[0]
    if not scene.joined and (scene.by_gene or several):
        for gene, name in enumerate(scene.genes if scene.by_gene else scene.genes[:1]):
            for number, line in enumerate(scene.lines if not scene.by_gene or not gene else scene.lines[:1]):
                dot = Line2D([], [], color=scene.look(gene, number, ax)[0], linestyle="none", marker=".", markersize=6)
                entries.append((dot, name if scene.by_gene else str(line.name)))
    elif several:
        for number, line in enumerate(scene.lines):
            colour, style = scene.look(0, number, ax)
            handle = Line2D([], [], color=ink(ax) if scene.by_gene else colour, linestyle=style, linewidth=1.8)
            entries.append((handle, str(line.name)))
    elif scene.joined and scene.bands:
        entries.append((Line2D([], [], color=band_colour, linewidth=1.8), "mean"))
    if scene.joined:
        entries += [(ax_.band_patch(band_colour, band.alpha), band.words) for band in scene.bands[::-1]]
    if scene.observed is not None:
        entries += _observed_keys(scene, scene.observed, ax)
    if any(line.far.any() for line in scene.lines):
        entries.append((ax_.hollow_key(ax) if several and scene.joined else ax_.stripe_patch(ax), FAR_WORDS))
    return entries


def _observed_keys(scene: _Scene, seen: Observed, ax: Axes) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    n = len(seen.x)
    dot = Line2D([], [], color=tone(ax, 0.5), linestyle="none", marker=".", markersize=5, markeredgewidth=0)
    few = f"{_DOTS:,} of {n:,} observed cells" if n > _DOTS else f"{n:,} observed cells"
    entries: list[tuple[Any, str]] = [(dot, few)]
    groups = np.unique(seen.group_n)
    sizes = [np.sum(seen.group_n == group) for group in groups if group >= 0 or len(scene.lines) == 1]
    means = [bins.size for bins in (bins_of(np.arange(size), np.zeros(size)) for size in sizes) if bins is not None]
    if means:
        ring = Line2D([], [], color=paper(ax), marker="o", markersize=4, markeredgecolor=ink(ax), linestyle="none")
        least, most = min(means), max(means)
        some = f"{least}" if least == most else f"{least}–{most}"
        entries.append((ring, f"mean of {some} cells, ± standard error"))
    return entries
