"""Cells and paths of the latent space on two axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import Values
from scdecode.model import SCVI
from scdecode.plot import axes as ax_
from scdecode.plot.axes import FAR_WORDS, MARKERS, STYLES
from scdecode.plot.cells import Colour, ShownCells, read_cells
from scdecode.plot.labels import beside_points
from scdecode.plot.palettes import COLOURS, ink, pale, palette, paper, tone
from scdecode.plot.planes import Place, Plane
from scdecode.plot.routes import Route, routes_of
from scdecode.points import NamedPathsLike, PointsLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GRID = 220
"""Places along each axis at which it is decided whether they are inside a tube."""
_TUBE = 500
"""Points of a path whose ellipses make up its tube, at most."""
_AROUND = 15
"""Cells around the end of a path that say what it is called, if most of them are of one category."""


@checked
def latent(
    model: SCVI,
    points: NamedPathsLike = None,
    *,
    cells: AnnData | PointsLike | None = None,
    colour: str | Values = None,
    color: str | Values = None,
    embedding: str | Values = None,
    layer: str | None = None,
    ends: tuple[str, str] | None = None,
    spread: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw training cells on the first two principal axes of the latent space, with points or paths on top.

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
        Cells to show: an AnnData, which the model encodes; or their latents, ``(n, k)``, in any form. By default the
        model's reference cells; if ``colour`` or ``embedding`` is a name, the AnnData that the model was made with.
    colour
        The name of a column of ``obs`` or of a gene of the AnnData; or a category of each of the cells, or a number,
        such as a pseudotime. A column has scanpy's colours (``uns["..._colors"]``), if there are; counts of a gene are
        shown as log1p of counts per ten thousand.
    color
        Another spelling of ``colour``.
    embedding
        Places of the same cells on two other axes: the name of an entry of ``obsm``, ``"X_umap"`` or ``"umap"``, of
        which the first two columns are taken; or ``(n, 2)`` numbers. The columns of a DataFrame name the axes. A point
        of a path is then at the mean place of the cells around it, weighted by the path's spread; without one, of the
        30 nearest cells. An embedding bends distances, so the path is a guide there and no measure.
    layer
        Layer of the AnnData in which a gene is looked up; by default ``X``.
    ends
        Names of the start and the end of a path. By default the category of most cells around each, if ``colour`` is
        one, or else "start" and "end"; of several paths, their names.
    spread
        Whether to draw the bands.
    ax
        Where to draw; by default a new figure.

    Returns
    -------
    Axes
        That of the cells.

    Raises
    ------
    InputError
        For a ``colour`` or an ``embedding`` that does not fit the cells, or names that they do not have.
    PointsError
        For points or latents that are none of the model's.

    Examples
    --------
    >>> ax = sd.plot.latent(model, path, cells=adata, embedding="X_umap", colour="cell_type")  # doctest: +SKIP
    """
    shown = read_cells(model, cells, ax_.one_colour(colour, color), embedding, layer)
    plane, routes = shown.plane, [] if points is None else routes_of(model, points)
    given, ax = ax, ax_.one(ax, (5.2, 4.6))
    places, looks = places_of(plane, routes), looks_of(routes, shown.colour, ax)
    entries = draw_scene(ax, shown, routes, places, looks, spread=spread)
    if given is None and plane.words:
        ax_.caption(ax_.figure_of(ax), [plane.words if routes else ""])
    if given is not None:  # beside it there may be no room
        ax_.label_given(ax, plane.labels[0], plane.labels[1], entries)
    elif shown.colour is not None and shown.colour.is_number:  # beside the axes are the colours
        ax_.key(ax, entries, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    else:
        title = shown.colour.title if shown.colour is not None else ""
        columns = 1 + (len(entries) - 1) // 18
        where = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "ncols": columns, "columnspacing": 1.0}
        legend = ax_.key(ax, entries, title=title or None, title_fontsize=8, alignment="left", **where)
        if legend is not None:
            _make_room(ax, legend)
    name_ends(ax, shown, routes, places, looks, ends)
    return ax


def _make_room(ax: Axes, legend: Any) -> None:
    """Make the figure as much wider as its key is."""
    figure = ax_.figure_of(ax)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + legend.get_window_extent().width / figure.dpi, height)


