"""The decorator of public functions: arguments are checked by their annotations, and the call is isolated."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

from scdecode._utils.checks.hints import Check, check_of, resolve_hints

Function = TypeVar("Function", bound=Callable[..., Any])


class Checks(NamedTuple):
    """Checks of a function's arguments; None for an argument that takes everything."""

    by_position: tuple[tuple[str, Check | None], ...]
    by_name: dict[str, Check | None]
    others: Check | None
    """Of the values of ``**others``."""


def checked(function: Function) -> Function:
    """Check the arguments of a function by their annotations whenever it is called, and call it isolated.

    What the program has told torch to do in general does not matter inside: see :mod:`scdecode._utils.isolation`.

    Annotations are the one description of what an argument takes: types, ``Literal`` for words, unions, containers,
    protocols for models, and the named kinds of :mod:`scdecode._utils.checks.kinds` for values in many forms. They are
    resolved at the first call. numpy's numbers, flags and strings are passed on as Python's.

    A dataclass is decorated as a class: its ``__init__`` is checked by the types of its fields. For class methods,
    write ``@classmethod`` above ``@checked``.

    Raises
    ------
    InputError
        When the function is called with a value that does not fit: the error that the kind of the value names,
        :class:`ConfigError` for numbers, flags and words.

    Notes
    -----
    Why not beartype: it looks at one element of a list, which it picks by Python's global random state, and passes
    numpy's numbers on as they are.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]  # of this class, not of an instance
        return function
    found: list[Checks] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not found:
            found.append(checks_of(function))
        checks = found[0]
        changed: list[Any] | None = None
        for i, (value, (name, check)) in enumerate(zip(args, checks.by_position, strict=False)):
            if check is not None and (taken := check(name, value)) is not value:
                changed = list(args) if changed is None else changed
                changed[i] = taken
        for name, value in kwargs.items():
            check = checks.by_name.get(name, checks.others)
            if check is not None:
                kwargs[name] = check(name, value)
        given = args if changed is None else changed
        if "torch" not in sys.modules:  # and so there is no state of it, and no model
            return function(*given, **kwargs)
        from scdecode._utils.isolation import isolated

        return isolated(function, *given, **kwargs)

    call.__checked__ = function  # type: ignore[attr-defined]  # tests/test_checks.py walks the package for it
    return cast("Function", call)


def checks_of(function: Callable[..., Any]) -> Checks:
    """Return the checks of a function's arguments by its annotations.

    Raises
    ------
    TypeError, NameError
        For an annotation that no check is known for, or that cannot be evaluated.
    """
    parameters = inspect.signature(function).parameters.values()
    hints = resolve_hints(function)
    hints = {name: hint for name, hint in hints.items() if hint is not type(None)}  # they are refused with a remedy
    by_name = {p.name: check_of(hints.get(p.name, Any)) for p in parameters if p.kind is not p.VAR_KEYWORD}
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), "")
    return Checks(tuple((name, by_name[name]) for name in positional), by_name, check_of(hints.get(others, Any)))
