"""Decoded tiles to an AnnData: in memory, or streamed to an .h5ad file or a .zarr store. The one place that makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import scipy.sparse as sp
import zarr
from anndata import AnnData

from scdecode.decoding import Tile
from scdecode.errors import InputError
from scdecode.files import replacing
from scdecode.provenance import Frame

_FILE_BLOCK = 2**20  # entries of a chunk on disk, about


OnTile = Callable[[int], None]
"""Called with the number of points that a tile has, once it is written."""


def collect(tiles: Iterable[Tile], frame: Frame, on_tile: OnTile | None = None) -> AnnData:
    """The result in memory."""
    adata = _empty(frame)
    if frame.counts:
        blocks = []
        for tile in tiles:
            blocks.append(sp.csr_matrix(tile.values.astype(np.int32)))
            _tell(on_tile, tile)
        adata.X = sp.vstack(blocks, format="csr")
        return adata
    values = {name: np.empty(frame.shape, dtype=np.float32) for name in ("X", *frame.layers)}
    for tile in tiles:
        values["X"][tile.start : tile.stop] = tile.values
        for name in frame.layers:
            values[name][tile.start : tile.stop] = tile.layers[name]
        _tell(on_tile, tile)
    adata.X = values["X"]
    for name in frame.layers:
        adata.layers[name] = values[name]
    return adata


def stream(tiles: Iterable[Tile], frame: Frame, path: str | Path, on_tile: OnTile | None = None) -> AnnData:
    """Write the result tile by tile, and open it without reading its expression into memory.

    It is written under a hidden name that ends in ``.tmp`` and renamed when it is whole.

    Raises
    ------
    InputError
        Where the name ends in neither ``.h5ad`` nor ``.zarr``.
    OutputError
        Where it cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"out: {str(path)!r} came, a name that ends in .h5ad or .zarr was expected")
    # the newest zarr format in its plainest form: what every version of anndata that reads it agrees on
    with replacing(path) as temporary, anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        if path.suffix == ".h5ad":
            with h5py.File(temporary, "w") as file:
                anndata.io.write_elem(file, "/", _empty(frame))
                _write_tiles(file, tiles, frame, on_tile)
        else:
            group = zarr.open_group(temporary, mode="w", zarr_format=3)
            anndata.io.write_elem(group, "/", _empty(frame))
            _write_tiles(group, tiles, frame, on_tile)
    return open_result(path)


def open_result(path: str | Path) -> AnnData:
    """Open what :func:`stream` wrote; the expression stays on disk until it is indexed."""
    path = Path(path)
    if path.suffix == ".h5ad":
        return anndata.io.read_h5ad(path, backed="r")
    group = zarr.open_group(path, mode="r")
    adata = AnnData(
        obs=anndata.io.read_elem(group["obs"]),
        var=anndata.io.read_elem(group["var"]),
        obsm=anndata.io.read_elem(group["obsm"]),
        uns=anndata.io.read_elem(group["uns"]),
    )
    adata.X = _on_disk(group["X"])
    for name, layer in group["layers"].members():
        adata.layers[name] = _on_disk(layer)
    return adata


def _empty(frame: Frame) -> AnnData:
    return AnnData(obs=frame.obs, var=frame.var, obsm=frame.obsm, uns=frame.uns)


def _on_disk(element: Any) -> Any:
    return element if isinstance(element, zarr.Array) else anndata.io.sparse_dataset(element)


def _write_tiles(group: Any, tiles: Iterable[Tile], frame: Frame, on_tile: OnTile | None) -> None:
    if not frame.counts:
        targets = {"X": _dense(group, "X", frame.shape)}
        targets |= {name: _dense(group["layers"], name, frame.shape) for name in frame.layers}
    first = True
    for tile in tiles:
        if frame.counts:
            block = sp.csr_matrix(tile.values.astype(np.int32))
            if first:
                block.indptr = block.indptr.astype(np.int64)  # the file outgrows what 32 bits can count
                anndata.io.write_elem(group, "X", block)
            else:
                anndata.io.sparse_dataset(group["X"]).append(block)
        else:
            targets["X"][tile.start : tile.stop] = tile.values
            for name in frame.layers:
                targets[name][tile.start : tile.stop] = tile.layers[name]
        first = False
        _tell(on_tile, tile)


def _dense(group: Any, name: str, shape: tuple[int, int]) -> Any:
    rows = min(shape[0], max(1, _FILE_BLOCK // shape[1]))
    create = group.create_array if isinstance(group, zarr.Group) else group.create_dataset
    if name in group:  # zarr writes an empty X
        del group[name]
    array = create(name, shape=shape, dtype="float32", chunks=(rows, shape[1]))
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _tell(on_tile: OnTile | None, tile: Tile) -> None:
    if on_tile is not None:
        on_tile(tile.stop - tile.start)
