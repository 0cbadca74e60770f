"""Which threads use which model: a training changes the weights in place, and no other thread may see that.

A model that is read in some threads is trained once they are done; one that is being trained in a thread is refused to
the others. Trainings of different models follow one another.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from torch import nn

from scdecode.errors import TrainingError

Method = TypeVar("Method", bound=Callable[..., Any])

_logger = logging.getLogger("scdecode")


class _Use:
    """The threads that use a network, by their identifiers."""

    def __init__(self) -> None:
        self.readers: Counter[int] = Counter()
        self.writer: int | None = None


_uses: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_changed = threading.Condition()
_one_training = threading.RLock()


@contextmanager
def reading(*values: Any) -> Iterator[None]:
    """Mark the models among some values as in use by this thread, so that no other thread changes them.

    Raises
    ------
    TrainingError
        If one of them is being trained by another thread.
    """
    networks = [network for value in values for network in _networks_of(value)]
    if not networks:
        yield
        return
    me = threading.get_ident()
    with _changed:
        uses = [_uses.setdefault(network, _Use()) for network in networks]
        if any(use.writer not in (None, me) for use in uses):
            raise TrainingError(
                "model: it is being trained in another thread, a model that rests was expected; wait until train() has "
                "returned, or decode in on_epoch=..., which is called between epochs"
            )
        for use in uses:
            use.readers[me] += 1
    try:
        yield
    finally:
        with _changed:
            for use in uses:
                use.readers[me] -= 1
            _changed.notify_all()


@contextmanager
def changing(network: nn.Module, place: str) -> Iterator[None]:
    """Mark a network as being changed by this thread; wait until no other thread reads it.

    Raises
    ------
    TrainingError
        If this thread is changing it already, or is in the middle of a computation with it.
    """
    me = threading.get_ident()
    with _changed:
        use = _uses.setdefault(network, _Use())
        if use.writer is not None or use.readers[me]:
            doing = "being changed" if use.writer is not None else "in the middle of a computation"
            raise TrainingError(
                f"{place}: the model is {doing} already, a model that rests was expected; call it when that is done"
            )
        use.writer = me
        try:
            _changed.wait_for(lambda: not any(n for thread, n in use.readers.items() if thread != me))
        except BaseException:
            use.writer = None
            _changed.notify_all()
            raise
    try:
        yield
    finally:
        with _changed:
            use.writer = None
            _changed.notify_all()


def trains(method: Method) -> Method:
    """Let a method of a model wait for trainings in other threads, and for other uses of its model.

    Raises
    ------
    TrainingError
        When it is called, as :func:`changing` does.
    """

    @functools.wraps(method)
    def call(model: Any, *args: Any, **kwargs: Any) -> Any:
        with _one_at_a_time(), changing(model.vae, "train"):
            return method(model, *args, **kwargs)

    return passes_to_train(cast("Method", call))


def changes(method: Method) -> Method:
    """Let a method that changes what its model knows wait for other uses of the model, as :func:`trains` does."""

    @functools.wraps(method)
    def call(model: Any, *args: Any, **kwargs: Any) -> Any:
        with changing(model.vae, method.__name__):
            return method(model, *args, **kwargs)

    return passes_to_train(cast("Method", call))


def passes_to_train(method: Method) -> Method:
    """Mark a method that does nothing with its model but call one of :func:`trains`."""
    method.changes_model = True  # type: ignore[attr-defined]
    return method


def changes_model(function: Callable[..., Any]) -> bool:
    """Whether a function is one of :func:`trains`, or of :func:`passes_to_train`."""
    return getattr(function, "changes_model", False)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    if not _one_training.acquire(blocking=False):
        _logger.warning("train: another model is being trained in this process; this training begins when that ends")
        _one_training.acquire()
    try:
        yield
    finally:
        _one_training.release()


def _networks_of(value: Any) -> list[nn.Module]:
    """The networks of a model, or of an ensemble of them."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict):
        return []
    network, models = attributes.get("vae"), attributes.get("models")
    found = [network] if isinstance(network, nn.Module) else []
    if isinstance(models, tuple):
        found += [one for model in models for one in _networks_of(model)]
    return found


def _forget() -> None:
    """In a forked process, the other threads are gone; what one of them was changing stays as it was left."""
    global _changed, _one_training
    _changed, _one_training = threading.Condition(), threading.RLock()
    me = threading.get_ident()
    for use in list(_uses.values()):
        use.readers = Counter({me: use.readers[me]})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