def looks_of(routes: Sequence[Route], colour: Colour | None, ax: Axes) -> list[tuple[Any, Any]]:
    """Colour and line style of each path.

    A path of the name of a category of cells has its colour, and no other path has one that a category has. One path
    alone has the colour of text, and so have all where colours do not suffice; line styles tell them apart anyway.
    """
    names = () if colour is None else colour.categories
    of_cells = dict(zip(names, category_colours(colour, ax), strict=True)) if colour is not None else {}
    free = [each for each in palette(len(COLOURS) - 1, ax, lines=True)[:-1] if each not in of_cells.values()]
    own = [route.name for route in routes if route.name not in of_cells]
    enough = len(own) <= len(free) and len(names) <= len(COLOURS)
    looks = []
    for number, route in enumerate(routes):
        shade = tone(ax, 1.0)
        if len(routes) > 1 and enough:
            shade = of_cells[route.name] if route.name in of_cells else free[own.index(route.name)]
        looks.append((shade, STYLES[number % len(STYLES)]))
    return looks


def category_colours(colour: Colour, ax: Axes) -> list[str]:
    """A colour for each category of cells: those of the AnnData, or ours; none of numbers."""
    return list(colour.colours or palette(len(colour.categories), ax))


def places_of(plane: Plane, routes: Sequence[Route]) -> list[Place]:
    """Where paths are on the plane: ``(n, 2)``, and ``(n, 2, 2)`` around it or None."""
    return [plane.carry(route.z_nk, route.spread_nkk) for route in routes]


def draw_scene(
    ax: Axes,
    shown: ShownCells,
    routes: Sequence[Route],
    places: Sequence[Place],
    looks: Sequence[tuple[Any, Any]],
    *,
    spread: bool,
) -> list[tuple[Any, str]]:
    """Draw cells and paths, but for their names; return their keys."""
    plane = shown.plane
    entries = _draw_cells(ax, plane, shown.colour)
    of_routes = _draw_routes(ax, plane, routes, places, looks, spread=spread)
    at = {words: number for number, (_, words) in enumerate(entries)}
    for handle, words in of_routes:  # a path and the cells of its name have one colour, and one entry
        if words in at:
            entries[at[words]] = ((handle, entries[at[words]][0]), words)
        else:
            entries.append((handle, words))
    ax.set_xlabel(plane.labels[0], fontsize=9)
    ax.set_ylabel(plane.labels[1], fontsize=9)
    if plane.is_embedding:  # its numbers mean nothing
        ax.set(xticks=[], yticks=[])
    ax.tick_params(labelsize=8)
    ax_.tidy(ax)
    return entries


