"""Where to write names so that they do not lie on each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scdecode.plot.axes import figure_of
from scdecode.plot.palettes import tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RADII = (4.0, 7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 80.0)  # points
_BESIDE = 7.0  # points: a name as near as this belongs to its point without a line
_ANGLES = np.deg2rad(np.arange(0, 360, 30))


def apart(wanted: np.ndarray, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Positions as near as possible to those wanted, at least ``gap`` from each other, in the same order.

    The least squares are an isotonic regression of the positions less their share of the gaps: neighbours that are in
    each other's way are pooled until none are (Barlow et al. 1972, pool adjacent violators).

    Parameters
    ----------
    wanted
        ``(n,)``, in any order.
    gap
        In the units of ``wanted``; smaller where ``n`` of them do not fit between ``low`` and ``high``.
    low, high
        The first and the last place there is.
    """
    n = len(wanted)
    gap = min(gap, (high - low) / max(n - 1, 1))
    order = np.argsort(wanted, kind="stable")
    pools: list[tuple[float, int]] = []  # mean and size
    for free in np.asarray(wanted, dtype=float)[order] - gap * np.arange(n):
        mean, size = float(free), 1
        while pools and pools[-1][0] > mean:
            before, n_before = pools.pop()
            mean, size = (mean * size + before * n_before) / (size + n_before), size + n_before
        pools.append((mean, size))
    free_n = np.concatenate([np.full(size, mean) for mean, size in pools]) if pools else np.zeros(0)
    placed = np.empty(n)
    placed[order] = np.clip(free_n, low, high - gap * max(n - 1, 0)) + gap * np.arange(n)
    return placed


def line_ends(ax: Axes, ends: Sequence[float], names: Sequence[str], colours: Sequence[Any]) -> None:
    """The name of each line to the right of where it ends, in its colour; call it when the limits are set.

    Parameters
    ----------
    ends
        Where each line ends, in the units of the vertical axis.
    names, colours
        Of the lines.
    """
    low, high = ax.get_ylim()
    at = np.clip((np.asarray(ends, dtype=float) - low) / (high - low), 0, 1)
    size = 9.0
    inches = ax.get_window_extent().height / figure_of(ax).dpi
    placed = apart(at, 1.25 * size / 72 / inches, 0.0, 1.0)
    for y, to, name, colour in zip(at, placed, names, colours, strict=True):
        ax.annotate(
            name,
            (1.0, y),
            xytext=(1.035, to),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )


def beside_points(
    ax: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str], *, others: np.ndarray, size: float = 8.0, **style: Any
) -> list[str]:
    """Names beside their points, away from each other and, where there is room, from all points.

    Each in turn takes the nearest place around its point that no name has taken, so call it when limits and layout are
    final, with the names in the order of their importance.

    Parameters
    ----------
    x, y
        ``(n,)``, in the units of the axes.
    names
        Of the points.
    others
        ``(m, 2)`` points that are better not covered, in the units of the axes.
    size
        Of the letters, in points.
    **style
        Of the names; ``color`` may be one for each.

    Returns
    -------
    The names for which there was room.
    """
    figure = figure_of(ax)
    figure.draw_without_rendering()
    pixel = figure.dpi / 72
    dots_n2 = ax.transData.transform(others)
    frame = ax.get_window_extent()
    taken: list[np.ndarray] = []  # left, bottom, right, top
    leaders: list[np.ndarray] = []
    written = []
    colours = style.pop("color", tone(ax, 1.0))
    colours = [colours] * len(names) if isinstance(colours, str) else colours
    letters = {name: style[name] for name in ("style",) if name in style}
    leader_look = {"arrowstyle": "-", "color": tone(ax, 0.53), "shrinkA": 0, "shrinkB": 3}
    for place, name, colour in zip(ax.transData.transform(np.column_stack([x, y])), names, colours, strict=True):
        text = ax.annotate(
            name, (0, 0), xytext=(0, 0), xycoords="axes pixels", textcoords="offset points", fontsize=size, **letters
        )
        box = text.get_window_extent()
        text.remove()
        half = np.array([box.width, box.height]) / 2 + 1.5 * pixel
        best: tuple[float, np.ndarray, float] | None = None
        for radius in _RADII:
            for angle in _ANGLES:
                way = np.array([np.cos(angle), np.sin(angle)])
                # the radius is from the point to the name's edge, not to its centre
                centre = place + way * (radius * pixel + np.abs(way) @ half)
                rectangle = np.concatenate([centre - half, centre + half])
                leader = place + np.linspace(0.15, 1.0, 16)[:, None] * (centre - place)
                outside = rectangle[0] < frame.x0 or rectangle[1] < frame.y0
                outside = outside or rectangle[2] > frame.x1 or rectangle[3] > frame.y1
                if outside or any(_meet(rectangle, other) for other in taken):
                    continue
                if any(_inside(other, rectangle).any() for other in leaders) or any(
                    _inside(leader, other).any() for other in taken
                ):
                    continue
                cost = radius + 3.0 * float(_inside(dots_n2, rectangle).sum())
                if best is None or cost < best[0]:
                    best = (cost, centre, radius)
        if best is None:
            continue
        _, centre, radius = best
        offset = (centre - place) / pixel
        taken.append(np.concatenate([centre - half, centre + half]))
        leaders.append(place + np.linspace(0.15, 1.0, 16)[:, None] * (centre - place))
        ax.annotate(
            name,
            tuple(ax.transData.inverted().transform(place)),
            xytext=tuple(offset),
            textcoords="offset points",
            fontsize=size,
            ha="center",
            va="center",
            color=colour,
            # a line as short as a dash would look like a part of the name
            arrowprops={**leader_look, "linewidth": 0.6 if radius > _BESIDE else 0.0},
            **style,
        )
        written.append(name)
    return written


def _meet(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])


def _inside(points_n2: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.asarray(((points_n2 > box[:2]) & (points_n2 < box[2:])).all(axis=1))
