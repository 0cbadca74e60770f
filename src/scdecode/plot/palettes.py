"""Colours of categories and lines, and the tones of a picture on light or dark ground."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's colours, which people of every colour vision tell apart."""
# scanpy's colours for up to 20 categories
_TWENTY = [
    *("#1f77b4", "#ff7f0e", "#279e68", "#d62728", "#aa40fc", "#8c564b", "#e377c2", "#b5bd61", "#17becf", "#aec7e8"),
    *("#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5", "#ad494a", "#8c6d31"),
]
_GOLDEN = 0.618034  # of a turn of the hue: neighbours differ most
_SHADES = ((0.80, 0.75), (0.55, 0.95), (0.95, 0.50))  # saturation and value, in turn


def palette(n: int, ax: Axes | None = None, *, lines: bool = False) -> list[str]:
    """Return ``n`` colours, no two the same.

    Parameters
    ----------
    n
        Number of colours.
    ax
        Axes to draw on; on a dark ground white takes the place of black.
    lines
        Whether thin lines are drawn, for which yellow on white is too pale.
    """
    if n <= len(COLOURS) - lines:
        chosen = list(COLOURS[:n])
    elif n <= len(_TWENTY):
        chosen = _TWENTY[:n]
    else:
        shades = [(i * _GOLDEN % 1.0, *_SHADES[i % len(_SHADES)]) for i in range(n)]
        chosen = ["#{:02x}{:02x}{:02x}".format(*(round(255 * v) for v in colorsys.hsv_to_rgb(*s))) for s in shades]
    return ["#FFFFFF" if each == "#000000" and ax is not None and is_dark(ax) else each for each in chosen]


def usable_colours(colours: Any, n: int) -> list[str] | None:
    """Return the first ``n`` of colours that an AnnData has in ``uns``; None if there are fewer, or one is none."""
    from matplotlib.colors import is_color_like, to_hex

    if colours is None or isinstance(colours, str) or not hasattr(colours, "__len__") or len(colours) < n:
        return None
    found = [str(colours[i]) for i in range(n)] if isinstance(colours, Sequence) or hasattr(colours, "dtype") else []
    return [to_hex(each) for each in found] if len(found) == n and all(map(is_color_like, found)) else None


def paper(ax: Axes) -> Any:
    """Return the colour behind everything: that of the Axes, or of the figure if they are transparent."""
    from matplotlib.colors import to_rgba

    face = to_rgba(ax.get_facecolor())
    face = face if face[3] > 0 else to_rgba(ax.get_figure(root=True).get_facecolor())  # type: ignore[union-attr]
    return "white" if face[:3] == (1.0, 1.0, 1.0) or face[3] == 0 else face


def is_dark(ax: Axes) -> bool:
    """Whether the ground is dark, so that black cannot be seen on it."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(paper(ax))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def tone(ax: Axes, share: float) -> str:
    """Return so much of the colour of text, mixed into the ground: 1 is text, 0.73 a dark grey, 0.27 a pale one."""
    from matplotlib.colors import to_hex, to_rgb

    ground = to_rgb(paper(ax))
    letters = (1.0, 1.0, 1.0) if is_dark(ax) else (0.0, 0.0, 0.0)
    red, green, blue = (share * a + (1 - share) * b for a, b in zip(letters, ground, strict=True))
    return str(to_hex((red, green, blue)))


def ink(ax: Axes) -> str:
    """Return the colour of what has no colour of its own."""
    return tone(ax, 0.73)


def pale(ax: Axes) -> str:
    """Return the colour of what lies behind."""
    return tone(ax, 0.27)
