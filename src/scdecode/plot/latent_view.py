"""Cells and paths of the latent space on two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import Values
from scdecode.errors import InputError
from scdecode.model import SCVI
from scdecode.plot import axes as ax_
from scdecode.plot.axes import COLOURS, FAR_WORDS, INK, MARKERS, PALE, STYLES
from scdecode.plot.labels import beside_points
from scdecode.plot.planes import Place, Plane, embedded_plane, principal_plane
from scdecode.plot.routes import Route, routes_of
from scdecode.points import PointsLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRID = 220
"""Places along each axis at which it is decided whether they are inside a tube."""
_TUBE = 500
"""Points of a path whose ellipses make up its tube, at most."""


@checked
def latent(
    model: SCVI,
    points: PointsLike = None,
    *,
    cells: PointsLike | None = None,
    colour: Values = None,
    embedding: Values = None,
    spread: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Training cells on the first two principal axes of the latent space, with points or paths on top.

    Where a path has a spread, a band is around it: the places within one standard deviation of one of its points.
    Stretches that are not supported by training cells are hollow.

    Parameters
    ----------
    model
        Trained.
    points
        A path or points in order to draw over the cells, in any form that ``model.decode`` takes; a path with several
        lineages; or a mapping of names to paths.
    cells
        Latents of the cells to show, ``(n, k)``; by default the model's reference cells.
    colour
        A category of each of the cells, or a number, such as a pseudotime; the name of a Series is that of its scale.
    embedding
        Places of the same cells on two other axes, ``(n, 2)``, such as ``adata.obsm["X_umap"]``; the columns of a
        DataFrame name the axes. A point of a path is then at the mean place of the cells around it, weighted by the
        path's spread; without one, of the 30 nearest cells. An embedding bends distances, so the path is a guide there
        and no measure.
    spread
        Whether to draw the bands.
    ax
        Where to draw; by default a new figure.

    Raises
    ------
    InputError
        For a ``colour`` or an ``embedding`` that does not fit the cells.
    PointsError
        For points that are none of the model's.
    """
    shown = model.reference_latents() if cells is None else np.asarray(cells)
    check_colour(colour, shown)
    plane = principal_plane(shown) if embedding is None else embedded_plane(shown, embedding)
    routes = [] if points is None else routes_of(model, points)
    given, ax = ax, ax_.one(ax, (5.2, 4.6))
    places = places_of(plane, routes)
    entries = draw_scene(ax, plane, colour, routes, places, looks_of(routes, colour), spread=spread)
    if colour is not None and is_number(colour):  # beside the axes are the colours
        ax_.key(ax, entries, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    else:
        wide = len(entries) > 20
        legend = ax_.key(ax, entries, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=1 + wide)
        if given is None and legend is not None:
            _make_room(ax, legend)
    name_ends(ax, plane, routes, places, looks_of(routes, colour))
    return ax


def _make_room(ax: Axes, legend: Any) -> None:
    """Make the figure as much wider as its key is."""
    figure = ax_.figure_of(ax)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + legend.get_window_extent().width / figure.dpi, height)


def check_colour(colour: Sequence[Any] | None, cells_nk: np.ndarray) -> None:
    """Raise :class:`InputError` for colours that are not those of the cells."""
    if colour is not None and len(colour) != len(cells_nk):
        raise InputError(
            f"colour: {len(colour)} values came, one for each of the {len(cells_nk)} "
            "cells was expected; pass cells=model.get_latent_representation(adata) for all cells of an AnnData"
        )


def is_number(colour: Any) -> bool:
    """Whether colours are numbers on a scale, and not a few categories."""
    array = np.asarray(colour)
    return bool(pd.api.types.is_numeric_dtype(array)) and len(pd.unique(array)) > len(COLOURS)


def looks_of(routes: Sequence[Route], colour: Sequence[Any] | None) -> list[tuple[Any, Any]]:
    """Colour and line style of each path.

    A path of the name of a category of cells has its colour, and no other path has one that a category has. One path
    alone is black, and so are all where colours do not suffice; line styles tell them apart anyway.
    """
    names = [] if colour is None or is_number(colour) else [str(name) for name in pd.Categorical(colour).categories]
    free = [each for each in COLOURS[:-1] if each not in COLOURS[: len(names)]]  # yellow is no colour for a line
    own = [route.name for route in routes if route.name not in names]
    enough = len(own) <= len(free) and len(names) <= len(COLOURS)
    looks = []
    for number, route in enumerate(routes):
        shade = "black"
        if len(routes) > 1 and enough:
            shade = COLOURS[names.index(route.name)] if route.name in names else free[own.index(route.name)]
        looks.append((shade, STYLES[number % len(STYLES)]))
    return looks


