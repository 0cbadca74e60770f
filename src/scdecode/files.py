"""Files and folders written so that a crash, a full disk or Ctrl-C leaves the old one or the new one, whole."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from scdecode._utils.locks import exclusive
from scdecode.errors import InputError, OutputError, listing

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota of this kind
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MOST_SYNCED = 100  # files; beyond, one call for the whole system is faster than one a file
_LONGEST_STEM = 200  # bytes; the names of hidden siblings add at most 35, and file systems allow 255
_KINDS = {
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def replacing(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write a file or a folder to, and put it in its place at the end.

    Other processes that write the same path meanwhile are refused. What killed runs left beside it is removed.

    Parameters
    ----------
    path
        The file or folder to write. A link stays, and what it points to is replaced.
    overwrite
        Whether to replace a file or a folder that is already there; an empty folder never counts as one.

    Raises
    ------
    OutputError
        If the folder cannot be written, the disk is full, or ``path`` exists and ``overwrite`` is False; also if it is
        neither a file nor a folder, if it is a folder and the result is a file, if it is a folder with files that the
        result does not replace, or if another process is writing it.
    """
    target = _resolve(path)
    made: list[Path] = []
    try:
        _check_free(path, target, overwrite)
        made = _make_folder(target.parent)
        busy = f"{path}: another process is writing it; wait until it has ended, or choose another name"
        with exclusive(_sibling(target, "lock"), busy) as alone:
            restore(target)
            if alone:
                _clean(target)
            _check_free(path, target, overwrite)
            temporary = _sibling(target, "tmp", target.suffix)
            try:
                yield temporary
                _check_free(path, target, overwrite)
                check_nothing_is_lost(target, temporary)
                _sync(temporary)
                _swap(temporary, target)
                made = []
            finally:
                _remove(temporary)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_reason(path, error)) from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # something else is in it by now
                folder.rmdir()


@contextmanager
def locked(path: str | Path, purpose: str, busy: str) -> Iterator[None]:
    """Hold a lock on ``path`` for a purpose other than to write it, as :func:`replacing` does by itself.

    Parameters
    ----------
    path
        The file, which need not exist; its folder is made if it is missing.
    purpose
        Part of the name of the hidden file that stands for the lock.
    busy
        The message of the error if another process holds the lock.

    Raises
    ------
    OutputError
        If another process holds the lock, or no file can be made there.
    """
    target = _resolve(path)
    try:
        _make_folder(target.parent)
        lock = _sibling(target, f"{purpose}.lock")
        with exclusive(lock, busy):
            yield
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(_reason(path, error)) from error


def is_empty_folder(path: str | Path) -> bool:
    """Whether there is a folder with nothing in it."""
    return Path(path).is_dir() and not any(Path(path).iterdir())


def check_replaceable(path: str | Path, names: Sequence[str], *, overwrite: bool = False) -> None:
    """Raise :class:`OutputError` if :func:`replacing` a folder by one with these files would; write nothing.

    Call it before the work whose result is to be kept.
    """
    with suppress(_Replaceable), replacing(path, overwrite=overwrite) as folder:
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        check_nothing_is_lost(_resolve(path), folder)
        raise _Replaceable


