"""Writing so that a crash, a full disk or Ctrl-C leaves the old file or the new one, and never half of one."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scdecode.errors import OutputError, listing

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
            _check_nothing_is_lost(path, temporary, target)
        _swap(temporary, target)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_reason(path, error)) from error
    finally:
        _remove(temporary)


def _check_nothing_is_lost(path: str | Path, temporary: Path, target: Path) -> None:
    """Raise :class:`OutputError` where a folder holds anything that is not replaced by its like."""
    if not temporary.is_dir():
        raise OutputError(f"{path}: it is a folder, the name of a file was expected")
    lost = sorted({p.name for p in target.iterdir()} - {p.name for p in temporary.iterdir()} - {".DS_Store"})
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
    with suppress(OSError):  # it may never have been made
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
