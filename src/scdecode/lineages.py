"""Pseudotimes and lineages that other tools left in an AnnData, read by name.

| source | pseudotime | lineages |
| --- | --- | --- |
| ``"palantir"`` | ``obs["palantir_pseudotime"]`` | ``obsm["palantir_fate_probabilities"]`` |
| ``"cellrank"`` | one of the others here, as CellRank makes none | ``obsm["lineages_fwd"]`` (1.5 and later), ``obsm["to_terminal_states"]`` (before) |
| ``"slingshot"`` | ``obs["slingshot_pseudotime_1"]``, ``obs["slingPseudotime_1"]``, ... | ``obs["slingshot_weight_1"]``, ..., or where the pseudotime is not NaN |
| ``"dpt"`` | ``obs["dpt_pseudotime"]``; infinite for cells that it did not reach | one, of all cells |
| ``"paga"`` | ``obs["dpt_pseudotime"]``, or a named one | the groups on the way from one group to another |
| ``"scvelo"`` | ``obs["latent_time"]``, else ``obs["velocity_pseudotime"]`` | one, of all cells |
"""  # noqa: E501 - a table

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.hints import attributes_of
from scdecode._utils.checks.kinds import Values
from scdecode._utils.notebook import Shown
from scdecode.errors import InputError, PointsError, listing, unknown_name
from scdecode.path_inputs import by_lineage, cell_numbers, check_all_names, column_names, lineage_names, named_alike
from scdecode.points import as_numpy

__all__ = [
    "ALL",
    "Lineage",
    "read_lineages",
]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)


ALL = "all"
"""The name of the lineage where a tool has only one."""

_PALANTIR_TIME, _PALANTIR_FATES = "palantir_pseudotime", "palantir_fate_probabilities"
_DPT_TIME, _SCVELO_TIMES = "dpt_pseudotime", ("latent_time", "velocity_pseudotime")
_TIMES = (*_SCVELO_TIMES, _PALANTIR_TIME, _DPT_TIME, "ct_pseudotime")
# CellRank's fate probabilities, with the column of obs whose categories are their names (versions 2, 1.5, before)
_CELLRANK_FATES = {
    "lineages_fwd": ("term_states_fwd", "terminal_states"),
    "to_terminal_states": ("terminal_states",),
}
_SLINGSHOT = re.compile(r"(slingshot_pseudotime|slingPseudotime|slingshot\.pseudotime)[_.]?(\w+)")
_SLINGSHOT_WEIGHTS = ("slingshot_weight", "slingCurveWeights", "slingshot.weight")
_UNCONNECTED = 1e-12  # a connectivity below that connects nothing


@dataclass(frozen=True, eq=False, repr=False)
class Lineage(Shown):
    """How far each cell is along a lineage, and how much it belongs to it."""

    name: str
    pseudotime_n: np.ndarray  # (n,) float64, NaN for cells outside of the lineage
    weight_n: np.ndarray  # (n,) float64, from 0; 0 for cells outside of the lineage
    time_name: str  # where the pseudotime stands: a column of obs
    source: str  # what left it: "palantir", ..., or "columns" for columns named by the user


