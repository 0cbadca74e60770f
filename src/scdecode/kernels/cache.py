"""Numba's files on disk, each with a digest: a damaged one is compiled and written anew.

Numba runs the machine code that it finds in them, unchecked. A truncated file is an error of its own; a flipped bit is
other machine code, which computes other numbers or brings the process down. So each file ends with a SHA-256 digest
here. Without the right one it counts as missing, which Numba knows how to deal with.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from numba.core.caching import IndexDataCacheFile

_N_DIGEST = hashlib.sha256().digest_size


class CheckedCacheFile(IndexDataCacheFile):
    """The index and the data of one function, as Numba writes them, with digests."""

    def save(self, key: Any, data: Any) -> None:
        """Keep a compiled function, or go without if the disk is full or protected."""
        with suppress(OSError):
            super().save(key, data)  # type: ignore[no-untyped-call]  # as all of numba's

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[BinaryIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + _digest(filepath, content.getvalue()))

    def _load_index(self) -> Any:
        return super()._load_index() if _is_whole(self._index_path) else {}  # type: ignore[no-untyped-call]

    def _load_data(self, name: str) -> Any:
        path = self._data_path(name)  # type: ignore[no-untyped-call]
        if not _is_whole(path):
            raise OSError(f"{path}: it does not have its digest")  # as if it had been removed
        return super()._load_data(name)  # type: ignore[no-untyped-call]  # ignores what follows its end


def check_files_of(dispatcher: Any) -> None:
    """Give the files of a compiled function digests, if this version of Numba keeps them as expected."""
    file = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if type(file) is IndexDataCacheFile:
        file.__class__ = CheckedCacheFile


def _digest(path: str, data: bytes) -> bytes:
    """A digest of content and name: one file in the place of another is not whole."""
    return hashlib.sha256(os.path.basename(path).encode() + b"\0" + data).digest()


def _is_whole(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return False
    return content[-_N_DIGEST:] == _digest(path, content[:-_N_DIGEST])
