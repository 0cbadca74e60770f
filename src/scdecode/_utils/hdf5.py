"""HDF5 files written so that neither a full disk nor Ctrl-C brings the interpreter down.

HDF5 cannot close a file that it failed to write to: it tries again whenever anything is closed, and ends in a
segmentation fault (measured with HDF5 2.0 on a full tmpfs: each compressed or chunked file). So HDF5 writes through a
Python file that always reports success and keeps the first error. Python raises KeyboardInterrupt in the main thread
alone, so HDF5 runs in a thread of its own: no signal can interrupt a callback of the library.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import h5py

T = TypeVar("T")

_END = object()


def write_hdf5(path: Path, write: Callable[[h5py.File, Iterator[T]], None], items: Iterable[T] = ()) -> None:
    """Write an HDF5 file in a thread of its own, from items that the calling thread computes.

    Parameters
    ----------
    path
        The file to create; after an error it is incomplete and has to be removed.
    write
        Called in the other thread with the open file and the items. It must keep no HDF5 object after it returns.
    items
        Iterated in the calling thread, one item at a time: the next one is computed when ``write`` asks for it.

    Raises
    ------
    OSError
        If the disk is full or fails.
    Exception
        Whatever ``write`` or ``items`` raises, and KeyboardInterrupt.
    """
    steady = SteadyFile(path)
    requests: queue.SimpleQueue[bool] = queue.SimpleQueue()  # from the writer: True asks for an item, False ends
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def received() -> Iterator[T]:
        while True:
            steady.check()
            requests.put(True)
            item = answers.get()
            steady.check()
            if item is _END:
                return
            yield item
            del item  # the next one needs the memory

    def work() -> None:
        try:
            with steady, h5py.File(steady, "w") as file:
                write(file, received())
        finally:
            requests.put(False)

    with ThreadPoolExecutor(1, thread_name_prefix="scdecode-hdf5") as pool:
        done = pool.submit(work)
        try:
            source = iter(items)
            while requests.get():
                answers.put(next(source, _END))
        except BaseException as error:  # Ctrl-C too: the writer ends at once, as its writes go nowhere
            steady.fail(error)
            answers.put(_END)
            raise
        done.result()


class SteadyFile:
    """A file for HDF5 in which every write succeeds; the first error is kept, and raised by :meth:`check`."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115  (closed by __exit__)
        self._error: BaseException | None = None

    def __enter__(self) -> SteadyFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        self.check()  # the cause, where HDF5 failed on reading back what was never written

    def fail(self, error: BaseException) -> None:
        """Discard all further writes because of ``error``, unless an earlier error did so already."""
        self._error = self._error or error

    def check(self) -> None:
        """Raise the first error."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all of ``data`` if the disk has room, and report success in any case."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self._error is None:
                left = left[self._file.write(left) :]
        except BaseException as error:  # HDF5 survives none
            self.fail(error)
        return size

    def read(self, size: int = -1) -> bytes:
        """Read bytes; h5py checks that the method exists, and reads with :meth:`readinto`."""
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``; what could not be written reads as zeros."""
        into = memoryview(buffer).cast("B")
        found = 0
        try:
            found = self._file.readinto(into) or 0
        except BaseException as error:  # HDF5 survives none
            self.fail(error)
        into[found:] = bytes(len(into) - found)
        return len(into)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the file."""
        try:
            return self._file.seek(offset, whence)
        except BaseException as error:  # HDF5 survives none
            self.fail(error)
            return offset

    def tell(self) -> int:
        """Return the position in the file."""
        return self._file.tell()

    def truncate(self, size: int) -> int:
        """Set the length of the file."""
        try:
            return self._file.truncate(size)
        except BaseException as error:  # HDF5 survives none
            self.fail(error)
            return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""
