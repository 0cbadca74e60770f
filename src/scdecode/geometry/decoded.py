"""A decoder to differentiate: latent points to the parameters of the likelihood, under conditions that stay fixed.

Everything in this folder takes a :class:`ParameterMap`, made here of a model and its conditions, or of a function that
a user wrote. A model may stand in its place; it is made into one then.

An average over conditions is a map of several *slots* with weights. Distances and information are the slots' own,
averaged: those of an observer who knows which condition a cell has. The mixture's would be smaller, as it blurs what
the conditions shift, and it is what nobody observes. Gene values (:meth:`ParameterMap.log_mean`) are the averaged
means, as those of ``model.decode``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scdecode._utils.checks import Between, checked
from scdecode._utils.checks.kinds import ConditionTable, IndicesLike, LibrarySize, NamesLike, PerPoint
from scdecode._utils.notebook import Shown
from scdecode._utils.rows import check_rows
from scdecode.conditions import resolve
from scdecode.decoding import gene_positions, library_sizes, slot_inputs
from scdecode.errors import ConditionError, InputError, PointsError, check_choice, listing
from scdecode.expression import Decodable
from scdecode.geometry.divergences import Parameters
from scdecode.networks import allow_kernels
from scdecode.points import PointsLike, conditions_of, read_points
from scdecode.support import Support, make_support
from scdecode.vae import VAE

TILE_VALUES = 2**21
"""Numbers, points x genes x directions, that are held at once."""

LIKELIHOODS = ("zinb", "nb", "poisson", "normal")


@dataclass(frozen=True, eq=False)
class Slot:
    """The decoder under one condition."""

    function: Callable[[Tensor], Parameters]  # (n, k) -> each (n, g)
    weight: float = 1.0

    def outputs(self, z: Tensor) -> Tensor:
        """What the information is on, side by side: ``(n, g)`` or ``(n, 2 g)``."""
        return self.function(z).joined()


@dataclass(frozen=True, eq=False, repr=False)
class ParameterMap(Shown):
    """Latent points to the parameters of the likelihood; made by :func:`parameter_map` or :meth:`of_function`."""

    gene_likelihood: str
    n_latent: int
    genes: tuple[str, ...]
    slots: tuple[Slot, ...]
    support: Support | None = None  # of the reference cells, where there are some
    simplex: bool = False  # whether latent points are non-negative and sum to one
    dtype: torch.dtype = torch.float32
    conditions: Mapping[str, Any] = field(default_factory=dict)  # in words, by name
    arguments: Mapping[str, Any] = field(default_factory=dict)  # the same as arguments of decode; no library size

    @classmethod
    @checked
    def of_function(
        cls,
        function: Callable[[Tensor], Any],
        n_latent: Annotated[int, Between(1, 100_000)],
        *,
        gene_likelihood: str = "normal",
        genes: NamesLike | str | None = None,
        reference: PointsLike = None,
        dtype: torch.dtype = torch.float64,
    ) -> ParameterMap:
        """A decoder of one's own.

        Parameters
        ----------
        function
            Of a tensor of points ``(n, k)``, in torch: log means ``(n, g)``, or log means, zi logits (or None) and log
            theta (or None; log standard deviations for ``"normal"``, by default 0), as a tuple. Each point by itself.
        n_latent
            k.
        gene_likelihood
            ``"normal"``, ``"nb"``, ``"zinb"`` or ``"poisson"``.
        genes
            Names of the g genes; by default numbers.
        reference
            Latent points of cells, ``(r, k)``, for what depends on the support.
        dtype
            In which the points are given to the function.

        Raises
        ------
        InputError
            For a function whose result has another shape, or lacks what the likelihood needs.
        """
        check_choice("gene_likelihood", gene_likelihood, LIKELIHOODS)

        def parameters(z: Tensor) -> Parameters:
            return _as_parameters(function(z), gene_likelihood)

        trial = parameters(torch.zeros(2, n_latent, dtype=dtype))
        if trial.log_mu.ndim != 2 or len(trial.log_mu) != 2:
            raise InputError(
                f"function: of points (2, {n_latent}) it gave log means of shape {tuple(trial.log_mu.shape)}; "
                "(2, genes) was expected"
            )
        n_genes = trial.log_mu.shape[1]
        names = tuple(map(str, range(n_genes) if genes is None else [genes] if isinstance(genes, str) else genes))
        if len(names) != n_genes:
            raise InputError(f"genes: {len(names)} names came for {n_genes} genes; one each was expected")
        support = None
        if reference is not None:
            support = make_support(read_points(reference, n_latent).z_nk.numpy())
        return cls(gene_likelihood, n_latent, names, (Slot(parameters),), support=support, dtype=dtype)

    @checked
    def read(self, points: PointsLike) -> Tensor:
        """Points in any form, ``(n, k)`` in :attr:`dtype`.

        Raises
        ------
        PointsError
            For points of the wrong width, NaN, or none.
        """
        if isinstance(points, Tensor | np.ndarray) and points.dtype in (torch.float64, np.float64) and points.ndim == 2:
            read_points(points, self.n_latent, simplex=self.simplex)  # for its checks: float32 would round
            return torch.as_tensor(points).detach().to(self.dtype)
        return read_points(points, self.n_latent, simplex=self.simplex, spread=False).z_nk.to(self.dtype)

    @checked
    def read_path(self, points: PointsLike, place: str) -> Tensor:
        """At least two points in order, ``(n, k)``.

        Raises
        ------
        PointsError
            As :meth:`read`; for a single point, or several lineages or paths, which are no one line.
        """
        lineages = getattr(points, "lineages", None)
        if lineages is not None and np.ndim(points.points) == 3:
            raise PointsError(f"{place}: {len(lineages)} lineages came, one was expected: path[{lineages[0]!r}]")
        shape = read_points(points, self.n_latent, simplex=self.simplex, spread=False).shape
        if len(shape) > 1:
            raise PointsError(
                f"{place}: points of shape {(*shape, self.n_latent)} came, which are several paths; one path, "
                f"(n, {self.n_latent}), was expected: {place}[0]"
            )
        z_nk = self.read(points)
        if len(z_nk) < 2:
            raise PointsError(f"{place}: 1 point came, at least two in order were expected")
        return z_nk

    @checked
    def read_one(self, point: PointsLike, place: str) -> Tensor:
        """One point, ``(k,)``; of a set of cells the one nearest to their mean."""
        z_nk = self.read(point)
        if len(z_nk) == 0:
            raise PointsError(f"{place}: no points came; one was expected")
        return z_nk[int((z_nk - z_nk.mean(0)).square().sum(1).argmin())]

    @checked
    def log_mean(self, z: Tensor, genes: IndicesLike | None = None) -> Tensor:
        """Log of the mean before zero inflation of points ``(n, k)``, averaged over the slots, ``(n, genes)``.

        Its derivatives are those of the log scale, from which it differs by the library size.
        """
        z = self._latents(z)
        positions = None if genes is None else check_rows(genes, len(self.genes), place="genes", kind="genes").tolist()
        means = []
        for slot in self.slots:
            log_mu = slot.function(z).log_mu
            log_mu = log_mu if positions is None else log_mu[..., positions]
            means.append(log_mu if len(self.slots) == 1 else log_mu + float(np.log(slot.weight)))
        return means[0] if len(means) == 1 else torch.logsumexp(torch.stack(means), dim=0)

    @checked
    def jacobian(self, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """Derivatives of a function ``(n, k) -> (n, ...)`` of each point by itself: ``(k, n, ...)``, exact.

        A Jacobian-vector product for each latent dimension, all points at once.
        """
        z = self._latents(z)
        directions = torch.eye(self.n_latent, dtype=z.dtype)[:, None, :].expand(-1, len(z), -1)
        pushed: Tensor = torch.func.vmap(lambda v: push(function, z, v))(directions)
        return pushed

    def _latents(self, z: Tensor) -> Tensor:
        """Return points in :attr:`dtype`; their shape is checked, not their values, which ``torch.func`` hides."""
        usable = z.is_floating_point() and not z.is_meta and z.layout is torch.strided
        if not usable or z.ndim != 2 or z.shape[1] != self.n_latent:
            raise PointsError(
                f"z: got a tensor of {z.dtype} of shape {tuple(z.shape)}, expected floating-point values of shape "
                f"(n, {self.n_latent})"
            )
        return z.to(self.dtype)

    @checked
    def tiles(
        self, n_points: Annotated[int, Between(0, 10**8)], n_directions: Annotated[int, Between(0, 10**8)]
    ) -> list[slice]:
        """The points in pieces whose derivatives in so many directions fit into memory."""
        size = max(1, TILE_VALUES // (len(self.genes) * max(n_directions, 1)))
        return [slice(first, min(first + size, n_points)) for first in range(0, n_points, size)]

    @checked
    def positions(self, genes: NamesLike | str) -> list[int]:
        """Positions of genes by name.

        Raises
        ------
        InputError
            For a name that is no gene, with the nearest; for a name that comes twice; for none.
        """
        found = gene_positions(_Names(self.genes), genes)  # type: ignore[arg-type]  # all it asks of a schema
        assert found is not None, "of None alone"
        return list(found)


def push(function: Callable[[Tensor], Tensor], z: Tensor, v: Tensor) -> Tensor:
    """The derivative of a function of points ``(n, k)`` in a direction of each: one Jacobian-vector product."""
    _prepare()
    pushed: Tensor = torch.func.jvp(function, (z,), (v,))[1]
    return pushed


@cache
def _prepare() -> None:
    """Let torch load its forward derivatives: it does so once, and newer ones warn of their own deprecated parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        one = torch.ones(1)
        torch.func.jvp(torch.clone, (one,), (one,))