def places_of(plane: Plane, routes: Sequence[Route]) -> list[Place]:
    """Where paths are on the plane: ``(n, 2)``, and ``(n, 2, 2)`` around it or None."""
    return [plane.carry(route.z_nk, route.spread_nkk) for route in routes]


def draw_scene(
    ax: Axes,
    plane: Plane,
    colour: Sequence[Any] | None,
    routes: Sequence[Route],
    places: Sequence[Place],
    looks: Sequence[tuple[Any, Any]],
    *,
    spread: bool,
) -> list[tuple[Any, str]]:
    """Draw cells and paths, but for their names; return their keys."""
    entries = _draw_cells(ax, plane, colour) + _draw_routes(ax, plane, routes, places, looks, spread=spread)
    ax.set_xlabel(plane.labels[0])
    ax.set_ylabel(plane.labels[1])
    ax_.tidy(ax)
    return entries


def _draw_cells(ax: Axes, plane: Plane, colour: Sequence[Any] | None) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    x, y = plane.cells_n2.T
    size = float(np.clip(6_000 / max(len(x), 1), 1.0, 9.0))
    dots: dict[str, Any] = {"linewidths": 0, "zorder": 1, "rasterized": True}

    def handle(colour: Any, marker: str = "o") -> Any:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, markeredgewidth=0)

    if colour is None:
        ax.scatter(x, y, s=size, color=PALE, **dots)
        return [(handle(PALE), f"{len(x):,} cells")]
    if is_number(colour):
        number_n = np.asarray(colour, dtype=float)
        known = np.isfinite(number_n)
        ax.scatter(x[~known], y[~known], s=size, color=PALE, **dots)
        scatter = ax.scatter(x[known], y[known], s=size, c=number_n[known], cmap="viridis", **dots)
        bar = ax.figure.colorbar(scatter, ax=ax, label=str(getattr(colour, "name", None) or ""), shrink=0.6, aspect=16)
        bar.outline.set_visible(False)
        return [(handle(PALE), "cells without a value")] if not known.all() else []
    categories = pd.Categorical(colour)
    looks = [
        (COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)])
        for i in range(len(categories.categories))
    ]
    shuffled = np.random.default_rng(0).permutation(len(x))  # or the last category would hide the others
    codes_n = categories.codes[shuffled]
    colours = np.array([colour for colour, _ in looks] + [PALE])
    for marker in dict.fromkeys(marker for _, marker in looks):
        own = np.isin(codes_n, [i for i, look in enumerate(looks) if look[1] == marker] + [-1] * (marker == MARKERS[0]))
        at = shuffled[own]
        ax.scatter(x[at], y[at], s=1.3 * size, c=colours[codes_n[own]], marker=marker, alpha=0.75, **dots)
    entries = [(handle(*look), str(name)) for look, name in zip(looks, categories.categories, strict=True)]
    return entries + ([(handle(PALE), "cells without a value")] if (codes_n < 0).any() else [])


def _draw_routes(
    ax: Axes,
    plane: Plane,
    routes: Sequence[Route],
    places: Sequence[Place],
    looks: Sequence[tuple[Any, Any]],
    *,
    spread: bool,
) -> list[tuple[Any, str]]:
    """Draw paths, with their bands, directions and unsupported stretches; return their keys."""
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = []
    banded = False
    extent = float(np.ptp(plane.cells_n2, axis=0).max())
    for route, (place_n2, around_n22), (colour, style) in zip(routes, places, looks, strict=True):
        if spread and around_n22 is not None:
            _draw_tube(ax, place_n2, around_n22, colour)
            banded = True
        x, y = place_n2.T
        ax.plot(x, y, color="white", linewidth=4.2, alpha=0.8, zorder=2.9, solid_capstyle="round", label="_halo")
        line: dict[str, Any] = {"linestyle": style, "linewidth": 2.2} if len(x) > 1 else {"marker": "o"}
        ax.plot(x, y, color=colour, zorder=3, label=route.name, **line)
        ax_.hollow(ax, x, y, route.far, colour, zorder=3.1)
        _draw_arrows(ax, place_n2, colour, extent)
        entries.append((Line2D([], [], color=colour, **line), route.words))
    ink = looks[0][0] if len(routes) == 1 else INK
    if banded:
        entries.append((ax_.band_patch(ink), "1 sd of the cells around it"))
    if any(route.far.any() for route in routes):
        entries.append((ax_.hollow_key(ink), FAR_WORDS))
    if routes and plane.words:
        entries.append((Line2D([], [], linestyle="none"), plane.words))
    return entries


