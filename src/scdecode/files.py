"""Writing so that a crash, a full disk or Ctrl-C leaves the old file or the new one, and never half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scdecode.errors import OutputError


@contextmanager
def replacing(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write a file or a folder to; it takes the place of ``path`` at the end.

    Parameters
    ----------
    path
        Where the result is to be.
    overwrite
        Whether a file or folder that is already there is replaced; otherwise it is an error.

    Raises
    ------
    OutputError
        Where the folder cannot be written, the disk is full, or ``path`` is there and is not to be replaced.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: it is there already; choose another name, or pass overwrite=True")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _swap(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_reason(path, error)) from error
    finally:
        _remove(temporary)


def _swap(temporary: Path, path: Path) -> None:
    """Rename, by way of a second name where a folder is replaced, since no folder is renamed onto a full one."""
    if not path.is_dir():
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _reason(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{path}: the disk is full; nothing was changed; make room, or write to another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: no permission to write there; nothing was changed; choose a folder of your own"
    return f"{path}: it cannot be written ({error.strerror or error}); nothing was changed"


def sha256(path: str | Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
