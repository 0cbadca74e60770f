"""The effects of a counterfactual: log2 fold change against how sure its sign is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode.counterfactual import SHRINKAGE, Counterfactual
from scdecode.errors import InputError, check_integer, check_number, listing, unknown_name
from scdecode.plot import axes as ax_
from scdecode.plot.axes import Panels
from scdecode.plot.labels import beside_points
from scdecode.plot.palettes import COLOURS, tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NEEDED = ("gene", "log2_fold_change", "q_value")
_MOST = 10.0  # -log10 q: beyond it a normal tail says nothing that draws could show
_SIDES = ((1, COLOURS[1], "^", "more"), (-1, COLOURS[0], "v", "less"), (0, None, "o", "neither"))


@checked
def volcano(
    result: Counterfactual | pd.DataFrame,
    *,
    condition: str | None = None,
    label: int | Sequence[str] = 12,
    q: float = 0.05,
    min_change: float = 0.5,
    ax: Axes | None = None,
) -> Axes | Panels:
    """Draw each gene's log2 fold change between two conditions against the q-value of its sign.

    Parameters
    ----------
    result
        What :func:`scdecode.counterfactual` returned, or its ``table``, or rows of it.
    condition
        The condition to draw; by default all, a panel each.
    label
        How many genes to name, the largest changes among those that pass, or which.
    q
        Largest q-value of a gene that passes; a line is drawn there.
    min_change
        Smallest absolute log2 fold change of a gene that passes.
    ax
        Axes to draw one panel on; by default a new figure.

    Returns
    -------
    Axes, or a list of them
        Of several conditions or lineages a list of the Axes of each. Points with q below 1e-10 are drawn there.

    Raises
    ------
    InputError
        For another result, one without a spread, which has no q-values, unknown genes or conditions, or several panels
        on one ``ax``.

    Examples
    --------
    >>> found = sd.counterfactual(model, path, over="batch")  # doctest: +SKIP
    >>> ax = sd.plot.volcano(found)  # doctest: +SKIP
    """
    table = _read(result, condition)
    check_number("q", q, 0.0, 1.0, open_minimum=True)
    check_number("min_change", min_change, 0.0)
    if isinstance(label, int):
        check_integer("label", label, minimum=0)
    else:
        label = [label] if isinstance(label, str) else list(label)
        for gene in label:
            if gene not in set(table["gene"]):
                raise InputError(unknown_name("label", gene, list(table["gene"].unique()), "genes of the table"))
    keys = [name for name in ("condition", "lineage") if name in table and table[name].nunique() > 1]
    parts = {"": table}
    if keys:
        grouped = table.groupby(keys, sort=False, observed=True)
        parts = {", ".join(map(str, name)): part for name, part in grouped}
    if ax is not None and len(parts) > 1:
        raise InputError(f"ax: got one Axes for {len(parts)} panels; pass condition=, or leave ax out")
    across = min(len(parts), 3)
    down = -(-len(parts) // across)
    size = (1.0 + (4.2 if across == 1 else 3.1) * across, 0.9 + (3.6 if across == 1 else 3.0) * down)
    axes = [ax] if ax is not None else ax_.grid(down, across, size, sharex=True, sharey=True)[1]
    for one in axes[len(parts) :]:
        one.remove()
    axes = axes[: len(parts)]
    baseline = str(table.attrs.get("baseline", "the baseline"))
    furthest = 1.15 * max(float(table["log2_fold_change"].abs().max()), 2 * min_change, 0.5)
    for one, (name, part) in zip(axes, parts.items(), strict=True):
        one.set_xlim(-furthest, furthest)
        _draw(one, part, q, min_change)
        over = f"{part['condition'].iloc[0]} over {baseline}" if "condition" in part else "of the condition"
        one.set_title(ax_.fitted(name, 2.9, 10)[0], fontsize=10) if name else None
        one.set_xlabel(f"log2 fold change, {over}", fontsize=9)
    for one in axes[::across]:
        one.set_ylabel("−log10 of q (of the sign)", fontsize=9)
    entries = _keys(axes[0], table, q, min_change)
    if ax is None:
        figure = ax_.figure_of(axes[0])
        ax_.key(figure, entries, loc="outside upper left", ncols=2 if across == 1 else 4)
        words = "q: expected share of wrong signs over cells; it is no test between replicates."
        ax_.caption(figure, [words, SHRINKAGE])
    else:
        ax_.label_given(ax, ax.get_xlabel(), ax.get_ylabel(), entries)
    for one, part in zip(axes, parts.values(), strict=True):  # at the end, as it needs the final layout
        _name(one, part, label, q, min_change)
    return ax_.panels_or_one(axes)


def _read(result: Any, condition: str | None) -> pd.DataFrame:
    table = result.table if isinstance(result, Counterfactual) else result
    if not isinstance(table, pd.DataFrame) or not set(_NEEDED) <= set(table.columns):
        got = listing(table.columns) if isinstance(table, pd.DataFrame) else type(table).__name__
        raise InputError(f"result: got {got}, expected what sd.counterfactual(...) returns, or its table")
    attrs = table.attrs
    if condition is not None:
        known = [str(name) for name in table["condition"].unique()] if "condition" in table else []
        if condition not in known:
            raise InputError(unknown_name("condition", condition, known, "conditions of the table"))
        table = table[table["condition"].astype(str) == condition]
    finite = np.isfinite(table[["log2_fold_change", "q_value"]].to_numpy(dtype=float)).all(axis=1)
    if not finite.any():
        raise InputError(
            "result: it has no q-values, as its points have no spread; expected those of a path with a spread, or of "
            "model.posterior(adata)"
        )
    table = table[finite]
    table = table.assign(gene=table["gene"].astype(str))
    table.attrs = attrs
    return table


def _height(part: pd.DataFrame) -> np.ndarray:
    return np.asarray(np.minimum(-np.log10(np.maximum(part["q_value"].to_numpy(dtype=float), 1e-300)), _MOST))


def _side(part: pd.DataFrame, q: float, min_change: float) -> np.ndarray:
    """1 for genes that pass with more, -1 for those with less, 0 for all others, ``(g,)``."""
    fold = part["log2_fold_change"].to_numpy(dtype=float)
    return np.sign(fold) * ((np.abs(fold) >= min_change) & (part["q_value"].to_numpy(dtype=float) <= q))


def _draw(ax: Axes, part: pd.DataFrame, q: float, min_change: float) -> None:
    side, height, fold = _side(part, q, min_change), _height(part), part["log2_fold_change"].to_numpy(dtype=float)
    for value, colour, marker, words in _SIDES[::-1]:
        own = side == value
        shade = tone(ax, 0.27) if colour is None else colour
        look: dict[str, Any] = {"s": 14 if value else 8, "color": shade, "marker": marker, "linewidths": 0}
        ax.scatter(fold[own], height[own], label=words, alpha=0.85, rasterized=len(part) > 5_000, clip_on=False, **look)
    dashed: dict[str, Any] = {"color": tone(ax, 0.5), "linewidth": 0.8, "linestyle": "--", "zorder": 0}
    ax.axhline(-np.log10(q), **dashed)
    for fold_at in {min_change, -min_change}:
        ax.axvline(fold_at, **dashed)
    top = max(float(height.max()), -np.log10(q))
    ax.set_ylim(0, 1.2 * top)  # room for names above the highest
    ax_.tidy(ax)
    ax.tick_params(labelsize=8)


def _keys(ax: Axes, table: pd.DataFrame, q: float, min_change: float) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    side = _side(table, q, min_change)
    entries: list[tuple[Any, str]] = []
    for value, colour, marker, words in _SIDES:
        shade = tone(ax, 0.27) if colour is None else colour
        dot = Line2D([], [], color=shade, marker=marker, linestyle="none", markersize=5, markeredgewidth=0)
        entries.append((dot, f"{words} ({int((side == value).sum()):,})"))
    line = Line2D([], [], color=tone(ax, 0.5), linewidth=0.8, linestyle="--")
    entries.append((line, f"q of {q:g}, change of {min_change:g}"))
    return entries


def _name(ax: Axes, part: pd.DataFrame, label: int | Sequence[str], q: float, min_change: float) -> None:
    if isinstance(label, int):
        passing = part[_side(part, q, min_change) != 0]
        largest = np.argsort(-passing["log2_fold_change"].abs().to_numpy(), kind="stable")
        chosen = passing.iloc[largest[:label]]
    else:
        chosen = part[part["gene"].isin(label)]
    x, y = chosen["log2_fold_change"].to_numpy(dtype=float), _height(chosen)
    dots = np.column_stack([part["log2_fold_change"].to_numpy(dtype=float), _height(part)])
    beside_points(ax, x, y, list(chosen["gene"]), others=dots, style="italic", size=7.5)
