"""A model directory, whichever program wrote it."""

from __future__ import annotations

import os
from pathlib import Path

from scdecode.errors import FormatError, InputError, listing
from scdecode.formats import native, scvi_tools
from scdecode.formats.stored import StoredModel

_FILES = ("model.json", "weights.safetensors", "model.pt", "model_params.pt")


def read_model(path: str | Path, *, prefix: str | None = None) -> StoredModel:
    """Read a model directory of scdecode or of scvi-tools.

    Parameters
    ----------
    path
        The directory.
    prefix
        Before the names of scvi-tools' files; by default none, or the only one that is there.

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
    if native.is_here(path) and prefix is None:
        return native.read(path)
    if scvi_tools.is_here(path, prefix):
        return scvi_tools.read(path, prefix=prefix)
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