@checked
def read_lineages(
    adata: AnnData,
    source: Any = "auto",
    *,
    pseudotime: Values = None,
    weights: Values = None,
    lineages: Values = None,
) -> dict[str, Lineage]:
    """Read what a trajectory tool left in an AnnData.

    Parameters
    ----------
    adata
        The cells.
    source
        ``"palantir"``, ``"cellrank"``, ``"slingshot"``, ``"dpt"``, ``"paga"`` or ``"scvelo"``: the module's text says
        what each leaves where. ``"auto"``: the one that is there. Fate probabilities of CellRank count before
        pseudotimes without lineages, with which they are combined; PAGA is read where ``lineages`` names pairs. Or
        the fitted object of a tool that leaves nothing in the AnnData: pyslingshot's ``Slingshot``, Palantir's
        ``PResults``.
    pseudotime
        A numeric column of ``obs`` to order cells by: the user's own, or one of several for CellRank and PAGA. Or the
        numbers themselves, ``(n,)``, or ``(n, lineages)`` if each lineage has its own. Cells whose pseudotime is NaN
        or infinite are outside of the lineage.
    weights
        Lineages for it: a numeric or boolean column of ``obs``, one lineage of that name; a categorical one, a lineage
        for each category; or an entry of ``obsm``, a lineage for each of its columns. Or the values themselves, such
        as a DataFrame or CellRank's ``Lineage``. Whole numbers above one are refused, as they may be clusters.
    lineages
        The names of those wanted, in that order; by default all. For PAGA: a pair ``(first group, last group)``,
        several, or a mapping from names to pairs or to lists of groups.

    Returns
    -------
    dict
        Lineages by name.

    Raises
    ------
    InputError
        Where nothing is found, several tools' results are, or names or values cannot be used; it lists what is there.
    """
    if not isinstance(adata, AnnData):
        raise InputError(f"adata: {type(adata).__name__} came, an AnnData was expected")
    groups = _has_groups(lineages)
    if not isinstance(source, str):
        found = _fitted(adata, source, pseudotime, weights)
    else:
        source = "paga" if source == "auto" and groups and weights is None else source
        found = _named(adata, source, pseudotime, weights, lineages)
    if groups and source != "paga":
        raise InputError("lineages: got groups, which are for PAGA, names of lineages were expected")
    if lineages is not None and source != "paga":
        wanted = [lineages] if isinstance(lineages, str) else [str(name) for name in lineages]
        for name in wanted:
            if name not in found:
                raise InputError(unknown_name("lineages", name, found, "lineages"))
        found = {name: found[name] for name in wanted}
    if not found:
        raise InputError("lineages: got an empty list, names of lineages were expected; leave it out for all of them")
    return {name: _checked(lineage, found) for name, lineage in found.items()}


def read_columns(adata: AnnData, pseudotime: Any, weights: Any = None) -> dict[str, Lineage]:
    """Lineages of a pseudotime and of weights, each the name of a column or the values themselves.

    The one of all cells is called :data:`ALL`.

    Parameters
    ----------
    adata, pseudotime, weights
        As for :func:`read_lineages`, but for ``pseudotime``, which is needed.

    Raises
    ------
    InputError, PointsError, ConditionError
        For columns that are not there, what are no numbers, other cells.
    """
    if pseudotime is None:
        raise InputError(f"pseudotime: got None, a column of obs or numbers were expected. {_inventory(adata)}")
    found = _from_columns(adata, pseudotime, weights)
    return {name: _checked(lineage, found) for name, lineage in found.items()}


def _named(adata: AnnData, source: str, pseudotime: Any, weights: Any, lineages: Any) -> dict[str, Lineage]:
    """Lineages of the columns that the user names, or that a tool gives its own names."""
    if source != "auto" and source not in _READERS:
        raise InputError(unknown_name("source", source, ["auto", *_READERS], "sources"))
    if weights is not None or (source == "auto" and pseudotime is not None):
        if source != "auto":
            raise InputError(f"weights: they came, but source={source!r} has its own; leave one of them out")
        fates = weights is None and any(name in adata.obsm for name in _CELLRANK_FATES)
        # a pseudotime alone beside CellRank's fates says which of several orders its lineages
        return _cellrank(adata, pseudotime, None) if fates else _from_columns(adata, pseudotime, weights)
    if source == "auto":
        source = _only_source(adata)
    if pseudotime is not None and not isinstance(pseudotime, str):
        raise InputError(
            f"pseudotime: got {type(pseudotime).__name__} for source={source!r}, the name of a column of obs was "
            "expected; put the values into adata.obs"
        )
    return _READERS[source](adata, pseudotime, lineages)


