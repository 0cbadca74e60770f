"""The exceptions and warnings of scdecode, and the checks that raise them.

::

    ScdecodeError
    ├── InputError (ValueError)        an argument is wrong
    │   ├── PointsError                  latent points: width, NaN, none at all
    │   ├── CountsError                  cells: negative, fractional or missing counts, genes
    │   ├── ConditionError               batch, covariates, labels, library size
    │   └── ConfigError                  options of the model or of the training
    ├── NotTrainedError (RuntimeError) the model has no trained weights yet
    ├── TrainingError (RuntimeError)   the loss stopped being a number
    ├── FormatError (ValueError)       a model directory cannot be read
    │   ├── CorruptModelError            truncated, edited, or a file is missing
    │   ├── NewerFormatError             written by a later scdecode
    │   ├── ForeignModelError            another program's model
    │   └── UnsafeModelError             it asks for code that no model needs; nothing was run
    ├── OutputError (OSError)          a result cannot be written
    └── MissingExtraError (ImportError)  an optional dependency is not installed

    ScdecodeWarning (UserWarning)
    ├── SupportWarning                 points far from every training cell
    ├── ConditionWarning               a condition or a library size that looks wrong
    ├── CountsWarning                  counts that look wrong, but can be used
    ├── TrainingWarning                training ended early or was changed
    └── ConvergenceWarning             a search ended before it was done

Every message has four parts: the place, what came, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import numbers
import reprlib
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "ConditionError",
    "ConditionWarning",
    "ConfigError",
    "ConvergenceWarning",
    "CorruptModelError",
    "CountsError",
    "CountsWarning",
    "ForeignModelError",
    "FormatError",
    "InputError",
    "MissingExtraError",
    "NewerFormatError",
    "NotTrainedError",
    "OutputError",
    "PointsError",
    "ScdecodeError",
    "ScdecodeWarning",
    "SupportWarning",
    "TrainingError",
    "TrainingWarning",
    "UnsafeModelError",
]


LONGEST_MESSAGE = 500
"""Characters of a message; longer ones, such as those with a name from a damaged file, lose their middle."""

LARGEST_DRAWS = 10_000_000
"""Draws of a point or cell, at most: far above any in use, and far below what numpy cannot allocate."""

_LONGEST_NAME = 200
"""Characters of a name that spelling is still compared for: the comparison is quadratic in them."""


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)


class ScdecodeError(Exception):
    """The root of every error that scdecode raises on purpose."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args), **named)


class InputError(ScdecodeError, ValueError):
    """An argument is wrong."""


class PointsError(InputError):
    """Latent points cannot be used."""


class CountsError(InputError):
    """The cells, their counts or their genes cannot be used."""


class ConditionError(InputError):
    """A batch, covariate, label or library size cannot be used."""


class ConfigError(InputError):
    """An option of the model or of its training is wrong."""


class NotTrainedError(ScdecodeError, RuntimeError):
    """The model has not been trained."""


class TrainingError(ScdecodeError, RuntimeError):
    """Training cannot go on."""


class FormatError(ScdecodeError, ValueError):
    """A model directory cannot be read."""


class CorruptModelError(FormatError):
    """A file of a model is missing, truncated or was edited."""


class NewerFormatError(FormatError):
    """The model was written by a later version of scdecode."""


class ForeignModelError(FormatError):
    """The directory holds another program's model."""


class UnsafeModelError(FormatError):
    """A file of a model asks for code that no model needs; nothing of it was run."""


class OutputError(ScdecodeError, OSError):
    """A result cannot be written."""


class MissingExtraError(ScdecodeError, ImportError):
    """An optional dependency is not installed."""


class ScdecodeWarning(UserWarning):
    """The root of every warning that scdecode gives."""


class SupportWarning(ScdecodeWarning):
    """Points lie far from the cells that the model learned from."""


class ConditionWarning(ScdecodeWarning):
    """A condition or a library size looks wrong."""


class CountsWarning(ScdecodeWarning):
    """Counts look wrong, but can be used."""


class TrainingWarning(ScdecodeWarning):
    """Training ended early, or was changed."""


class ConvergenceWarning(ScdecodeWarning):
    """A search, such as that for a geodesic, ended before it was done."""


