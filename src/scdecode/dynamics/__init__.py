"""What genes do along a path: change, order, and where two paths part.

::

    gene_dynamics   a row a gene: start, end, peak, fastest change, shape, score
    cascade         the genes that change, in the order in which they do
    compare         two paths, or one under two conditions: where genes and paths part
    trend_table     the trends of a decoded path as numbers in rows
"""

from scdecode.dynamics.cascade import cascade
from scdecode.dynamics.comparing import Comparison, compare
from scdecode.dynamics.genes import gene_dynamics
from scdecode.dynamics.values import trend_table

__all__ = ["Comparison", "cascade", "compare", "gene_dynamics", "trend_table"]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)
