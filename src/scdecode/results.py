"""Decoded tiles to an AnnData, in memory or streamed to an .h5ad or a .zarr: the one place that makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData

from scdecode._utils.hdf5 import write_hdf5
from scdecode._utils.progress import tracked
from scdecode.decoding import Tile
from scdecode.errors import InputError
from scdecode.files import replacing
from scdecode.provenance import Frame

_FILE_BLOCK = 2**20  # entries of a chunk on disk, about
_LARGEST_COUNT = 2**31  # of 32 bits

Piece = tuple[int, dict[str, Any]]
"""The first row of a block of the file, and its values by layer; the expression is ``"X"``."""

OnTile = Callable[[int], None]
"""Called with the number of points that a tile has, once it is done."""


def collect(
    tiles: Iterable[Tile], frame: Frame, on_tile: OnTile | None = None, into: np.ndarray | None = None
) -> AnnData:
    """The result in memory; ``into`` is where the tiles were told to write their values, if they were."""
    adata = _empty(frame)
    if frame.counts:
        blocks = []
        for tile in tiles:
            blocks.append(_sparse(tile))
            _tell(on_tile, tile)
        adata.X = sp.vstack(blocks, format="csr")
        return adata
    values = {name: np.empty(frame.shape, dtype=np.float32) for name in frame.layers}
    values["X"] = np.empty(frame.shape, dtype=np.float32) if into is None else into
    for tile in tiles:
        if into is None:
            values["X"][tile.start : tile.stop] = tile.values
        for name in frame.layers:
            values[name][tile.start : tile.stop] = tile.layers[name]
        _tell(on_tile, tile)
    adata.X = values["X"]
    for name in frame.layers:
        adata.layers[name] = values[name]
    return adata


def deliver(
    tiles: Iterable[Tile],
    frame: Frame,
    out: str | Path | None,
    on_tile: OnTile | None = None,
    *,
    overwrite: bool = False,
    into: np.ndarray | None = None,
    title: str = "decoding",
    unit: str = "points",
) -> AnnData:
    """Return the result in memory, or, if ``out`` is given, on disk, and show the progress as ``title``.

    See :func:`collect` and :func:`stream`.
    """
    tiles = tracked(tiles, title, unit=unit, total=frame.shape[0], size=lambda tile: len(tile.values))
    if out is not None:
        return stream(tiles, frame, out, on_tile, overwrite=overwrite)
    if overwrite:
        raise InputError("overwrite: got True without out, expected the name of a file to replace: pass out=...")
    return collect(tiles, frame, on_tile, into)


def stream(
    tiles: Iterable[Tile],
    frame: Frame,
    path: str | Path,
    on_tile: OnTile | None = None,
    *,
    overwrite: bool = False,
) -> AnnData:
    """Write the result tile by tile, and open it without reading its expression into memory.

    It is written under a hidden name with ``.tmp`` in it, and renamed when it is whole.

    Raises
    ------
    InputError
        Where the name ends in neither ``.h5ad`` nor ``.zarr``.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    if not isinstance(path, str | Path) or Path(path).suffix not in (".h5ad", ".zarr"):
        raise InputError(f"out: {str(path)!r} came, a name that ends in .h5ad or .zarr was expected")
    path = Path(path)
    with replacing(path, overwrite=overwrite) as temporary:
        if path.suffix == ".h5ad":

            def write(file: h5py.File, pieces: Iterator[Piece]) -> None:
                _write_frame(file, frame)
                _write_pieces(file, pieces, frame)

            write_hdf5(temporary, write, _pieces(tiles, frame, on_tile))
        else:
            # the newest zarr format in its plainest form: what every version of anndata that reads it agrees on
            with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
                group = zarr.open_group(temporary, mode="w", zarr_format=3)
                _write_frame(group, frame)
                _write_pieces(group, _pieces(tiles, frame, on_tile), frame)
    return open_result(path)


