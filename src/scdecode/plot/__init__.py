"""Pictures of decoded expression, of latents and of a training; each returns the Axes it drew on, several as a list.

::

    trends          expression along a path, with its bands and the observed cells behind
    heatmap         the cascade: genes in the order in which they change
    latent          cells, and paths through them, on two axes
    change          how much each gene changes, against how sure that is
    differences     genes in which two paths, or two conditions, differ, along the path
    volcano         the effects of a counterfactual, against how sure they are
    compare_paths   ways from one place to another beside each other: straight, graph, geodesic
    history         the losses of a training
    save            to a file

Colours are Okabe and Ito's; what they tell is told by a line style, a marker or a label, too. Backgrounds may be dark
(matplotlib's styles).
"""

from scdecode.plot.axes import PICTURES, Panels, check_matplotlib, save
from scdecode.plot.changes import change
from scdecode.plot.compared import compare_paths
from scdecode.plot.difference_view import differences
from scdecode.plot.heat import heatmap
from scdecode.plot.latent_view import latent
from scdecode.plot.palettes import COLOURS
from scdecode.plot.reading import most_changing
from scdecode.plot.training import history
from scdecode.plot.trend_view import trends
from scdecode.plot.volcanoes import volcano

__all__ = [
    "COLOURS",
    "PICTURES",
    "Panels",
    "change",
    "check_matplotlib",
    "compare_paths",
    "differences",
    "heatmap",
    "history",
    "latent",
    "most_changing",
    "save",
    "trends",
    "volcano",
]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)
