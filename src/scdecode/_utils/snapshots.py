"""Directories and files read as they are at one moment, while other processes may replace them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from scdecode.errors import CorruptModelError, InputError, ScdecodeError

T = TypeVar("T")

_ATTEMPTS = 12
_PAUSE = 0.005  # seconds before the second attempt, half as much again before each further one
_BY_HANDLE = os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd  # not on Windows

_State = tuple[int, int, int, int]  # device, inode, bytes, time of the last change


class Folder:
    """A directory whose files are opened relative to it, so that all are of one directory after a rename, too.

    Files are kept open from :meth:`hold` on, so that they can be read after they were removed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY) if _BY_HANDLE else None
        self._directory = os.fstat(self._handle) if self._handle is not None else os.stat(self.path)
        self._held: dict[str, BinaryIO] = {}
        self._states: dict[str, _State] = {}

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._held.values():
            file.close()
        if self._handle is not None:
            os.close(self._handle)

    def names(self) -> list[str]:
        """Return the names of all that is in the directory."""
        return os.listdir(self._handle if self._handle is not None else self.path)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if name in self._held:
            return True
        try:
            return stat.S_ISREG(self._stat(name).st_mode)
        except OSError:
            return False

    def hold(self, *names: str) -> None:
        """Open those of the files that are there."""
        for name in names:
            if name not in self._held and self.has(name):
                with suppress(FileNotFoundError):
                    self._held[name] = open(self.path / name, "rb", opener=self.opener)  # noqa: SIM115

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        self.hold(name)
        file = self._held.get(name)
        if file is None:
            raise FileNotFoundError(f"{self.path / name}: there is no such file")
        file.seek(0)
        return file.read()

    def opener(self, path: str, flags: int) -> int:
        """Open a file of the directory; for :func:`open`."""
        name = os.path.basename(path)
        handle = os.open(name, flags, dir_fd=self._handle) if self._handle is not None else os.open(path, flags)
        self._states.setdefault(name, _state(os.fstat(handle)))
        return handle

    def watch(self, name: str) -> None:
        """Have :meth:`changed` look at a file that is read by its path."""
        with suppress(OSError):
            self._states.setdefault(name, _state(self._stat(name)))

    def changed(self) -> bool:
        """Whether the directory, or a file that was opened, was replaced, removed or written meanwhile."""
        try:
            there = os.stat(self.path)
            moved = (there.st_dev, there.st_ino) != (self._directory.st_dev, self._directory.st_ino)
            return moved or any(_state(self._stat(name)) != state for name, state in self._states.items())
        except OSError:
            return True

    def check(self) -> None:
        """Raise :class:`CorruptModelError` if :meth:`changed`."""
        if self.changed():
            raise CorruptModelError(f"{self.path}: it changed while it was read")

    def _stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._handle) if self._handle is not None else os.stat(self.path / name)


def read_folder(path: str | Path, read: Callable[[Folder], T], before: Callable[[Path], None] | None = None) -> T:
    """Read a directory consistently: again, if it failed because the directory changed meanwhile.

    Parameters
    ----------
    path
        The directory.
    read
        Reads it, and raises an error where its parts do not fit together.
    before
        Called with the path before each attempt.

    Raises
    ------
    CorruptModelError
        If it changed during each of 12 attempts.
    OSError, ScdecodeError
        As ``read`` raises them for a directory that does not change.
    """
    path = Path(path)
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 1.5**attempt)
        if before is not None:
            before(path)
        try:
            folder = Folder(path)
        except OSError:
            if attempt == _ATTEMPTS - 1 or (attempt > 2 and not os.path.lexists(path)):
                raise
            continue
        with folder:
            try:
                return read(folder)
            except (ScdecodeError, OSError):
                if not folder.changed():
                    raise
    raise CorruptModelError(
        f"{path}: it changed while it was read, {_ATTEMPTS} times in a row: another process is writing it; wait until "
        "that has ended, and load it again"
    )


def read_path(path: str | Path, read: Callable[[Path], T], errors: tuple[type[Exception], ...] = (OSError,)) -> T:
    """Read a file or a directory by its path: again, if it was replaced meanwhile.

    Parameters
    ----------
    path
        The file or directory.
    read
        Reads it.
    errors
        What ``read`` may raise for a path that changes meanwhile.

    Raises
    ------
    InputError
        If it was replaced during each of 12 attempts.
    Exception
        As ``read`` raises it for a path that does not change.
    """
    path = Path(path)
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE * 1.5**attempt)
        before = _state_of(path)
        try:
            result = read(path)
        except errors:
            if before == _state_of(path):
                raise
        else:
            if not path.is_dir() or before == _state_of(path):  # an open file stays the same when its name moves on
                return result
    raise InputError(
        f"{path}: it changed while it was read, {_ATTEMPTS} times in a row: another process is writing it; wait until "
        "that has ended, and read it again"
    )


def _state_of(path: Path) -> _State | None:
    try:
        return _state(os.stat(path))
    except OSError:
        return None


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
