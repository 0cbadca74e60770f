"""A model directory, whichever program wrote it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scdecode._utils.snapshots import Folder, read_folder
from scdecode.errors import FormatError, InputError, listing
from scdecode.files import restore
from scdecode.formats import native, scvi_tools
from scdecode.formats.stored import StoredModel

T = TypeVar("T")

BESIDE = "adata.h5ad"
"""The cells beside a model, as scvi-tools names them."""

_FILES = ("model.json", "weights.safetensors", "model.pt", "model_params.pt")


def cells_beside(path: str | Path, prefix: str | None = None) -> Path:
    """The file with the cells of a model, which need not be there."""
    return Path(path) / f"{scvi_tools.prefix_of(Path(path), prefix)}{BESIDE}"


def read_model(path: str | Path, *, prefix: str | None = None) -> StoredModel:
    """Read a model directory of scdecode or of scvi-tools, as :func:`read_model_and` does."""
    return read_model_and(path, None, prefix=prefix)[0]


def read_model_and(
    path: str | Path, more: Callable[[Path], T] | None, *, prefix: str | None = None
) -> tuple[StoredModel, T | None]:
    """Read a model directory of scdecode or of scvi-tools, and what lies beside it, all as at one moment.

    Parameters
    ----------
    path
        The directory.
    prefix
        Before the names of scvi-tools' files; by default none, or the only one that is there.
    more
        Reads further files of the directory; called again if another process changed it meanwhile.

    Raises
    ------
    FormatError
        Where there is no model; its kinds say whether it was edited, is newer than this scdecode, or another program's.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path: {type(path).__name__} came, the path of a model directory was expected")
    if "://" in str(path):
        raise FormatError(f"{path}: a URL came; download the directory first, and pass where it is")
    path = Path(path)
    if path.is_file() and path.name.endswith(_FILES):
        raise FormatError(f"{path}: it is one file of a model; pass the directory that it is in: {path.parent}")
    restore(path)
    if not path.is_dir():
        raise FormatError(f"{path}: {_what_is_there(path, prefix)}")

    def read_both(folder: Folder) -> tuple[StoredModel, T | None]:
        stored = _read_from(folder, prefix)
        if more is None:
            return stored, None
        folder.watch(cells_beside(path, prefix).name)
        found = more(folder.path)
        folder.check()
        return stored, found

    return read_folder(path, read_both, restore)


def _read_from(folder: Folder, prefix: str | None) -> StoredModel:
    path = folder.path
    if folder.has(native.MANIFEST) and prefix is None:
        return native.read_from(folder)
    if scvi_tools.is_here(path, prefix):
        return scvi_tools.read_from(folder, prefix)
    if native.is_here(path):
        raise FormatError(f"prefix: {prefix!r} came, but {path} is a model of scdecode, which has none; leave it out")
    raise FormatError(f"{path}: {_what_is_there(path, prefix)}")


def _what_is_there(path: Path, prefix: str | None) -> str:
    """Why a path is no model directory, and what it is instead."""
    expected = f"{prefix}model.pt" if prefix else f"{native.MANIFEST} (scdecode) nor model.pt (scvi-tools)"
    if not path.exists():
        return "there is no such directory; that of a model was expected"
    if not path.is_dir():
        return "it is a file, and no model; the directory of one was expected"
    inner = sorted(p.name for p in path.iterdir() if p.is_dir() and (native.is_here(p) or scvi_tools.is_here(p)))
    there = f"it holds {listing(sorted(p.name for p in path.iterdir()), 5)}"
    remedy = f"; pass one of its folders that do {listing(inner, 5)}" if inner else "; a model directory was expected"
    return f"there is {'no' if prefix else 'neither'} {expected} ({there}){remedy}"
