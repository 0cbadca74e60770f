"""From one place of the latent space to the next: the straight line, the graph of cells, the geodesic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scdecode._utils.levels import Category
from scdecode._utils.names import NamedNormal
from scdecode.errors import InputError, PointsError, SupportWarning, unknown_name, warn
from scdecode.geometry import geodesic
from scdecode.model import SCVI
from scdecode.paths.graph import CellGraph, make_cell_graph, track_through
from scdecode.paths.tube import shares, tube_around
from scdecode.points import Points, read_points
from scdecode.reference import Reference

WAYS = ("linear", "graph", "geodesic")
"""How a path gets from one end to the other."""

_FINE = 50  # points of each stretch of a geodesic through waypoints, and of the paths that searches start from
DRAWS = 16
"""Of each cell's posterior, where the variance of its softmax is wanted."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Points in order, and what is known of how they were found."""

    points_nk: np.ndarray
    time_n: np.ndarray  # the share of the length that lies behind
    spread_nkk: np.ndarray | None
    report: dict[str, Any] = field(default_factory=dict)


def read_places(model: SCVI, places: Sequence[Any], names: Sequence[str]) -> list[Points]:
    """Points or sets of cells that a path goes through.

    Raises
    ------
    PointsError
        For points of the wrong width, NaN, or two that follow each other and are the same.
    """
    simplex = model.config.latent_distribution == "ln"
    read = [read_points(place, model.config.n_latent, simplex=simplex) for place in places]
    centres = [_mean(cells) for cells in read]
    for i in range(len(read) - 1):
        if np.allclose(centres[i], centres[i + 1]):
            raise PointsError(
                f"{names[i]}, {names[i + 1]}: they are the same point; a path needs two that differ"
                + ("" if len(read[i]) == len(read[i + 1]) == 1 else " (sets of cells stand for their mean)")
            )
    return read


def cells_of_groups(model: SCVI, adata: AnnData, groups: Sequence[Any], key: str, names: Sequence[str]) -> list[Any]:
    """The posterior of the cells of each group, as places that a path goes through.

    Parameters
    ----------
    model
        The model that encodes the cells.
    adata
        The cells.
    groups
        A category each, or a list of categories that are one place.
    key
        Column of ``obs`` with the categories.
    names
        What messages call each place.

    Raises
    ------
    InputError
        For a column that is not there, and categories that no cell has.
    """
    if key not in adata.obs:
        raise InputError(unknown_name("key", key, map(str, adata.obs), "columns of adata.obs"))
    column = adata.obs[key].astype("category").cat.remove_unused_categories()
    known = Category.of(str(key), column.cat.categories.to_numpy())
    # the normal posterior of a logistic normal is that of z before its softmax, and no latent point
    normal = model.config.latent_distribution == "normal"
    encode = model.posterior if normal else model.get_latent_representation
    places = []
    for name, group in zip(names, groups, strict=True):
        parts = list(group) if isinstance(group, list | tuple | set | frozenset | np.ndarray | pd.Index) else [group]
        if not parts:
            raise InputError(f"{name}: got no category, at least one of obs[{key!r}] was expected")
        codes = known.encode(parts, name, f"categories of {key!r}")
        places.append(encode(adata[np.isin(column.cat.codes, codes)]))
    return places


def join(
    model: SCVI,
    places: Sequence[Points],
    n_points: int,
    how: str,
    *,
    spread: bool,
    n_neighbours: int,
    conditions: Mapping[str, Any],
) -> Joined:
    """A path through places, in order.

    Parameters
    ----------
    places
        At least two; sets of cells stand for their mean and covariance on a straight path with a spread, and otherwise
        for the cell nearest to their mean.
    how
        One of :data:`WAYS`.
    spread
        Whether to carry the spread of the cells around it.
    n_neighbours
        Of each cell in the graph.
    conditions
        Arguments of decode, in which a geodesic is one.
    """
    k = model.config.n_latent
    if how == "linear":
        # copies of a cell tell no covariance
        tube = spread and all(len(np.unique(cells.z_nk.numpy(), axis=0)) > k for cells in places)
        # a spread is around the mean of the cells; a bare line runs where cells are, from medoid to medoid
        corners = np.stack([_mean(cells) if tube else _medoid(cells) for cells in places])
        points, time, at = _polyline(corners, n_points)
        if tube:
            own = np.stack([_covariance(cells) for cells in places]).reshape(len(places), -1)
            spreads = np.stack([np.interp(time, at, column) for column in own.T], axis=1).reshape(-1, k, k)
            return Joined(points, time, spreads)
        return Joined(points, time, _found(model, points) if spread else None)
    stops = [_medoid(cells) for cells in places]
    if how == "graph":
        graph = cell_graph(_reference(model, how), n_neighbours)
        track = track_through(graph, np.stack(stops), n_points)
        report = {"length": track.length, "straight_length": track.straight_length, "cells": track.cells}
        return Joined(track.points_nk, track.time_n, _spread(model, track.points_nk, graph) if spread else None, report)
    return _geodesics(model, stops, n_points, n_neighbours, spread, conditions)


