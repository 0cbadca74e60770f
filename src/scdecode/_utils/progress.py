"""Progress of slow calls: a bar in a terminal or a notebook, a line every so often in a file or a pipe.

Nothing is shown if ``scdecode.settings.verbosity`` is below ``"info"``, nor for a call inside one that shows its own.
"""

from __future__ import annotations

import html
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from scdecode._utils.logs import logger

T = TypeVar("T")

_AFTER_S = 1.0  # a call that is done sooner shows nothing
_NOTEBOOK_EVERY_S = 0.2  # each update is a message to the browser
_LINE_EVERY = 0.1  # share of the work between two lines of a log
_LINE_EVERY_S = 30.0  # or that much time
_NARROW = 72  # columns; in a narrower terminal the bar has no text beside it

_shown_one = threading.Lock()  # one progress at a time: that of the outermost call, of one thread


@dataclass(frozen=True)
class Status:
    """How far a call is."""

    title: str
    unit: str
    done: int
    total: int | None
    text: str
    seconds: float

    @property
    def share(self) -> float | None:
        """The part that is done, 0 to 1; None if the total is unknown."""
        return min(self.done / self.total, 1.0) if self.total else None

    @property
    def sentence(self) -> str:
        """The status in one line of plain text."""
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{self.title}: {count} {self.unit}".rstrip()]
        if self.share is not None:
            parts[0] += f" ({self.share:.0%})"
        parts += [self.text] if self.text else []
        parts.append(_duration(self.seconds))
        if self.share is not None and 0 < self.share < 1:
            parts.append(f"about {_duration(self.seconds * (1 / self.share - 1))} left")
        return ", ".join(parts)


class _View(Protocol):
    """Where a status is shown."""

    def update(self, status: Status) -> None:
        """Show how far the call is."""

    def close(self, status: Status) -> None:
        """Show how far it came, to stay."""


class _Lines:
    """Lines of the logger ``scdecode``."""

    def __init__(self) -> None:
        self._share, self._seconds = 0.0, 0.0
        self._last: Status | None = None

    def update(self, status: Status) -> None:
        """Log a line after each tenth of the work, or each half minute."""
        far = status.share is not None and status.share - self._share >= _LINE_EVERY - 1e-9
        if far or status.seconds - self._seconds >= _LINE_EVERY_S:
            self._log(status)

    def close(self, status: Status) -> None:
        """Log the last line, unless it was logged."""
        if self._last is None or self._last.done != status.done:
            self._log(status)

    def _log(self, status: Status) -> None:
        self._share, self._seconds, self._last = status.share or 0.0, status.seconds, status
        logger.info(status.sentence)


class _Output:
    """One output of a notebook, which needs no widgets: text, and HTML with a bar."""

    def __init__(self) -> None:
        from IPython import display

        self._display: Callable[..., Any] = display.display
        self._handle: Any = None
        self._seconds = 0.0

    def update(self, status: Status) -> None:
        """Replace the output, a few times a second at most."""
        if self._handle is None or status.seconds - self._seconds >= _NOTEBOOK_EVERY_S:
            self.close(status)

    def close(self, status: Status) -> None:
        """Replace the output."""
        self._seconds = status.seconds
        if self._handle is None:
            self._handle = self._display(_Shown(status), display_id=True)
        else:
            self._handle.update(_Shown(status))


class _Shown:
    """A status as a notebook displays it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __repr__(self) -> str:
        return self._status.sentence

    def _repr_html_(self) -> str:
        one = self._status
        value = "" if one.share is None else f' value="{one.share:.4f}"'
        bar = f'<progress max="1"{value} style="vertical-align: middle"></progress>'
        return f'<div style="font-family: monospace">{bar} {html.escape(one.sentence)}</div>'


class _Bar:
    """A bar at the foot of a terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console  # here, as importing rich takes a tenth of a second
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        console = Console(stderr=True)
        columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
        columns += [Remaining(elapsed_when_finished=True)] if console.width >= _NARROW else [TimeElapsedColumn()]
        columns += [TextColumn("{task.fields[text]}", markup=False)] if console.width >= _NARROW else []
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task(title, total=None, text="")
        self._bar.start()

    def update(self, status: Status) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=status.done, total=status.total, text=status.text)

    def close(self, status: Status) -> None:
        """Move the bar for the last time, and leave it there."""
        self.update(status)
        self._bar.stop()


@contextmanager
def progress(
    title: str, *, unit: str = "", enabled: bool = True, after: float = _AFTER_S
) -> Iterator[Callable[[int, int | None, str], None]]:
    """Show how far a call is.

    Parameters
    ----------
    title
        What is being done: ``"decoding"``.
    unit
        What is counted: ``"points"``.
    enabled
        Whether to show anything.
    after
        Seconds before anything is shown.

    Yields
    ------
    Callable
        A function of how many are done, how many there are (None if unknown), and a text to show beside them.
    """
    wanted = enabled and logger.isEnabledFor(logging.INFO)
    if not wanted or not _shown_one.acquire(blocking=False):
        yield lambda done, total, text: None
        return
    start = time.monotonic()
    last: Status | None = None
    shown: _View | None = None

    def show(done: int, total: int | None, text: str) -> None:
        nonlocal shown, last
        last = Status(title, unit, done, total, text, time.monotonic() - start)
        if shown is None and last.seconds >= after:
            shown = _make_view(title)
        if shown is not None:
            shown.update(last)

    try:
        yield show
    finally:
        _shown_one.release()
        if shown is not None and last is not None:
            shown.close(replace(last, seconds=time.monotonic() - start))


@contextmanager
def training_progress(*, enabled: bool) -> Iterator[Callable[[int, int, dict[str, float]], None]]:
    """Show the epochs of a training with the losses beside them; yield a function to call after each epoch."""
    with progress("training", unit="epochs", enabled=enabled, after=0.0) as advance:

        def show(done: int, total: int, row: dict[str, float]) -> None:
            losses = [f"{name} {row[key]:,.1f}" for name, key in _LOSSES if key in row]
            advance(done, total, ", ".join(losses))

        yield show


_LOSSES = (("train", "elbo_train"), ("validation", "elbo_validation"))


@contextmanager
def counting_progress(
    title: str, total: int | None, *, unit: str = "", enabled: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show how many of ``total`` things are done; yield a function to call with how many more are."""
    done = 0
    with progress(title, unit=unit, enabled=enabled) as advance:

        def add(n: int) -> None:
            nonlocal done
            done += n
            advance(done, total, "")

        yield add


def tracked(
    things: Iterable[T],
    title: str,
    *,
    unit: str = "",
    total: int | None = None,
    size: Callable[[T], int] = lambda thing: 1,
) -> Iterator[T]:
    """Yield ``things``, and show how many have been taken.

    Parameters
    ----------
    things
        What is worked through: cells, batches, tiles.
    title, unit
        As for :func:`progress`.
    total
        The sum of the sizes; by default the number of things, if it is known.
    size
        How much a thing counts.
    """
    total = len(things) if total is None and isinstance(things, Sized) else total
    with counting_progress(title, total, unit=unit) as add:
        for thing in things:
            yield thing
            add(size(thing))


@contextmanager
def notice(text: str, *, after: float = _AFTER_S) -> Iterator[None]:
    """Say what takes so long, once, if it takes more than ``after`` seconds and cannot be counted."""
    timer = threading.Timer(after, logger.info, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _make_view(title: str) -> _View:
    if in_notebook():
        return _Output()
    terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return _Bar(title) if terminal else _Lines()


def _duration(seconds: float) -> str:
    """Return ``12 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
