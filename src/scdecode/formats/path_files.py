"""A path in a file: its arrays as safetensors, the rest as JSON beside them, with a digest of both.

The metadata of the file, a safetensors one, has ``scdecode`` (JSON: format, version, and what is no array of numbers)
and ``sha256`` (of that JSON and of the arrays). Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from scdecode.errors import CorruptModelError, FormatError, InputError, NewerFormatError
from scdecode.files import replacing

T = TypeVar("T")

ENDING = ".safetensors"
FORMAT_VERSION = 1
_ARRAYS = ("points", "time", "spread")


def write_path_file(file: str | Path, fields: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write the fields of a path.

    Parameters
    ----------
    file
        A name that ends in ``.safetensors``.
    fields
        Arrays ``points``, ``time`` and perhaps ``spread``; all others as JSON.
    overwrite
        Whether to replace a file that is there.

    Raises
    ------
    InputError
        For another ending, and values that JSON cannot hold.
    OutputError
        If the file is there, or cannot be written.
    """
    path = _path(file)
    arrays = {name: np.ascontiguousarray(fields[name]) for name in _ARRAYS if fields[name] is not None}
    others = {name: _to_json(name, value) for name, value in fields.items() if name not in _ARRAYS}
    made = {"format": "scdecode path", "format_version": FORMAT_VERSION, "version": version("scdecode"), **others}
    text = json.dumps(made)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(save_arrays(arrays, {"scdecode": text, "sha256": _digest(text, arrays)}))


def read_path_file(file: str | Path, make: Callable[[dict[str, Any]], T], names: Sequence[str]) -> T:
    """Read what :func:`write_path_file` wrote.

    Parameters
    ----------
    file
        The file.
    make
        Makes a path of its fields, and checks them.
    names
        The fields of a path.

    Raises
    ------
    InputError
        If there is no such file.
    FormatError
        If it is no file of a path, was truncated or edited, or a later scdecode wrote it.
    """
    path = _path(file)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; one that path.save(...) wrote was expected")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: it cannot be read ({error.strerror or error})") from error
    try:
        arrays = load_arrays(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptModelError(
            f"{path}: it is no safetensors file ({str(error)[:200]}); it was truncated or edited: copy it again, or "
            "save the path again"
        ) from error
    if "scdecode" not in metadata:
        raise FormatError(f"{path}: it holds no path of scdecode; a file that path.save(...) wrote was expected")
    if _digest(metadata["scdecode"], arrays) != metadata.get("sha256"):
        raise CorruptModelError(f"{path}: its digest is another; it was truncated or edited: save the path again")
    try:
        found = json.loads(metadata["scdecode"])
        if found["format"] != "scdecode path":
            raise FormatError(f"{path}: it holds a {found['format']!r}, a path was expected")
        if found["format_version"] > FORMAT_VERSION:
            raise NewerFormatError(
                f"{path}: its format version is {found['format_version']}, this scdecode reads up to {FORMAT_VERSION}; "
                f"it was written by scdecode {found['version']}: pip install --upgrade scdecode"
            )
        fields = {name: arrays.get(name) if name in _ARRAYS else _from_json(found[name]) for name in names}
        return make({**fields, "lineages": fields["lineages"] and tuple(fields["lineages"])})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise CorruptModelError(
            f"{path}: a field is missing or of the wrong kind ({str(error)[:200]}); save the path again"
        ) from error


def _path(file: Any) -> Path:
    if not isinstance(file, str | os.PathLike):
        raise InputError(f"file: got {type(file).__name__}, the name of a file was expected")
    path = Path(file)
    if path.suffix != ENDING:
        raise InputError(f"file: got {str(path)!r}, a name that ends in {ENDING} was expected")
    return path


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _to_json(place: str, value: Any) -> Any:
    """A value as JSON holds it; mappings, whose keys may be numbers, and arrays are marked as such."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {"mapping": [[_to_json(place, k), _to_json(f"{place}[{k!r}]", v)] for k, v in value.items()]}
    if isinstance(value, np.ndarray):
        return {"array": _to_json(place, value.tolist()), "type": str(value.dtype)}
    if isinstance(value, list | tuple | set | frozenset | range):
        return [_to_json(place, one) for one in value]
    raise InputError(f"{place}: got {type(value).__name__}, which a file of a path cannot hold; pass names or numbers")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return {_from_json(key): _from_json(one) for key, one in value["mapping"]}
    kind = np.dtype(value["type"])
    if kind.kind not in "biufOU":
        raise ValueError(f"an array of {kind}")
    return np.array(value["array"], dtype=kind)