def _fitted(adata: AnnData, source: Any, pseudotime: Any, weights: Any) -> dict[str, Lineage]:
    """Lineages of an object that a tool returned, told by its attributes."""
    if pseudotime is not None or weights is not None:
        raise InputError("pseudotime, weights: they came beside a fitted object, which has its own; leave them out")
    if {"curves", "cell_weights"} <= attributes_of(source):  # pyslingshot.Slingshot
        if source.curves is None or source.cell_weights is None:
            raise InputError("source: got a Slingshot object without curves; fit it first: slingshot.fit()")
        times = {f"lineage_{i + 1}": curve.pseudotimes_interp for i, curve in enumerate(source.curves)}
        return _combined(adata, times, np.asarray(source.cell_weights), "slingshot_pseudotime", "slingshot")
    if {"pseudotime", "branch_probs"} <= attributes_of(source):  # palantir.presults.PResults
        return _combined(adata, source.pseudotime, source.branch_probs, _PALANTIR_TIME, "palantir")
    raise InputError(
        f"source: got {type(source).__name__}; one of {listing(['auto', *_READERS])}, a fitted pyslingshot.Slingshot "
        "or a PResults of Palantir was expected"
    )


def _has_groups(lineages: Any) -> bool:
    """Whether lineages are named by groups of PAGA: a pair, pairs, or a mapping."""
    if isinstance(lineages, Mapping):
        return True
    if lineages is None or isinstance(lineages, str):
        return False
    if not isinstance(lineages, Iterable) or getattr(lineages, "ndim", 1) == 0:
        raise InputError(f"lineages: got {type(lineages).__name__}, names of lineages were expected")
    return any(isinstance(name, list | tuple) for name in lineages)


def _only_source(adata: AnnData) -> str:
    """The tool whose result is there."""
    there = {
        "palantir": _PALANTIR_TIME in adata.obs,
        "cellrank": any(key in adata.obsm for key in _CELLRANK_FATES),
        "slingshot": any(_SLINGSHOT.fullmatch(str(column)) for column in adata.obs),
        "dpt": _DPT_TIME in adata.obs,
        "scvelo": any(column in adata.obs for column in _SCVELO_TIMES),
    }
    found = [name for name, is_there in there.items() if is_there]
    if "cellrank" in found:  # it takes its order from one of those that have only a pseudotime
        has_fates = {"cellrank", "slingshot", *(["palantir"] if _PALANTIR_FATES in adata.obsm else [])}
        found = [name for name in found if name in has_fates]
    if len(found) == 1:
        return found[0]
    if found:
        ways = " or ".join(f"source={name!r}" for name in found)
        raise InputError(f"source: results of {listing(found)} are there; choose one: {ways}, or pseudotime= a column")
    raise InputError(
        f"source: no pseudotime of {listing(_READERS)} is there; name a column by pseudotime=, lineages by weights=. "
        f"{_inventory(adata)}"
    )


def _inventory(adata: AnnData) -> str:
    numeric = [column for column in adata.obs if pd.api.types.is_numeric_dtype(adata.obs[column])]
    return f"Numeric columns of obs: {listing(numeric, 20)}; obsm: {listing(adata.obsm, 20)}"


def _time(adata: AnnData, column: str, place: str = "pseudotime") -> np.ndarray:
    """A pseudotime of obs, NaN where there is none."""
    if column not in adata.obs:
        raise InputError(f"{unknown_name(place, column, adata.obs.columns, 'columns of obs')}. {_inventory(adata)}")
    values = adata.obs[column]
    try:
        time = cell_numbers(place, values)
    except PointsError as error:
        raise InputError(
            f"{place}: obs[{column!r}] holds {values.dtype}, numbers were expected ({error}). {_inventory(adata)}"
        ) from error
    return _finite(time)


def _finite(time_n: np.ndarray) -> np.ndarray:
    """Infinity is NaN: dpt has it for cells that it did not reach."""
    return np.where(np.isfinite(time_n), time_n, np.nan)


def _lineage(name: str, time_n: np.ndarray, weight_n: Any, time_name: str, source: str) -> Lineage:
    """A lineage as it was found; :func:`_checked` is for those that are wanted."""
    return Lineage(str(name), time_n, np.asarray(weight_n, dtype=np.float64), time_name, source)


