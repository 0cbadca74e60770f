"""What a result says of itself: names and conditions of its rows, and the arguments that make it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode.conditions import Conditions, slots_in_words
from scdecode.decoding import Request, layer_names
from scdecode.errors import InputError, ScdecodeWarning, listing, warn
from scdecode.points import KnownPath, Points
from scdecode.schema import Schema
from scdecode.support import FAR

_DEVIATIONS, _COVARIANCES = "latent_spread", "latent_covariance"
"""Entries of obsm: standard deviations, ``(n, k)``, and covariances, ``(n, k * k)``; in results of before, both have
the name of the first, and covariances are ``(n, k, k)``."""

_WORDS = {
    "rate": "expected counts, before zero inflation",
    "mean": "expected counts, after zero inflation",
    "counts": "counts drawn from the model",
}


def unit_of(quantity: str, schema: Schema) -> str:
    """The unit of a quantity, in words; the genes are those of the model, and so is the library."""
    if schema.columns.size_factor_key is not None:
        if quantity == "scale":
            return "expression of a cell of size factor one"
        return f"{_WORDS[quantity]}, in a cell of the size factor in library_size"
    if quantity == "scale":
        return "fraction of the cell's RNA of the model's genes"
    return f"{_WORDS[quantity]}, in a cell of library_size counts"


@cache
def _version() -> str:
    return version("scdecode")  # read from a file: most of a millisecond


@lru_cache(maxsize=4)
def _gene_index(names: tuple[str, ...]) -> pd.Index:
    """The names as an index that is made, and looked through for doubles, once; a view of it has a name of its own."""
    return pd.Index(names)


def digest_of(names: Iterable[str]) -> str:
    """A short digest of a set of names, whatever their order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _digest(names: tuple[str, ...]) -> str:
    return digest_of(names)


def _order_digest(names: Iterable[str]) -> str:
    """Return a short digest of names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _order(names: tuple[str, ...]) -> str:
    return _order_digest(names)


def _row_digests(obs: pd.DataFrame, obsm: Mapping[str, np.ndarray], columns: Iterable[str]) -> np.ndarray:
    """Return a digest of each row, ``(n,)`` uint64: of its point, its spread and its conditions."""
    parts = [pd.util.hash_array(column) for column in np.asarray(obsm["latent"]).T]
    if "latent_spread" in obsm:
        spread = np.asarray(obsm["latent_spread"])
        parts += [pd.util.hash_array(column) for column in spread.reshape(len(spread), -1).T]
    for name in columns:
        values = obs[name]
        if isinstance(values.dtype, pd.CategoricalDtype):  # a file may give the names another type of text
            values = values.cat.rename_categories(values.cat.categories.astype(str).astype(object))
        parts.append(pd.util.hash_pandas_object(values, index=False, categorize=False).to_numpy())
    total_n = np.zeros(len(obs), dtype=np.uint64)
    for part in parts:
        total_n = total_n * np.uint64(1_000_003) + part  # modulo 2**64
    return total_n


@dataclass(frozen=True, eq=False)
class Frame:
    """Everything of a result but its expression."""

    obs: pd.DataFrame
    var: pd.DataFrame
    obsm: dict[str, np.ndarray]
    uns: dict[str, Any]
    counts: bool
    """Whether the expression is drawn counts, kept as CSR of int32; otherwise it is dense float32."""
    layers: tuple[str, ...]
    """The names of the layers beside the expression: standard deviations and quantiles, where draws were asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and genes."""
        return len(self.obs), len(self.var)


_FOR_ARGUMENTS = ("arguments", "row_columns", "row_digests", "gene_order")


def without_arguments(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result says of itself but for what :func:`decode_arguments` needs."""
    return {key: value for key, value in made.items() if key not in _FOR_ARGUMENTS}


