"""Levels of categorical conditions: the names of values of any type, and which level a value means."""

from __future__ import annotations

import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from scdecode.errors import ConditionError, listing, unknown_name

LevelKind = Literal["str", "int", "float", "float32", "bool", "datetime", "timedelta", "other"]
_PARSERS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "float32": np.float32,
    "bool": {"True": True, "False": False}.__getitem__,
    "datetime": lambda name: pd.Timestamp(name).to_datetime64(),
    "timedelta": lambda name: pd.Timedelta(name).to_timedelta64(),
    "other": str,
}
_NUMERIC = ("int", "float", "float32", "bool")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*)?(e[+-]?[0-9]+)?", re.IGNORECASE)
"""A number as programs write it. A leading zero makes an identifier: sample 01 is another one than sample 1."""
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def level_name(value: Any) -> str:
    """Return the name of a level: its text, of a number the shortest text that gives it back in its own type."""
    if isinstance(value, np.datetime64 | np.timedelta64):
        value = pd.Timestamp(value) if isinstance(value, np.datetime64) else pd.Timedelta(value)
    return str(value)


@dataclass(frozen=True)
class Category:
    """A categorical condition: its column of ``obs`` and the names of its levels, in the order of their codes."""

    key: str
    names: tuple[str, ...]
    kind: LevelKind = "str"
    """What the levels are in the column of ``obs``; here they are always names."""

    @classmethod
    def of(cls, key: str, values: np.ndarray) -> Category:
        """Return the category of levels as a column holds them.

        Parameters
        ----------
        key
            Name of the column.
        values
            ``(levels,)`` the levels in the order of their codes, none missing.

        Raises
        ------
        ConditionError
            If two levels have the same text, such as the number 1 and the text ``"1"``.
        """
        names = tuple(level_name(value) for value in values)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            alike = [value for value, name in zip(values, names, strict=True) if name == twice]
            raise ConditionError(
                f"adata.obs[{key!r}]: two of its levels have the same name as text: {' and '.join(map(repr, alike))}; "
                f"expected different names; adata.obs[{key!r}] = adata.obs[{key!r}].astype(str) makes them one level"
            )
        return cls(key, names, _kind_of(values))

    @property
    def values(self) -> np.ndarray:
        """The levels as they are in ``obs``, which scvi-tools compares with a column: 1, where the name is ``"1"``."""
        values = [_PARSERS[self.kind](name) for name in self.names]
        return np.array(values, dtype=object if self.kind in ("str", "other") else None)

    def with_last(self, value: Any) -> Category:
        """The levels with ``value`` at the end: swapped with the last, or added where it is none, as in scvi-tools."""
        found = self.find(value)
        if len(found) > 1:
            raise ConditionError(_ambiguous("unlabeled_category", value, [self.names[code] for code in found]))
        if not found:
            name = level_name(value)
            try:
                _PARSERS[self.kind](name)
            except (KeyError, ValueError):
                return Category(self.key, (*self.names, name), "str")  # as scvi-tools makes all of them text
            return Category(self.key, (*self.names, name), self.kind)
        names, place = list(self.names), found[0]
        names[place], names[-1] = names[-1], names[place]
        return Category(self.key, tuple(names), self.kind)

    @cached_property
    def codes(self) -> dict[str, int]:
        """The code of each name."""
        return {name: code for code, name in enumerate(self.names)}

    @cached_property
    def _codes_of_numbers(self) -> dict[float, list[int]]:
        """The codes of each number that a level is, or that its text is."""
        found: dict[float, list[int]] = {}
        for code, name in enumerate(self.names):
            number = {"True": 1, "False": 0}.get(name) if self.kind == "bool" else _number_in(name)
            if number is not None:
                found.setdefault(number, []).append(code)
        return found

    def find(self, value: Any) -> tuple[int, ...]:
        """Return the codes of the levels that a value may mean: one, none, or several of one number.

        Text is compared as text, a number as a number: 1, 1.0 and ``True`` mean the level ``"1"``, and 0.1 the level
        0.1 of a float32 column. Text that is a number means a level that is one, too.
        """
        if isinstance(value, str):
            if value in self.codes:
                return (self.codes[value],)
            if self.kind in _NUMERIC:
                number = _number_in(value)
                return () if number is None else self._with_number(number)
            return self._with_time(value)
        number = _number_of(value)
        same = self.codes.get(level_name(value))
        if number is None:
            return self._with_time(value) if same is None else (same,)
        alike = self._with_number(number)
        return alike if same is None or same in alike else (*alike, same)

    def _with_number(self, number: float) -> tuple[int, ...]:
        found = self._codes_of_numbers.get(number)
        if found is not None or number == number // 1:
            return tuple(found or ())
        with np.errstate(over="ignore"):  # if one of two is the other in single precision; whole ones are two numbers
            return tuple(
                code
                for level, codes in self._codes_of_numbers.items()
                for code in codes
                if level != level // 1 and (np.float32(level) == number or np.float64(np.float32(number)) == level)
            )

    def _with_time(self, value: Any) -> tuple[int, ...]:
        """The codes of levels that are the same date or duration, in whichever type or spelling."""
        if self.kind not in ("datetime", "timedelta", "other"):
            return ()
        if isinstance(value, str) and self.kind != "timedelta" and not _DATE.match(value):
            return ()
        try:
            time = pd.Timedelta(value) if self.kind == "timedelta" else pd.Timestamp(value)
        except (TypeError, ValueError, OverflowError):
            return ()
        names = [str(time)]
        if isinstance(time, pd.Timestamp) and time == time.normalize():
            names.append(str(time.date()))
        return tuple(self.codes[name] for name in names if name in self.codes)

    def encode(self, values: Sequence[Any] | np.ndarray, place: str, kind: str) -> np.ndarray:
        """Codes of levels, ``(n,)`` int64; a level is named by its text, or by its number.

        Raises
        ------
        ConditionError
            For a value that is no level, or may be two; the message lists the levels and suggests the nearest.
        """
        known: dict[tuple[type, Any], int] = {}
        codes_n = np.empty(len(values), dtype=np.int64)
        for i, value in enumerate(values):  # numpy's own numbers and dates: an array of objects would change them
            key = (type(value), level_name(value))
            if key not in known:
                known[key] = self._code_of(value, place, kind)
            codes_n[i] = known[key]
        return codes_n

    def _code_of(self, value: Any, place: str, kind: str) -> int:
        found = self.find(value)
        plain = value.item() if isinstance(value, np.number | np.bool_ | np.str_) else value
        if len(found) > 1:
            raise ConditionError(_ambiguous(place, plain, [self.names[code] for code in found]))
        if not found:
            raise ConditionError(unknown_name(place, plain, self.names, kind))
        return found[0]


