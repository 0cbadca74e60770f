"""The same path in several conditions, and how far they differ: what a cell of this state would express elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import Values
from scdecode._utils.notebook import Shown
from scdecode._utils.obs_columns import is_name
from scdecode.decoding import QUANTILES, draw_tiles, noise_of_counting, summary
from scdecode.devices import choose_device
from scdecode.errors import ConditionWarning, InputError, SupportWarning, listing, unknown_name, warn
from scdecode.expression import Asked, joined, prepare
from scdecode.model import SCVI
from scdecode.path_inputs import CONDITIONS
from scdecode.points import PointsLike, conditions_of
from scdecode.provenance import without_arguments
from scdecode.pseudocounts import PSEUDOCOUNT, pseudocounts


@dataclass(frozen=True, eq=False)
class Counterfactual(Shown):
    """One path in several conditions; made by :func:`counterfactual`."""

    expression: AnnData
    """(conditions x points) x genes, as :meth:`scdecode.SCVI.decode` gives them, with ``obs["condition"]``."""
    difference: AnnData
    """The conditions but the baseline, less the baseline: ``X`` the difference of the means, in the unit of the
    expression, layers ``std``, ``q05`` and ``q95`` over draws of cells; ``log2_fold_change`` with its own
    ``log2_fold_change_q05`` and ``log2_fold_change_q95``. Without a spread there are no intervals."""
    baseline: str
    """What the others are compared with."""

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
    levels: Values = None,
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
    there = choose_device(device or "cpu")
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
    for parts in zip(*tiles, strict=True):
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
    )


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
        if isinstance(levels, str):
            raise InputError(f"levels: {levels!r} came, a list of two or more was expected")
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
