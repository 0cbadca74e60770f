"""Pictures of results.json: speed.png, the main ratios, and growth.png, how cost grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import Results, number

OURS, THEIRS, INK = "#0072B2", "#E69F00", "#333333"  # blue and orange of Okabe and Ito: apart for every eye
WIDTH = 9.0  # inches; a page shows some 900 pixels
DPI = 200

_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Bar:
    """One comparison of speeds."""

    name: str
    ours: float
    theirs: float

    @property
    def label(self) -> str:
        return f"{_short(self.ours)} ({self.ours / self.theirs:.1f}×)"


def pictures(results: Results, folder: Path) -> Iterator[str]:
    """Draw what the results have; tell of each picture where it is, or what has to be measured for it."""
    needs = {
        "speed.png": (("training", "encode", "decode"), draw_speed),
        "growth.png": (("growth",), draw_growth),
    }
    for name, (sections, draw) in needs.items():
        lacking = [key for key in sections if not any(_facts(row) for row in _rows(results, key))]
        if lacking:
            yield f"{name}: not drawn, there is nothing of it yet; run benchmarks/run.py --only {','.join(lacking)}"
            continue
        with matplotlib.rc_context(_STYLE):
            draw(results).savefig(folder / name, dpi=DPI)
        yield f"{folder / name}"


def _rows(results: Results, key: str) -> list[dict[str, Any]]:
    return results[key]["rows"] if key in results else []


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    return row.get("facts", {})


def draw_speed(results: Results) -> Figure:
    """Training on top, encoding and decoding below; a column a number of genes."""
    sizes = sorted({_facts(row)["genes"] for row in _rows(results, "training")})
    panels = [
        ("training", "cells a second", lambda genes: _training_bars(results, genes)),
        ("encode, decode", "cells or points a second", lambda genes: _other_bars(results, genes)),
    ]
    heights = [max(len(bars(size)) for size in sizes) + 2.5 for _, _, bars in panels]
    figure = Figure(figsize=(WIDTH, 0.27 * sum(heights) + 0.6))
    axes = figure.subplots(2, len(sizes), height_ratios=heights, squeeze=False)
    for (title, unit, bars), line in zip(panels, axes, strict=True):
        for genes, ax in zip(sizes, line, strict=True):
            _draw_bars(ax, bars(genes))
            ax.set(title=f"{title}, {genes:,} genes", xlabel=unit)
    handles = axes[0, 0].containers[:2]
    figure.legend(
        handles,
        [f"scdecode, and how many times {_peer(results)}", _peer(results)],
        loc="outside upper left",
        ncols=2,
        frameon=False,
    )
    return figure


def _peer(results: Results) -> str:
    return str(_rows(results, "training")[0]["other"]["name"])


def _training_bars(results: Results, genes: int) -> list[Bar]:
    rows = [row for row in _rows(results, "training") if _facts(row)["genes"] == genes]
    rows = [row for row in rows if _facts(row)["train_size"] == 1]
    rows.sort(key=lambda row: [_facts(row)[key] for key in ("likelihood", "threads", "nonzero")])
    return [
        _bar(
            row,
            "{likelihood}, {nonzero} % non-zero, {threads} thread{s}".format(
                **_facts(row), s="" if _facts(row)["threads"] == 1 else "s"
            ),
        )
        for row in rows
    ]


def _other_bars(results: Results, genes: int) -> list[Bar]:
    bars = [
        _bar(row, "encode cells")
        for row in _rows(results, "encode")
        if _facts(row)["genes"] == genes and _facts(row)["best"]
    ]
    against = {"loop": "generative loop", "normalized": "get_normalized_expression"}
    for row in _rows(results, "decode"):
        facts = _facts(row)
        if facts["genes"] == genes and facts.get("by", "decode") == "decode":
            wanted = "all genes" if facts["wanted"] is None else f"{facts['wanted']} genes"
            bars.append(_bar(row, f"decode {wanted}\nvs {against[facts['against']]}"))
    return bars


def _bar(row: dict[str, Any], name: str) -> Bar:
    return Bar(name, row["median"], row["other"]["median"])


def _draw_bars(ax: Axes, bars: Sequence[Bar]) -> None:
    places = range(len(bars))
    ax.barh([y - 0.19 for y in places], [bar.ours for bar in bars], height=0.38, color=OURS)
    ax.barh([y + 0.19 for y in places], [bar.theirs for bar in bars], height=0.38, color=THEIRS)
    longest = max(bar.ours for bar in bars)
    for y, bar in zip(places, bars, strict=True):
        ax.text(bar.ours + 0.01 * longest, y - 0.19, bar.label, va="center", color=OURS, fontsize=8, fontweight="bold")
        ax.text(bar.theirs + 0.01 * longest, y + 0.19, _short(bar.theirs), va="center", color=INK, fontsize=7)
    ax.set_yticks(list(places), [bar.name for bar in bars], fontsize=8)
    ax.set_xlim(0, 1.45 * max(longest, *(bar.theirs for bar in bars)))
    ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    ax.xaxis.set_major_formatter(lambda value, _: _short(value))
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()


def _short(value: float) -> str:
    """1,234,567 as 1.23 M, 33,456 as 33,500."""
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else number(value)


def draw_growth(results: Results) -> Figure:
    """Four panels: time a cell over cells, genes and batches, and memory over cells."""
    panels: list[tuple[str, str, str, str]] = [
        ("cells", "µs/cell", "cells", "time a cell, µs"),
        ("cells", "MiB", "cells", "above data and code, MiB"),
        ("genes", "µs/cell", "genes", "time a cell, µs"),
        ("batches", "µs/cell", "batches", "time a cell, µs"),
    ]
    figure = Figure(figsize=(WIDTH, 6.4))
    for (axis, unit, x_name, y_name), ax in zip(panels, figure.subplots(2, 2).flat, strict=True):
        rows = [row for row in _rows(results, "growth") if (_facts(row)["axis"], _facts(row)["unit"]) == (axis, unit)]
        name = _rows(results, "growth")[0]["other"]["name"]
        for label, color, marker, get in (
            ("scdecode", OURS, "o", lambda row: row["median"]),
            (name, THEIRS, "s", lambda row: row["other"] and row["other"]["median"]),
        ):
            _draw_line(ax, rows, label, color, marker, get)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel=x_name,
            ylabel=y_name,
            title=f"{'peak memory' if unit == 'MiB' else 'time'} over {axis}",
        )
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, high / 30), 1.6 * high)  # a flat line should look flat
        for ticks in (ax.xaxis, ax.yaxis):
            ticks.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0,) if ticks is ax.xaxis else (1.0, 2.0, 5.0)))
            ticks.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            ticks.set_minor_formatter(matplotlib.ticker.NullFormatter())
        ax.grid(which="major", color="#dddddd", linewidth=0.6)
    figure.legend(handles=figure.axes[0].get_lines(), loc="outside upper left", ncols=2, frameon=False)
    return figure


def _draw_line(
    ax: Axes,
    rows: Sequence[dict[str, Any]],
    label: str,
    color: str,
    marker: str,
    get: Callable[[dict[str, Any]], float | None],
) -> None:
    points = [(_facts(row)["at"], get(row)) for row in rows]
    points = [(x, y) for x, y in points if y is not None]
    ax.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, markersize=4, linewidth=1.6)
