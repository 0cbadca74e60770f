"""Points and results on disk, as the command line takes and writes them: .npy, .csv, .tsv, .h5ad, .zarr."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode.cells import open_anndata
from scdecode.errors import InputError, PointsError
from scdecode.files import replacing
from scdecode.results import write_h5ad

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip", ".zst")
_COUNTED = re.compile(r"(.*?)([0-9]{1,5})")
_DECODED_FORMAT = "%.6g"  # digits of decoded expression, whose error bars are far wider
_EXACT_FORMAT = "%.9g"  # digits that give the same float32 when they are read again


def read_points_file(path: str | Path) -> Any:
    """Points as an array (.npy), a table of numbers (.csv, .tsv, also compressed) or an AnnData (.h5ad, .zarr).

    The first row of a table has the names of its columns, the first column those of the points. Without a column of
    names, as of ``to_csv(index=False)``, the names of the columns must count: ``0, 1, ...`` or ``latent_0, ...``.

    Raises
    ------
    InputError, PointsError
        Where the file is not there, is of another kind, or holds no numbers.
    """
    path = Path(path)
    ending = _ending(path)
    if ending in (".h5ad", ".zarr"):
        return open_anndata(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; points as .npy, .csv, .tsv, .h5ad or .zarr were expected")
    try:
        if ending == ".npy":
            return np.load(path, allow_pickle=False)
        if ending in _SEPARATORS:
            return _read_table(path, _SEPARATORS[ending])
    except (ValueError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, PointsError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PointsError(f"{path}: it holds no array of numbers ({reason})") from error
    raise InputError(f"{path}: {path.suffix!r} came, points as .npy, .csv, .tsv, .h5ad or .zarr were expected")


def _ending(path: Path) -> str:
    """The ending of a name in lower case; of a compressed table the one before."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in _COMPRESSED and suffixes[-2:-1] and suffixes[-2] in _SEPARATORS:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _read_table(path: Path, separator: str) -> pd.DataFrame:
    """A table of points, its first column as names unless the header says that it is a dimension."""
    how: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig"}
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **how).iloc[0].tolist()
    if _count_up(header):
        return pd.read_csv(path, **how)
    if _are_numbers(header[1:]) and not _count_up(header[1:]):  # a first point that was read as names
        raise PointsError(
            f"{path}: its first row is numbers; a first row with the names of the columns was expected, and a first "
            "column with the names of the points"
        )
    label = header[0] or "Unnamed: 0"  # as pandas calls it
    return pd.read_csv(path, dtype={label: str}, **how).set_index(label).rename_axis(index=header[0] or None)


def _count_up(names: Sequence[str]) -> bool:
    """Whether names are those of dimensions, counted from 0 or 1: ``0, 1, 2`` or ``latent_0, latent_1, latent_2``."""
    found = [_COUNTED.fullmatch(name) for name in names]
    numbers = [int(match[2]) for match in found if match is not None]
    starts = {match[1] for match in found if match is not None}
    if len(numbers) < len(names) or not numbers or len(starts) > 1 or numbers[0] > 1:
        return False
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _are_numbers(names: Sequence[str]) -> bool:
    try:
        [float(name) for name in names]
    except ValueError:
        return False
    return True


def write_latents(path: str | Path, latents: np.ndarray, adata: AnnData, key: str, *, overwrite: bool = False) -> None:
    """Latents of cells as an array (.npy), a table (.csv, .tsv), or the cells with ``obsm[key]`` (.h5ad).

    Raises
    ------
    InputError
        For another ending.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    path = Path(path)
    check_ending(path, (".npy", ".csv", ".tsv", ".h5ad"))
    if path.suffix == ".h5ad":
        adata.obsm[key] = latents
        write_h5ad(adata, path, overwrite=overwrite)
        return
    with replacing(path, overwrite=overwrite) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, latents)
        else:
            names = [f"latent_{i}" for i in range(latents.shape[1])]
            table = pd.DataFrame(latents, index=adata.obs_names, columns=names)
            table.to_csv(temporary, sep=_SEPARATORS[path.suffix], float_format=_EXACT_FORMAT)


def to_table(expression: AnnData) -> pd.DataFrame:
    """A decoded result as one table: the columns of ``obs``, then the genes, then ``gene:std`` and the like."""
    dense = expression.to_df()
    layers = [expression.to_df(layer=name).add_suffix(f":{name}") for name in expression.layers]
    return pd.concat([expression.obs, dense, *layers], axis=1)


def write_table(path: str | Path, expression: AnnData, *, overwrite: bool = False) -> None:
    """Write :func:`to_table` as .csv or .tsv.

    Raises
    ------
    InputError
        For another ending.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    write_frame(path, to_table(expression).rename_axis(index="point"), overwrite=overwrite)


def write_frame(path: str | Path, table: pd.DataFrame, *, overwrite: bool = False) -> None:
    """Write a table of genes as .csv or .tsv, without its numbers of rows.

    Raises
    ------
    InputError
        For another ending.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    path = Path(path)
    check_ending(path, tuple(_SEPARATORS))
    with replacing(path, overwrite=overwrite) as temporary:
        table.to_csv(
            temporary,
            sep=_SEPARATORS[path.suffix],
            index=not isinstance(table.index, pd.RangeIndex),
            float_format=_DECODED_FORMAT,
        )


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Raise :class:`InputError` unless the name ends in one of ``endings``."""
    if path.suffix not in endings:
        raise InputError(f"{path}: a name that ends in one of {', '.join(endings)} was expected")
