"""Loops over blocks, in as many threads as torch has.

The compiled loops let go of Python's lock, so plain threads run them side by side. Threads that sleep while they wait
suit the work beside torch: a second pool that spins (OpenMP's) would fight with torch's own for the cores.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import torch

_Task = tuple[Callable[..., None], int, int, tuple[Any, ...], "SimpleQueue[BaseException | None]"]
_tasks: SimpleQueue[_Task] = SimpleQueue()
_workers: list[threading.Thread] = []
_starting = threading.Lock()


def over_blocks(loop: Callable[..., None], n_blocks: int, *arguments: Any) -> None:
    """Call ``loop(first, last, *arguments)`` so that every block is done once, by whichever thread."""
    n = min(torch.get_num_threads(), n_blocks)
    if n <= 1:
        loop(0, n_blocks, *arguments)
        return
    if len(_workers) < n - 1:
        _start(n - 1)
    done: SimpleQueue[BaseException | None] = SimpleQueue()
    stops = [n_blocks * i // n for i in range(n + 1)]
    for first, last in itertools.pairwise(stops[1:]):
        _tasks.put((loop, first, last, arguments, done))
    try:
        loop(0, stops[1], *arguments)
    finally:  # whatever happens, no thread may still write into the caller's arrays
        errors = [done.get() for _ in range(n - 1)]
    for error in errors:
        if error is not None:
            raise error


def _start(n_workers: int) -> None:
    with _starting:
        while len(_workers) < n_workers:
            worker = threading.Thread(target=_work, args=(_tasks,), name="scdecode-kernels", daemon=True)
            worker.start()
            _workers.append(worker)


def _work(tasks: SimpleQueue[_Task]) -> None:
    while True:
        loop, first, last, arguments, done = tasks.get()
        try:
            loop(first, last, *arguments)
        except BaseException as error:
            done.put(error)
        else:
            done.put(None)
        del loop, arguments, done  # a thread that waits holds on to no array


def _forget() -> None:
    """In a forked process there are no threads but the one that forked."""
    global _tasks, _starting
    _tasks, _starting = SimpleQueue(), threading.Lock()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
