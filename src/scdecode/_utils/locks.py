"""Locks between processes and threads, released by the system when their holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from scdecode.errors import OutputError

_PATIENCE = 0.2  # seconds; a lock file that its holder is just removing is tried again


@contextmanager
def exclusive(lock_file: Path, busy: str) -> Iterator[bool]:
    """Hold a lock for the duration of the ``with`` block; do not wait for another holder.

    Parameters
    ----------
    lock_file
        The file that stands for the lock. It is created and removed here; a file left by a killed process holds
        nothing.
    busy
        The message if another process or thread holds the lock.

    Yields
    ------
    bool
        Whether the lock is held: some network file systems have no locks, and the block then runs without one.

    Raises
    ------
    OutputError
        If another process or thread holds the lock.
    OSError
        If the file cannot be created.
    """
    lock = FileLock(lock_file, timeout=_PATIENCE, poll_interval=_PATIENCE / 10, mode=0o666)
    held = True
    try:
        lock.acquire()
    except Timeout as error:
        os.close(os.open(lock_file, os.O_RDWR | os.O_CREAT))  # the reason, where no file can be made there at all
        raise OutputError(busy) from error
    except NotImplementedError:  # the file system has no locks
        held = False
    try:
        yield held
    finally:
        if held:
            # while it is held, so that no other process loses its lock: one that has opened the file finds it unlinked
            with suppress(OSError):  # Windows removes no open file
                os.unlink(lock_file)
            lock.release()