def _draw_tube(ax: Axes, place_n2: np.ndarray, around_n22: np.ndarray, colour: Any) -> None:
    """All places within one standard deviation of a point of the path, as one area."""
    reach_n2 = np.sqrt(np.maximum(np.einsum("nii->ni", around_n22), 0))
    low, high = (place_n2 - 1.05 * reach_n2).min(axis=0), (place_n2 + 1.05 * reach_n2).max(axis=0)
    if not (high > low).all():
        return
    if len(place_n2) > _TUBE:
        some = np.unique(np.linspace(0, len(place_n2) - 1, _TUBE).round().astype(int))
        place_n2, around_n22 = place_n2[some], around_n22[some]
    # between few points, more of them: or the area would be beads on a string
    times = max(1, -(-120 // max(len(place_n2) - 1, 1)))
    at = np.linspace(0, len(place_n2) - 1, (len(place_n2) - 1) * times + 1)
    before, share = np.minimum(at.astype(int), max(len(place_n2) - 2, 0)), 0.0
    share = at - before
    after = np.minimum(before + 1, len(place_n2) - 1)
    centre_m2 = place_n2[before] + share[:, None] * (place_n2[after] - place_n2[before])
    cover_m22 = around_n22[before] + share[:, None, None] * (around_n22[after] - around_n22[before])
    floor = 1e-6 * max(float(np.einsum("mii->m", cover_m22).max()), 1e-12)
    inverse_m22 = np.linalg.inv(cover_m22 + floor * np.eye(2))
    x, y = (np.linspace(low[i], high[i], _GRID) for i in range(2))
    least = np.full((_GRID, _GRID), np.inf)
    for centre, inverse in zip(centre_m2, inverse_m22, strict=True):
        dx, dy = x[None, :] - centre[0], y[:, None] - centre[1]
        np.minimum(least, inverse[0, 0] * dx**2 + 2 * inverse[0, 1] * dx * dy + inverse[1, 1] * dy**2, out=least)
    ax.contourf(x, y, least, levels=[0.0, 1.0], colors=[colour], alpha=0.16, zorder=2)
    ax.contour(x, y, least, levels=[1.0], colors=[colour], linewidths=0.8, alpha=0.7, zorder=2)


def _draw_arrows(ax: Axes, place_n2: np.ndarray, colour: Any, extent: float) -> None:
    """Heads at a third and two thirds of the way, where it goes anywhere."""
    steps = np.linalg.norm(np.diff(place_n2, axis=0), axis=1)
    if steps.sum() < 0.05 * extent:
        return
    behind = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    for share in (0.36, 0.72):
        tail, head = (
            np.array([np.interp(at, behind, place_n2[:, i]) for i in range(2)]) for at in (share - 0.03, share)
        )
        ax.annotate(
            "",
            tuple(head),
            xytext=tuple(tail),
            zorder=3.2,
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 17, "shrinkA": 0},
        )


def name_ends(
    ax: Axes, plane: Plane, routes: Sequence[Route], carried: Sequence[Place], looks: Sequence[tuple[Any, Any]]
) -> None:
    """Start and end of one path, the names of several at their ends; what is at the same place is named once.

    At the end of all drawing, as it needs the final layout.
    """
    extent = float(np.ptp(plane.cells_n2, axis=0).max())
    places = [place_n2 for place_n2, _ in carried]
    kept = [number for number, place_n2 in enumerate(places) if len(place_n2) > 1]
    if not kept:
        return
    ends = np.stack([places[number][-1] for number in kept])
    shared = np.linalg.norm(ends - ends[0], axis=1).max() < 0.03 * extent  # also of one path
    named: list[tuple[np.ndarray, str, Any]] = []
    for number in kept:
        for at, word in ((0, "start"), (-1, "end" if shared else routes[number].name)):
            place = places[number][at]
            if all(np.linalg.norm(place - other) >= 0.03 * extent for other, _, _ in named):
                named.append((place, word, "black" if word in ("start", "end") else looks[number][0]))
    halo = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    x, y = np.stack([place for place, _, _ in named]).T
    colours = [colour for _, _, colour in named]
    on_the_way = np.concatenate([_between(places[number]) for number in kept])
    beside_points(ax, x, y, [word for _, word, _ in named], others=on_the_way, color=colours, bbox=halo, zorder=5)


def _between(place_n2: np.ndarray) -> np.ndarray:
    """Places along a path, close enough to each other that no word fits between them."""
    at, number = np.linspace(0, len(place_n2) - 1, 200), np.arange(len(place_n2))
    return np.column_stack([np.interp(at, number, place_n2[:, i]) for i in range(2)])
