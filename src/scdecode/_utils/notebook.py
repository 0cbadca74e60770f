"""How objects are shown: one line in a terminal, a small table in a notebook, never a long array."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping
from typing import Any

_LONGEST = 100  # characters of a value
_NAMES = 6  # of a longer list, so many are shown


class Shown:
    """A dataclass that a notebook shows as a table of its fields.

    Its ``__repr__`` has the shapes of arrays and tables, and the first of many names; a dataclass takes it over with
    ``repr=False``.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in _fields(self))})"

    def _repr_html_(self) -> str:
        text, name = repr(self), type(self).__name__
        return facts_html(name if text.startswith(f"{name}(") else text, _fields(self))


def facts_html(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a title and a table of names and values as HTML."""
    lines = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for name, value in rows
    )
    shown = html.escape(title).replace("\n", "<br>")
    return f"<div><div><strong>{shown}</strong></div><table>{lines}</table></div>"


def brief(value: Any) -> str:
    """Return a value in at most a line: an array by its shape, a mapping by its names, many names by the first."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        size = " x ".join(f"{n:,}" for n in shape) or "a single value"
        return f"{type(value).__name__} of {size}"
    if isinstance(value, Mapping):
        text = "{" + _listed(f"{key!r}: {brief(one)}" for key, one in value.items()) + "}"
    elif isinstance(value, list | tuple | set | frozenset):
        text = "[" + _listed(brief(one) for one in value) + "]"
    else:
        text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    more = f", ... {len(texts) - _NAMES:,} more" if len(texts) > _NAMES else ""
    return ", ".join(texts[:_NAMES]) + more


def _fields(shown: Any) -> list[tuple[str, str]]:
    """Return the public fields of a dataclass and their values in brief, without those that are None."""
    names = [field.name for field in dataclasses.fields(shown) if not field.name.startswith("_")]
    return [(name, brief(getattr(shown, name))) for name in names if getattr(shown, name) is not None]
