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
from scdecode.plot.palettes import ink, pale, paper, tone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))  # for those who see no colours
MARKERS = ("o", "^", "s", "D", "v", "P")
FAR_WORDS = "far from training cells"

PICTURES = (".png", ".pdf", ".svg")
"""What :func:`save` writes."""


class Panels(list["Axes"]):
    """The Axes of a picture of several panels, in the order in which they are drawn; a list, with its figure."""

    @property
    def figure(self) -> Figure:
        """The whole figure."""
        return figure_of(self[0])

    def __repr__(self) -> str:
        """One line."""
        return f"Panels: {len(self)} Axes of one figure ({', '.join(repr(name) for name in map(_title, self) if name)})"


def _title(ax: Axes) -> str:
    return next((title for loc in ("left", "center") if (title := ax.get_title(loc=loc))), "")


def panels_or_one(axes: Sequence[Axes]) -> Axes | Panels:
    """Return one Axes as it is, and several as :class:`Panels`."""
    return axes[0] if len(axes) == 1 else Panels(axes)


def one_colour(colour: Any, color: Any) -> Any:
    """Return the one of two spellings of an argument that was given.

    Raises
    ------
    InputError
        If both were.
    """
    if colour is not None and color is not None:
        raise InputError("color: got color and colour, expected one of the two spellings; leave one of them out")
    return color if colour is None else colour


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


def plain_ticks(ax: Axes) -> None:
    """Write numbers of the vertical axis in full, without a power of ten beside the title, and few of them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if ax.get_yscale() != "linear" or ax.get_xscale() != "linear":  # Axes that came with scales of their own
        return
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value + 0.0:.6g}".replace("-", "−")))
    ax.xaxis.set_major_locator(MaxNLocator(5))


@checked
def save(ax: Any, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a whole figure to a file and close it.

    Parameters
    ----------
    ax
        What a function of ``sd.plot`` returned (Axes, or a list of them), or a figure.
    path
        File to write; its ending (.png, .pdf, .svg) decides the format.
    overwrite
        Whether to replace a file that is already there; by default that is an error.

    Raises
    ------
    InputError
        For what is no picture, or an ending that matplotlib does not write.
    OutputError
        If it cannot be written, or is there already and ``overwrite`` is False.
    """
    check_matplotlib()
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    several = isinstance(ax, list | tuple) or (isinstance(ax, np.ndarray) and ax.ndim > 0)
    drawn = ax[0] if several and len(ax) else ax
    if not isinstance(drawn, Axes | Figure):
        raise InputError(
            f"ax: got {type(ax).__name__}, expected Axes, a list of Axes or a figure, as the functions of sd.plot "
            "return them"
        )
    figure, path = drawn if isinstance(drawn, Figure) else figure_of(drawn), Path(path)
    if path.suffix not in PICTURES:
        raise InputError(f"{path}: {path.suffix!r} came, a name that ends in .png, .pdf or .svg was expected")
    with replacing(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def band_patch(colour: Any, alpha: float = 0.2) -> Any:
    """The key of a band."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    return Patch(facecolor=to_rgba(colour, alpha), edgecolor=to_rgba(colour, 0.6), linewidth=0.6)


def stripe_patch(ax: Axes) -> Any:
    """The key of :func:`stripes`."""
    from matplotlib.patches import Patch

    return Patch(facecolor=pale(ax), alpha=0.35, linewidth=0)


def hollow_key(ax: Axes, colour: Any = None) -> tuple[Any, Any]:
    """The key of :func:`hollow`: one line on the other."""
    from matplotlib.lines import Line2D

    shade = ink(ax) if colour is None else colour
    return Line2D([], [], color=shade, linewidth=3.2), Line2D([], [], color=paper(ax), linewidth=1.6)


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


def caption(figure: Figure, words: Sequence[str]) -> None:
    """Write what a picture needs to be understood below it, small: sentences, those that are empty left out."""
    said = " ".join(each for each in words if each)
    if said:
        inches = float(figure.get_size_inches()[0])
        lines = textwrap.wrap(said, max(int((inches - 0.2) / 0.0585), 20))  # letters of 7.5 points
        colour = tone(figure.axes[0], 0.73)
        figure.supxlabel("\n".join(lines), x=0.07 / inches, ha="left", fontsize=7.5, color=colour)


def fitted(words: str, inches: float, size: float) -> tuple[str, float]:
    """Return a name and a size of letters (points) with which it is no longer than so many inches.

    The letters shrink to two thirds; then the name breaks into two lines, and of a longer one the middle is left out.
    """
    letters = inches / (0.0085 * size)  # an average letter is 0.6 times as wide as it is high
    if len(words) <= letters:
        return words, size
    small = max(size * letters / len(words), size / 1.5)
    letters = int(inches / (0.0085 * small))
    if len(words) <= letters:
        return words, small
    if len(words) > 2 * letters:
        words = f"{words[: letters - 1]}…{words[-letters:]}"
    return f"{words[:letters]}\n{words[letters:]}", small


def shortened(words: str, most: int) -> str:
    """Return a name with its middle left out, if it has more letters than there is room for."""
    return words if len(words) <= most else f"{words[: (most - 1) // 2]}…{words[-(most // 2) :]}"


def small_letters(ax: Axes) -> float:
    """Return the size of letters for Axes of any size, in points: 7 on large ones, less on those of a few inches."""
    inches = min(ax.get_window_extent().size) / figure_of(ax).dpi
    return float(np.clip(3.0 * inches, 4.5, 7.0))


def label_given(ax: Axes, x_label: str, y_label: str, entries: Sequence[tuple[Any, str]]) -> None:
    """Label Axes that came from outside: nothing beside them, where there may be no room."""
    letters = small_letters(ax)
    ax.set_xlabel(x_label, fontsize=letters + 2)
    ax.set_ylabel(y_label, fontsize=letters + 2)
    ax.tick_params(labelsize=letters + 1)
    key(ax, entries, loc="best", fontsize=letters, frameon=True, framealpha=0.75, edgecolor="none", borderpad=0.2)


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
        look: dict[str, Any] = {"color": pale(ax), "alpha": 0.35, "linewidth": 0, "zorder": 0}
        ax.axvspan(sides[first], sides[last + 1], label="_" + FAR_WORDS, **look)


def hollow(ax: Axes, x: np.ndarray, y: np.ndarray, far: np.ndarray, colour: Any, zorder: float = 3.0) -> None:
    """A line is a tube where it is not supported; a single point gets a stretch around it."""
    for first, last in runs(far):
        low, high = max(first - 1, 0), min(last + 1, len(x) - 1)
        xs = np.concatenate([[(x[low] + x[first]) / 2], x[first : last + 1], [(x[high] + x[last]) / 2]])
        ys = np.concatenate([[(y[low] + y[first]) / 2], y[first : last + 1], [(y[high] + y[last]) / 2]])
        for shade, width in ((colour, 3.2), (paper(ax), 1.5)):
            ax.plot(xs, ys, color=shade, linewidth=width, zorder=zorder, solid_capstyle="butt", label="_" + FAR_WORDS)
