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
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any


class ScdecodeError(Exception):
    """The root of every error that scdecode raises on purpose."""


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


def listing(names: Iterable[Any], limit: int = 10) -> str:
    """Names as ``['a', 'b', ...]``, with the number of those left out."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    more = f", ... and {len(names) - limit:,} more" if len(names) > limit else ""
    return f"[{shown}{more}]"


def suggestion(name: Any, known: Sequence[str]) -> str:
    """``; did you mean 'x'?`` where a known name is near, else nothing."""
    near = difflib.get_close_matches(str(name), known, n=5, cutoff=0.6)
    near.sort(key=lambda k: (-difflib.SequenceMatcher(a=k, b=str(name)).ratio(), k))
    if not near:  # 'Donor 1' for 'donor_1': the same letters, another spelling
        folded = {_fold(k): k for k in known}
        match = folded.get(_fold(str(name)))
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
        return f"{place}: {name!r} was given, but there are no {kind}"
    among = f"one of the {len(known):,}" if len(known) > 1 else "among the"
    return f"{place}: {name!r} is not {among} {kind} {listing(known)}{suggestion(name, known)}"


def check_choice(place: str, value: Any, choices: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(unknown_name(place, value, choices, "choices"))


def check_integer(place: str, value: Any, minimum: int) -> None:
    """Raise :class:`ConfigError` unless ``value`` is a whole number of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ConfigError(f"{place}: {value!r} came, a whole number of at least {minimum} was expected")


def check_number(
    place: str, value: Any, minimum: float, maximum: float = float("inf"), *, open_minimum: bool = False
) -> None:
    """Raise :class:`ConfigError` unless ``value`` lies between ``minimum`` and ``maximum``."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and (value > minimum if open_minimum else value >= minimum) and value <= maximum):
        above = f"above {minimum}" if open_minimum else f"of at least {minimum}"
        below = "" if maximum == float("inf") else f" and at most {maximum}"
        raise ConfigError(f"{place}: {value!r} came, a number {above}{below} was expected")


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
    warnings.warn(message, kind, stacklevel=level)
