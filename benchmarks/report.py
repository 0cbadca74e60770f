"""What was measured: rows with ratios, a table in the terminal, results.json and results.md.

``results.json`` keeps, for each section, the last measurement with the machine, the versions, the date and the command
that made it; ``results.md`` is the same for people. Measuring one section anew leaves the others as they were.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from timing import Figure

HERE = Path(__file__).parent
PACKAGES = ("scdecode", "scvi-tools", "torch", "lightning", "anndata", "numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class Row:
    """One comparison."""

    what: str
    unit: str
    ours: Figure
    other: Figure | None = None
    other_name: str = ""
    at_least: float | None = None  # bars, on the ratio ours / other, or on ours itself where there is no other
    at_most: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.other is None else self.ours.median / self.other.median

    @property
    def met(self) -> bool | None:
        value = self.ours.median if self.other is None else self.ours.median / self.other.median
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most

    @property
    def bar(self) -> str:
        unit = self.unit if self.other is None else "x"
        if self.at_least is not None:
            return f"at least {self.at_least:g} {unit}"
        return "" if self.at_most is None else f"at most {self.at_most:g} {unit}"


@dataclass(frozen=True)
class Section:
    """What one room of the benchmarks measured."""

    title: str
    rows: Sequence[Row]
    method: str  # how it was measured, in a few sentences
    table: Sequence[Sequence[str]] = field(default=())  # a further table: its header, then its rows


def record(key: str, section: Section, command: str, *, folder: Path | None) -> None:
    """Print a section, and put it into ``results.json`` and ``results.md`` of ``folder`` where one is given."""
    _print(section)
    if folder is None:
        return
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results[key] = {
        "title": section.title,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": _machine(),
        "versions": _versions(),
        "method": section.method,
        "rows": [_row_to_dict(row) for row in section.rows],
        "table": [list(line) for line in section.table],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(_markdown(results))


def number(value: float) -> str:
    """Three figures, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) >= 1 else 3}f}"


def _spread(figure: Figure) -> str:
    if len(figure.values) == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.low)} to {number(figure.high)})"


def _cells(row: Row) -> list[str]:
    return [
        row.what,
        row.unit,
        _spread(row.ours),
        "" if row.other is None else _spread(row.other),
        row.other_name,
        "" if row.ratio is None else f"{row.ratio:.2f} x",
        row.bar,
        {True: "yes", False: "NO", None: ""}[row.met],
    ]


_HEADER = ("what", "unit", "scdecode", "the other", "which is", "ratio", "bar", "met")


def _print(section: Section) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    if section.rows:
        table = Table(title=section.title, box=box.SIMPLE, title_justify="left")
        for name in _HEADER:
            table.add_column(name, justify="right" if name in ("scdecode", "the other", "ratio") else "left")
        for row in section.rows:
            style = "bold red" if row.met is False else ""
            table.add_row(*_cells(row), style=style)
        console.print(table)
    if section.table:
        header, *lines = section.table
        table = Table(*header, box=box.SIMPLE)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    console.print(section.method, style="dim", soft_wrap=True)


def _row_to_dict(row: Row) -> dict[str, Any]:
    derived = {"median": row.ours.median, "ratio": row.ratio, "bar": row.bar, "met": row.met}
    other = None if row.other is None else {"name": row.other_name, "median": row.other.median, **_values(row.other)}
    return {"what": row.what, "unit": row.unit, **derived, **_values(row.ours), "other": other}


def _values(figure: Figure) -> dict[str, Any]:
    return {key: list(value) for key, value in dataclasses.asdict(figure).items()}


def _markdown(results: dict[str, Any]) -> str:
    lines = [
        "# What the benchmarks measured",
        "",
        "Made by `benchmarks/run.py`; the same with every single value is in `results.json`. Medians over rounds, with",
        "the lowest and the highest; a ratio is scdecode's median over the other's, both from one run in which they",
        "took turns, A B A B, after a warm-up.",
        "",
    ]
    for section in results.values():
        lines += [f"## {section['title']}", "", section["method"], ""]
        lines += [f"`{section['command']}`, {section['date']}. {section['machine']}. {section['versions']}.", ""]
        tables = [[_HEADER, *map(_stored_cells, section["rows"])]] if section["rows"] else []
        for table in [*tables, *([section["table"]] if section["table"] else [])]:
            lines += [*_markdown_table(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def _stored_cells(row: dict[str, Any]) -> list[str]:
    other = row["other"] or {"name": "", "values": []}
    return [
        row["what"],
        row["unit"],
        _spread(Figure(tuple(row["values"]))),
        _spread(Figure(tuple(other["values"]))) if other["values"] else "",
        other["name"],
        "" if row["ratio"] is None else f"{row['ratio']:.2f} x",
        row["bar"],
        {True: "yes", False: "**no**", None: ""}[row["met"]],
    ]


def _markdown_table(table: Sequence[Sequence[str]]) -> list[str]:
    header, *rows = ["| " + " | ".join(line) + " |" for line in table]
    return [header, "|" + " --- |" * len(table[0]), *rows]


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def _versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
