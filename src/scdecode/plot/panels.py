"""Several panels of one figure, a gene each: their sizes, titles, labels, key and caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scdecode.plot import axes as ax_

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE, _HIGH = 2.3, 1.75  # inches of a panel: three are as wide as a page
_KEY_LINE = 0.17  # inches of a line of the key


def lay_panels(titles: Sequence[str]) -> list[Axes]:
    """Return Axes of a new figure, one for each title, which is written above it."""
    n = len(titles)
    across = min(n, 3 if n <= 9 else 4)
    across = 2 if n == 4 else across
    down = -(-n // across)
    size = (4.6, 3.4) if n == 1 else (0.5 + _WIDE * across, 0.9 + _HIGH * down)
    _, axes = ax_.grid(down, across, size, sharex=True)
    for ax in axes[n:]:
        ax.remove()
    for title, ax in zip(titles, axes, strict=False):
        inches = size[0] - 0.8 if n == 1 else _WIDE - 0.35
        words, letters = ax_.fitted(title, inches, 10 if n == 1 else 9)
        ax.set_title(words, fontsize=letters, loc="left", style="italic")
        ax.tick_params(labelsize=9 if n == 1 else 8)
    for ax in axes[max(0, n - across) : n]:
        ax.tick_params(labelbottom=True)
    return axes[:n]


def label_panels(
    axes: Sequence[Axes], x_label: str, y_label: str, entries: Sequence[tuple[Any, str]], words: Sequence[str]
) -> None:
    """Write what all panels share, when they are drawn.

    Parameters
    ----------
    axes
        All Axes of a figure.
    x_label, y_label
        Of the axes: below the lowest panel of each column, and once at the left.
    entries
        Handles and words of the key, which is above the panels.
    words
        Sentences of the caption below them.
    """
    figure = ax_.figure_of(axes[0])
    n, across = len(axes), axes[0].get_gridspec().ncols  # type: ignore[union-attr]
    for ax in axes[max(0, n - across) :]:
        ax.set_xlabel(x_label, fontsize=9 if n > 1 else 10)
    longest = max((len(each) for _, each in entries), default=1)
    width, height = figure.get_size_inches()
    columns = max(min(int(width / (0.45 + 0.062 * longest)), len(entries), 4), 1)
    rows = -(-len(entries) // columns)
    figure.set_size_inches(width, height + _KEY_LINE * max(rows - 2, 0) + 0.12 * (len(" ".join(words)) > 20 * width))
    if n == 1:
        axes[0].set_ylabel(ax_.wrapped(y_label, height - 1.0), fontsize=10)
    else:
        figure.supylabel(ax_.wrapped(y_label, height - 0.55), fontsize=9.5)
    ax_.key(figure, entries, loc="outside upper left", ncols=columns, columnspacing=1.4)
    ax_.caption(figure, words)
    centre_label(figure)


def centre_label(figure: Any) -> None:
    """Put the shared label of the vertical axes beside their middle, not that of the whole figure with its key."""
    if figure._supylabel is None or not figure.axes:
        return
    figure.draw_without_rendering()
    boxes = [ax.get_position() for ax in figure.axes]
    figure._supylabel.set_y((min(box.y0 for box in boxes) + max(box.y1 for box in boxes)) / 2)