def make_frame(
    schema: Schema,
    points: Points,
    conditions: Conditions,
    request: Request,
    support_n: np.ndarray | None,
    gene_likelihood: str | None = None,
) -> Frame:
    """What the result of a request says of itself.

    Parameters
    ----------
    schema
        Of the model.
    points, conditions, request
        What was asked for.
    support_n
        Percentile of each point; None where there is nothing to measure against.
    gene_likelihood
        Of the model, where it is known.
    """
    columns: dict[str, Any] = {str(name): values.array for name, values in conditions.obs.items()}
    if points.lineage is not None:
        columns["lineage"] = pd.Categorical(points.lineage, categories=list(dict.fromkeys(points.lineage)))
    if points.time is not None:
        columns["time"] = points.time
    if support_n is None:
        columns["support"] = np.full(len(points), np.nan, dtype=np.float32)
        columns["supported"] = pd.array([pd.NA] * len(points), dtype="boolean")
    else:
        columns["support"] = support_n
        columns["supported"] = support_n <= FAR
    if len(points.shape) > 1 and points.lineage is None:
        for axis, index in enumerate(np.unravel_index(np.arange(len(points)), points.shape)):
            columns[f"axis_{axis}"] = index
    # a file holds no index of the name of a column
    names_of_rows = points.names.rename(None) if points.names.name in columns else points.names
    obs = pd.DataFrame(columns, index=names_of_rows)  # at once: a column added later costs as much as all of them
    obsm = {"latent": points.z_nk.numpy()}
    if points.spread is not None:
        # of two axes under a name of its own: anndata joins results by the columns of what has the same name
        flat = points.spread.reshape(len(points.spread), -1)
        obsm[_DEVIATIONS if points.spread.ndim == 2 else _COVARIANCES] = flat
    is_counts = request.quantity == "counts"
    told_by = [name for name in columns if name not in ("support", "supported")]
    row_digests = _row_digests(obs, obsm, told_by)
    if is_counts and request.n_samples is not None and request.n_samples > 1:
        obs, obsm = _repeat(obs, obsm, request.n_samples)
    names = schema.genes if request.genes is None else tuple(schema.genes[i] for i in request.genes)
    arguments = {
        "quantity": request.quantity,
        "n_samples": request.n_samples,
        "seed": request.seed,
        "chunk_size": request.chunk_size,
        "count_noise": request.count_noise,
        "genes": None if request.genes is None else list(names),
        **conditions.arguments,
    }
    uns = {
        "version": _version(),
        "quantity": request.quantity,
        "unit": unit_of(request.quantity, schema),
        "library": "size factor" if schema.columns.size_factor_key is not None else "counts",
        # of all genes of the model, be it that a part of them is decoded, or kept: they make up a cell's library
        "n_model_genes": schema.n_genes,
        "model_genes": _digest(schema.genes),
        "shape": np.array(points.shape, dtype=np.int64),
        "conditions": json.dumps(slots_in_words(schema, conditions)),
        "averaged_by": "levels, equally" if schema.conditions is None else "training cells",
        "support": "unknown: the model has no reference cells" if support_n is None else "percent of reference cells",
        "gene_order": _order(names),
        "row_columns": json.dumps(told_by),
        "row_digests": row_digests,
        "conditions_covered": float(conditions.covered_g.min()),
        "arguments": json.dumps(arguments),
    }
    if gene_likelihood is not None:
        uns["gene_likelihood"] = gene_likelihood
    if points.time_name is not None:
        uns["time_name"] = points.time_name
    return Frame(
        obs=obs,
        var=pd.DataFrame(index=_gene_index(names).view()),
        obsm=obsm,
        uns={"scdecode": uns},
        counts=is_counts,
        layers=layer_names(request),
    )


