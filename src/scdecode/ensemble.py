"""Several models of the same cells, decoded together: what they agree on, and how far they differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.levels import Category
from scdecode._utils.names import are_numbers, as_names
from scdecode._utils.notebook import Shown
from scdecode.decoding import Request, Tile, draw_tiles, noise_of_counting, summary
from scdecode.devices import choose_device
from scdecode.errors import InputError, PointsError, listing
from scdecode.expression import Asked, prepare
from scdecode.model import SCVI
from scdecode.points import PathsLike
from scdecode.provenance import Frame
from scdecode.results import OnTile, deliver

MODELS = "std_models"
"""The layer of the standard deviation between models."""


@dataclass(frozen=True, eq=False)
class Ensemble(Shown):
    """Models of the same genes, trained from other seeds or on other halves of the cells.

    One model does not know how far it is off; several that were trained alike and disagree show it. Each has a latent
    space of its own, so a path is made in each of them, from the same cells.

    Parameters
    ----------
    models
        At least two, trained, with the same genes and categories.

    Raises
    ------
    InputError
        For fewer than two models, or models of other genes.

    Examples
    --------
    >>> import scdecode as sd
    >>> adata = sd.datasets.simulate_branching(300, 50)
    >>> sd.SCVI.setup_anndata(adata, batch_key="batch")
    >>> models = [sd.SCVI(adata, n_latent=4, gene_likelihood="nb", seed=seed) for seed in (0, 1)]
    >>> for seed, model in enumerate(models):
    ...     model.train(max_epochs=2, seed=seed)
    >>> expression = sd.Ensemble(models).decode(
    ...     lambda model: sd.Trajectory.along_pseudotime(model.posterior(adata), adata.obs["pseudotime"])
    ... )
    >>> sorted(expression.layers)
    ['q05', 'q95', 'std', 'std_counts', 'std_models']
    """

    models: tuple[SCVI, ...]

    @checked
    def __init__(self, models: Annotated[Sequence[SCVI], "a list of models"]) -> None:
        models = list(models)
        if not all(isinstance(model, SCVI) for model in models):
            raise InputError(f"models: {[type(model).__name__ for model in models]} came, models were expected")
        if len(models) < 2:
            raise InputError(f"models: {len(models)} came, two or more were expected; decode one by model.decode(...)")
        for i, model in enumerate(models):
            model.check_trained()
            if model.schema.genes != models[0].schema.genes:
                apart = [gene for gene in model.schema.genes if gene not in models[0].schema.gene_codes]
                what = f"it has {listing(apart, 3)}" if apart else "they are fewer or in another order"
                raise InputError(
                    f"models: the genes of model {i} are not those of model 0 ({what}); models of the same genes were "
                    "expected"
                )
            for what, of_model, of_first in _conditions_of(model, models[0]):
                if of_model != of_first:
                    raise InputError(
                        f"models: {what} of model {i} is {of_model}, of model 0 {of_first}; models of the same "
                        "conditions were expected, set up alike"
                    )
        object.__setattr__(self, "models", tuple(models))

    def __len__(self) -> int:
        """How many models."""
        return len(self.models)

    @checked
    def paths(self, points: PathsLike) -> list[Any]:
        """The points in each model's latent space.

        Parameters
        ----------
        points
            A function of the model, which is called with each; or as many paths or points as there are models.

        Raises
        ------
        PointsError
            For one path for all, which cannot be in the latent space of each.
        """
        if callable(points):
            return [points(model) for model in self.models]
        if isinstance(points, list | tuple) and len(points) == len(self.models):
            return list(points)
        raise PointsError(
            f"points: {type(points).__name__} came; each of the {len(self.models)} models has a latent space of its "
            f"own: pass a list of {len(self.models)} paths, or a function of the model, such as "
            "lambda model: Trajectory.along_pseudotime(model.posterior(adata), adata.obs['pseudotime'])"
        )

    @checked
    def decode(
        self,
        points: PathsLike,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        device: str | None = None,
        on_tile: OnTile | None = None,
        **arguments: Any,
    ) -> AnnData:
        """Decode a path, or points, by every model.

        Parameters
        ----------
        points
            As for :meth:`paths`; as many points in each model, in the same order and of the same times.
        out, overwrite, device, on_tile, **arguments
            As for :meth:`scdecode.SCVI.decode`, but for ``quantity="counts"``.

        Returns
        -------
        AnnData
            As of :meth:`scdecode.SCVI.decode`, with the mean over the models. Layers: ``std``, how far cells scatter
            around the path (root mean square over the models); ``q05`` and ``q95``, quantiles of the draws of all
            models together; ``std_counts``, the noise of counting; ``std_models``, the standard deviation between the
            models. ``obs["support"]`` is that of the model which knows the point least; ``obsm`` has the points of
            each model, ``latent_0`` and so on.

        Raises
        ------
        InputError, PointsError, ConditionError
            As :meth:`scdecode.SCVI.decode`; also for paths of other numbers of points.
        """
        if arguments.get("quantity") == "counts":
            raise InputError("quantity: 'counts' came; draw counts from one model: ensemble.models[0].decode(...)")
        places = self.paths(points)
        asked = [prepare(model, place, **arguments) for model, place in zip(self.models, places, strict=True)]
        frame = _frame(asked)
        request = asked[0].request
        size = max(1, request.chunk_size // (len(self.models) if request.n_samples else 1))
        asked = [replace(one, request=replace(one.request, chunk_size=size)) for one in asked]
        tiles = _tiles(self.models, asked, device)
        return deliver(tiles, frame, out, on_tile, overwrite=overwrite)

    def __repr__(self) -> str:
        """One line."""
        return f"Ensemble of {len(self.models)} models, {self.models[0].schema.n_genes:,} genes"


def _conditions_of(model: SCVI, first: SCVI) -> Iterator[tuple[str, Any, Any]]:
    """What two models must agree on for the same arguments of decode to mean the same: in words, of each."""

    def levels(category: Category | None) -> Any:
        return None if category is None else (category.key, tuple(category.names))

    for what in ("batch", "labels"):
        yield what, levels(getattr(model.schema, what)), levels(getattr(first.schema, what))
    yield "categorical", [levels(c) for c in model.schema.categorical], [levels(c) for c in first.schema.categorical]
    yield "continuous", tuple(model.schema.continuous), tuple(first.schema.continuous)
    keys = [one.schema.columns.size_factor_key is not None for one in (model, first)]
    yield "size factor", keys[0], keys[1]


def _tiles(models: Sequence[SCVI], asked: Sequence[Asked], device: str | None) -> Iterator[Tile]:
    there = choose_device(device)
    each = [
        draw_tiles(model.vae, one.points, one.conditions, one.request, there)
        for model, one in zip(models, asked, strict=True)
    ]
    for parts in zip(*each, strict=True):
        rows = parts[0][0]
        own = [summary(draws, rows) for _, draws in parts]
        layers: dict[str, np.ndarray] = {}
        if asked[0].request.n_samples is not None:
            layers = summary(np.concatenate([draws for _, draws in parts]), rows).layers
            layers["std"] = _root_mean_square([tile.layers["std"] for tile in own])
        if asked[0].request.count_noise:
            layers["std_counts"] = _root_mean_square(
                [
                    noise_of_counting(model.vae, one.points, one.conditions, one.request, tile)
                    for model, one, tile in zip(models, asked, own, strict=True)
                ]
            )
        means = np.stack([tile.values for tile in own])
        layers[MODELS] = means.std(axis=0, ddof=1)
        yield Tile(rows.start, rows.stop, means.mean(axis=0), layers)


def _root_mean_square(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.sqrt(np.mean(np.square(np.stack(values)), axis=0)))


def _frame(asked: Sequence[Asked]) -> Frame:
    """The first model's, of what all agree on."""
    first = asked[0].frame
    for i, one in enumerate(asked):
        if one.frame.shape != first.shape or _kept(one.request) != _kept(asked[0].request):
            raise PointsError(
                f"points: {one.frame.shape[0]} points came for model {i} and {first.shape[0]} for model 0 "
                f"({_kept(one.request)} and {_kept(asked[0].request)}); alike paths were expected"
            )
        names, others = asked[0].points.own_names, one.points.own_names
        named = not (are_numbers(names) or are_numbers(others))
        if named and not as_names(names).equals(as_names(others)):
            raise PointsError(
                f"points: the names of the points of model {i}, {listing(others, 3)}, are not those of model 0, "
                f"{listing(names, 3)}; expected the same points in the same order"
            )
        times = [frame.obs["time"] for frame in (first, one.frame) if "time" in frame.obs]
        if len(times) == 1 or (times and not np.allclose(*times)):
            raise PointsError(
                f"time: the path of model {i} has other times than that of model 0, the same was expected"
            )
        for name in first.obs.columns.intersection(one.frame.obs.columns).difference(["time", "support", "supported"]):
            if not (one.frame.obs[name].astype(str).to_numpy() == first.obs[name].astype(str).to_numpy()).all():
                raise PointsError(
                    f"points: {name!r} of the path of model {i} is not that of model 0, point by point; the "
                    "same paths in the same conditions were expected"
                )
    obs = first.obs.copy()
    support = np.stack([one.frame.obs["support"].to_numpy() for one in asked])
    obs["support"] = support.max(axis=0) if not np.isnan(support).any() else np.full(len(obs), np.nan, np.float32)
    supported = pd.concat([one.frame.obs["supported"] for one in asked], axis=1)
    unknown = pd.array([pd.NA] * len(obs), dtype="boolean")
    obs["supported"] = unknown if supported.isna().any(axis=None) else supported.all(axis=1)
    made = {**first.uns["scdecode"], "models": len(asked)}
    return replace(
        first,
        obs=obs,
        obsm={f"{key}_{i}": value for i, one in enumerate(asked) for key, value in one.frame.obsm.items()},
        uns={"scdecode": made},
        layers=(*first.layers, MODELS),
    )


def _kept(request: Request) -> str:
    return "with a spread" if request.n_samples is not None else "without a spread"
