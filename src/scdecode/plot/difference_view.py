"""Genes in which two paths, or one path in two conditions, differ: the difference along the path, with its band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import NamesLike
from scdecode.counterfactual import SHRINKAGE, Counterfactual
from scdecode.dynamics import Comparison
from scdecode.errors import InputError, check_integer, unknown_name
from scdecode.plot import axes as ax_
from scdecode.plot.axes import FAR_WORDS, STYLES, Panels
from scdecode.plot.palettes import ink, palette, tone
from scdecode.plot.panels import label_panels, lay_panels
from scdecode.plot.reading import columns_of, dense, lines_of, time_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_N_GENES = 6


@dataclass(frozen=True, eq=False)
class _Line:
    """The difference of some genes along one path, log2."""

    name: str | None
    x: np.ndarray  # (n,)
    value_ng: np.ndarray  # (n, genes)
    low_ng: np.ndarray | None  # (n, genes); None without a spread
    high_ng: np.ndarray | None
    far: np.ndarray  # (n,) bool: not supported by training cells


@dataclass(frozen=True, eq=False)
class _Scene:
    """Everything there is to draw."""

    genes: list[str]
    lines: list[_Line]
    parting: dict[str, float]  # of each gene, from when on it differs
    x_label: str
    y_label: str
    words: list[str]  # of the caption


@checked
def differences(
    result: Comparison | Counterfactual,
    genes: NamesLike | str | None = None,
    *,
    n_genes: int = _N_GENES,
    ax: Axes | None = None,
) -> Axes | Panels:
    """Draw by how much genes differ along a path: log2 fold changes with their bands, a panel a gene.

    Parameters
    ----------
    result
        What :func:`scdecode.dynamics.compare` or :func:`scdecode.counterfactual` returned. Of a comparison a dotted
        line is where a gene parts; of a counterfactual each condition (and lineage) is a line of its own.
    genes
        Names; by default those of the largest score, or of the largest change among the surest.
    n_genes
        How many genes, if none are named.
    ax
        Axes to draw one gene on; by default a new figure.

    Returns
    -------
    Axes, or a list of them
        In the order of the genes; of several, ``.figure`` is the whole.

    Raises
    ------
    InputError
        For another result, unknown genes, or several genes on one ``ax``.

    Examples
    --------
    >>> parts = sd.dynamics.compare(model, paths["A"], paths["B"], names=("A", "B"))  # doctest: +SKIP
    >>> axes = sd.plot.differences(parts)  # doctest: +SKIP
    """
    check_integer("n_genes", n_genes, minimum=1)
    names = [genes] if isinstance(genes, str) else None if genes is None else [str(gene) for gene in genes]
    if isinstance(result, Comparison):
        scene = _of_comparison(result, names, n_genes)
    else:
        scene = _of_counterfactual(result, names, n_genes)
    if ax is not None and len(scene.genes) > 1:
        raise InputError(f"ax: got one Axes for {len(scene.genes)} genes; name one gene, or leave ax out")
    axes = lay_panels(scene.genes) if ax is None else [ax]
    for gene, one in enumerate(axes):
        _draw(one, scene, gene)
    entries = _keys(scene, axes[0])
    if ax is None:
        label_panels(axes, scene.x_label, scene.y_label, entries, scene.words)
    else:
        ax.set_title(scene.genes[0], fontsize=10, loc="left", style="italic")
        ax_.label_given(ax, scene.x_label, scene.y_label, entries)
    return ax_.panels_or_one(axes)


def _of_comparison(result: Comparison, names: list[str] | None, n: int) -> _Scene:
    if names is None:
        names = [str(gene) for gene in result.table["gene"].head(n)]
    at = {gene: i for i, gene in enumerate(result.genes)}
    for name in names:
        if name not in at:
            raise InputError(unknown_name("genes", name, result.genes, "compared genes"))
    columns = [at[name] for name in names]
    banded = bool((result.q95_ng > result.q05_ng).any())
    value, low, high = (a[:, columns].astype(float) for a in (result.difference_ng, result.q05_ng, result.q95_ng))
    far = np.zeros(len(result.time), dtype=bool)
    first, second = result.names
    parts = result.table.set_index("gene")["divergence_time"]
    when = result.divergence_time
    words = [f"Above 0: more in {second} than in {first} at the same {result.time_name}."]
    if np.isfinite(when):
        words.append(f"The paths as a whole part at {when:.3g}.")
    return _Scene(
        genes=names,
        lines=[_Line(None, result.time, value, low if banded else None, high if banded else None, far)],
        parting={gene: float(parts[gene]) for gene in names},
        x_label=result.time_name,
        y_label=f"log2 fold change, {second} over {first}",
        words=words,
    )


def _of_counterfactual(result: Counterfactual, names: list[str] | None, n: int) -> _Scene:
    found, table = result.difference, result.table
    if names is None:
        sure = table[table["q_value"] < 0.05] if table["q_value"].notna().any() else table
        ranked = (sure if len(sure) else table).assign(size=lambda rows: rows["log2_fold_change"].abs())
        names = list(dict.fromkeys(ranked.sort_values("size", ascending=False)["gene"]))[:n]
    columns = columns_of(found, names)
    layers = [f"log2_fold_change{end}" for end in ("", "_q05", "_q95")]
    value, low, high = (dense(found.layers[name], columns) if name in found.layers else None for name in layers)
    assert value is not None, "every counterfactual has it"
    others = list(found.obs["condition"].cat.categories)
    lines = []
    for line in lines_of(found):
        name = line.lineage if len(others) == 1 else line.name
        own_low, own_high = (None if part is None else part[line.rows] for part in (low, high))
        lines.append(_Line(name, line.x, value[line.rows], own_low, own_high, line.far))
    over = f"{others[0]} over {result.baseline}" if len(others) == 1 else f"over {result.baseline}"
    return _Scene(
        genes=names,
        lines=lines,
        parting={},
        x_label=time_label(found),
        y_label=f"log2 fold change, {over}",
        words=[SHRINKAGE],
    )


def _draw(ax: Axes, scene: _Scene, gene: int) -> None:
    from matplotlib.colors import to_rgba

    ax.axhline(0, color=tone(ax, 0.5), linewidth=0.8, zorder=1)
    shades = palette(len(scene.lines), ax, lines=True)
    for number, (line, shade) in enumerate(zip(scene.lines, shades, strict=True)):
        value = line.value_ng[:, gene]
        style: dict[str, Any] = {"linestyle": STYLES[number % len(STYLES)], "linewidth": 1.8}
        if (np.diff(line.x) <= 0).any():  # points without an order
            style = {"linestyle": "none", "marker": ".", "markersize": 4}
        elif line.low_ng is not None and line.high_ng is not None:
            face, edge = to_rgba(shade, 0.16), to_rgba(shade, 0.6)
            band: dict[str, Any] = {"facecolor": face, "edgecolor": edge, "linewidth": 0.6, "zorder": 2}
            ax.fill_between(line.x, line.low_ng[:, gene], line.high_ng[:, gene], **band)
        ax.plot(line.x, value, color=shade, zorder=4, label=line.name or scene.genes[gene], **style)
        if len(scene.lines) == 1:
            ax_.stripes(ax, line.x, line.far)
        else:
            ax_.hollow(ax, line.x, value, line.far, shade, zorder=4.1)
    first, last = min(line.x[0] for line in scene.lines), max(line.x[-1] for line in scene.lines)
    if last > first:
        ax.set_xlim(first, last)
    when = scene.parting.get(scene.genes[gene], np.nan)
    if np.isfinite(when):
        ax.axvline(when, color=ink(ax), linewidth=1.2, linestyle=":", zorder=3, label="_parting")
    low, high = ax.get_ylim()
    if high - low < 0.5:  # no axis shows nothing as if it were much
        ax.set_ylim(min(low, -0.25), max(high, 0.25))
    ax_.tidy(ax)
    ax_.plain_ticks(ax)


def _keys(scene: _Scene, ax: Axes) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    several = len(scene.lines) > 1
    shades = palette(len(scene.lines), ax, lines=True)
    entries: list[tuple[Any, str]] = []
    for number, (line, shade) in enumerate(zip(scene.lines, shades, strict=True)):
        style = STYLES[number % len(STYLES)]
        entries.append(
            (Line2D([], [], color=shade, linestyle=style, linewidth=1.8), line.name or "difference of the means")
        )
    if any(line.low_ng is not None for line in scene.lines):
        entries.append((ax_.band_patch(ink(ax) if several else shades[0], 0.16), "5–95 % of the cells’ differences"))
    if any(np.isfinite(when) for when in scene.parting.values()):
        entries.append((Line2D([], [], color=ink(ax), linewidth=1.2, linestyle=":"), "parts from here on"))
    if any(line.far.any() for line in scene.lines):
        entries.append((ax_.hollow_key(ax) if several else ax_.stripe_patch(ax), FAR_WORDS))
    return entries