class _Names:
    """As much of a schema as names of genes need."""

    def __init__(self, genes: tuple[str, ...]) -> None:
        self.genes = genes
        self.gene_codes = {gene: i for i, gene in enumerate(genes)}


DecoderLike: TypeAlias = Annotated[
    Decodable | ParameterMap, "a model or, for a function of one's own, ParameterMap.of_function(function, n_latent)"
]
"""What has a decoder to differentiate."""


@checked
def parameter_map(
    model: DecoderLike,
    *,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    library_size: LibrarySize = None,
    max_conditions: int = 100,
    dtype: torch.dtype = torch.float32,
) -> ParameterMap:
    """The decoder of a model under fixed conditions, as something to differentiate.

    It has the model's weights of now, held constant and in evaluation mode: after more training, make another.

    Parameters
    ----------
    model
        A trained model; or a map, which is given back.
    batch, labels, categorical, continuous, library_size, max_conditions
        As for ``model.decode``, but the same for all points. More counts tell more: distances and information grow
        with the library size.
    dtype
        Of the points and of the computation.

    Raises
    ------
    ConditionError
        For conditions that change from point to point, or that are given beside a map, which has its own.
    """
    said = {"batch": batch, "labels": labels, "library_size": library_size}
    for place, mapping in {"categorical": categorical, "continuous": continuous}.items():
        if isinstance(mapping, Mapping | pd.DataFrame):
            said |= {f"{place}[{key!r}]": mapping[key] for key in mapping}
    if isinstance(model, ParameterMap):
        given = [place for place, value in said.items() if value is not None]
        if given:
            raise ConditionError(
                f"{given[0]}: it was given beside a decoder that has its conditions already; say it where that is "
                "made: parameter_map(model, ...)"
            )
        return model
    if not hasattr(model, "check_trained"):
        raise InputError(
            f"model: {type(model).__name__} came; a model was expected, or, for a function of one's own, "
            "ParameterMap.of_function(function, n_latent)"
        )
    model.check_trained()
    _check_fixed(said)
    conditions = resolve(
        model.schema,
        1,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
        label_matters=model.config.dispersion == "gene-label",
    )
    vae = _at_rest(model.vae, dtype)
    row, device = slice(0, 1), torch.device("cpu")
    log_library = library_sizes(conditions, row, device).log().to(dtype)
    slots = []
    for slot in range(conditions.n_slots):
        codes, continuous_1d, weight = slot_inputs(conditions, row, slot, device)
        if weight.item() > 0:
            slots.append(Slot(_decoder(vae, codes, continuous_1d.to(dtype), log_library), weight.item()))
    return ParameterMap(
        model.config.gene_likelihood,
        model.config.n_latent,
        model.schema.genes,
        tuple(slots),
        support=model.support_index(),
        simplex=model.config.latent_distribution == "ln",
        dtype=dtype,
        conditions=conditions.obs.iloc[0].to_dict(),
        # the library size is how much a length sees, and nothing of the path: who decodes it says their own
        arguments={
            name: value
            for name, value in conditions.arguments.items()
            if name not in ("library_size", "max_conditions") and value is not None and value != {}
        },
    )


