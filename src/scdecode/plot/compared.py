"""Ways from one place of the latent space to another, beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import PerPoint, Values
from scdecode.errors import InputError
from scdecode.geometry.metric import path_length
from scdecode.model import SCVI
from scdecode.plot import axes as ax_
from scdecode.plot.axes import FAR_WORDS, Panels
from scdecode.plot.cells import read_cells
from scdecode.plot.latent_view import draw_scene, looks_of, name_ends, places_of
from scdecode.plot.palettes import ink, pale
from scdecode.plot.routes import Route, routes_of
from scdecode.points import PointsLike, conditions_of
from scdecode.support import FAR

_TOP = 111.0
"""Where the axis of the support ends: above the percentiles is room for words."""
_APART = 0.03
"""Of a path's length: ends that are farther apart make it another way."""
_SAME = 0.02
"""Of a geodesic's length: measured with another outcome it was in other conditions, and so was its straight line."""


@checked
def compare_paths(
    model: SCVI,
    paths: Annotated[Mapping[str, PointsLike], "a mapping of names to paths"],
    *,
    cells: AnnData | PointsLike | None = None,
    colour: str | Values = None,
    color: str | Values = None,
    embedding: str | Values = None,
    spread: bool = False,
    **conditions: PerPoint,
) -> Panels:
    """Draw paths beside each other: where they run, how far from the training cells, and how fast expression changes.

    Left the latent view, with the length of each path by the decoder's metric, and beside a geodesic that of the
    straight line between its own ends; paths whose ends lie apart from those of the first, by more than a few percent
    of the length, are marked, as their lengths are of different ways. Right, along the share of that length,
    the support of each point, and the speed: the length by the metric that a path covers in a unit of its time. A
    geodesic keeps its speed where it has no other reason not to, and is the shorter one.

    Parameters
    ----------
    model
        Trained, with reference cells.
    paths
        Names and paths of at least two points each: ``{"straight": path, "geodesic": other}``.
    cells, colour, color, embedding, spread
        As for :func:`scdecode.plot.latent`.
    **conditions
        Batch, covariates and library size that the lengths are for, as for ``model.decode``; by default those that the
        paths bring with them, where they are the same.

    Returns
    -------
    list of Axes
        The latent view, the support and the speed; its ``.figure`` is the whole.

    Raises
    ------
    InputError
        For what is no mapping of paths; for paths of different conditions, where none are given here.
    PointsError, ConditionError
        For points and conditions that are none of the model's.
    """
    if not isinstance(paths, Mapping):
        raise InputError(f"paths: {type(paths).__name__} came, a mapping of names to paths was expected")
    said = _conditions(paths, conditions)
    routes: list[Route] = []
    segments: list[np.ndarray] = []
    for name, path in paths.items():
        for route in routes_of(model, {name: path}):
            if len(route.z_nk) < 2:
                raise InputError(f"paths: {name!r} has one point, paths of two or more were expected")
            lengths = path_length(model, route.z_nk, **said).segments
            words = f"{route.name}: length {lengths.sum():.1f}" + _straight(path, float(lengths.sum()))
            if routes and _ends_apart(model, routes[0].z_nk, route.z_nk, said) > _APART * lengths.sum():
                words += ", ends differ"
            routes.append(replace(route, words=words))
            segments.append(np.asarray(lengths, dtype=np.float64))
    if not routes:
        raise InputError("paths: an empty mapping came, names and their paths were expected")
    shown = read_cells(model, cells, ax_.one_colour(colour, color), embedding)
    ax_.check_matplotlib()
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9.6, 4.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.35, 1.0))
    ax, near, fast = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    looks = looks_of(routes, shown.colour, ax)
    places = places_of(shown.plane, routes)
    entries = draw_scene(ax, shown, routes, places, looks, spread=spread)
    for route, lengths, (shade, style) in zip(routes, segments, looks, strict=True):
        look: dict[str, Any] = {"color": shade, "linestyle": style}
        behind = np.concatenate([[0.0], np.cumsum(lengths)]) / max(float(lengths.sum()), 1e-300)
        if route.support_n is not None:
            near.plot(behind, route.support_n, linewidth=1.8, label=route.name, **look)
        middle, speed = (behind[1:] + behind[:-1]) / 2, lengths / np.diff(_clock(route))
        fast.plot(middle, speed, linewidth=1.8, label=route.name, **look)
    near.axhspan(FAR, _TOP, color=pale(ax), alpha=0.35, linewidth=0)
    near.text(0.01, (FAR + _TOP) / 2, FAR_WORDS, fontsize=7, color=ink(ax), va="center")
    near.set(ylim=(0, _TOP), xlim=(0, 1), ylabel="support\n(percentile of cells)")
    near.tick_params(labelbottom=False)
    fast.set(xlim=(0, 1), xlabel="share of the length", ylabel="speed\n(length a unit of time)")
    fast.set_ylim(bottom=0)
    for one in (near, fast):
        ax_.tidy(one)
        one.tick_params(labelsize=8)
    ax_.key(figure, entries, loc="outside lower center", ncols=min(len(entries), 4))
    ax_.caption(figure, [shown.plane.words])
    name_ends(ax, shown, routes, places, looks)
    return Panels([ax, near, fast])


def _conditions(paths: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What all lengths are measured in: what was given, and else what the paths have in common."""
    said = {}
    for name, path in paths.items():
        own = conditions_of(path)
        for key in ("categorical", "continuous"):
            if own.get(key) or given.get(key):
                own[key] = {**own.get(key, {}), **(given.get(key) or {})}
        said[name] = {**own, **{key: v for key, v in given.items() if key not in ("categorical", "continuous")}}
    first, *others = said or [""]
    for other in others:
        if not _alike(said[first], said[other]):
            raise InputError(
                f"paths: {first!r} is one in the conditions {_words(said[first])}, {other!r} in {_words(said[other])}, "
                "so their lengths do not compare; say which they are to be measured in, such as batch= or library_size="
            )
    return said.get(first, {})


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    return np.shape(a) == np.shape(b) and bool(np.all(np.asarray(a) == np.asarray(b)))


def _words(said: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in said.items()) or "averaged over"


def _straight(path: Any, length: float) -> str:
    """How long a geodesic's own straight line is, where it was measured as here."""
    report = getattr(path, "report", None) or {}
    known = "ratio" in report and abs(float(report["length"]) - length) <= _SAME * length
    return f", its straight line {float(report['straight_length']):.1f}" if known else ""


def _ends_apart(model: SCVI, a_nk: np.ndarray, b_nk: np.ndarray, said: Mapping[str, Any]) -> float:
    """How far the starts, or the ends, of two paths are from one another, straight by the metric; the larger."""
    pairs = [np.stack([a_nk[i], b_nk[i]]) for i in (0, -1)]
    return max(path_length(model, pair, **said).length for pair in pairs)


def _clock(route: Route) -> np.ndarray:
    """Times of the points from 0 to 1: its own, or their numbers."""
    time_n = np.arange(len(route.z_nk), dtype=float) if route.time_n is None else route.time_n
    return (time_n - time_n[0]) / (time_n[-1] - time_n[0])
