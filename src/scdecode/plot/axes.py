"""What all pictures share: colours, axes, keys, marks of what is not supported, files."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from scdecode._utils.checks import checked
from scdecode.errors import InputError, missing_extra
from scdecode.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

# Okabe and Ito's colours, which people of every colour vision tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # for those who see no colours
MARKERS = ("o", "^", "s", "D", "v", "P")
PALE, INK = "#BBBBBB", "#444444"
FAR_WORDS = "far from training cells"

PICTURES = (".png", ".pdf", ".svg")
"""What :func:`save` writes."""


def check_matplotlib() -> None:
    """Raise :class:`MissingExtraError` where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "plot", "scdecode.plot")


def grid(
    rows: int, columns: int, size: tuple[float, float], *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A new figure and its Axes, row by row."""
    check_matplotlib()
    import matplotlib.pyplot as plt  # an extra; and slow to import, so not before it is needed

    figure, made = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=sharex, sharey=sharey
    )
    return figure, list(made.flat)


def one(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The Axes that came, or those of a new figure of so many inches."""
    return ax if ax is not None else grid(1, 1, size)[1][0]


def figure_of(ax: Axes) -> Figure:
    """The whole figure that Axes are on."""
    return cast("Figure", ax.get_figure(root=True))


def tidy(ax: Axes) -> None:
    """Only the two spines that carry ticks."""
    ax.spines[["top", "right"]].set_visible(False)


@checked
def save(ax: Axes, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the figure of Axes, with all others on it, to a file (.png, .pdf, .svg) and close it.

    Parameters
    ----------
    ax
        Any Axes of the figure.
    path
        The file.
    overwrite
        Whether to replace a file that is already there; by default that is an error.

    Raises
    ------
    InputError
        For an ending that matplotlib does not write.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    import matplotlib.pyplot as plt

    figure, path = figure_of(ax), Path(path)
    if path.suffix not in PICTURES:
        raise InputError(f"{path}: {path.suffix!r} came, a name that ends in .png, .pdf or .svg was expected")
    with replacing(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def band_patch(colour: Any = INK, alpha: float = 0.2) -> Any:
    """The key of a band."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    return Patch(facecolor=to_rgba(colour, alpha), edgecolor=to_rgba(colour, 0.6), linewidth=0.6)


def stripe_patch() -> Any:
    """The key of :func:`stripes`."""
    from matplotlib.patches import Patch

    return Patch(facecolor=PALE, alpha=0.35, linewidth=0)


def hollow_key(colour: Any = INK) -> tuple[Any, Any]:
    """The key of :func:`hollow`: one line on the other."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linewidth=3.2), Line2D([], [], color="white", linewidth=1.6)


def key(on: Axes | Figure, entries: Sequence[tuple[Any, str]], **where: Any) -> Legend | None:
    """A legend of handles and words, without a frame; a handle that is a tuple is drawn one on the other."""
    from matplotlib.legend_handler import HandlerTuple

    if not entries:
        return None
    handles, words = zip(*entries, strict=True)
    legend = on.legend(
        handles,
        words,
        handler_map={tuple: HandlerTuple(ndivide=1)},
        **{"frameon": False, "fontsize": 8, "handlelength": 1.8} | where,
    )
    legend.set_zorder(10)
    return legend


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last place of each stretch of true flags."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(last) - 1) for first, last in steps.reshape(-1, 2)]


def wrapped(words: str, inches: float) -> str:
    """A label in as many lines as it takes for none to be longer than so many inches in letters of 10 points."""
    return "\n".join(
        line for part in words.split("\n") for line in textwrap.wrap(part, max(int(inches / 0.072), 12)) or [""]
    )


def edges(x: np.ndarray) -> np.ndarray:
    """The places half-way between sorted positions, and the ends."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    return np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])


def stripes(ax: Axes, x: np.ndarray, far: np.ndarray) -> None:
    """A grey stripe over each stretch of sorted positions that is not supported."""
    sides = edges(x)
    for first, last in runs(far):
        ax.axvspan(sides[first], sides[last + 1], color=PALE, alpha=0.35, linewidth=0, zorder=0, label="_" + FAR_WORDS)


def hollow(ax: Axes, x: np.ndarray, y: np.ndarray, far: np.ndarray, colour: Any, zorder: float = 3.0) -> None:
    """A line is a tube where it is not supported; a single point gets a stretch around it."""
    for first, last in runs(far):
        low, high = max(first - 1, 0), min(last + 1, len(x) - 1)
        xs = np.concatenate([[(x[low] + x[first]) / 2], x[first : last + 1], [(x[high] + x[last]) / 2]])
        ys = np.concatenate([[(y[low] + y[first]) / 2], y[first : last + 1], [(y[high] + y[last]) / 2]])
        for shade, width in ((colour, 3.2), ("white", 1.5)):
            ax.plot(xs, ys, color=shade, linewidth=width, zorder=zorder, solid_capstyle="butt", label="_" + FAR_WORDS)