def _geodesics(
    model: SCVI,
    stops: Sequence[np.ndarray],
    n_points: int,
    n_neighbours: int,
    spread: bool,
    conditions: Mapping[str, Any],
) -> Joined:
    """Geodesics from stop to stop, points spaced by the length in the decoder's metric."""
    each = n_points if len(stops) == 2 else max(n_points, _FINE)  # of waypoints the whole is spaced anew
    parts = []
    for ends in pairwise(stops):
        start: Any = "linear"
        if model.support_index() is not None:
            start = track_through(cell_graph(model.reference(), n_neighbours), np.stack(ends), _FINE).points_nk[1:-1]
        parts.append(geodesic(model, *ends, n_points=each, init=start, **conditions))
    lengths = np.cumsum([0.0] + [part.length for part in parts])
    time = (
        np.concatenate([(lengths[i] + part.time * part.length)[i > 0 :] for i, part in enumerate(parts)]) / lengths[-1]
    )
    points = np.concatenate([np.asarray(part.points)[i > 0 :] for i, part in enumerate(parts)])
    wanted = np.linspace(0.0, 1.0, n_points)
    points = np.stack([np.interp(wanted, time, column) for column in points.T.astype(np.float64)], axis=1)
    straight = float(sum(part.straight_length for part in parts))
    report = parts[0].report
    if len(parts) > 1:
        report = {
            "length": float(lengths[-1]),
            "straight_length": straight,
            "ratio": straight / float(lengths[-1]),
            "converged": all(part.converged for part in parts),
            "parts": [part.report for part in parts],
        }
    return Joined(points, wanted, _found(model, points) if spread else None, report)


def around_points(model: SCVI, paths: Sequence[np.ndarray]) -> np.ndarray | None:
    """The covariance of the reference cells around the points of paths, ``(paths, n, k, k)``; None without cells."""
    model.check_trained()
    if model.support_index() is None:
        warn(
            "spread: this model has no reference cells that could tell how cells scatter around the path, so it is a "
            "bare line, and what is decoded along it is biased; call model.attach_reference(adata), or pass spread=...",
            SupportWarning,
        )
        return None
    graph = cell_graph(model.reference())
    return np.stack([_spread(model, path, graph) for path in paths])


_graphs: WeakKeyDictionary[Reference, dict[int, CellGraph]] = WeakKeyDictionary()


def cell_graph(reference: Reference, n_neighbours: int = 15) -> CellGraph:
    """The graph of the reference cells, made once for as long as they are kept: of many it takes seconds."""
    made = _graphs.setdefault(reference, {})
    if n_neighbours not in made:
        made[n_neighbours] = make_cell_graph(reference.latent_rk, n_neighbours=n_neighbours)
    return made[n_neighbours]


def _found(model: SCVI, points_nk: np.ndarray) -> np.ndarray | None:
    around = around_points(model, [points_nk])
    return None if around is None else around[0]


def _spread(model: SCVI, points_nk: np.ndarray, graph: CellGraph) -> np.ndarray:
    simplex = model.config.latent_distribution == "ln"
    return tube_around(points_nk, graph, variances_of_reference(model.reference(), simplex)).spread_nkk


def _reference(model: SCVI, how: str) -> Reference:
    model.check_trained()
    if model.support_index() is None:
        raise InputError(
            f"how: {how!r} goes from cell to cell, and this model keeps none (files of scvi-tools have none); call "
            "model.attach_reference(adata) with its training cells, or pass how='linear'"
        )
    return model.reference()


def variances_of_reference(reference: Reference, simplex: bool) -> np.ndarray | None:
    """The variance of each reference cell's posterior at its latent point, ``(r, k)``, where that is known."""
    if not simplex or reference.variance_rk is None or reference.mean_rk is None:
        return reference.variance_rk
    rng = np.random.default_rng(0)
    r, k = reference.mean_rk.shape
    z = reference.mean_rk + np.sqrt(reference.variance_rk) * rng.standard_normal((DRAWS, r, k), dtype=np.float32)
    return np.asarray(torch.softmax(torch.from_numpy(z), dim=-1).var(dim=0).numpy())


def posterior_of(model: SCVI, adata: AnnData) -> NamedNormal:
    """Mean and standard deviation of the latent point of each cell."""
    if model.config.latent_distribution == "normal":
        return model.posterior(adata)
    # that of a logistic normal is the posterior of z before its softmax, and no latent point
    draws = torch.from_numpy(model.get_latent_representation(adata, n_samples=DRAWS))
    return NamedNormal(draws.mean(0), draws.std(0), adata.obs_names)


def _polyline(corners: np.ndarray, n_points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points evenly spaced along straight lines from corner to corner, their times, and those of the corners."""
    at, time = shares(corners), np.linspace(0.0, 1.0, n_points)
    return np.stack([np.interp(time, at, column) for column in corners.T], axis=1), time, at


def _mean(cells: Points) -> np.ndarray:
    return np.asarray(cells.z_nk.numpy().astype(np.float64).mean(axis=0))


def _medoid(cells: Points) -> np.ndarray:
    return medoid(cells.z_nk.numpy().astype(np.float64))


def medoid(cells_mk: np.ndarray) -> np.ndarray:
    """The one of ``(m, k)`` cells that is nearest to their mean."""
    mean = cells_mk.mean(axis=0, keepdims=True)
    return np.asarray(cells_mk[int(((cells_mk - mean) ** 2).sum(axis=1).argmin())])


def _covariance(cells: Points) -> np.ndarray:
    """Covariance of the cells, and of each cell around itself where that is known (a posterior)."""
    total = np.cov(cells.z_nk.numpy().astype(np.float64), rowvar=False).reshape(cells.z_nk.shape[1], -1)
    if cells.spread is None:
        return total
    own = cells.spread if cells.spread.ndim == 3 else np.stack([np.diag(sd**2) for sd in cells.spread])
    return np.asarray(total + own.mean(axis=0))
