"""Trends as numbers in rows: what other tools keep inside their pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import Decoded, NamesLike
from scdecode.errors import InputError, unknown_name

_LAYERS = ("std", "q05", "q95", "std_counts", "std_models")


@checked
def trend_table(expression: Decoded, genes: NamesLike | str | None = None) -> pd.DataFrame:
    """The trends of a decoded path as a long table: a row for each gene and point.

    Parameters
    ----------
    expression
        What ``model.decode(path)`` returned: ``rate``, ``scale`` or ``mean``.
    genes
        Names of genes; by default all, which at 100 points and 20,000 genes are two million rows.

    Returns
    -------
    pandas.DataFrame
        ``gene``; ``lineage``, where there are several; ``time``; ``mean``; of the error bars those that there are:
        ``std``, ``q05`` and ``q95`` of the cells around the path, ``std_counts`` of the counts of one cell,
        ``std_models`` between models; ``supported``, whether there are training cells near; ``unit``. ``attrs`` has
        ``time_name``.

    Raises
    ------
    InputError
        For what is no decoded path, drawn counts, or unknown genes.
    """
    if "scdecode" not in expression.uns or "time" not in expression.obs:
        raise InputError(
            "expression: it has no uns['scdecode'] and obs['time']; the result of model.decode(path) was expected"
        )
    made = expression.uns["scdecode"]
    if str(made["quantity"]) == "counts":
        raise InputError("expression: drawn counts came; 'rate', 'scale' or 'mean' of the path was expected")
    unit = str(made["unit"])
    if "baseline" in made:
        unit = f"difference from {made['baseline']}: {unit}"
    names = list(expression.var_names) if genes is None else [genes] if isinstance(genes, str) else list(genes)
    if not names:
        raise InputError("genes: got no names, expected at least one")
    for name in names:
        if name not in expression.var_names:
            raise InputError(unknown_name("genes", name, expression.var_names, "decoded genes"))
    part = expression[:, names]
    n, g = part.shape
    columns: dict[str, object] = {"gene": pd.Categorical.from_codes(np.repeat(np.arange(g), n), pd.Index(names))}
    if "lineage" in part.obs:
        codes = part.obs["lineage"].astype("category")
        columns["lineage"] = pd.Categorical.from_codes(np.tile(codes.cat.codes, g), codes.cat.categories)
    if "condition" in part.obs:
        codes = part.obs["condition"].astype("category")
        columns["condition"] = pd.Categorical.from_codes(np.tile(codes.cat.codes, g), codes.cat.categories)
    columns["time"] = np.tile(part.obs["time"].to_numpy(), g)
    columns["mean"] = _long(part, None)
    for layer in _LAYERS:
        if layer in part.layers:
            columns[layer] = _long(part, layer)
    if "supported" in part.obs:
        columns["supported"] = pd.concat([part.obs["supported"]] * g, ignore_index=True).array
    columns["unit"] = pd.Categorical.from_codes(np.zeros(n * g, dtype=np.int8), [unit])
    table = pd.DataFrame(columns)
    table.attrs = {"time_name": str(made.get("time_name", "time"))}
    return table


def _long(part: AnnData, layer: str | None) -> np.ndarray:
    return part.to_df(layer).to_numpy().ravel(order="F")