def _draw_cells(ax: Axes, plane: Plane, colour: Colour | None) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    x, y = plane.cells_n2.T
    size = float(np.clip(6_000 / max(len(x), 1), 1.0, 9.0))
    dots: dict[str, Any] = {"linewidths": 0, "zorder": 1, "rasterized": True}
    grey = pale(ax)

    def handle(colour: Any, marker: str = "o") -> Any:
        return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=5, markeredgewidth=0)

    if colour is None:
        ax.scatter(x, y, s=size, color=grey, **dots)
        return [(handle(grey), f"{len(x):,} cells")]
    if colour.is_number:
        number_n = np.asarray(colour.values, dtype=float)
        known = np.isfinite(number_n)
        ax.scatter(x[~known], y[~known], s=size, color=grey, **dots)
        at = np.flatnonzero(known)
        at = at[np.argsort(number_n[at], kind="stable")] if colour.low_first else at
        scatter = ax.scatter(x[at], y[at], s=size, c=number_n[at], cmap="viridis", **dots)
        bar = ax.figure.colorbar(scatter, ax=ax, shrink=0.6, aspect=16)
        bar.set_label(colour.title, fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
        return [(handle(grey), "cells without a value")] if not known.all() else []
    shades = category_colours(colour, ax)
    # markers tell apart those whom colours do not: of many, the hues are near one another
    step = len(COLOURS) if len(shades) > len(COLOURS) else max(len(shades), 1)
    looks = [(shade, MARKERS[i // step % len(MARKERS)]) for i, shade in enumerate(shades)]
    shuffled = np.random.default_rng(0).permutation(len(x))  # or the last category would hide the others
    codes_n = np.asarray(colour.values.codes)[shuffled]
    colours = np.array([shade for shade, _ in looks] + [grey])
    for marker in dict.fromkeys([marker for _, marker in looks] or [MARKERS[0]]):
        own = np.isin(codes_n, [i for i, look in enumerate(looks) if look[1] == marker] + [-1] * (marker == MARKERS[0]))
        at = shuffled[own]
        ax.scatter(x[at], y[at], s=1.3 * size, c=colours[codes_n[own]], marker=marker, alpha=0.75, **dots)
    entries = [(handle(*look), name) for look, name in zip(looks, colour.categories, strict=True)]
    return entries + ([(handle(grey), "cells without a value")] if (codes_n < 0).any() else [])


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
        ax.plot(x, y, color=paper(ax), linewidth=4.2, alpha=0.8, zorder=2.9, solid_capstyle="round", label="_halo")
        line: dict[str, Any] = {"linestyle": style, "linewidth": 2.2} if len(x) > 1 else {"marker": "o"}
        ax.plot(x, y, color=colour, zorder=3, label=route.name, **line)
        ax_.hollow(ax, x, y, route.far, colour, zorder=3.1)
        _draw_arrows(ax, place_n2, colour, extent)
        entries.append((Line2D([], [], color=colour, **line), route.words))
    shade = looks[0][0] if len(routes) == 1 else ink(ax)
    if banded:
        entries.append((ax_.band_patch(shade), "1 sd of the cells around it"))
    if any(route.far.any() for route in routes):
        entries.append((ax_.hollow_key(ax, shade), FAR_WORDS))
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
    ax: Axes,
    shown: ShownCells,
    routes: Sequence[Route],
    carried: Sequence[Place],
    looks: Sequence[tuple[Any, Any]],
    ends: tuple[str, str] | None = None,
) -> None:
    """Name the ends of paths; what is at the same place is named once.

    At the end of all drawing, as it needs the final layout.
    """
    plane = shown.plane
    extent = float(np.ptp(plane.cells_n2, axis=0).max())
    places = [place_n2 for place_n2, _ in carried]
    kept = [number for number, place_n2 in enumerate(places) if len(place_n2) > 1]
    if not kept:
        return
    ends_n2 = np.stack([places[number][-1] for number in kept])
    shared = np.linalg.norm(ends_n2 - ends_n2[0], axis=1).max() < 0.03 * extent  # also of one path
    named: list[tuple[np.ndarray, str, Any]] = []
    strong = tone(ax, 1.0)
    for number in kept:
        words = _end_words(shown, routes[number].z_nk, ends)
        for at, own in ((0, words[0]), (-1, words[1] if shared or ends is not None else routes[number].name)):
            place = places[number][at]
            if all(np.linalg.norm(place - other) >= 0.03 * extent for other, _, _ in named):
                named.append((place, own, strong if at == 0 or own == words[1] else looks[number][0]))
    halo = {"boxstyle": "round,pad=0.1", "facecolor": paper(ax), "edgecolor": "none", "alpha": 0.75}
    x, y = np.stack([place for place, _, _ in named]).T
    colours = [colour for _, _, colour in named]
    on_the_way = np.concatenate([_between(places[number]) for number in kept])
    beside_points(ax, x, y, [word for _, word, _ in named], others=on_the_way, color=colours, bbox=halo, zorder=5)


def _end_words(shown: ShownCells, z_nk: np.ndarray, ends: tuple[str, str] | None) -> tuple[str, str]:
    """What the ends of a path are called: as was asked, by the cells around them, or start and end."""
    if ends is not None:
        return str(ends[0]), str(ends[1])
    colour = shown.colour
    if colour is None or colour.is_number:
        return "start", "end"
    found = []
    for z_k in (z_nk[0], z_nk[-1]):
        apart_n = ((shown.z_nk - z_k) ** 2).sum(axis=1)
        nearest = np.argsort(apart_n, kind="stable")[:_AROUND]
        codes, counts = np.unique(np.asarray(colour.values.codes)[nearest], return_counts=True)
        most = int(codes[counts.argmax()])
        found.append(colour.categories[most] if most >= 0 and 2 * counts.max() > len(nearest) else "")
    if not all(found) or found[0] == found[1]:
        return "start", "end"
    return found[0], found[1]


def _between(place_n2: np.ndarray) -> np.ndarray:
    """Places along a path, close enough to each other that no word fits between them."""
    at, number = np.linspace(0, len(place_n2) - 1, 200), np.arange(len(place_n2))
    return np.column_stack([np.interp(at, number, place_n2[:, i]) for i in range(2)])
