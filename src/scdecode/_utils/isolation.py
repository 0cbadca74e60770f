"""Computations that do not depend on what a program has told torch to do in general.

Public functions are called through :func:`isolated`. Inside, products are not lowered in precision by
``torch.autocast``; tensors are float32 on the CPU unless the code says otherwise, whatever the default type and device;
none is made in inference mode, which would follow it for good; and a forked process, whose copies of torch's threads
are dead, computes with one. Nothing of this is a global switch: other threads of the program go on as they were.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from scdecode._utils.model_use import changes_model, reading

Result = TypeVar("Result")

_DEVICES_WITH_AUTOCAST = ("cpu", "cuda", "mps")
_is_forked = False


def isolated(function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Result:
    """Call a function apart from torch's ambient state, with the models among its arguments marked as in use.

    Gradients are recorded or not, as the caller has it; in inference mode they are not.
    """
    with ExitStack() as stack:
        if not changes_model(function):
            stack.enter_context(reading(*args, *kwargs.values()))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for device in _DEVICES_WITH_AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(float32_by_default())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _is_forked and torch.get_num_threads() > 1:
            stack.enter_context(_one_thread())
        return function(*args, **kwargs)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make new tensors of this thread float32 where the default type is another."""
    if torch.get_default_dtype() is torch.float32:
        yield
        return
    with _Float32():
        yield


class _Float32(TorchFunctionMode):
    """Functions that make tensors of numbers make them float32, unless they are told a type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _OF_DEFAULT_TYPE and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        result = func(*args, **kwargs)
        if func in _OF_VALUES and kwargs.get("dtype") is None and result.dtype is torch.get_default_dtype():
            return result if _is_typed(args[0]) else result.to(torch.float32)
        return result


_OF_DEFAULT_TYPE = frozenset(
    {torch.empty, torch.zeros, torch.ones, torch.eye, torch.rand, torch.randn, torch.linspace, torch.logspace}
)
_OF_VALUES = frozenset({torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange, torch.scalar_tensor})


def _is_typed(value: Any) -> bool:
    """Whether a value has a type of its own, as arrays and tensors have, and numpy's numbers."""
    return hasattr(value, "dtype")


@contextmanager
def _one_thread() -> Iterator[None]:
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