def check_writable(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise :class:`OutputError` if :func:`replacing` a file would; write nothing.

    Call it before the work whose result is to be kept.
    """
    with suppress(_Replaceable), replacing(path, overwrite=overwrite) as temporary:
        temporary.touch()
        check_nothing_is_lost(_resolve(path), temporary)
        raise _Replaceable


class _Replaceable(Exception):
    """The path can be written, and there is nothing to put there yet."""


def check_nothing_is_lost(path: Path, temporary: Path) -> None:
    """Raise :class:`OutputError` if the folder ``path`` holds anything that ``temporary`` does not replace."""
    if not path.is_dir():
        if path.exists() and temporary.is_dir():
            raise OutputError(f"{path}: it is a file, the name of a folder was expected; nothing was changed")
        return
    if not temporary.is_dir():
        raise OutputError(f"{path}: it is a folder, the name of a file was expected; nothing was changed")
    lost = sorted({p.name for p in path.iterdir()} - {p.name for p in temporary.iterdir()} - {".DS_Store"})
    if lost:
        raise OutputError(
            f"{path}: it holds {listing(lost, 5)}, which replacing it would remove; nothing was changed; choose the "
            "name of a folder that is not there yet"
        )


def restore(path: str | Path) -> None:
    """Bring back the folder ``path`` if a run was killed between the two renames that were to replace it."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target):
        return
    for old in sorted(_siblings(target, "old"), key=_modified, reverse=True):
        with suppress(OSError):  # the writer is alive, and was faster
            os.rename(old, target)
            return


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _resolve(path: str | Path) -> Path:
    """The path without links, or an error for what is no name of a file."""
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path: got {type(path).__name__}, expected the path of a file or of a folder")
    try:
        encoded = os.fsencode(path)
    except ValueError:  # a surrogate that stands for no byte
        encoded = b"\0"
    if not encoded or b"\0" in encoded:
        raise OutputError(f"path: got {str(path)!r}, expected the name of a file or of a folder; nothing was changed")
    return Path(os.path.realpath(path))


def _check_free(path: str | Path, target: Path, overwrite: bool) -> None:
    """Raise :class:`OutputError` if something is there that may not be replaced."""
    if not target.name:
        raise OutputError(f"{path}: it is the root of the file system; nothing was changed; choose a name in a folder")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OutputError(f"{path}: it is {kind}, the name of a file or folder was expected; nothing was changed")
    if not overwrite and not is_empty_folder(target):
        raise OutputError(f"{path}: it is there already; choose another name, or pass overwrite=True")


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder with those that it is in; return those that were missing."""
    missing: list[Path] = []
    for one in (folder, *folder.parents):
        if os.path.lexists(one):
            break
        missing.insert(0, one)
    made = []
    try:
        for one in missing:
            one.mkdir(exist_ok=True)
            made.append(one)
    except BaseException:
        for one in reversed(made):
            with suppress(OSError):
                one.rmdir()
        raise
    return made


def _stem(name: str) -> str:
    """A name that leaves room for what is added to it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_STEM else hashlib.sha256(encoded).hexdigest()[:32]


def _sibling(target: Path, kind: str, suffix: str = "") -> Path:
    """A hidden name beside a target: ``.model.lock``, ``.model.1a2b3c4d.tmp`` or ``.model.1a2b3c4d.old``."""
    unique = "" if kind.endswith("lock") else f"{uuid.uuid4().hex[:8]}."
    return target.parent / f".{_stem(target.name)}.{unique}{kind}{suffix if len(os.fsencode(suffix)) <= 10 else ''}"


def _siblings(target: Path, kind: str) -> list[Path]:
    """The hidden files and folders of a kind that are there for a target."""
    pattern = re.compile(rf"\.{re.escape(_stem(target.name))}\.[0-9a-f]{{8}}\.{kind}(\.[^.]*)?")
    try:
        with os.scandir(target.parent) as entries:
            return [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]
    except OSError:
        return []


def _clean(target: Path) -> None:
    """Remove what killed runs left; only the holder of the target's lock may."""
    for left in _siblings(target, "tmp"):
        _remove(left)
    if os.path.lexists(target):
        for left in _siblings(target, "old"):
            _remove(left)


def _sync(path: Path) -> None:
    """Flush what was written to the disk, so that a power cut after the rename does not leave empty files."""
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    if len(files) > _MOST_SYNCED and hasattr(os, "sync"):
        os.sync()
        return
    for file in files:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())


def _swap(temporary: Path, path: Path) -> None:
    """Put ``temporary`` in the place of ``path``; a folder that was there is left at ``temporary`` or removed."""
    if not path.is_dir():
        os.replace(temporary, path)
    elif not _exchange(temporary, path):
        old = _sibling(path, "old")
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
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path)[:100]}...: it cannot be written: the name is too long; choose a shorter one"
    if error.errno == errno.EFBIG:
        return (
            f"{path}: it cannot be written: it is larger than the file system, or a limit of this process, allows; "
            "nothing was changed; write to another disk, or raise the limit (ulimit -f)"
        )
    return f"{path}: it cannot be written ({error}); nothing was changed; choose another place"


def sha256(path: str | Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
