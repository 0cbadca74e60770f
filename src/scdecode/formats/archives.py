"""What ``torch.save`` wrote, without torch's loader: a zip archive, or the older file of pickles and raw numbers.

::

    archive.zip                        before torch 1.6
      model/data.pkl       the object    magic number, version, system: three pickles
      model/byteorder      "little"      the object: a pickle
      model/data/0, 1, ..  storages      the keys of the storages: a pickle
                                         each storage: how many numbers, and the numbers

A tensor in the pickle is a storage, an offset, sizes and strides, which have to lie within the storage. Nothing is
compressed in an honest archive, so no file makes more memory than it has bytes.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from scdecode.errors import CorruptModelError
from scdecode.formats.pickles import Captured, PickleStream, Scanned, Storage, build, read_only_pickle, scan

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_HEADER = struct.Struct("<4s22xHH")  # of an entry of a zip file: signature, lengths of the name and of what follows it
_COUNT = struct.Struct("<q")
_KEY = re.compile(r"[0-9]{1,20}")
_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
}
_LOOKS = {
    b"PK\x03\x04": "a zip archive",
    b"\x80": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer, in place of the file itself",
    b"<": "a web page, as a failed download leaves it",
    b"\x89HDF": "an HDF5 file, as .h5ad files are",
    b"\x1f\x8b": "a gzip file: unpack it first",
}


def read_archive(path: Path, opener: Callable[[str, int], int] | None = None) -> Any:
    """The object in a file of ``torch.save``: plain data, with tensors on the CPU.

    ``opener`` opens the file, as that of :func:`open` does.

    Raises
    ------
    UnsafeModelError
        Where it asks for code.
    CorruptModelError
        Where it is something else, or damaged.
    """
    place = str(path)
    try:
        with open(path, "rb", opener=opener) as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(64)
            file.seek(0)
            if head.startswith(b"PK\x03\x04"):
                return _read_zip(file, place, size)
            if head.startswith(b"\x80"):
                return _read_legacy(file.read(size), place)  # without a size, it takes twice the memory
    except (OSError, MemoryError) as error:
        raise CorruptModelError(f"{place}: it cannot be read ({error!r})") from error
    raise _foreign(place, head, "a file that torch.save wrote")


def read_pickle_file(path: Path) -> Any:
    """The object in a file of one pickle, such as ``attr.pkl``: plain data."""
    place = str(path)
    try:
        data = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise CorruptModelError(f"{place}: it cannot be read ({error!r})") from error
    return read_pickle_bytes(data, place)


def read_pickle_bytes(data: bytes, place: str) -> Any:
    """The object in the content of such a file."""
    if not data.startswith(b"\x80") and (not data or any(data.startswith(start) for start in _LOOKS)):
        raise _foreign(place, data[:64], "a pickle")
    return read_only_pickle(data, place)


def _foreign(place: str, head: bytes, expected: str) -> CorruptModelError:
    what = next((what for start, what in _LOOKS.items() if head.lstrip().startswith(start)), None)
    if what is None:
        is_text = head.isascii() and head.decode("latin-1").replace("\n", "").replace("\r", "").isprintable()
        what = f"text that begins with {head[:20]!r}" if is_text else f"something that begins with {head[:8]!r}"
    what = what if head else "an empty file"
    return CorruptModelError(f"{place}: it is {what}; {expected} was expected; copy it again")


def _corrupt(place: str, reason: str) -> CorruptModelError:
    return CorruptModelError(f"{place}: {reason}; it was truncated or edited; copy it again")


class _Memory:
    """The bytes of one storage, read when the first tensor asks for them."""

    def __init__(self, owner: _Storages, key: str, dtype: torch.dtype, n_bytes: int) -> None:
        self.owner = owner
        self.key = key
        self.dtype = dtype  # where it is met first
        self.n_bytes = n_bytes
        self.bytes_n: Tensor | None = None

    def read(self) -> Tensor:
        if self.bytes_n is None:
            self.bytes_n = self.owner.read(self)
        return self.bytes_n

    def check_booleans(self, bytes_n: Tensor) -> None:
        """Raise where a storage of booleans has a byte that is neither 0 nor 1, which torch does not expect."""
        if self.dtype == torch.bool and bytes_n.numel() and int(bytes_n.max()) > 1:
            raise self.owner.corrupt(f"storage {self.key} of booleans has other values")


class _Typed(Storage):
    """A storage as numbers of one kind."""

    def __init__(self, memory: _Memory, dtype: torch.dtype) -> None:
        self.memory = memory
        self.dtype = dtype

    def tensor(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        memory, n_storage = self.memory, self.memory.n_bytes // self.dtype.itemsize
        n_elements = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if n_elements else offset - 1
        if last >= n_storage or n_elements > n_storage or max(size, default=0) > max(n_storage, 2**31):
            raise memory.owner.corrupt(f"a tensor of {size} does not lie within storage {memory.key}")
        try:
            return memory.read().view(self.dtype).as_strided(size, stride, offset)
        except (RuntimeError, OverflowError, TypeError) as error:  # strides of an empty tensor may be anything
            raise memory.owner.corrupt(f"a tensor of {size} cannot be made ({str(error)[:100]})") from error


class _Storages:
    """The storages of a file, by key."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.known: dict[str, _Memory] = {}

    def corrupt(self, reason: str) -> CorruptModelError:
        return _corrupt(self.place, reason)

    def check(self, key: str, n_bytes: int) -> None:
        """Raise unless the file has so many bytes for a storage that is met for the first time."""
        raise NotImplementedError

    def read(self, memory: _Memory) -> Tensor:
        raise NotImplementedError

    def find(self, persistent_id: Any) -> _Typed:
        """The storage of a persistent id: ``("storage", type, key, location, number of elements)``."""
        if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6):
            raise self.corrupt("a persistent id is not one of a storage")
        word, kind, key, location, n_elements, *view = (
            persistent_id  # the location was a device of the machine it is from
        )
        if not isinstance(word, str) or word != "storage":
            raise self.corrupt("a persistent id is not one of a storage")
        is_type = isinstance(kind, Captured) and kind.args is None and kind.name in _DTYPES
        is_count = type(n_elements) is int and 0 <= n_elements < 2**60
        if not is_type or not isinstance(key, str) or not _KEY.fullmatch(key) or any(part is not None for part in view):
            raise self.corrupt("a storage has no type or no key, or is a part of another one")
        if not isinstance(location, str) or not is_count:
            raise self.corrupt(f"storage {key} has no place or no size")
        dtype = _DTYPES[kind.name]
        n_bytes = n_elements * dtype.itemsize
        if key not in self.known:
            self.check(key, n_bytes)
            self.known[key] = _Memory(self, key, dtype, n_bytes)
        memory = self.known[key]
        if memory.dtype != dtype or memory.n_bytes != n_bytes:  # torch.save refuses it, too
            raise self.corrupt(f"storage {key} is of two types or sizes")
        return _Typed(memory, dtype)


