"""Writing so that a crash, a full disk or Ctrl-C leaves the old file or the new one, and never half of one."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from scdecode.errors import OutputError, listing

T = TypeVar("T")

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota of this kind
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def replacing(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write a file or a folder to; it takes the place of ``path`` at the end.

    Parameters
    ----------
    path
        Where the result is to be. A link stays, and what it points to is replaced.
    overwrite
        Whether a file or folder that is already there is replaced; otherwise it is an error.

    Raises
    ------
    OutputError
        Where the folder cannot be written, the disk is full, or ``path`` is there and is not to be replaced; also
        where it is a folder and the result is a file, or a folder that holds what the result does not replace.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp{target.suffix}"
    try:
        if target.exists() and not overwrite:
            raise OutputError(f"{path}: it is there already; choose another name, or pass overwrite=True")
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if target.is_dir():
            check_nothing_is_lost(target, temporary)
        _swap(temporary, target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_reason(path, error)) from error
    finally:
        _remove(temporary)


def is_empty_folder(path: str | Path) -> bool:
    """Whether there is a folder with nothing in it."""
    return Path(path).is_dir() and not any(Path(path).iterdir())


def check_replaceable(path: str | Path, names: Sequence[str], *, overwrite: bool = True) -> None:
    """Raise :class:`OutputError` where :func:`replacing` a folder by one with these files would, and write nothing.

    It is best known before the work whose result is to be kept, and not after it.
    """
    with suppress(_Replaceable), replacing(path, overwrite=overwrite) as folder:
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        check_nothing_is_lost(Path(path), folder)
        raise _Replaceable


class _Replaceable(Exception):
    """All is well, and there is nothing to put in the place yet."""


def check_nothing_is_lost(path: Path, temporary: Path) -> None:
    """Raise :class:`OutputError` where the folder ``path`` holds anything that ``temporary`` does not replace."""
    if not path.is_dir():
        return
    if not temporary.is_dir():
        raise OutputError(f"{path}: it is a folder, the name of a file was expected")
    lost = sorted({p.name for p in path.iterdir()} - {p.name for p in temporary.iterdir()} - {".DS_Store"})
    if lost:
        raise OutputError(
            f"{path}: it holds {listing(lost, 5)}, which replacing it would remove; nothing was changed; choose the "
            "name of a folder that is not there yet"
        )


def _swap(temporary: Path, path: Path) -> None:
    """Put ``temporary`` in the place of ``path``; a folder that was there is left at ``temporary`` or removed."""
    if not path.is_dir():
        os.replace(temporary, path)
    elif not _exchange(temporary, path):
        old = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.old"
        try:
            os.rename(path, old)  # no folder is renamed onto a full one
            os.rename(temporary, path)
        except BaseException:  # Ctrl-C too
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step, so that there is no moment without a folder; False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2  # Linux
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _remove(path: Path) -> None:
    try:
        if not path.is_dir():
            path.unlink()
            return
    except OSError:  # it may never have been made
        return
    # other threads of zarr may still be writing to a store that failed: what they make meanwhile is removed too
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)


def _reason(path: str | Path, error: OSError) -> str:
    if error.errno in _FULL:
        return f"{path}: the disk is full; nothing was changed; make room, or write to another disk"
    if error.errno in _FORBIDDEN:
        return f"{path}: no permission to write there; nothing was changed; choose a folder of your own"
    return f"{path}: it cannot be written ({error}); nothing was changed; choose another place"


def sha256(path: str | Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class SteadyFile:
    """A file that HDF5 can write to when the disk is full.

    HDF5 cannot close a file that it failed to write to: it tries again whenever anything is closed, and brings the
    interpreter down at the end. So for HDF5 every write is a success; the first that was none is raised by
    :meth:`checked`, before the next tile, or at the end.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  (closed by __exit__)
        self._error: BaseException | None = None

    def __enter__(self) -> SteadyFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._error is not None:
            raise self._error

    def checked(self, tiles: Iterable[T]) -> Iterator[T]:
        """The tiles (or other things to write), until one could not be written."""
        for tile in tiles:
            if self._error is not None:
                raise self._error
            yield tile

    def write(self, data: Any) -> int:
        """Write all of ``data``, if the disk has room."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self._error is None:
                left = left[self._file.write(left) :]
        except BaseException as error:  # an interrupt in the midst of HDF5 is no better than a full disk
            self._error = error
        return size

    def read(self, size: int = -1) -> bytes:
        """For h5py to see that this is a file; it reads with :meth:`readinto`."""
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; what could not be written reads as zeros."""
        into = memoryview(buffer).cast("B")
        found = self._file.readinto(into)
        into[found:] = bytes(len(into) - found)
        return len(into)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def truncate(self, size: int) -> int:
        """Make the file that long."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size

    def flush(self) -> None:
        """Nothing is buffered."""
