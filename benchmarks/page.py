"""The tables of README.md, made from results.json and put between two marks; the words around them are by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timing import Figure

Results = dict[str, Any]
"""What results.json has: a section a key."""

HEADER = ("what", "unit", "scdecode", "the other", "which is", "ratio", "bar", "met")
ORDER = ("training", "encode", "decode", "point", "memory", "import", "load", "roofline", "growth")  # then the rest
BEGIN, END = "<!-- tables: made by page.py -->", "<!-- end of the tables -->"


def write_page(results: Results, folder: Path) -> None:
    """Put the tables into the README of a folder; one without gets that of this folder.

    Raises
    ------
    ValueError
        Where the README has no marks to put the tables between.
    """
    path = folder / "README.md"
    text = (path if path.exists() else Path(__file__).parent / "README.md").read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path}: the lines {BEGIN!r} and {END!r}, in this order and each once, were expected")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{_tables(results)}\n{END}{after}")


def number(value: float) -> str:
    """Three figures, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 if abs(value) >= 1 else 3}f}"


def spread(figure: Figure) -> str:
    """The median, with the lowest and the highest where there are several."""
    if len(figure.values) == 1:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.low)} to {number(figure.high)})"


def _tables(results: Results) -> str:
    lines = []
    keys = [key for key in ORDER if key in results]
    for key in [*keys, *(key for key in results if key not in keys)]:
        section = results[key]
        lines += [f"### {section['title']}", ""]
        if section["rows"]:
            lines += [*_table([HEADER, *map(_cells, section["rows"])]), ""]
        if section["table"]:
            lines += [*_table(section["table"]), ""]
        lines += [section["method"], ""]
        lines += [f"`{section['command']}`, {section['date']}. {section['machine']}. {section['versions']}.", ""]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    other = row["other"] or {"name": "", "values": []}
    return [
        row["what"],
        row["unit"],
        spread(Figure(tuple(row["values"]))),
        spread(Figure(tuple(other["values"]))) if other["values"] else "",
        other["name"],
        "" if row["ratio"] is None else f"{row['ratio']:.2f} x",
        row["bar"],
        {True: "yes", False: "**no**", None: ""}[row["met"]],
    ]


def _table(table: Sequence[Sequence[str]]) -> list[str]:
    header, *rows = ["| " + " | ".join(line) + " |" for line in table]
    return [header, "|" + " --- |" * len(table[0]), *rows]