class _ZipStorages(_Storages):
    """Entries of a zip file, whose places in the file were checked."""

    def __init__(self, place: str, file: BinaryIO, entries: dict[str, tuple[int, zipfile.ZipInfo]]) -> None:
        super().__init__(place)
        self.file = file
        self.entries = entries  # by name below the top folder: where its bytes begin, and what the directory says of it

    def check(self, key: str, n_bytes: int) -> None:
        entry = self.entries.get(f"data/{key}")
        if entry is None or entry[1].file_size != n_bytes:
            there = "is missing" if entry is None else f"has {entry[1].file_size:,} bytes"
            raise self.corrupt(f"storage {key} {there}, {n_bytes:,} bytes were expected")

    def read(self, memory: _Memory) -> Tensor:
        bytes_n = torch.empty(memory.n_bytes, dtype=torch.uint8)
        self._read_into(f"data/{memory.key}", bytes_n.numpy().data)
        memory.check_booleans(bytes_n)
        return bytes_n

    def entry(self, name: str) -> bytes:
        data = bytearray(self.entries[name][1].file_size)
        self._read_into(name, memoryview(data))
        return bytes(data)

    def _read_into(self, name: str, target: memoryview) -> None:
        start, entry = self.entries[name]
        self.file.seek(start)
        n_read = self.file.readinto(target) if len(target) else 0  # type: ignore[attr-defined]
        if n_read != len(target) or zlib.crc32(target) != entry.CRC:
            raise self.corrupt(f"the entry {name} does not have its checksum")