def printable(message: str) -> str:
    """Return a message as one line of at most 500 characters, without control characters or lone surrogates."""
    if not message.isprintable():
        message = " ".join(message.split())
        message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    if len(message) <= LONGEST_MESSAGE:
        return message
    tail = LONGEST_MESSAGE // 4  # the remedy stands at the end
    return f"{message[: LONGEST_MESSAGE - tail - 5]} ... {message[-tail:]}"


class _Shortener(reprlib.Repr):
    """Short representations; an object whose own ``__repr__`` fails has that of ``object``."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 4

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 256:  # Python refuses to print numbers of thousands of digits
            return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1}..."
        return repr(value)

    def repr_instance(self, value: Any, level: int) -> str:
        kind = type(value)
        if isinstance(value, type) or kind.__name__ in ("function", "module", "builtin_function_or_method"):
            return str(getattr(value, "__name__", kind.__name__))
        if hasattr(kind, "shape"):  # arrays, tables, an AnnData
            return f"{kind.__name__} of shape {value.shape}"
        text = super().repr_instance(value, level)
        return f"{kind.__name__} object" if "\n" in text or " object at 0x" in text else text


_SHORTENER = _Shortener()


def shown(value: Any) -> str:
    """Return a short representation of a value that a message quotes."""
    return _SHORTENER.repr(value)


def got(value: Any) -> str:
    """Return a value as ``got ...`` quotes it: ``'ten' (str)``, ``ndarray of shape (3, 4)``, ``None``."""
    text, kind = shown(value), type(value).__name__
    return text if value is None or kind in text else f"{text} ({kind})"


def listing(names: Iterable[Any], limit: int = 10) -> str:
    """Names as ``['a', 'b', ...]``, with the number of those left out."""
    names = list(names)
    quoted = ", ".join(shown(name) for name in names[:limit])
    more = f", ... and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"[{quoted}{more}]"


def suggestion(name: Any, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` where a known name is near, else nothing."""
    text = name if isinstance(name, str) else shown(name)
    if len(text) > _LONGEST_NAME:
        return ""
    near = difflib.get_close_matches(text, known, n=5, cutoff=0.6)
    near.sort(key=lambda k: (-difflib.SequenceMatcher(a=k, b=text).ratio(), k))
    if not near:  # 'Donor 1' for 'donor_1': the same letters, another spelling
        folded = {_fold(k): k for k in known}
        match = folded.get(_fold(text))
        near = [match] if match is not None else []
    return f"; did you mean {near[0]!r}?" if near else ""


def _fold(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def unknown_name(place: str, name: Any, known: Iterable[str], kind: str) -> str:
    """The message for a name that is not among those known.

    Parameters
    ----------
    place
        The argument, as the user wrote it: ``"batch"``.
    name
        What came.
    known
        What would have been accepted.
    kind
        What the known names are: ``"training batches"``.
    """
    known = [str(k) for k in known]
    if not known:
        return f"{place}: {shown(name)} was given, but there are no {kind}"
    among = f"one of the {len(known):,}" if len(known) > 1 else "among the"
    return f"{place}: {shown(name)} is not {among} {kind} {listing(known)}{suggestion(name, known)}"


def check_choice(place: str, value: Any, choices: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(unknown_name(place, value, choices, "choices"))


def check_integer(place: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a whole number between ``minimum`` and ``maximum``."""
    number = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (number and value >= minimum and (maximum is None or value <= maximum)):
        below = "" if maximum is None else f" and at most {maximum:,}"
        raise ConfigError(f"{place}: {shown(value)} came, a whole number of at least {minimum}{below} was expected")


def check_number(
    place: str, value: Any, minimum: float, maximum: float = float("inf"), *, open_minimum: bool = False
) -> None:
    """Raise :class:`ConfigError` unless ``value`` lies between ``minimum`` and ``maximum``."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and (value > minimum if open_minimum else value >= minimum) and value <= maximum):
        above = f"above {minimum}" if open_minimum else f"of at least {minimum}"
        below = "" if maximum == float("inf") else f" and at most {maximum}"
        raise ConfigError(f"{place}: {shown(value)} came, a number {above}{below} was expected")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional package that is not installed, with its install line."""
    return MissingExtraError(
        f"{purpose} needs the package {package!r}, which is not installed; "
        f"install it with: pip install 'scdecode[{extra}]'"
    )


def warn(message: str, kind: type[ScdecodeWarning]) -> None:
    """Give a warning that points at the line of the user's code that led to it, however deep it arose."""
    level, frame = 1, sys._getframe(0)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    warnings.warn(printable(message), kind, stacklevel=level)