def _checked(lineage: Lineage, found: Mapping[str, Lineage]) -> Lineage:
    """A lineage without its cells that have no pseudotime or no weight.

    Raises
    ------
    InputError
        For negative or infinite weights, and a lineage without cells.
    """
    name, weight = lineage.name, lineage.weight_n.copy()
    if (weight < 0).any() or np.isinf(weight).any():
        bad = ((weight < 0) | np.isinf(weight)).sum()
        raise InputError(f"weights: {bad:,} of {len(weight):,} of lineage {name!r} are negative or infinite")
    weight[np.isnan(weight) | np.isnan(lineage.pseudotime_n)] = 0.0
    if not weight.any():
        others = [other for other in found if other != name]
        remedy = f"lineages={listing(others)}" if others else "lineages="
        raise InputError(
            f"lineage {name!r}: no cell has both a weight above zero and a finite {lineage.time_name!r}; leave it out "
            f"by {remedy}, or take another pseudotime"
        )
    return replace(lineage, pseudotime_n=np.where(weight > 0, lineage.pseudotime_n, np.nan), weight_n=weight)


def _by_columns(adata: AnnData, table_nl: Any, names: Sequence[Any], time_name: str, source: str) -> dict[str, Lineage]:
    """A lineage for each column of weights."""
    time = _time(adata, time_name)
    columns = by_lineage("weights", pd.DataFrame(np.asarray(table_nl), columns=_distinct(names)))
    return {str(name): _lineage(str(name), time, column, time_name, source) for name, column in columns.items()}


def _distinct(names: Sequence[Any]) -> list[str]:
    """Names of columns as strings.

    Raises
    ------
    InputError
        For names that repeat.
    """
    found = pd.Index([str(name) for name in names])
    if found.has_duplicates:
        raise InputError(f"lineages: the names {listing(found)} repeat; names that differ were expected")
    return list(found)


def _table(adata: AnnData, key: str, place: str, named: Sequence[Sequence[Any]]) -> tuple[Any, list[str]]:
    """Columns of an entry of obsm, with their names: its own, the first offered that are as many, or numbers."""
    table = adata.obsm[key]
    own = column_names(table)  # of a DataFrame; of CellRank's Lineage, as long as it was not written and read
    array = as_numpy(table)
    if array.ndim != 2:
        raise InputError(f"{place}: obsm[{key!r}] has shape {array.shape}, one column a lineage was expected")
    for names in (own, *named):
        if names is not None and len(names) == array.shape[1]:
            return array, [str(name) for name in names]
    return array, [f"lineage_{number}" for number in range(1, array.shape[1] + 1)]


def _one(adata: AnnData, column: str, source: str) -> dict[str, Lineage]:
    return {ALL: _lineage(ALL, _time(adata, column), np.ones(adata.n_obs), column, source)}


def _from_columns(adata: AnnData, pseudotime: Any, weights: Any) -> dict[str, Lineage]:
    """Lineages of a pseudotime and of weights, named by the user or given."""
    if pseudotime is None:
        pseudotime = _only_time(adata)
    if isinstance(pseudotime, str) and pseudotime not in adata.obsm:
        times, time_name = pd.Series(_time(adata, pseudotime), adata.obs_names), pseudotime
    else:
        times = adata.obsm[pseudotime] if isinstance(pseudotime, str) else pseudotime
        time_name = pseudotime if isinstance(pseudotime, str) else str(getattr(times, "name", None) or "pseudotime")
    name = ALL
    if isinstance(weights, str):
        name, weights = weights, column_of(adata, weights, "weights")
    return _combined(adata, times, weights, time_name, "columns", name)