def map_along(
    model: Decodable | ParameterMap,
    points: Any,
    *,
    categorical: Mapping[str, Any] | None = None,
    continuous: Mapping[str, Any] | None = None,
    max_conditions: int = 100,
    **said: Any,
) -> ParameterMap:
    """The same for points that may be a path with conditions of its own, which hold where nothing is said.

    Parameters
    ----------
    model, categorical, continuous, max_conditions
        As for :func:`parameter_map`.
    points
        A path, or anything else.
    **said
        ``batch``, ``labels`` and, where it matters, ``library_size``; None for what the path says.
    """
    own = {} if isinstance(model, ParameterMap) else conditions_of(points)
    given = {name: _constant(own.get(name)) if value is None else value for name, value in said.items()}
    pairs: list[tuple[str, Any]] = [("categorical", categorical), ("continuous", continuous)]
    for name, mapping in pairs:
        one = {key: _constant(value) for key, value in own.get(name, {}).items()}
        if mapping is None or isinstance(mapping, Mapping | pd.DataFrame):
            given[name] = {**one, **({} if mapping is None else mapping)} or None
        else:
            given[name] = mapping  # whose reader says what is wrong with it
    return parameter_map(model, max_conditions=max_conditions, **given)


def _constant(value: Any) -> Any:
    """The one value of points that have the same."""
    array = isinstance(value, np.ndarray) and value.size > 0 and bool((value == value.flat[0]).all())
    return value.flat[0] if array else value


