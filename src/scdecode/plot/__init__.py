"""Pictures of decoded expression, of latents and of a training; each function returns the Axes it drew on.

::

    trends          expression along a path, with its bands and the observed cells behind
    heatmap         the cascade: genes in the order in which they change
    latent          cells, and paths through them, on two axes
    change          how much each gene changes, against how sure that is
    compare_paths   ways from one place to another beside each other: straight, graph, geodesic
    history         the losses of a training
    save            to a file

Colours are Okabe and Ito's; what they tell is told by a line style, a marker or a label, too.
"""

from scdecode.plot.axes import COLOURS, PICTURES, check_matplotlib, save
from scdecode.plot.changes import change
from scdecode.plot.compared import compare_paths
from scdecode.plot.heat import heatmap
from scdecode.plot.latent_view import latent
from scdecode.plot.reading import most_changing
from scdecode.plot.training import history
from scdecode.plot.trend_view import trends

__all__ = [
    "COLOURS",
    "PICTURES",
    "change",
    "check_matplotlib",
    "compare_paths",
    "heatmap",
    "history",
    "latent",
    "most_changing",
    "save",
    "trends",
]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)