def _ambiguous(place: str, value: Any, names: Sequence[str]) -> str:
    return (
        f"{place}: got {value!r}, which may be any of the levels {listing(names)}; expected one of them; pass its name "
        f"as text: {names[0]!r}"
    )


def _kind_of(values: np.ndarray) -> LevelKind:
    kinds: dict[str, LevelKind] = {"b": "bool", "i": "int", "u": "int", "f": "float", "M": "datetime", "m": "timedelta"}
    if values.dtype.kind in kinds:
        return "float32" if values.dtype == np.float32 else kinds[values.dtype.kind]
    inferred: dict[str, LevelKind] = {"string": "str", "boolean": "bool", "integer": "int", "floating": "float"}
    return inferred.get(pd.api.types.infer_dtype(values, skipna=False), "str" if not len(values) else "other")


def _number_in(text: str) -> float | None:
    """The number that a text is, whole ones without rounding; None if it is none."""
    if not _NUMBER.fullmatch(text):
        return float(text) if text in ("inf", "-inf") else None
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _number_of(value: Any) -> float | None:
    """The number that a value is; a boolean is 0 or 1, and a date or a duration is none."""
    if isinstance(value, np.datetime64 | np.timedelta64):  # their item() is a number of nanoseconds
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, numbers.Real | Decimal):
        return None
    return int(value) if isinstance(value, numbers.Integral) else float(value)
