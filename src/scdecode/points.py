"""Latent points in any form that people have them -> one matrix, with their names and the spread around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from scdecode._utils.checks import REFUSED, Kind
from scdecode._utils.checks.hints import attributes_of, callback_check
from scdecode._utils.checks.kinds import data, take_data
from scdecode._utils.names import as_names, check_names, names_of
from scdecode.errors import PointsError, SupportWarning, listing, unknown_name, warn

DEFAULT_REP = "X_scVI"
"""The entry of ``obsm`` that is taken from an AnnData when none is named: where scvi-tools' tutorials put latents."""

LARGEST = 1e30
"""No latent is near it, and far above it the network's sums overflow to NaN."""


@runtime_checkable
class Path(Protocol):
    """Anything that has points of the latent space and the spread around them, such as a trajectory."""

    @property
    def points(self) -> Any:
        """(n, k) points."""

    @property
    def spread(self) -> Any:
        """(n, k, k) covariances, (n, k) standard deviations, or None."""

    @property
    def time(self) -> Any:
        """(n,) where along the path each point is; for several paths, (lineages, n)."""


def _has_points(value: Any) -> bool:
    return isinstance(value, AnnData | Distribution) or {"points", "spread", "time"} <= attributes_of(value)


_POINTS = data(
    "latent points: an array, a list, a DataFrame, an AnnData, a normal distribution or a trajectory",
    PointsError,
    also=_has_points,
)


