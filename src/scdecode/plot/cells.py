"""The cells of a picture: their latents, their places on two axes, and what colours them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scdecode._utils.names import check_names, names_of
from scdecode.errors import InputError, got, unknown_name
from scdecode.model import SCVI
from scdecode.plot.palettes import COLOURS, usable_colours
from scdecode.plot.planes import Plane, embedded_plane, principal_plane
from scdecode.points import read_points

_AXES = {
    "umap": "UMAP",
    "tsne": "t-SNE",
    "pca": "PC",
    "diffmap": "DC",
    "phate": "PHATE",
    "draw_graph_fa": "FA",
    "draw_graph_fr": "FR",
    "mde": "MDE",
}


@dataclass(frozen=True, eq=False)
class Colour:
    """What colours the cells."""

    values: Any  # (n,) categories or numbers
    title: str  # of the scale or the key; empty if it has no name
    low_first: bool  # whether high values are drawn last, over the others, as of a gene
    categories: tuple[str, ...]  # their names; none of numbers
    colours: tuple[str, ...] | None  # of the categories, if the AnnData has them

    @property
    def is_number(self) -> bool:
        """Whether it is a number on a scale, and not one of a few categories."""
        return not self.categories


@dataclass(frozen=True, eq=False)
class ShownCells:
    """Everything that is drawn of cells."""

    z_nk: np.ndarray
    plane: Plane
    colour: Colour | None


def read_cells(model: SCVI, cells: Any, colour: Any, embedding: Any, layer: str | None = None) -> ShownCells:
    """Read the cells of a picture; the arguments are those of :func:`scdecode.plot.latent`.

    Raises
    ------
    InputError
        For names that the cells do not have, or values and places that are not those of the cells.
    PointsError, CountsError
        For latents that are none of the model's, or cells that the model cannot encode.
    """
    named = [place for place, value in (("colour", colour), ("embedding", embedding)) if isinstance(value, str)]
    if cells is None and named:
        cells = model.adata
        if cells is None:
            name = colour if named[0] == "colour" else embedding
            raise InputError(
                f"{named[0]}: got the name {name!r}, but the model has no AnnData to look it up in; expected it with "
                "cells=adata"
            )
    if layer is not None and not isinstance(cells, AnnData):
        raise InputError("layer: got a name without cells=adata, whose layer it is; pass both or leave it out")
    if cells is None:
        z_nk = model.reference_latents()
    elif isinstance(cells, AnnData):
        z_nk = model.get_latent_representation(cells)
    else:
        if named:
            raise InputError(
                f"{named[0]}: got a name beside latents, which have no names; expected cells=adata, or values for each "
                "of the cells"
            )
        simplex = model.config.latent_distribution == "ln"
        z_nk = read_points(cells, model.config.n_latent, simplex=simplex).z_nk.numpy()
    names = names_of(cells)
    if not isinstance(colour, str):
        check_names("colour", colour, names, "cells")
    read = None if colour is None else _colour(cells, colour, layer, len(z_nk))
    if isinstance(embedding, str):
        embedding = _embedding(cells, embedding)
    check_names("embedding", embedding, names, "cells")
    plane = principal_plane(z_nk) if embedding is None else embedded_plane(z_nk, embedding)
    return ShownCells(np.asarray(z_nk), plane, read)


def _embedding(adata: AnnData, name: str) -> pd.DataFrame:
    """The first two columns of an entry of ``obsm``, by its name or by scanpy's short one, with names for the axes."""
    key = name if name in adata.obsm else f"X_{name}"
    if key not in adata.obsm:
        raise InputError(unknown_name("embedding", name, list(adata.obsm), "entries of obsm"))
    place = adata.obsm[key]
    if isinstance(place, pd.DataFrame):
        return place.iloc[:, :2]
    place = place.toarray() if sp.issparse(place) else np.asarray(place)
    if place.ndim != 2 or place.shape[1] < 2:
        raise InputError(f"embedding: got {name!r} of shape {place.shape}, expected two columns or more")
    short = key.removeprefix("X_")
    words = _AXES.get(short.lower(), short)
    return pd.DataFrame(place[:, :2], index=adata.obs_names, columns=[f"{words} {axis}" for axis in (1, 2)])


def _colour(cells: Any, colour: Any, layer: str | None, n: int) -> Colour:
    if isinstance(colour, str):
        return _named(cells, colour, layer)
    if isinstance(colour, AnnData) or not hasattr(colour, "__len__") or getattr(colour, "ndim", 1) != 1:
        raise InputError(
            f"colour: got {got(colour)}, expected the name of a column of obs or of a gene, or one value for each cell"
        )
    if len(colour) != n:
        raise InputError(
            f"colour: got {len(colour)} values, expected one for each of the {n} cells; pass cells=adata, or "
            "cells=model.get_latent_representation(adata), for all cells of an AnnData"
        )
    return _values(colour, str(getattr(colour, "name", None) or ""), None)


def _named(adata: AnnData, name: str, layer: str | None) -> Colour:
    """A column of ``obs`` with scanpy's colours, or a gene."""
    if layer is not None and layer not in adata.layers:
        raise InputError(unknown_name("layer", layer, list(adata.layers), "layers of the cells"))
    if name in adata.obs:
        return _values(adata.obs[name], name, adata.uns.get(f"{name}_colors"))
    if name not in adata.var_names:
        known = [*map(str, adata.obs.columns), *adata.var_names]
        raise InputError(unknown_name("colour", name, known, "columns of obs and genes"))
    at = int(np.flatnonzero(adata.var_names == name)[0])
    matrix = adata.X if layer is None else adata.layers[layer]
    value_n = matrix[:, [at]]
    value_n = np.asarray(value_n.toarray() if sp.issparse(value_n) else value_n, dtype=np.float64).reshape(-1)
    if (value_n != np.rint(value_n)).any() or (value_n < 0).any():
        return Colour(value_n, name, True, (), None)
    total_n = np.asarray(matrix.sum(axis=1), dtype=np.float64).reshape(-1)  # of counts
    return Colour(
        np.log1p(1e4 * value_n / np.maximum(total_n, 1.0)), f"{name}\nlog1p of counts per 10,000", True, (), None
    )


def _values(values: Any, title: str, colours: Any) -> Colour:
    array = np.asarray(values)
    if pd.api.types.is_numeric_dtype(getattr(values, "dtype", array)) and not isinstance(
        getattr(values, "dtype", None), pd.CategoricalDtype
    ):
        number_n = pd.Series(values).to_numpy(dtype=float, na_value=np.nan)
        if len(pd.unique(number_n[np.isfinite(number_n)])) > len(COLOURS):
            return Colour(number_n, title, False, (), None)
    found = pd.Categorical(values)
    names = tuple(str(name) for name in found.categories)
    # colours belong to all categories of a column, also to those without a cell, which the key leaves out
    own = usable_colours(colours, len(names))
    used = np.unique(found.codes[found.codes >= 0])
    kept = found.remove_unused_categories()
    return Colour(
        kept, title, False, tuple(names[i] for i in used), None if own is None else tuple(own[i] for i in used)
    )
