"""The losses of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scdecode._utils.checks import checked
from scdecode.errors import InputError
from scdecode.model import SCVI
from scdecode.plot.axes import one, tidy
from scdecode.plot.palettes import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@checked
def history(model: SCVI, *, ax: Axes | None = None) -> Axes:
    """The loss (negative ELBO, nats a cell) of training and validation cells by epoch.

    Raises
    ------
    InputError
        For a model that was not trained here.
    """
    table = model.history_table
    if table.empty:
        raise InputError("model: it has no history; train it first")
    ax = one(ax, (5.0, 3.2))
    from matplotlib.ticker import MaxNLocator

    for of, colour, style in (("train", COLOURS[0], "-"), ("validation", COLOURS[1], (0, (5, 1.5)))):
        column = f"elbo_{of}"
        if column in table:
            seen = table[column].dropna()
            ax.plot(seen.index + 1, seen, color=colour, linestyle=style, label=f"{of} cells")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half of an epoch
    ax.set_xlabel("epoch")
    ax.set_ylabel("negative ELBO (nats a cell)")
    tidy(ax)
    ax.legend(frameon=False)
    return ax