def _check_fixed(said: Mapping[str, Any]) -> None:
    """Raise :class:`ConditionError` for one value per point: the distance of two conditions is no length of a path."""
    arrays = (np.ndarray, pd.Series, pd.Index, pd.api.extensions.ExtensionArray, Tensor)
    for place, value in said.items():
        several = isinstance(value, arrays) or (place == "library_size" and isinstance(value, list | tuple))
        if several and (isinstance(value, list | tuple) or np.ndim(value) > 0):
            one = "one value, a list to average over or a mapping of names to weights"
            raise ConditionError(
                f"{place}: an array of {len(value)} came, but a condition does not change along a geodesic, nor within "
                "any other distance: what it changes is not the cells' way. Pass "
                f"{'one number' if place == 'library_size' else one}"
            )


def _at_rest(vae: VAE, dtype: torch.dtype) -> VAE:
    """A copy that has no gradients, no training mode and no kernels, which have no forward derivatives."""
    kept = {"z_encoder": vae.z_encoder, "library_encoder": vae.library_encoder}
    # the encoders are not needed, and not small
    rest: VAE = copy.deepcopy(vae, {id(part): None for part in kept.values() if part is not None})
    allow_kernels(rest, False)
    return rest.eval().requires_grad_(False).to(device="cpu", dtype=dtype)


def _decoder(vae: VAE, codes: Tensor, continuous: Tensor, log_library: Tensor) -> Callable[[Tensor], Parameters]:
    def parameters(z: Tensor) -> Parameters:
        output = vae.decode(z, codes, continuous)
        log_theta = vae.dispersion(output, codes)
        return Parameters(log_library + output.log_scale, output.zi_logits, log_theta)

    return parameters


def _as_parameters(result: Any, gene_likelihood: str) -> Parameters:
    """What a user's function gave."""
    parts = (result, None, None) if isinstance(result, Tensor) else tuple(result)
    if len(parts) != 3 or not isinstance(parts[0], Tensor):
        raise InputError(
            f"function: it gave {type(result).__name__}; log means were expected, or (log means, zi logits, log theta)"
        )
    log_mu, zi_logits, log_theta = parts
    if gene_likelihood == "normal" and log_theta is None:
        log_theta = log_mu.new_zeros(())
    missing = [
        name
        for name, value, needed in (
            ("zi logits", zi_logits, gene_likelihood == "zinb"),
            ("log theta", log_theta, gene_likelihood != "poisson"),
        )
        if needed and value is None
    ]
    if missing:
        raise InputError(
            f"function: the likelihood {gene_likelihood!r} needs {listing(missing)}, which it did not give"
        )
    return Parameters(log_mu, zi_logits, log_theta)