def column_of(adata: AnnData, name: str, place: str) -> Any:
    """A column of ``obs``, its strings as categories, or an entry of ``obsm`` with the names of its columns.

    Raises
    ------
    InputError
        For a name that is not there, or is in both.
    """
    if name in adata.obs and name in adata.obsm:
        raise InputError(f"{place}: {name!r} is both in obs and in obsm; rename one of them")
    if name in adata.obsm:
        table, names = _table(adata, name, place, _known_names(adata, name))
        return pd.DataFrame(table, columns=_distinct(names), index=adata.obs_names)
    if name not in adata.obs:
        known = [*adata.obs.columns, *adata.obsm]
        raise InputError(f"{unknown_name(place, name, known, 'entries of obs and obsm')}. {_inventory(adata)}")
    values = adata.obs[name]
    is_text = pd.api.types.infer_dtype(values, skipna=True) == "string"
    return values.astype("category") if is_text else values


def _combined(
    adata: AnnData, pseudotime: Any, weights: Any, time_name: str, source: str, name: str = ALL
) -> dict[str, Lineage]:
    """Lineages of numbers of each cell; ``name`` is that of the only one, where neither has one."""
    check_all_names({"pseudotime": pseudotime, "weights": weights}, adata.obs_names, "cells")
    times, shares = by_lineage("pseudotime", pseudotime), by_lineage("weights", weights)
    times, shares = named_alike(times, pseudotime, shares, weights)
    for place, found in (("pseudotime", times), ("weights", shares)):
        for column in found.values():
            if np.shape(column) != (adata.n_obs,):
                raise InputError(f"{place}: got shape {np.shape(column)}, one value a cell, ({adata.n_obs},), expected")
    made = {}
    for lineage in lineage_names(times, shares) or (None,):
        time = times[lineage if lineage in times else None]
        share = shares.get(lineage, shares.get(None))
        own = name if lineage is None else lineage
        made[own] = _lineage(own, _finite(time), np.ones(adata.n_obs) if share is None else share, time_name, source)
    return made


def _only_time(adata: AnnData, place: str = "pseudotime") -> str:
    """The one pseudotime that a tool left."""
    found = [column for column in _TIMES if column in adata.obs]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{place}: obs has {listing(found)}; name the one to order cells by: pseudotime={found[0]!r}")
    raise InputError(f"{place}: none of {listing(_TIMES)} is in obs; name a column by pseudotime=. {_inventory(adata)}")


def _known_names(adata: AnnData, key: str) -> list[Sequence[Any]]:
    """What tools call the columns of an entry of obsm, where it was written as a bare array."""
    names = [adata.uns[entry] for entry in (f"{key}_names", f"{key}_columns") if entry in adata.uns]
    for column in _CELLRANK_FATES.get(key, ()):
        if column in adata.obs and isinstance(adata.obs[column].dtype, pd.CategoricalDtype):
            names.append(adata.obs[column].cat.categories)
    return names


def _palantir(adata: AnnData, pseudotime: str | None, lineages: Any) -> dict[str, Lineage]:
    time_name = pseudotime or _PALANTIR_TIME
    if _PALANTIR_FATES not in adata.obsm:
        return _one(adata, time_name, "palantir")
    table, names = _table(adata, _PALANTIR_FATES, "source", _known_names(adata, _PALANTIR_FATES))
    return _by_columns(adata, table, names, time_name, "palantir")


def _cellrank(adata: AnnData, pseudotime: str | None, lineages: Any) -> dict[str, Lineage]:
    key = next((key for key in _CELLRANK_FATES if key in adata.obsm), None)
    if key is None:
        raise InputError(f"source: none of {listing(_CELLRANK_FATES)} of CellRank is in obsm. {_inventory(adata)}")
    table, names = _table(adata, key, "source", _known_names(adata, key))
    return _by_columns(adata, table, names, pseudotime or _only_time(adata), "cellrank")


def _slingshot(adata: AnnData, pseudotime: str | None, lineages: Any) -> dict[str, Lineage]:
    found = {}
    for column in map(str, adata.obs):
        match = _SLINGSHOT.fullmatch(column)
        if match is None or pseudotime not in (None, column):
            continue
        name, number = f"lineage_{match[2]}", match[2]
        time = _time(adata, column)
        own = [f"{start}{sign}{number}" for start in _SLINGSHOT_WEIGHTS for sign in ("_", ".", "")]
        weight = next((entry for entry in own if entry in adata.obs), None)
        weights = np.ones(adata.n_obs) if weight is None else cell_numbers("weights", adata.obs[weight])
        found[name] = _lineage(name, time, weights, column, "slingshot")
    if not found:
        raise InputError(f"source: no column of obs is named like 'slingshot_pseudotime_1'. {_inventory(adata)}")
    return found


