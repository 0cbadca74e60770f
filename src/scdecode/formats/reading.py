"""A model directory, whichever program wrote it."""

from __future__ import annotations

from pathlib import Path

from scdecode.errors import FormatError
from scdecode.formats import native, scvi_tools
from scdecode.formats.stored import StoredModel


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
    path = Path(path)
    if native.is_here(path) and prefix is None:
        return native.read(path)
    if scvi_tools.is_here(path, prefix):
        return scvi_tools.read(path, prefix=prefix)
    if native.is_here(path):
        raise FormatError(f"prefix: {prefix!r} came, but {path} is a model of scdecode, which has none; leave it out")
    return native.read(path)  # it says what is there instead
