"""Work shared among threads of our own, each of which runs torch and the compiled loops alone.

torch's own threads (OpenMP's) meet after every operation, and wait for the next one by spinning: between two products
they would fight with the loops for the cores. Here each thread takes a share of the cells or of the genes through
several operations at once, matrix products among them, and sleeps when it has nothing to do. torch and the loops let
go of Python's lock while they compute.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch

from scdecode._utils.isolation import float32_by_default

_Part = Callable[[int, int], None]


class Pending:
    """Something that another thread is doing, or has done."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function: Callable[[], Any] | None = function
        self._done = threading.Lock()
        self._done.acquire()
        self._unfinished = True
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, in this thread."""
        assert self._function is not None, "done once"
        try:
            self._value = self._function()
        except BaseException as error:  # raised where the result is asked for
            self._error = error
        self._function = None  # holds on to no array
        self._unfinished = False
        self._done.release()

    def wait(self) -> None:
        """Until it is done, whatever happens: an interrupt is raised only then."""
        interrupt = None
        while self._unfinished:
            try:
                with self._done:
                    pass
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def result(self) -> Any:
        """What came of it, once it is done; an error of it is raised here."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value


_tasks: SimpleQueue[Pending] = SimpleQueue()
_workers: list[threading.Thread] = []
_counts: SimpleQueue[tuple[int, threading.Event]] | None = None
_starting = threading.Lock()
_state = threading.local()


@contextmanager
def own_threads() -> Iterator[None]:
    """Within, work is shared among as many threads as torch has, and torch itself computes in the one that calls it."""
    n = torch.get_num_threads()
    if n == 1 or n_threads() > 1:
        yield
        return
    _state.n = n
    torch.set_num_threads(1)
    try:
        _start(n - 1)
        if threading.active_count() > 1 + len(_workers) + (_counts is not None):  # others, which may begin further ones
            _keep_count(n)
        yield
    finally:
        _state.n = 1
        torch.set_num_threads(n)


def n_threads() -> int:
    """Among how many threads work is shared here: one outside of :func:`own_threads`."""
    return getattr(_state, "n", 1)


def side_by_side(part: _Part, n: int, *, least: int = 1, piece: int | None = None) -> None:
    """Call ``part(first, last)`` on stretches of ``range(n)``, so that each number is in one of them.

    Each thread has one stretch, at least ``least`` long; or, as threads may begin late, each takes a ``piece`` of this
    length after another until none is left.
    """
    n_parts = max(1, min(n_threads(), n // (least if piece is None else piece)))
    if n_parts == 1:
        part(0, n)
        return
    stops = [n * i // n_parts for i in range(n_parts + 1)] if piece is None else [*range(0, n, piece), n]
    left = iter(list(itertools.pairwise(stops)))  # of a list, which threads may share
    others: list[Pending] = []
    stopped = False

    def work() -> None:
        for first, last in left:
            if stopped:
                return
            part(first, last)
            if piece is None:
                return

    try:
        for _ in range(n_parts - 1):
            others.append(in_background(work))
        work()
    except BaseException:
        stopped = True
        raise
    finally:  # whatever happens, no thread may still write into the caller's arrays
        wait_for(others)
    for other in others:
        other.result()


def wait_for(others: Sequence[Pending]) -> None:
    """Until all are done, whatever happens: an interrupt is raised only then."""
    if others:
        try:
            others[0].wait()
        finally:
            wait_for(others[1:])


def in_background(function: Callable[[], Any]) -> Pending:
    """Let another thread do something; where there is none, it is done at once."""
    pending = Pending(function)
    if n_threads() == 1:
        pending.run()
    else:
        _tasks.put(pending)
    return pending


def _start(n_workers: int) -> None:
    with _starting:
        while len(_workers) < n_workers:
            ready = threading.Event()
            worker = threading.Thread(target=_work, args=(_tasks, ready), name="scdecode-kernels", daemon=True)
            worker.start()
            ready.wait()
            _workers.append(worker)


def _work(tasks: SimpleQueue[Pending], ready: threading.Event) -> None:
    torch.get_num_threads()  # or the first operation here would take over the number that another thread said last
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ready.set()
    while True:
        task = tasks.get()
        with float32_by_default():
            task.run()
        del task  # or its arrays would live until the next


def _keep_count(n: int) -> None:
    """Let threads that begin now have ``n`` threads of torch's, whatever this one was told.

    ``torch.set_num_threads`` holds for the thread that calls it and for all that begin later. So another thread, which
    does nothing else, says the number again.
    """
    global _counts
    with _starting:
        if _counts is None:
            _counts = SimpleQueue()
            threading.Thread(target=_say_counts, args=(_counts,), name="scdecode-counts", daemon=True).start()
    said = threading.Event()
    _counts.put((n, said))
    said.wait()


def _say_counts(counts: SimpleQueue[tuple[int, threading.Event]]) -> None:
    while True:
        n, said = counts.get()
        torch.set_num_threads(n)
        said.set()


def _forget() -> None:
    """In a forked process there are no threads but the one that forked."""
    global _tasks, _starting, _state, _counts
    _tasks, _starting, _state, _counts = SimpleQueue(), threading.Lock(), threading.local(), None
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