def _dpt(adata: AnnData, pseudotime: str | None, lineages: Any) -> dict[str, Lineage]:
    return _one(adata, pseudotime or _DPT_TIME, "dpt")


def _scvelo(adata: AnnData, pseudotime: str | None, lineages: Any) -> dict[str, Lineage]:
    there = [column for column in _SCVELO_TIMES if column in adata.obs]
    return _one(adata, pseudotime or (there or _SCVELO_TIMES)[0], "scvelo")


def _paga(adata: AnnData, pseudotime: str | None, lineages: Any) -> dict[str, Lineage]:
    """Cells of the groups on the way between two groups, which is where the connectivities are largest."""
    result = adata.uns.get("paga")
    if not isinstance(result, Mapping) or not {"connectivities", "groups"} <= set(result):
        raise InputError(
            f"source: uns['paga'] with connectivities and groups is not there; run sc.tl.paga. {_inventory(adata)}"
        )
    key = str(result["groups"])
    if key not in adata.obs or not isinstance(adata.obs[key].dtype, pd.CategoricalDtype):
        raise InputError(f"source: uns['paga'] names the groups {key!r}, which are no categorical column of obs")
    groups = [str(name) for name in adata.obs[key].cat.categories]
    if result["connectivities"].shape != (len(groups), len(groups)):
        raise InputError(
            f"source: uns['paga'] connects {result['connectivities'].shape[0]} groups, obs[{key!r}] has {len(groups)}; "
            "run sc.tl.paga again"
        )
    if lineages is None or isinstance(lineages, str) or len(lineages) == 0:
        raise InputError(
            f"lineages: with PAGA, pairs (first group, last group) of obs[{key!r}] were expected, such as "
            f"[({groups[0]!r}, {groups[-1]!r})]; the groups are {listing(groups, 30)}"
        )
    if isinstance(lineages, Mapping):
        routes = {str(name): list(route) for name, route in lineages.items()}
    else:
        pairs = lineages if _has_groups(lineages) else [lineages]
        routes = {f"{pair[0]} to {pair[-1]}": list(pair) for pair in pairs}
    time_name = pseudotime or _only_time(adata)
    time, codes = _time(adata, time_name), adata.obs[key].cat.codes.to_numpy()
    found = {}
    for name, route in routes.items():
        for group in route:
            if str(group) not in groups:
                raise InputError(unknown_name("lineages", group, groups, f"groups of obs[{key!r}]"))
        stops = [groups.index(str(group)) for group in route]
        if len(stops) == 2:
            stops = _way(result["connectivities"], stops[0], stops[1], groups)
        found[name] = _lineage(name, time, np.isin(codes, stops), time_name, "paga")
    return found


def _way(connectivities: Any, first: int, last: int, groups: Sequence[str]) -> list[int]:
    """The groups from one to another, where each step costs the inverse of the connectivity."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    graph = csr_array(connectivities).tocoo()
    kept = graph.data > _UNCONNECTED
    costs = csr_array((1 / graph.data[kept], (graph.row[kept], graph.col[kept])), shape=graph.shape)
    cost, before = dijkstra(costs, directed=False, indices=first, return_predecessors=True)
    if not np.isfinite(cost[last]):
        raise InputError(f"lineages: PAGA does not connect {groups[first]!r} and {groups[last]!r}; take other ends")
    way = [last]
    while way[-1] != first:
        way.append(int(before[way[-1]]))
    return way[::-1]


_READERS: dict[str, Callable[[AnnData, str | None, Any], dict[str, Lineage]]] = {
    "palantir": _palantir,
    "cellrank": _cellrank,
    "slingshot": _slingshot,
    "dpt": _dpt,
    "paga": _paga,
    "scvelo": _scvelo,
}
