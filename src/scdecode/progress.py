"""Progress bars, which are there only where somebody looks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def training_progress(*, enabled: bool) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """A bar of epochs with the losses beside it: a function to call after each epoch.

    It draws nothing where standard error is neither a terminal nor a notebook.
    """
    with _bar("training", enabled=enabled) as advance:

        def show(done: int, total: int, row: dict[str, float]) -> None:
            losses = [f"{name} {row[key]:,.1f}" for name, key in _SHOWN if key in row]
            advance(done, total, "  ".join(losses))

        yield show


_SHOWN = (("train", "elbo_train"), ("validation", "elbo_validation"))


@contextmanager
def counting_progress(title: str, total: int | None, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar of ``total`` things: a function to call with how many more are done."""
    done = 0
    with _bar(title, enabled=enabled) as advance:

        def add(n: int) -> None:
            nonlocal done
            done += n
            advance(done, total, "")

        yield add


@contextmanager
def notice(text: str, *, after: float = 1.0) -> Iterator[None]:
    """Say on standard error what takes so long, where somebody looks and it takes more than ``after`` seconds."""
    from rich.console import Console  # see below

    console = Console(stderr=True)
    timer = threading.Timer(after, console.print, [text])
    timer.daemon = True
    if console.is_terminal or console.is_jupyter:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _bar(title: str, *, enabled: bool) -> Iterator[Callable[[int, int | None, str], None]]:
    from rich.console import (
        Console,
    )  # here, since importing rich takes a tenth of a second and a script may never need it

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield lambda done, total, text: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=None, text="")
        yield lambda done, total, text: progress.update(task, completed=done, total=total, text=text)
