"""A type hint -> the check of an argument: whether a value fits, and the value as the function is given it."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, cast, get_args, get_origin

import numpy as np

from scdecode.errors import ConfigError, InputError, got, unknown_name

REFUSED: Final = object()
"""What a check returns for a value that does not fit."""

_NO_LISTS: Final = (str, bytes, bytearray, memoryview, type, Iterator)
"""Collections to Python, and no lists of values: an iterator can be read once, and may have no end."""

_EXTRAS: Final = {"Axes": "matplotlib.axes", "Figure": "matplotlib.figure"}
"""Types of extras in annotations, and where they are."""

_LARGEST_INTEGER: Final = 2**63 - 1
"""numpy and torch count in 64 bits."""

LONGEST_RANGE: Final = 10**8
"""Numbers of a range, which takes no memory before it is a list or an array."""

_LONGEST_PATH: Final = 4096
_LONGEST_FILE_NAME: Final = 255
"""Bytes that Linux takes of a path and of one name in it; macOS and Windows take no more."""


class Check(NamedTuple):
    """Check of one argument."""

    take: Callable[[Any], Any]
    """Return the value to pass on, or REFUSED."""
    words: str
    """What is expected, for the message."""
    error: type[InputError]
    """What to raise for a value that does not fit."""
    explain: Callable[[str, Any], str | None] = lambda place, value: None
    """Return a message that says more than got and expected, where there is one."""

    def __call__(self, place: str, value: Any) -> Any:
        """Return the value to pass on; raise the error of this check for one that does not fit."""
        taken = self.take(value)
        if taken is REFUSED:
            message = self.explain(place, value)
            raise self.error(message or f"{place}: got {got(value)}, expected {self.words}")
        return taken


@dataclass(frozen=True)
class Kind:
    """Metadata of ``Annotated``: a kind of value that its type alone does not tell."""

    take: Callable[[Any], Any]
    """Return the value to pass on, or REFUSED."""
    words: str
    """What is expected, for the message."""
    error: type[InputError] = InputError


@dataclass(frozen=True)
class Between:
    """Metadata of ``Annotated``: bounds of a number, both allowed."""

    least: float
    most: float

    def narrow(self, check: Check) -> Check:
        """Return a check of numbers that also checks their bounds."""

        def take(value: Any) -> Any:
            taken = check.take(value)
            return taken if taken is REFUSED or taken is None or self.least <= taken <= self.most else REFUSED

        kind = "a whole number" if check.take is _take_integer else "a number"
        return Check(take, f"{kind} from {self.least:,} to {self.most:,}", check.error)


def check_of(hint: Any) -> Check | None:
    """Return the check of a type hint; None for ``Any``, which takes everything.

    ``Annotated[hint, "words", PointsError]`` says in other words what is expected, and which error it is.

    Raises
    ------
    TypeError
        For a hint that no check is known for.
    """
    if hint is Any or hint is object:
        return None
    if hint is None or hint is type(None):
        return Check(lambda value: None if value is None else REFUSED, "None", InputError)
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin = get_origin(hint)
    if origin is Annotated:
        return _annotated(hint)
    if origin in (Union, types.UnionType):
        return _union([check_of(member) for member in _members(hint)])
    if origin is Literal:
        return _choice(get_args(hint))
    if origin is type:
        return Check(lambda value: value if isinstance(value, type) else REFUSED, "a class", InputError)
    if hint is Callable or origin is collections.abc.Callable:
        return callback_check(len(get_args(hint)[0]) if isinstance((get_args(hint) or (None,))[0], list) else None)
    if origin is not None:
        return _container(origin, get_args(hint))
    if isinstance(hint, type):
        return _protocol(hint) if getattr(hint, "_is_protocol", False) else _instance(hint)
    raise TypeError(f"no check is known for the type hint {hint!r}")


# -- numbers, flags, words, files --------------------------------------------------------------------------------------


def _take_flag(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    return bool(value) if isinstance(value, np.bool_) else REFUSED


def _take_integer(value: Any) -> Any:
    if type(value) is not int:
        whole = isinstance(value, float | np.floating) and value.is_integer()  # 10.0, of a table or a search
        if isinstance(value, bool) or not (whole or isinstance(value, numbers.Integral)):
            return REFUSED
        value = int(value)
    return value if abs(value) <= _LARGEST_INTEGER else REFUSED


def _take_number(value: Any) -> Any:
    if type(value) is float:
        return value if math.isfinite(value) else REFUSED
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return REFUSED
    try:
        number = float(value)
    except OverflowError:
        return REFUSED
    if isinstance(value, numbers.Integral):
        return int(value) if abs(number) <= _LARGEST_INTEGER else number
    return number if math.isfinite(number) else REFUSED


def _take_word(value: Any) -> Any:
    if type(value) is str:
        return value
    return str(value) if isinstance(value, str) else REFUSED


def take_path(value: Any) -> Any:
    """Return the path of a file as it is; REFUSED for one that no file system takes."""
    if not isinstance(value, str | Path):
        return REFUSED
    text = str(value)
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return REFUSED
    names = encoded.replace(b"\\", b"/").split(b"/")
    if not text or b"\0" in encoded or len(encoded) >= _LONGEST_PATH or max(map(len, names)) > _LONGEST_FILE_NAME:
        return REFUSED
    return str(value) if isinstance(value, str) else value


def _explain_number(place: str, value: Any) -> str | None:
    if isinstance(value, int | np.integer) and value is not True and value is not False:
        return f"{place}: got {got(value)}, expected a whole number below 2**63"
    return None


_PATH: Final = Check(
    take_path, "the path of a file or directory: at most 255 bytes a name, 4,095 in all, without NUL", InputError
)
_SIMPLE: Final[dict[Any, Check]] = {
    bool: Check(_take_flag, "True or False", ConfigError),
    int: Check(_take_integer, "a whole number", ConfigError, _explain_number),
    float: Check(_take_number, "a finite number", ConfigError),
    str: Check(_take_word, "a string", ConfigError),
    Path: _PATH,
}


def _choice(choices: tuple[Any, ...]) -> Check:
    known = {(type(choice), choice): choice for choice in choices}

    def take(value: Any) -> Any:
        word = str(value) if isinstance(value, str) else bool(value) if isinstance(value, np.bool_) else value
        if not isinstance(word, str | bool | int | None):
            return REFUSED
        return known.get((type(word), word), REFUSED)

    def explain(place: str, value: Any) -> str | None:
        return unknown_name(place, value, list(map(str, choices)), "choices") if isinstance(value, str) else None

    return Check(take, f"one of {list(choices)}", ConfigError, explain)


# -- hints made of others ----------------------------------------------------------------------------------------------


def _members(hint: Any) -> Iterator[Any]:
    """Members of a union; ``str | Path`` is a path, whose string is checked as one."""
    members = get_args(hint)
    return (member for member in members if not (member is str and Path in members))


def _union(checks: Sequence[Check | None]) -> Check | None:
    known = [check for check in checks if check is not None]
    if len(known) < len(checks):
        return None
    takes = tuple(check.take for check in known)

    def take(value: Any) -> Any:
        for take_one in takes:
            if (taken := take_one(value)) is not REFUSED:
                return taken
        return REFUSED

    def explain(place: str, value: Any) -> str | None:
        return next((message for check in known if (message := check.explain(place, value))), None)

    words = [check.words for check in known]
    text = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    error = next((check.error for check in known if check.error is not InputError), InputError)
    return Check(take, text, error, explain)


def _annotated(hint: Any) -> Check | None:
    inner, *metadata = get_args(hint)
    for data in metadata:
        if isinstance(data, Kind):
            return Check(data.take, data.words, data.error)
    check = check_of(inner)
    if check is None:
        return None
    words = next((data for data in metadata if isinstance(data, str)), check.words)
    error = next((data for data in metadata if isinstance(data, type) and issubclass(data, InputError)), check.error)
    bounds = next((data for data in metadata if isinstance(data, Between)), None)
    if bounds is not None:
        return bounds.narrow(check._replace(error=error))
    return check._replace(words=words, error=error)


def callback_check(n: int | None) -> Check:
    """Return the check of a function that is called with ``n`` arguments, or with any if None."""

    def take(value: Any) -> Any:
        if not callable(value):
            return REFUSED
        if n is None:
            return value
        try:
            inspect.signature(value).bind(*range(n))
        except TypeError:
            return REFUSED
        except ValueError:  # builtins have no signature to be seen; classes among them are no callbacks
            return REFUSED if isinstance(value, type) else value
        return value

    return Check(take, "a function" if n is None else f"a function of {n} argument{'s' * (n != 1)}", InputError)


def _container(origin: Any, arguments: Sequence[Any]) -> Check:
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _fixed_tuple([check_of(argument) for argument in arguments])
    if issubclass(origin, Mapping):
        return _mapping(origin, *(check_of(argument) for argument in arguments))
    element = check_of(arguments[0])
    one_of = f"of {element.words}" if element is not None else "of values"
    name = {Iterable: "a collection", Sequence: "a list", tuple: "a tuple", set: "a set"}.get(origin, "a list")

    def take(value: Any) -> Any:
        if not isinstance(value, origin) or isinstance(value, _NO_LISTS) or getattr(value, "ndim", 1) == 0:
            return REFUSED
        if isinstance(value, range) and abs(value.stop - value.start) > LONGEST_RANGE:
            return REFUSED
        if element is None:
            return value
        taken: list[Any] = []
        for one in value:
            taken.append(element.take(one))
            if taken[-1] is REFUSED:
                return REFUSED
        same = all(new is old for new, old in zip(taken, value, strict=True))
        return value if same else tuple(taken) if isinstance(value, tuple) else taken

    return Check(take, f"{name} {one_of}" if element is not None else name, InputError)


def _fixed_tuple(elements: Sequence[Check | None]) -> Check:
    def take(value: Any) -> Any:
        if not isinstance(value, tuple | list) or len(value) != len(elements):
            return REFUSED
        taken = tuple(v if check is None else check.take(v) for check, v in zip(elements, value, strict=True))
        return REFUSED if any(v is REFUSED for v in taken) else taken

    words = ", ".join("a value" if check is None else check.words for check in elements)
    return Check(take, f"a tuple ({words})", InputError)


def _mapping(origin: Any, keys: Check | None, values: Check | None) -> Check:
    def take(value: Any) -> Any:
        if not isinstance(value, origin):
            return REFUSED
        items = list(value.items())
        if any(keys is not None and keys.take(key) is REFUSED for key, _ in items):
            return REFUSED
        if values is None:
            return value
        taken = {key: values.take(v) for key, v in items}
        return REFUSED if any(v is REFUSED for v in taken.values()) else taken

    of = "" if keys is None else f" of {'names' if keys.words == 'a string' else keys.words}"
    to = "" if values is None else f" to {values.words}"
    return Check(take, f"a mapping{of}{to}", InputError)


def _instance(kind: type) -> Check:
    name = kind.__name__
    spelt = name[:2].isupper() and name[0] in "FHLMNRSX"  # an SCVI
    article = "an" if spelt or name[0] in "AEIO" or name == "ndarray" else "a"
    return Check(lambda value: value if isinstance(value, kind) else REFUSED, f"{article} {name}", InputError)


def _protocol(kind: type) -> Check:
    """Check by the names of a protocol: models and ensembles are described by what is needed of them."""
    needed = _protocol_names(kind)
    fitting: set[type] = set()

    def take(value: Any) -> Any:
        if type(value) in fitting:
            return value
        if isinstance(value, type) or not all(name in attributes_of(value) for name in needed):
            return REFUSED
        fitting.add(type(value))
        return value

    return Check(take, "a model", InputError)


def _protocol_names(kind: type) -> set[str]:
    names: set[str] = set()
    for base in kind.__mro__:
        if base is not object and base.__module__ not in ("typing", "typing_extensions"):
            names |= {name for name in (*vars(base), *inspect.get_annotations(base)) if name[0] != "_"}
    return names


def attributes_of(value: Any) -> set[str]:
    """Names that an object has, without asking it: a ``__getattr__`` may answer, or fail, as it pleases."""
    names = set(getattr(value, "__dict__", ()))
    for base in type(value).__mro__:
        names.update(vars(base))
    return names


def resolve_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the hints of a function's parameters, evaluated where it was written; that of its result is left out."""
    own = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    holder = types.SimpleNamespace(__annotations__=own)
    return typing.get_type_hints(holder, _globals_of(function), _extras_of(own.values()), include_extras=True)


def _extras_of(hints: Iterable[Any]) -> dict[str, Any]:
    """Types of packages that are imported for type checkers alone; where one is not installed, anything passes."""
    found: dict[str, Any] = {}
    for name, module in _EXTRAS.items():
        if any(name in str(hint) for hint in hints):
            try:
                found[name] = getattr(importlib.import_module(module), name)
            except ImportError:  # the function says so
                found[name] = Any
    return found


def _globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    return cast("dict[str, Any]", inspect.unwrap(function).__globals__)