def write_h5ad(
    adata: AnnData,
    path: str | Path,
    *,
    overwrite: bool = False,
    as_dense: str | Iterable[str] = (),
    convert_strings_to_categoricals: bool = False,
    compression: str | None = None,
    compression_opts: Any = None,
    dataset_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole AnnData to a file, which appears whole or not at all.

    Parameters
    ----------
    adata, path, overwrite
        What, where, and whether to replace a file that is there.
    as_dense, convert_strings_to_categoricals, compression, compression_opts, dataset_kwargs
        As in :meth:`anndata.AnnData.write_h5ad`.

    Raises
    ------
    InputError
        For ``as_dense`` with other names than ``"X"`` and ``"raw/X"``.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    dense = {as_dense} if isinstance(as_dense, str) else set(as_dense)
    dense = {name.replace("raw.X", "raw/X") for name in dense}
    if dense - {"X", "raw/X"} or ("raw/X" in dense and adata.raw is None):
        raise InputError(f"as_dense: got {sorted(dense)}, expected names among 'X' and 'raw/X' that the AnnData has")
    if convert_strings_to_categoricals:
        adata.strings_to_categoricals()
        if adata.raw is not None:
            adata.strings_to_categoricals(adata.raw.var)

    named = {"compression": compression, "compression_opts": compression_opts}
    compressed = {name: value for name, value in named.items() if value is not None}

    def write_element(write: Any, group: Any, key: str, element: Any, **options: Any) -> None:
        if key.strip("/") in dense and sp.issparse(element):
            element = element.toarray()
        write(group, key, element, dataset_kwargs=options["dataset_kwargs"])

    def write(file: h5py.File, _: Iterator[Any]) -> None:
        options = {**(dataset_kwargs or {}), **compressed}
        anndata.experimental.write_dispatched(file, "/", adata, callback=write_element, dataset_kwargs=options)

    with replacing(path, overwrite=overwrite) as temporary:
        write_hdf5(temporary, write)


def open_result(path: str | Path) -> AnnData:
    """Open what :func:`stream` wrote; the expression stays on disk until it is indexed."""
    # not by read_h5ad(backed="r"), which reads all layers
    group: Any = h5py.File(path) if Path(path).suffix == ".h5ad" else zarr.open_group(path, mode="r")
    adata = AnnData(
        obs=anndata.io.read_elem(group["obs"]),
        var=anndata.io.read_elem(group["var"]),
        obsm=anndata.io.read_elem(group["obsm"]),
        uns=anndata.io.read_elem(group["uns"]),
    )
    adata.X = _on_disk(group["X"])
    for name in group["layers"]:
        adata.layers[name] = _on_disk(group["layers"][name])
    return adata


def _empty(frame: Frame) -> AnnData:
    return AnnData(obs=frame.obs, var=frame.var, obsm=frame.obsm, uns=frame.uns)


def _on_disk(element: Any) -> Any:
    return element if isinstance(element, zarr.Array | h5py.Dataset) else anndata.io.sparse_dataset(element)


def _write_frame(group: Any, frame: Frame) -> None:
    anndata.io.write_elem(group, "/", _empty(frame))
    for name in ("X", "raw"):  # there is neither, and that was written too
        if name in group:
            del group[name]


def _pieces(tiles: Iterable[Tile], frame: Frame, on_tile: OnTile | None) -> Iterator[Piece]:
    """Gather tiles into blocks of the file; each is good until the next is asked for."""
    gather = _gather_counts if frame.counts else _gather_dense
    return gather(_told(tiles, on_tile), frame)


def _gather_dense(tiles: Iterable[Tile], frame: Frame) -> Iterator[Piece]:
    # zarr would read and write a block again for each part of it
    rows = _rows(frame.shape)
    block = {name: np.empty((rows, frame.shape[1]), dtype=np.float32) for name in ("X", *frame.layers)}
    for tile in tiles:
        for start in range(tile.start - tile.start % rows, tile.stop, rows):
            first, last = max(start, tile.start), min(start + rows, tile.stop)
            for name, values in {"X": tile.values, **tile.layers}.items():
                block[name][first - start : last - start] = values[first - tile.start : last - tile.start]
            if last in (start + rows, frame.shape[0]):
                yield start, {name: values[: last - start] for name, values in block.items()}


def _gather_counts(tiles: Iterable[Tile], frame: Frame) -> Iterator[Piece]:
    held: list[sp.csr_matrix] = []
    start = 0
    for tile in tiles:
        held.append(_sparse(tile))
        if sum(block.nnz for block in held) >= _FILE_BLOCK:
            block = _joined(held)
            yield start, {"X": block}
            start += block.shape[0]
            del block
    if held:
        yield start, {"X": _joined(held)}


def _joined(held: list[sp.csr_matrix]) -> sp.csr_matrix:
    """All blocks in one; none of them is held any longer."""
    block = sp.vstack(held, format="csr")
    held.clear()
    return block


def _write_pieces(group: Any, pieces: Iterable[Piece], frame: Frame) -> None:
    if frame.counts:
        for _, piece in pieces:
            _append(group, piece.pop("X"))  # it needs its memory no longer
        return
    targets = {"X": _dense(group, "X", frame.shape)}
    targets |= {name: _dense(group["layers"], name, frame.shape) for name in frame.layers}
    for start, piece in pieces:
        for name, values in piece.items():
            targets[name][start : start + len(values)] = values


def _append(group: Any, block: sp.csr_matrix) -> None:
    """Append rows to ``X``."""
    if "X" in group:
        anndata.io.sparse_dataset(group["X"]).append(block)
    else:
        block.indptr = block.indptr.astype(np.int64)  # the file outgrows what 32 bits can count
        anndata.io.write_elem(group, "X", block)


def _sparse(tile: Tile) -> sp.csr_matrix:
    largest = float(tile.values.max())
    if not largest < _LARGEST_COUNT:
        raise InputError(
            f"library_size: counts up to {largest:g} were drawn, below {_LARGEST_COUNT:,} was expected; pass a smaller "
            "library_size, in counts of one cell"
        )
    return sp.csr_matrix(tile.values.astype(np.int32))


def _rows(shape: tuple[int, int]) -> int:
    """Rows of a block of the file."""
    return min(shape[0], max(1, _FILE_BLOCK // shape[1]))


def _dense(group: Any, name: str, shape: tuple[int, int]) -> Any:
    rows = _rows(shape)
    create = group.create_array if isinstance(group, zarr.Group) else group.create_dataset
    array = create(name, shape=shape, dtype="float32", chunks=(rows, shape[1]))
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _told(tiles: Iterable[Tile], on_tile: OnTile | None) -> Iterator[Tile]:
    """The tiles, each reported once the next is asked for, and so is done."""
    for tile in tiles:
        yield tile
        _tell(on_tile, tile)


def _tell(on_tile: OnTile | None, tile: Tile) -> None:
    if on_tile is not None:
        on_tile(tile.stop - tile.start)
