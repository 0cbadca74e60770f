"""The same path in several conditions, and how far they differ: what a cell of this state would express elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.special import ndtr

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import LevelsLike
from scdecode._utils.notebook import Shown
from scdecode._utils.obs_columns import is_name
from scdecode._utils.progress import tracked
from scdecode.decoding import QUANTILES, draw_tiles, noise_of_counting, summary
from scdecode.devices import choose_device
from scdecode.errors import ConditionWarning, InputError, SupportWarning, listing, unknown_name, warn
from scdecode.expression import Asked, joined, prepare
from scdecode.model import SCVI
from scdecode.path_inputs import CONDITIONS
from scdecode.points import PointsLike, conditions_of
from scdecode.provenance import without_arguments
from scdecode.pseudocounts import PSEUDOCOUNT, pseudocounts

SHRINKAGE = (
    "Decoded effects are smaller than counted ones: on CD14+ monocytes with and without interferon (Kang 2018), "
    "decoded log2 fold changes correlate with counted ones with r = 0.96 to 0.97, at a slope of 0.73 to 0.79 "
    "(three seeds)."
)
"""What is known of the size of decoded effects, as ``benchmarks/effects.py --seeds 3`` measures it.

It stands in ``Counterfactual.table.attrs`` and in the caption of its pictures.
"""
_KEPT = 2**25
"""Fold changes of draws that are kept for the table, over all conditions and genes: 128 MiB."""
_FEWEST_POINTS = 8
"""Points of a path whose draws are kept, at least, however many genes there are."""


@dataclass(frozen=True, eq=False)
class Counterfactual(Shown):
    """One path in several conditions; made by :func:`counterfactual`.

    Decoded effects are smaller than counted ones (``table.attrs["shrinkage"]`` has the measurement): trust their order
    and their sign rather than their size.
    """

    expression: AnnData
    """(conditions x points) x genes, as :meth:`scdecode.SCVI.decode` gives them, with ``obs["condition"]``."""
    difference: AnnData
    """The conditions but the baseline, less the baseline: ``X`` the difference of the means, in the unit of the
    expression, layers ``std``, ``q05`` and ``q95`` over draws of cells; ``log2_fold_change`` with its own
    ``log2_fold_change_q05`` and ``log2_fold_change_q95``. Without a spread there are no intervals."""
    baseline: str
    """What the others are compared with."""
    table: pd.DataFrame
    """A row a gene and condition (and lineage, if there are several), the surest effects first in each:

    ``gene``, ``condition``, perhaps ``lineage``
        Whose effect it is.
    ``log2_fold_change``
        Of the mean over all points: ``log2((condition + pseudocount) / (baseline + pseudocount))``.
    ``low``, ``high``
        5 and 95 % quantiles of the log2 fold changes of the draws around all points, so 90 % of the cells along the
        path have an effect between them. They contain how the effect varies along the path and between cells, and no
        uncertainty of the model, of the counts, or of donors.
    ``std``
        Standard deviation of the same draws.
    ``q_value``
        Expected share of wrong signs among this gene and all that are surer (the s-value of Stephens 2017,
        Biostatistics 18:275): the running mean over the ordered genes of ``P(sign)``, the share of draws with the other
        sign than ``log2_fold_change``, or the normal tail at their mean and standard deviation if that is larger. It
        says that (nearly) all cells respond in one direction; it is no test between replicates.
    ``baseline_expression``, ``expression``
        Mean over all points, in the unit of ``expression``.

    NaN in ``low``, ``high``, ``std`` and ``q_value`` if the points have no spread. ``attrs`` has the words:
    ``baseline``, ``interval``, ``q_value``, ``shrinkage``.
    """

    def __repr__(self) -> str:
        """One line."""
        names = list(self.expression.obs["condition"].cat.categories)
        return f"Counterfactual: {names} against {self.baseline!r}, {self.expression.n_vars:,} genes"


@checked
def counterfactual(
    model: Annotated[SCVI, "one model; of an ensemble one of its .models"],
    points: PointsLike,
    over: Annotated[str | Mapping[str, Mapping[str, Any]], "a name or a mapping of names to arguments of decode"],
    *,
    levels: LevelsLike | None = None,
    baseline: str | None = None,
    pseudocount: float = PSEUDOCOUNT,
    device: str | None = None,
    **arguments: Any,
) -> Counterfactual:
    """Decode the same path, or points, in several conditions.

    The draws around each point are the same in every condition, so an interval of the difference is that of the same
    cells seen twice, and not that of two unrelated sets. It says how the effect varies over cells; not whether the
    model has learned it right: for that see :class:`scdecode.Ensemble`.

    Parameters
    ----------
    model, points
        As for :meth:`scdecode.SCVI.decode`.
    over
        What changes: ``"batch"``, ``"labels"``, or the name of a categorical covariate, all levels of it or those
        in ``levels``; or a mapping of names to arguments of decode:
        ``{"young": {"continuous": {"age": 20}}, "old": {"continuous": {"age": 70}}}``.
    levels
        Of what changes, two or more; by default all that the model knows.
    baseline
        What the others are compared with; by default the first.
    pseudocount
        Added to both sides of a fold change, in counts per ten thousand.
    device, **arguments
        As for :meth:`scdecode.SCVI.decode`; they hold in every condition.

    Returns
    -------
    Counterfactual
        With ``expression``, ``difference`` and ``table``; pictures of it are :func:`scdecode.plot.volcano` and
        :func:`scdecode.plot.differences`.

    Raises
    ------
    InputError, PointsError, ConditionError
        For conditions that are not known, fewer than two of them, and as :meth:`scdecode.SCVI.decode`.
    """
    if not isinstance(model, SCVI):
        raise InputError(
            f"model: {type(model).__name__} came, one model was expected; of an ensemble one of its .models"
        )
    if arguments.get("quantity") == "counts":
        raise InputError("quantity: 'counts' came; the expected counts, 'rate' or 'mean', can be compared")
    asked_for = _arguments(model, over, levels, arguments)
    names = list(asked_for)
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise InputError(unknown_name("baseline", baseline, names, "conditions"))
    _warn_of_others(model, over, points, arguments)
    asked: dict[str, Asked] = {}
    for name, own in asked_for.items():
        with warnings.catch_warnings():
            if asked:  # the points are the same in every condition, and so is what there is to say of them
                warnings.simplefilter("ignore", SupportWarning)
            asked[name] = prepare(model, points, **own)
    smaller = max(1, asked[baseline].request.chunk_size // len(asked))  # all hold their draws of a tile at once
    asked = {name: replace(one, request=replace(one.request, chunk_size=smaller)) for name, one in asked.items()}
    there = choose_device(device)
    tiles = [draw_tiles(model.vae, one.points, one.conditions, one.request, there) for one in asked.values()]
    first = asked[baseline]
    added = pseudocounts(model, first.points, first.conditions, first.request.quantity, pseudocount)[:, None]
    added = added.astype(np.float32)
    spread = first.request.n_samples is not None
    values = {name: _empty(first.frame.shape, (*first.frame.layers, "X")) for name in names}
    others = [name for name in names if name != baseline]
    layers = ["X", "log2_fold_change"]
    if spread:
        layers += ["std", *QUANTILES, *(f"log2_fold_change_{q}" for q in QUANTILES)]
    apart = {name: _empty(first.frame.shape, layers) for name in others}
    kept_n = _kept_points(first, len(others))
    folds: dict[str, list[np.ndarray]] = {name: [] for name in others}
    together, n_points = zip(*tiles, strict=True), len(first.points)
    for parts in tracked(together, "comparing", unit="points", total=n_points, size=lambda parts: len(parts[0][1][0])):
        rows = parts[0][0]
        draws = dict(zip(names, (part[1] for part in parts), strict=True))
        means = {}
        for name, one in asked.items():
            tile = summary(draws[name], rows)
            if one.request.count_noise:
                tile.layers["std_counts"] = noise_of_counting(model.vae, one.points, one.conditions, one.request, tile)
            means[name] = tile.values
            values[name]["X"][rows] = tile.values
            for layer in one.frame.layers:
                values[name][layer][rows] = tile.layers[layer]
        for name in others:
            least = added if len(added) == 1 else added[rows]
            found = summary(draws[name] - draws[baseline], rows)
            fold = np.log2((draws[name] + least) / (draws[baseline] + least))
            apart[name]["X"][rows] = found.values
            apart[name]["log2_fold_change"][rows] = np.log2((means[name] + least) / (means[baseline] + least))
            if spread:
                folds[name].append(fold[:, kept_n[rows]])
                for layer, of_layer in found.layers.items():
                    apart[name][layer][rows] = of_layer
                for q, of_quantile in summary(fold, rows).layers.items():
                    if q in QUANTILES:
                        apart[name][f"log2_fold_change_{q}"][rows] = of_quantile
    noted = {"baseline": baseline, "pseudocount": pseudocount}
    return Counterfactual(
        expression=_stacked({name: (asked[name].frame, values[name]) for name in names}, {}),
        difference=_stacked({name: (asked[name].frame, apart[name]) for name in others}, noted),
        baseline=baseline,
        table=_table(first.frame, baseline, values, folds, kept_n, added),
    )


def _kept_points(asked: Asked, n_others: int) -> np.ndarray:
    """Whether the draws around a point go into the table, ``(n,)`` bool: all points, or an even choice of them."""
    n, n_genes = asked.frame.shape
    fit = _KEPT // max((asked.request.n_samples or 1) * n_genes * n_others, 1)
    lineages = _lineages(asked.frame)
    kept_n = np.zeros(n, dtype=bool)
    for rows in lineages.values():
        n_kept = min(len(rows), max(fit // len(lineages), _FEWEST_POINTS))
        kept_n[rows[np.linspace(0, len(rows) - 1, n_kept).round().astype(int)]] = True
    return kept_n


def _lineages(frame: Any) -> dict[str | None, np.ndarray]:
    """Rows of each lineage; of all under None if there is one."""
    if "lineage" not in frame.obs:
        return {None: np.arange(frame.shape[0])}
    names = frame.obs["lineage"].astype(str).to_numpy()
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def _table(
    frame: Any,
    baseline: str,
    values: Mapping[str, dict[str, np.ndarray]],
    folds: Mapping[str, list[np.ndarray]],
    kept_n: np.ndarray,
    added: np.ndarray,
) -> pd.DataFrame:
    """Return :attr:`Counterfactual.table`."""
    lineages = _lineages(frame)
    parts = []
    for name, draws in folds.items():
        draws_sng = np.concatenate(draws, axis=1) if draws else None
        for lineage, rows in lineages.items():
            before_g, after_g = (values[which]["X"][rows].mean(axis=0, dtype=np.float64) for which in (baseline, name))
            least = float(np.broadcast_to(added[:, 0], len(kept_n))[rows].mean())
            fold_g = np.log2((after_g + least) / (before_g + least))
            own = None if draws_sng is None else draws_sng[:, np.isin(np.flatnonzero(kept_n), rows)]
            part = pd.DataFrame({"gene": np.asarray(frame.var.index, dtype=object), "condition": name})
            if lineage is not None:
                part["lineage"] = lineage
            part = part.assign(
                log2_fold_change=fold_g, **_over_cells(fold_g, own), baseline_expression=before_g, expression=after_g
            )
            order = np.lexsort((-np.abs(fold_g), part["q_value"]))  # NaN last, and all of them equal
            parts.append(part.iloc[order])
    table = pd.concat(parts, ignore_index=True)
    table["condition"] = pd.Categorical(table["condition"], categories=list(folds))
    if "lineage" in table:
        table["lineage"] = pd.Categorical(table["lineage"], categories=list(lineages))
    table.attrs = {
        "baseline": baseline,
        "interval": "low to high: 5 to 95 % of the draws of cells around all points",
        "q_value": "expected share of wrong signs among this gene and all surer ones, over draws of cells; "
        "no test between replicates",
        "shrinkage": SHRINKAGE,
    }
    return table


def _over_cells(fold_g: np.ndarray, draws_sng: np.ndarray | None) -> dict[str, np.ndarray]:
    """Interval, deviation and q-value of fold changes, from those of their draws, ``(draws, points, genes)``."""
    if draws_sng is None:
        return {name: np.full(len(fold_g), np.nan) for name in ("low", "high", "std", "q_value")}
    draws_mg = draws_sng.reshape(-1, draws_sng.shape[-1])
    low_g, high_g = np.quantile(draws_mg, (0.05, 0.95), axis=0)
    mean_g, std_g = draws_mg.mean(axis=0, dtype=np.float64), draws_mg.std(axis=0, dtype=np.float64)
    sign_g = np.sign(fold_g)
    share_g = (np.sign(draws_mg) != sign_g.astype(np.float32)).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail_g = ndtr(-sign_g * mean_g / std_g)
    # without scatter the normal tail is undefined and the share decides; without an effect no sign is right
    wrong_g = np.where(sign_g == 0, 1.0, np.fmax(share_g, tail_g))
    order = np.argsort(wrong_g, kind="stable")
    q_g = np.empty(len(wrong_g))
    q_g[order] = np.cumsum(wrong_g[order]) / np.arange(1, len(wrong_g) + 1)
    return {"low": low_g, "high": high_g, "std": std_g, "q_value": q_g}


def _arguments(
    model: SCVI, over: Any, levels: Sequence[str] | None, shared: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The arguments of decode in each condition."""
    if isinstance(over, Mapping):
        if levels is not None:
            raise InputError("levels: they came with a mapping of conditions, which names its own; leave one out")
        for name, own in over.items():
            if not isinstance(own, Mapping):
                raise InputError(f"over[{name!r}]: {own!r} came, a mapping such as {{'batch': ...}} was expected")
            for key in own:
                if key not in CONDITIONS:
                    raise InputError(unknown_name(f"over[{name!r}]", key, CONDITIONS, "conditions"))
        found = {str(name): _merged(shared, own) for name, own in over.items()}
        if len(found) < len(over):
            raise InputError(f"over: got {listing(over)}, expected names that differ as text")
    else:
        if not isinstance(over, str) and not is_name(over):
            raise InputError(f"over: {over!r} came, a name or a mapping of names to conditions was expected")
        over = str(over)
        offered = {"batch": model.schema.batch, "labels": model.schema.labels}
        offered |= {category.key: category for category in model.schema.categorical}
        for name in ("batch", "labels"):  # by the name of its column, too
            category = offered[name]
            if category is not None and over == category.key and over not in ("batch", "labels"):
                over = name
        known = {name: category for name, category in offered.items() if category is not None}
        if over not in known:
            raise InputError(unknown_name("over", over, known, "conditions of the model"))
        covariates = shared.get("categorical")
        if shared.get(over) is not None or (covariates is not None and over in covariates):
            raise InputError(f"over: {over!r} came with a value of its own; say which of its levels by levels=[...]")
        category = known[over]
        assert category is not None, "the known ones are there"
        codes = np.arange(len(category.names))
        if levels is not None:
            place = over if over in ("batch", "labels") else f"categorical[{over!r}]"
            codes = category.encode(list(levels), place, f"training levels of {category.key!r}")
            if len(np.unique(codes)) < len(codes):
                raise InputError(f"levels: got {listing(levels)}, expected each level once; leave out the second")
        names = [category.names[code] for code in codes]
        own = {name: {over: name} if over in ("batch", "labels") else {"categorical": {over: name}} for name in names}
        found = {str(name): _merged(shared, own[name]) for name in names}
    if len(found) < 2:
        raise InputError(f"levels: {list(found)} came, two or more conditions to compare were expected")
    return found