def _repeat(obs: pd.DataFrame, obsm: dict[str, np.ndarray], times: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Each row ``times`` times, side by side, with the numbers of the point and of the draw."""
    row_n = np.repeat(np.arange(len(obs)), times)
    draw_n = np.tile(np.arange(times), len(obs))
    repeated = obs.iloc[row_n].assign(point=row_n, draw=draw_n)
    repeated.index = pd.Index([f"{name}-{draw}" for name, draw in zip(repeated.index, draw_n, strict=True)])
    return repeated, {key: value[row_n] for key, value in obsm.items()}


@checked
def decode_arguments(adata: AnnData) -> dict[str, Any]:
    """The arguments of the :meth:`SCVI.decode` that made a result: ``model.decode(**arguments)`` makes it again.

    Parameters
    ----------
    adata
        What :meth:`SCVI.decode` returned, or wrote; or a part of it, ``expression[points, genes]``, in any order. The
        arguments are then those of these points and genes. Points of several axes, or of several paths, are on one axis
        if some of them were left out.

    Returns
    -------
    dict
        Arguments by name, ``points`` among them. Names of points are not kept.

    Raises
    ------
    InputError
        If it was not made by :meth:`SCVI.decode`, has rows of several results, or has a part of the draws of
        ``quantity="counts"``, which cannot be drawn again by themselves.

    Examples
    --------
    >>> import scdecode as sd
    >>> adata = sd.datasets.simulate_branching(300, 50)
    >>> sd.SCVI.setup_anndata(adata, batch_key="batch")
    >>> model = sd.SCVI(adata, n_latent=4, gene_likelihood="nb")
    >>> model.train(max_epochs=2)
    >>> expression = model.decode(model.get_latent_representation(), batch="batch_1")
    >>> some = expression[:10, ["gene_03", "gene_01"]]
    >>> again = model.decode(**sd.decode_arguments(some))
    >>> list(again.var_names)
    ['gene_03', 'gene_01']
    """
    if "scdecode" not in adata.uns or "latent" not in adata.obsm:
        raise InputError(
            "adata: it has no uns['scdecode'] and obsm['latent']; a result of model.decode(...) was expected "
            "(anndata.concat keeps them with uns_merge='same')"
        )
    made = adata.uns["scdecode"]
    if "arguments" not in made:
        raise InputError(
            "adata: it has no arguments of one model.decode(...), as a result of sd.counterfactual, of which each "
            "condition has its own, or of sd.refit; the result of model.decode was expected"
        )
    if "shape" not in made:  # anndata.concat with uns_merge="same" keeps what the results have in common
        raise InputError("adata: it has rows of several results; one result of model.decode was expected")
    arguments = json.loads(made["arguments"])
    n_points = int(np.prod(made["shape"], dtype=int))
    first = adata.obs["draw"].to_numpy() == 0 if "draw" in adata.obs else np.ones(adata.n_obs, dtype=bool)
    obs, arrays = adata.obs[first], {key: np.asarray(adata.obsm[key])[first] for key in adata.obsm}
    whole = _is_whole(made, obs, arrays, n_points)
    if arguments["quantity"] == "counts":
        _check_draws(adata, arguments, n_points, whole=whole)
    arguments["genes"] = _genes(made, arguments, list(adata.var_names.astype(str)))
    arguments = {key: _restore(value, obs) for key, value in arguments.items()}
    shape = tuple(int(n) for n in made["shape"]) if whole else (len(obs),)
    points = arrays["latent"].reshape(*shape, -1)
    k = arrays["latent"].shape[1]
    if _COVARIANCES in arrays:
        arguments["spread"] = arrays[_COVARIANCES].reshape(*shape, k, k)
    elif _DEVIATIONS in arrays:
        arguments["spread"] = arrays[_DEVIATIONS].reshape(*shape, *arrays[_DEVIATIONS].shape[1:])
    if "time" not in obs:
        return {"points": points, **arguments}
    lineages = tuple(dict.fromkeys(obs["lineage"].astype(str))) if whole and "lineage" in obs else None
    time_n = obs["time"].to_numpy().reshape(shape)
    return {"points": KnownPath(points, None, time_n, made.get("time_name"), lineages), **arguments}


def _is_whole(made: Mapping[str, Any], obs: pd.DataFrame, arrays: Mapping[str, np.ndarray], n_points: int) -> bool:
    """Return whether the points are all that were decoded, in their order, and not some of them.

    Raises
    ------
    InputError
        If they are not those of one decoding.
    """
    if not {"row_columns", "row_digests"} <= set(made):  # an older result, or several that anndata.concat put together
        if len(obs) != n_points:
            raise InputError(
                f"adata: it has {len(obs):,} of the {n_points:,} points that were decoded; the whole result was "
                "expected"
            )
        return True
    columns, known_n = json.loads(made["row_columns"]), np.asarray(made["row_digests"])
    strange = [name for name in columns if name not in obs]
    if strange:
        raise InputError(
            f"adata.obs: {listing(strange)} are missing; expected the columns that model.decode(...) wrote"
        )
    own_n = _row_digests(obs, arrays, columns)
    if np.array_equal(own_n, known_n):
        return True
    others = int((~np.isin(own_n, known_n)).sum())
    if others or not len(obs):
        raise InputError(
            f"adata: {others:,} of its {len(obs):,} rows are not of the result that uns['scdecode'] tells of, or were "
            "changed; expected rows of one result of model.decode(...)"
        )
    return False


def _check_draws(adata: AnnData, arguments: Mapping[str, Any], n_points: int, *, whole: bool) -> None:
    """Raise :class:`InputError` unless all draws of counts are there; warn if genes were left out.

    What is drawn for a point depends on its place among the others, and on the genes beside it.
    """
    n_samples = int(arguments["n_samples"] or 1)
    draw_n = adata.obs["draw"].to_numpy() if "draw" in adata.obs else np.zeros(adata.n_obs, dtype=int)
    if not whole or not np.array_equal(draw_n, np.tile(np.arange(n_samples), n_points)):
        raise InputError(
            f"adata: got {adata.n_obs:,} rows of {n_points * n_samples:,} that were drawn, or in another order, and "
            "some of the draws alone cannot be drawn again; expected the whole result: call decode_arguments before "
            "choosing rows"
        )


def _genes(made: Mapping[str, Any], arguments: Mapping[str, Any], names: list[str]) -> list[str] | None:
    """Return the genes that a result has now, None for all of the model in its order."""
    if made.get("gene_order") == _order_digest(names) or names == arguments["genes"]:
        genes: list[str] | None = arguments["genes"]
        return genes
    if arguments["quantity"] == "counts" and "gene_order" in made:
        warn(
            f"adata: counts of {len(names):,} genes chosen after they were drawn are drawn anew from the same "
            "distribution, and are other draws; call decode_arguments before choosing genes for the same draws",
            ScdecodeWarning,
        )
    return names


def _restore(value: Any, obs: pd.DataFrame) -> Any:
    if not isinstance(value, dict):
        return value
    if set(value) == {"per point"}:
        return np.asarray(obs[value["per point"]])
    return {key: _restore(v, obs) for key, v in value.items()}