def _take_places(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return take_data(value)
    return REFUSED if any(_POINTS.take(place) is REFUSED for place in value) else value


PointsLike: TypeAlias = Annotated[Any, _POINTS]
"""Latent points in any form, as :func:`read_points` takes them."""


_FUNCTION = callback_check(1)


def _take_paths(value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        return _FUNCTION.take(value)
    taken = _take_places(value)
    return _POINTS.take(value) if taken is REFUSED else taken


PathsLike: TypeAlias = Annotated[
    Any, Kind(_take_paths, "a path, or for several models a function of the model or a list of paths", PointsError)
]
"""A path as :data:`PointsLike`; for an ensemble one a model, or a function that makes it of the model."""


def _take_named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return REFUSED if any(_POINTS.take(path) is REFUSED for path in value.values()) else value
    return _POINTS.take(value)


NamedPathsLike: TypeAlias = Annotated[
    Any, Kind(_take_named, f"{_POINTS.words}, or a mapping of names to such", PointsError)
]
"""One or several paths, as :data:`PointsLike`, or a mapping of names to them."""

LatentsLike: TypeAlias = Annotated[
    Any, Kind(lambda value: REFUSED if isinstance(value, str) else _POINTS.take(value), _POINTS.words, PointsError)
]
"""The same where a string is the name of a file."""

PlacesLike: TypeAlias = Annotated[Any, Kind(_take_places, "a list of points or sets of cells", PointsError)]
"""Several places of the latent space, each as :data:`PointsLike`."""


@dataclass(frozen=True, eq=False)
class KnownPath:
    """A path as it was decoded: what a result says of it."""

    points: np.ndarray
    spread: np.ndarray | None
    time: np.ndarray
    time_name: str | None
    lineages: tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Points:
    """Latent points, flattened to one axis."""

    z_nk: Tensor  # (n, k) float32, on the CPU
    shape: tuple[int, ...]  # the leading axes, as given
    names: pd.Index  # of the n points, strings; where they have none, numbers
    own_names: pd.Index  # as they came; where there were none, numbers from 0
    spread: np.ndarray | None  # as given: (n, k, k) covariances, (n, k) standard deviations
    factors: Tensor | None  # to multiply noise with: (n, k, k) or (n, k)
    time: np.ndarray | None  # (n,) where along a path each point is
    time_name: str | None  # what the time is: "share of the path", "pseudotime"
    lineage: np.ndarray | None  # (n,) names of the paths, if they have names
    simplex: bool  # whether points are non-negative and sum to one, and draws around them too

    def __len__(self) -> int:
        return self.z_nk.shape[0]


def read_points(
    points: Any, n_latent: int, *, spread: Any = None, use_rep: str | None = None, simplex: bool = False
) -> Points:
    """Read latent points.

    Parameters
    ----------
    points
        ``(..., k)`` in float16, float32, float64 or whole numbers: numpy, torch, dask, scipy.sparse, a list, a
        DataFrame, an AnnData (see ``use_rep``), a normal distribution of torch, or a trajectory. One point may be
        ``(k,)``.
    n_latent
        The model's k.
    spread
        Of the points: one standard deviation, ``(..., k)`` standard deviations or ``(..., k, k)`` covariances; by
        default that of the distribution or the trajectory, or none; False for none in any case.
    use_rep
        The entry of ``obsm`` that has the points, for an AnnData; by default ``"X_scVI"``.
    simplex
        Whether latent points are non-negative and sum to one (``latent_distribution="ln"``).

    Raises
    ------
    PointsError
        For a wrong width, no points, NaN or infinite values, or a spread that does not fit.
    """
    time = own = path = None
    spread = bool(spread) if isinstance(spread, np.bool_) else spread
    if use_rep is not None and not isinstance(points, AnnData):
        raise PointsError(f"use_rep: {use_rep!r} came, but the points are {type(points).__name__} and no AnnData")
    names = names_of(points)
    _check_dimensions(points, spread)
    if isinstance(points, AnnData):
        points = _representation(points, use_rep)
    elif isinstance(points, Distribution):
        if simplex:
            raise PointsError(
                "points: a distribution came, but latent points of a model with latent_distribution='ln' sum to one, "
                "as no normal does (a posterior is that of z before its softmax); pass points: "
                "model.get_latent_representation(adata), or its draws with n_samples=..."
            )
        points, own = _moments(points)
    elif isinstance(points, Path):
        path, own, time, points = points, points.spread, points.time, points.points
    if spread is True and own is None:
        raise PointsError("spread: True came, but the points have none of their own; pass standard deviations")
    spread = own if spread is None or spread is True else None if spread is False else spread
    z_nk, shape = read_latents(points, n_latent, simplex=simplex)
    if names is None or shape != (len(names),):
        names = pd.RangeIndex(len(z_nk))
    check_names("spread", spread, names)
    given, factors = _read_spread(spread, shape, n_latent)
    return Points(
        z_nk,
        shape,
        as_names(names),
        names,
        given,
        factors,
        _read_time(time, shape),
        None if path is None else getattr(path, "time_name", None),
        None if path is None else _read_lineages(getattr(path, "lineages", None), shape),
        simplex,
    )


def conditions_of(points: Any) -> dict[str, Any]:
    """The conditions that a path brings with it, as arguments of decode: a number or name, or one a point."""

    def flat(value: Any) -> Any:
        return value.reshape(-1) if isinstance(value, np.ndarray) else value

    own = getattr(points, "conditions", None) if isinstance(points, Path) else None
    return {
        name: {key: flat(v) for key, v in value.items()} if name in ("categorical", "continuous") else flat(value)
        for name, value in (own or {}).items()
    }


def _check_dimensions(points: Any, spread: Any) -> None:
    """Raise :class:`PointsError` if tables of points and of standard deviations have their columns in another order."""
    if not (isinstance(points, pd.DataFrame) and isinstance(spread, pd.DataFrame)):
        return
    ours, theirs = list(points.columns), list(spread.columns)
    if ours != theirs and len(set(ours)) == len(ours) and set(ours) == set(theirs):
        raise PointsError(
            f"spread: got the columns {listing(theirs, 3)}, and the points have the same in another order, "
            f"{listing(ours, 3)}; expected the order of the points: spread[points.columns]"
        )


def read_latents(points: Any, n_latent: int, *, simplex: bool = False) -> tuple[Tensor, tuple[int, ...]]:
    """Numbers as latent points on one axis, ``(n, k)`` float32 of their own memory, and the leading axes they had.

    Raises
    ------
    PointsError
        For what is no array of numbers, a wrong width, no points, NaN or infinite values.
    """
    array = read_array(points, "points")
    if array.ndim == 0 or array.shape[-1] != n_latent:
        hint = ""
        if array.ndim == 2 and array.shape[1] > 5 * n_latent:
            hint = "; if these are the genes of cells, encode them first: model.get_latent_representation(adata)"
        elif array.ndim == 2 and array.shape[0] == n_latent:
            hint = "; the array looks transposed"
        raise PointsError(
            f"points: shape {array.shape} came, (..., {n_latent}) was expected, as the model's latent space has "
            f"{n_latent} dimensions{hint}"
        )
    if array.size == 0:
        raise PointsError(f"points: shape {array.shape} came, which has no points; at least one was expected")
    shape = array.shape[:-1]
    with np.errstate(over="ignore"):  # what overflows is among the points that are too large
        z_nk = torch.from_numpy(np.array(array.reshape(-1, n_latent), dtype=np.float32, order="C"))
    if not (z_nk.abs() < LARGEST).all():
        bad = (~(z_nk.abs() < LARGEST)).any(dim=1).nonzero().reshape(-1).tolist()
        raise PointsError(
            f"points: {len(bad):,} of {len(z_nk):,} points have NaN, infinite or too large values (points "
            f"{listing(bad, 5)}); finite numbers were expected"
        )
    if simplex:
        _check_simplex(z_nk)
    return z_nk, shape


def _read_time(time: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if time is None:
        return None
    array = read_array(time, "time")
    if array.shape not in (shape, (int(np.prod(shape)),)):
        raise PointsError(f"time: shape {array.shape} came, one number per point, {shape}, was expected")
    return array.reshape(-1)


def _read_lineages(names: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """The name of the path that each point is on, if it has one."""
    if names is None:
        return None
    if len(shape) not in (1, 2) or len(names) != (shape[0] if len(shape) == 2 else 1):
        raise PointsError(f"lineages: {len(names)} names came for points of shape {shape}, one a path was expected")
    return np.repeat(np.asarray(names, dtype=object), shape[-1])


def _representation(adata: AnnData, use_rep: str | None) -> Any:
    key = DEFAULT_REP if use_rep is None else use_rep
    if key not in adata.obsm and use_rep is None:
        raise PointsError(
            f"points: an AnnData came without obsm[{DEFAULT_REP!r}]; to decode its cells pass "
            f"model.get_latent_representation(adata) or model.posterior(adata), or name one of {listing(adata.obsm)} "
            "with use_rep="
        )
    if key not in adata.obsm:
        raise PointsError(unknown_name("use_rep", key, adata.obsm.keys(), "entries of adata.obsm"))
    return adata.obsm[key]


def _moments(distribution: Distribution) -> tuple[Any, Any]:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Normal):
        return distribution.loc, distribution.scale
    if isinstance(distribution, MultivariateNormal):
        return distribution.loc, distribution.covariance_matrix
    raise PointsError(
        f"points: a {type(distribution).__name__} came; of the distributions Normal and MultivariateNormal are accepted"
    )


def read_array(values: Any, place: str, *, strings: bool = True) -> np.ndarray:
    """Numbers in any form as an array of a number type; what is missing or masked is NaN.

    Parameters
    ----------
    values
        numpy (masked too), torch, dask, scipy.sparse, pandas, a list of any.
    place
        What the numbers are, for messages.
    strings
        Whether strings of digits count as numbers.

    Raises
    ------
    PointsError
        For what is no array of numbers.
    """
    try:
        if isinstance(values, AnnData):  # numpy would iterate over it for minutes
            raise TypeError("its numbers are in adata.X, adata.obsm and adata.obs")
        array = as_numpy(values)
        if not strings and _holds_strings(array):
            raise TypeError("strings")
        if array.dtype.kind in "bOSU":  # objects may be numbers; what is none of these says so
            array = array.astype(np.float64)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"of type {array.dtype}")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last is what torch raises
        expected = "numpy, torch, a DataFrame, a list, an AnnData or a trajectory was" if strings else "numbers were"
        raise PointsError(
            f"{place}: {type(values).__name__} came that is no array of numbers ({error}); {expected} expected"
        ) from error
    return array


def _holds_strings(array: np.ndarray) -> bool:
    return array.dtype.kind in "SU" or (array.dtype.kind == "O" and any(isinstance(v, str | bytes) for v in array.flat))


def as_numpy(values: Any) -> np.ndarray:
    """What holds numbers or names, as numpy; missing numbers are NaN, those that are masked too."""
    if hasattr(values, "compute"):  # dask
        values = values.compute()
    if isinstance(values, list | tuple) and values and all(isinstance(v, torch.Tensor) for v in values):
        values = torch.stack(tuple(values))
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values if values.layout is torch.strided else values.to_dense()
        values = values.float() if values.dtype is torch.bfloat16 else values  # numpy has none
        return values.numpy()
    if sp.issparse(values):
        return values.toarray()
    if isinstance(values, np.ma.MaskedArray):  # what is masked is missing, and numpy would give what is below the mask
        return np.ma.filled(values.astype(np.float64), np.nan) if np.ma.is_masked(values) else values.data
    array = np.asarray(values)
    if array.dtype.kind == "O" and (missing := pd.isna(array)).any():  # pandas' NA is no float
        array = np.where(missing, np.nan, array)
    return array


def _check_simplex(z_nk: Tensor) -> None:
    off = ((z_nk < -1e-4).any(dim=1) | ((z_nk.sum(dim=1) - 1).abs() > 1e-2)).sum().item()
    if off:
        warn(
            f"points: {off:,} of {len(z_nk):,} points are negative somewhere or do not sum to one, as every latent "
            "point of a model with latent_distribution='ln' does",
            SupportWarning,
        )


def _read_spread(spread: Any, shape: tuple[int, ...], n_latent: int) -> tuple[np.ndarray | None, Tensor | None]:
    """The spread of each point, and what noise is multiplied with to have it."""
    if spread is None:
        return None, None
    array = read_array(spread, "spread").astype(np.float64)
    widths = (*shape, n_latent)
    n = int(np.prod(shape))
    if not (np.abs(array) < LARGEST).all():
        raise PointsError("spread: it has NaN, infinite or too large values; finite numbers were expected")
    if array.shape == widths == (n_latent, n_latent) and _may_be_covariance(array):
        raise PointsError(
            f"spread: a symmetric array of shape {array.shape} came for {n_latent} points, which may be the standard "
            f"deviations of each point or one covariance of all; covariances {(*widths, n_latent)} leave no doubt: "
            "np.broadcast_to(covariance, ...) or, of standard deviations, [np.diag(sd**2) for sd in ...]"
        )
    if array.shape in ((), widths):
        if (array < 0).any():
            raise PointsError("spread: negative standard deviations came; numbers of at least 0 were expected")
        deviations = np.broadcast_to(array, widths).reshape(n, n_latent).astype(np.float32)
        return deviations, torch.from_numpy(deviations)
    if array.shape not in ((n_latent, n_latent), (*widths, n_latent)):
        raise PointsError(
            f"spread: shape {array.shape} came; one number, standard deviations {widths} or covariances "
            f"{(*widths, n_latent)} were expected"
        )
    covariances = np.broadcast_to(array, (*widths, n_latent)).reshape(n, n_latent, n_latent).astype(np.float32)
    if not np.allclose(covariances, covariances.swapaxes(1, 2), rtol=1e-3, atol=1e-6):
        raise PointsError("spread: covariances came that are not symmetric")
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariances).double())
    if (values < -1e-4 * values.amax(-1, keepdim=True).clamp(min=1e-6)).any():
        raise PointsError("spread: covariances came that have negative eigenvalues")
    # the symmetric square root: it takes singular covariances too, and it is continuous, so that one noise moves
    # neighbouring points of a path alike
    return covariances, ((vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT).float()


def _may_be_covariance(array: np.ndarray) -> bool:
    """Whether one standard deviation for each of k points and k dimensions could be meant as a covariance, too."""
    return bool((array == array.T).all() and (array != array[0, 0]).any())


def draw(points: Points, rows: slice, noise: Tensor) -> Tensor:
    """Draws around the points at ``rows``, ``(n_samples, n, k)``; the points themselves where they have no spread.

    ``noise`` is standard normal, ``(n_samples, n, k)`` or ``(n_samples, 1, k)`` for the same at every point.
    """
    z = points.z_nk[rows]
    if points.factors is None:
        return z.expand(len(noise), *z.shape)
    factors = points.factors[rows]
    drawn = z + (noise * factors if factors.dim() == 2 else (factors @ noise.unsqueeze(-1)).squeeze(-1))
    if not points.simplex:
        return drawn
    drawn = drawn.clamp(min=0)  # a spread reaches over the edge of the simplex, where no latent point is
    return drawn / drawn.sum(-1, keepdim=True).clamp(min=1e-12)
