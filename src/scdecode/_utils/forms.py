"""A function that is called in two forms, each with arguments of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from scdecode.errors import InputError

T = TypeVar("T")


def or_as(form: Callable[..., T], applies: Callable[..., bool]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Let a class method be called in a second form.

    Parameters
    ----------
    form
        The function that is called instead, with the same arguments.
    applies
        Whether the arguments, but for the class, are those of ``form``.

    Raises
    ------
    InputError
        When the method is called in its second form, with arguments that ``form`` does not take.
    """
    signature = inspect.signature(form)
    parameters = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    shown = ", ".join(map(str, parameters[1:]))  # without the class

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def either(cls: type, *args: Any, **kwargs: Any) -> T:
            if not applies(*args, **kwargs):
                return method(cls, *args, **kwargs)
            try:
                signature.bind(cls, *args, **kwargs)
            except TypeError as error:
                name = method.__name__
                raise InputError(
                    f"{name}: got a model and an AnnData, so {name}({shown}) was expected: {error}"
                ) from error
            return form(cls, *args, **kwargs)

        return either

    return decorate