def _read_zip(file: BinaryIO, place: str, size: int) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error, OverflowError) as error:
        raise _corrupt(place, f"it is no whole zip archive ({error})") from error
    entries = _check_entries(file, place, infos, min(end, size))
    storages = _ZipStorages(place, file, entries)
    if "data.pkl" not in entries:
        what = "TorchScript" if "constants.pkl" in entries or "code" in {name.split("/")[0] for name in entries} else ""
        raise _corrupt(place, f"it is an archive {what or 'of something else'}: it has no data.pkl")
    if "byteorder" in entries and (entries["byteorder"][1].file_size > 8 or storages.entry("byteorder") != b"little"):
        raise CorruptModelError(
            f"{place}: its numbers are not in little-endian order; save it again on a usual machine"
        )
    return read_only_pickle(storages.entry("data.pkl"), f"{place}: data.pkl", storages.find)


def _check_entries(
    file: BinaryIO, place: str, infos: list[zipfile.ZipInfo], end: int
) -> dict[str, tuple[int, zipfile.ZipInfo]]:
    """The entries by name below the one top folder, each stored as it is, in a part of the file of its own."""
    entries: dict[str, tuple[int, zipfile.ZipInfo]] = {}
    tops = {info.filename.partition("/")[0] for info in infos}
    if len(tops) != 1:
        raise _corrupt(place, f"the archive has {len(tops):,} top folders, one was expected")
    free = 0  # the first byte that no entry has yet
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename.partition("/")[2]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise _corrupt(place, f"the entry {name[:50]!r} is compressed or encrypted, which torch never does")
        if name in entries:
            raise _corrupt(place, f"the entry {name[:50]!r} is there twice")
        if info.header_offset < free or info.header_offset + _HEADER.size > end:
            raise _corrupt(place, f"the entry {name[:50]!r} lies within another one, or outside of the file")
        file.seek(info.header_offset)
        header = file.read(_HEADER.size)
        if len(header) != _HEADER.size or header[:4] != b"PK\x03\x04":
            raise _corrupt(place, f"the entry {name[:50]!r} is not where the directory has it")
        _, n_name, n_extra = _HEADER.unpack(header)
        start = info.header_offset + _HEADER.size + n_name + n_extra
        free = start + info.file_size
        if free > end:
            raise _corrupt(place, f"the entry {name[:50]!r} ends outside of the file")
        entries[name] = start, info
    return entries


class _LegacyStorages(_Storages):
    """Memory for storages that are read once all of the pickle is."""

    def __init__(self, place: str, n_bytes: int) -> None:
        super().__init__(place)
        self.n_bytes = n_bytes  # that follow the pickles

    def check(self, key: str, n_bytes: int) -> None:
        self.n_bytes -= n_bytes + _COUNT.size
        if self.n_bytes < 0:
            raise self.corrupt(f"storage {key} has more numbers than the file")

    def read(self, memory: _Memory) -> Tensor:
        return torch.zeros(memory.n_bytes, dtype=torch.uint8)


def _read_legacy(data: bytes, place: str) -> Any:
    stream = PickleStream(data)
    parts: list[Scanned] = []
    for expected in (_MAGIC_NUMBER, _LEGACY_VERSION, None, None, None):  # all names are checked, then data are built
        parts.append(scan(stream, place))
        if expected is not None and not _is_number(build(parts[-1], place), expected):
            raise CorruptModelError(f"{place}: it is a pickle, but not one that torch.save wrote")
    system = build(parts[2], place)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CorruptModelError(
            f"{place}: its numbers are not in little-endian order; save it again on a usual machine"
        )
    start = stream.tell()
    storages = _LegacyStorages(place, len(data) - start)
    value = build(parts[3], place, storages.find)
    keys = build(parts[4], place)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise _corrupt(place, "the keys of its storages are no list of names")
    if set(keys) != set(storages.known):
        raise _corrupt(place, "it does not have the storages that its tensors need")
    for key in keys:
        start = _fill(data, start, place, storages.known[key])
    if start != len(data):
        raise _corrupt(place, f"{len(data) - start:,} bytes follow its last storage")
    return value


def _is_number(value: Any, expected: int) -> bool:
    return type(value) is int and value == expected


def _fill(data: bytes, start: int, place: str, memory: _Memory) -> int:
    """Copy the numbers of one storage from the file to its tensors; where the next one begins."""
    end = start + _COUNT.size + memory.n_bytes
    if end > len(data) or _COUNT.unpack_from(data, start)[0] * memory.dtype.itemsize != memory.n_bytes:
        raise _corrupt(place, f"storage {memory.key} does not have its {memory.n_bytes:,} bytes")
    if memory.bytes_n is not None and memory.n_bytes:  # it is None where no tensor uses it
        memory.bytes_n.numpy()[:] = memoryview(data)[start + _COUNT.size : end]
        memory.check_booleans(memory.bytes_n)
    return end
