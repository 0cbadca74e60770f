"""Genes in the order in which they change."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import GeneTable, NamesLike
from scdecode.errors import InputError, check_integer, listing, unknown_name

_WHEN = {"up": "fastest_time", "down": "fastest_time", "transient": "peak_time", "valley": "trough_time"}
ORDER = ("down", "transient", "valley", "up")
"""Of the groups: what goes, what passes, what comes."""


@checked
def cascade(
    table: GeneTable,
    *,
    shapes: NamesLike | str = ORDER,
    n_top: int | None = None,
    lineage: str | None = None,
    by_shape: bool = True,
) -> pd.DataFrame:
    """Put the genes that change into the order in which they do.

    Parameters
    ----------
    table
        What :func:`gene_dynamics` returned, or some of its rows.
    shapes
        The shapes to keep, in the order of their groups; by default all but ``"flat"``: ``"down"``, ``"transient"``,
        ``"valley"``, ``"up"``.
    n_top
        Of the genes that are left, how many to keep, those of the best ranks; by default all.
    lineage
        The lineage to order, where the table has several.
    by_shape
        Whether each shape is a group of its own; otherwise all genes are ordered by time alone.

    Returns
    -------
    pandas.DataFrame
        The rows of the table, in order, with ``time``, when the gene changes (that of the fastest change for ``"up"``
        and ``"down"``, of the peak for ``"transient"``, of the trough for ``"valley"``), and ``order``, from 0.

    Raises
    ------
    InputError
        For what is no such table, unknown shapes, or several lineages of which none is named.
    """
    needed = ["gene", "shape", "rank", *sorted(set(_WHEN.values()))]
    if not set(needed) <= set(table.columns):
        raise InputError(
            f"table: got the columns {listing(table.columns)}, expected the table of gene_dynamics, with {needed}"
        )
    shapes = [shapes] if isinstance(shapes, str) else list(shapes)
    for shape in shapes:
        if shape not in _WHEN:
            raise InputError(unknown_name("shapes", shape, _WHEN, "shapes of genes that change"))
    table = _of_lineage(table, lineage)
    kept = table[table["shape"].isin(shapes)]
    if n_top is not None:
        check_integer("n_top", n_top, minimum=1)
        kept = kept.nsmallest(n_top, "rank")
    shape_g = kept["shape"].to_numpy().astype(str)
    time_g = np.full(len(kept), np.nan)
    for shape in shapes:
        at = shape_g == shape
        time_g[at] = kept[_WHEN[shape]].to_numpy()[at]
    keys = [kept["rank"].to_numpy(), time_g]
    if by_shape:
        keys.append(np.array([shapes.index(shape) for shape in shape_g], dtype=np.int64))
    ordered = kept.assign(time=time_g).iloc[np.lexsort(keys)].reset_index(drop=True)
    return ordered.assign(order=np.arange(len(ordered)))


def _of_lineage(table: pd.DataFrame, lineage: str | None) -> pd.DataFrame:
    if "lineage" not in table:
        if lineage is not None:
            raise InputError(f"lineage: {lineage!r} came, but the table has one path alone; leave it out")
        return table
    names = list(dict.fromkeys(table["lineage"]))
    if lineage is None and len(names) == 1:
        return table
    if lineage is None:
        raise InputError(f"lineage: nothing came, and the table has {listing(names)}; name one of them")
    if lineage not in names:
        raise InputError(unknown_name("lineage", lineage, names, "lineages of the table"))
    return table[table["lineage"] == lineage]
