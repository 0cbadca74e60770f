"""What was measured: rows with ratios, a table in the terminal, and results.json, the record.

``results.json`` keeps, for each section, the last measurement with the machine, the versions, the date and the command
that made it; page.py and draw.py show it to people. Measuring one section anew leaves the others as they were.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from page import HEADER, Results, number, spread, write_page
from rich import box
from rich.console import Console
from rich.table import Table
from timing import Figure

__all__ = ["HERE", "Row", "Section", "number", "read_results", "record"]

HERE = Path(__file__).parent
PACKAGES = ("scdecode", "scvi-tools", "torch", "numba", "lightning", "anndata", "numpy", "scipy", "scikit-learn")


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
    dream: float | None = None  # what would be worth dreaming of, of the same number
    bar_on_ours: bool = False  # whether the bar is on ours although there is another
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the row is of, for the pictures

    @property
    def ratio(self) -> float | None:
        return None if self.other is None else self.ours.median / self.other.median

    @property
    def met(self) -> bool | None:
        value = self.ours.median if self.ratio is None or self.bar_on_ours else self.ratio
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most

    @property
    def bar(self) -> str:
        unit = self.unit if self.other is None or self.bar_on_ours else "x"
        if self.at_least is None and self.at_most is None:
            return ""
        bar = f"at most {self.at_most:g} {unit}" if self.at_least is None else f"at least {self.at_least:g} {unit}"
        return bar if self.dream is None else f"{bar}, better {self.dream:g} {unit}"


@dataclass(frozen=True)
class Section:
    """What one room of the benchmarks measured."""

    title: str
    rows: Sequence[Row]
    method: str  # how it was measured, in a few sentences
    table: Sequence[Sequence[str]] = field(default=())  # a further table: its header, then its rows


def read_results(folder: Path) -> Results:
    """The record of a folder; nothing where there is none."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def record(key: str, section: Section, command: str, *, folder: Path | None) -> None:
    """Print a section, and put it into ``results.json`` and ``README.md`` of ``folder`` where one is given."""
    _print(section)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(folder)
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
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_page(results, folder)


def _cells(row: Row) -> list[str]:
    return [
        row.what,
        row.unit,
        spread(row.ours),
        "" if row.other is None else spread(row.other),
        row.other_name,
        "" if row.ratio is None else f"{row.ratio:.2f} x",
        row.bar,
        {True: "yes", False: "NO", None: ""}[row.met],
    ]


def _print(section: Section) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    if section.rows:
        table = Table(title=section.title, box=box.SIMPLE, title_justify="left")
        for name in HEADER:
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
    derived = {"median": row.ours.median, "ratio": row.ratio, "bar": row.bar, "met": row.met, "facts": dict(row.facts)}
    other = None if row.other is None else {"name": row.other_name, "median": row.other.median, **_values(row.other)}
    return {"what": row.what, "unit": row.unit, **derived, **_values(row.ours), "other": other}


def _values(figure: Figure) -> dict[str, Any]:
    return {key: list(value) for key, value in dataclasses.asdict(figure).items()}


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