def _warn_of_others(model: SCVI, over: Any, points: Any, shared: Mapping[str, Any]) -> None:
    """What is left open is averaged as it occurs within each level, and its differences are counted in."""
    if not is_name(over):
        return
    over = str(over)
    conditions = {"batch": model.schema.batch} | {category.key: category for category in model.schema.categorical}
    own = conditions_of(points)
    batch = own.get("batch") if shared.get("batch") is None else shared["batch"]
    given = joined({"batch": batch}, joined(own.get("categorical"), shared.get("categorical")))
    left = [
        name
        for name, category in conditions.items()
        if category is not None and len(category.names) > 1 and given.get(name) is None
        if name != over and category.key != over
    ]
    if left and model.schema.conditions is not None:
        warn(
            f"over: {listing(left)} were not given, and are averaged as they occur within each level of {over!r}, so "
            "that a difference between levels holds theirs too; pass them to compare like with like",
            ConditionWarning,
        )


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**shared, **own}
    for name in ("categorical", "continuous"):
        if name in shared and name in own:
            merged[name] = joined(shared[name], own[name])
    return merged


def _empty(shape: tuple[int, int], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: np.empty(shape, dtype=np.float32) for name in names}


def _stacked(parts: Mapping[str, tuple[Any, dict[str, np.ndarray]]], noted: Mapping[str, Any]) -> AnnData:
    """The conditions one below the other."""
    frames = [frame for frame, _ in parts.values()]
    tables = [
        frame.obs.assign(condition=name).set_axis([f"{name}-{row}" for row in frame.obs.index], axis=0)
        for name, (frame, _) in parts.items()
    ]
    obs = pd.concat(tables)
    obs["condition"] = pd.Categorical(obs["condition"], categories=list(parts))
    arrays = {key: np.concatenate([own[key] for _, own in parts.values()]) for key in next(iter(parts.values()))[1]}
    # the arguments are those of one condition, and decode_arguments could not make all of this again from them
    told = without_arguments(frames[0].uns["scdecode"])
    made = {key: value for key, value in told.items() if key not in ("conditions", "shape")}
    return AnnData(
        X=arrays.pop("X"),
        obs=obs,
        var=frames[0].var,
        obsm={key: np.concatenate([frame.obsm[key] for frame in frames]) for key in frames[0].obsm},
        layers=arrays,
        uns={"scdecode": {**made, **noted}},
    )
