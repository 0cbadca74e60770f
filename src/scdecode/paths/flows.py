"""Paths along a velocity field of the latent space: a flow-matching network, a latent ODE, RNA velocity.

All starts are integrated together, by scipy's solvers with error control. Their error norm is the root mean square over
everything that is integrated, so that one start among m may be off by a factor of sqrt(m); the tolerances are divided
by that, and hold for the worst start.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import NumbersLike
from scdecode.errors import PointsError, check_choice, check_integer, check_number
from scdecode.points import read_array

METHODS = ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")
"""Solvers, as ``scipy.integrate.solve_ivp`` names them: explicit ones first, then those for stiff fields."""

_GROWTH = 1e6  # times the largest start, or 1: no latent is there
_FAR = float(np.exp(-0.5 * 3.0**2))  # the weight of a cell at three bandwidths: as much says that nothing moves
_TIMES = {"t", "time", "times", "s"}  # what the argument of a field that is the time is called

Field = Callable[[float, np.ndarray], np.ndarray]

FieldLike: TypeAlias = Annotated[Callable[..., Any], "a function or torch module of (t, z)", PointsError]
"""A velocity field, as :func:`integrate` takes it."""


def integrate(
    field: Any,
    z0_mk: Any,
    t_n: Any,
    *,
    method: str = "RK45",
    rtol: float = 1e-5,
    atol: float = 1e-6,
    max_evaluations: int = 100_000,
) -> np.ndarray:
    """Follow a velocity field from some starts.

    Parameters
    ----------
    field
        The velocity dz/dt, for all starts at once, ``(m, k)``. A function of ``(t, z)``, or of ``(z, t)`` if its second
        argument is named ``t`` or ``time``, or of ``z`` alone; of numpy arrays, or of tensors. A ``torch.nn.Module`` is
        called with tensors of its own type and device, in evaluation mode and without gradients; so is any function
        that takes no arrays. A network gets the time as a scalar tensor if it takes that, else as ``(m, 1)`` or
        ``(m,)``.
    z0_mk
        Starts, ``(m, k)`` or ``(k,)``.
    t_n
        Times at which the path is wanted, the first that of the starts; increasing, or decreasing to go backwards.
    method
        One of ``METHODS``.
    rtol, atol
        Error of a step, relative and absolute, that each start keeps to.
    max_evaluations
        After so many evaluations of the field it gives up.

    Returns
    -------
    numpy.ndarray
        ``(m, n, k)`` float32.

    Raises
    ------
    PointsError
        For starts or times that do not fit; for a field that gives another shape, NaN or infinite values, that carries
        a start beyond where any latent is, or that the solver cannot follow.
    ConfigError
        For another method, or tolerances that are not positive.
    """
    from scipy.integrate import solve_ivp

    check_choice("method", method, METHODS)
    check_integer("max_evaluations", max_evaluations, minimum=1)
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        check_number(name, tolerance, 0.0, open_minimum=True)
    z0 = _starts(z0_mk)
    time = _times(t_n)
    m, k = z0.shape
    limit = _GROWTH * max(1.0, float(np.abs(z0).max()))
    n_evaluations = 0

    def velocity(t: float, state: np.ndarray) -> np.ndarray:
        nonlocal n_evaluations
        n_evaluations += 1
        z = state.reshape(m, k)
        _check_growth(z, t, limit)
        if n_evaluations > max_evaluations:
            raise PointsError(
                f"field: {max_evaluations:,} evaluations led from time {time[0]:g} to {t:g} only; a field that changes "
                'fast in places needs method="BDF" or "LSODA", larger tolerances, or a larger max_evaluations'
            )
        v = call(t, z)
        bad = ~np.isfinite(v).all(axis=1)
        if bad.any():
            raise PointsError(
                f"field: it gave NaN or infinite velocities at time {t:g} for {bad.sum():,} of {m:,} starts; check it "
                "there, or stop before"
            )
        return v.ravel()

    options: dict[str, Any] = {}
    if method in ("Radau", "BDF"):  # a start's velocity depends on that start alone
        from scipy.sparse import block_diag

        options["jac_sparsity"] = block_diag([np.ones((k, k))] * m, format="csc")
    elif method == "LSODA":
        options["lband"] = options["uband"] = k - 1
    tighter = np.sqrt(m)
    with _callable(field, time[0], z0) as call:
        solution = solve_ivp(
            velocity,
            (time[0], time[-1]),
            z0.ravel(),
            method=method,
            t_eval=time,
            rtol=max(rtol / tighter, 1e-12),
            atol=atol / tighter,
            **options,
        )
    if not solution.success:
        reached = solution.t[-1] if len(solution.t) else time[0]
        raise PointsError(
            f"field: the solver did not get beyond time {reached:g} of {time[-1]:g} with {m:,} starts "
            f"({str(solution.message).rstrip('.')}); the field may be infinite or jump there"
        )
    return np.ascontiguousarray(solution.y.reshape(m, k, len(time)).swapaxes(1, 2), dtype=np.float32)


def _starts(z0_mk: Any) -> np.ndarray:
    z0 = read_array(z0_mk, "z0").astype(np.float64)
    z0 = z0[None] if z0.ndim == 1 else z0
    if z0.ndim != 2 or z0.size == 0:
        raise PointsError(f"z0: shape {z0.shape} came, starts (m, k) were expected")
    if not np.isfinite(z0).all():
        bad = (~np.isfinite(z0).all(axis=1)).sum()
        raise PointsError(f"z0: {bad:,} of {len(z0):,} starts have NaN or infinite values")
    return z0


def _times(t_n: Any) -> np.ndarray:
    time = read_array(t_n, "t", strings=False).astype(np.float64)
    steps = np.diff(time) if time.ndim == 1 else np.zeros(1)
    if len(steps) == 0 or not np.isfinite(time).all() or not ((steps > 0).all() or (steps < 0).all()):
        raise PointsError(
            f"t: shape {time.shape} came; two or more finite times were expected, all increasing or all decreasing"
        )
    return time


def _check_growth(z_mk: np.ndarray, t: float, limit: float) -> None:
    far = ~(np.abs(z_mk) <= limit).all(axis=1)
    if far.any():
        raise PointsError(
            f"field: it blew up; by time {t:g}, {far.sum():,} of {len(z_mk):,} starts were farther than {limit:g} from "
            "zero in some dimension, where no latent is; stop before, or check the field's sign and units"
        )


@contextmanager
def _callable(field: Any, t: float, z_mk: np.ndarray) -> Iterator[Field]:
    """The field as a function of a time and an array, found by trying it at the start; a network at rest meanwhile."""
    module = field if isinstance(field, nn.Module) else getattr(field, "__self__", None)
    module = module if isinstance(module, nn.Module) else None
    if not callable(field):
        raise PointsError(f"field: {type(field).__name__} came, a function or a torch.nn.Module was expected")
    training = [] if module is None else [part for part in module.modules() if part.training]
    for part in training:  # each by itself, as some may have been at rest before
        part.training = False
    try:
        yield _tried(field, module, t, z_mk)
    finally:
        for part in training:
            part.training = True


def _tried(field: Any, module: nn.Module | None, t: float, z_mk: np.ndarray) -> Field:
    """The first way to call the field that works."""
    order = _order(field.forward if isinstance(field, nn.Module) else field)
    ways = [_with_tensors(field, module, order, shape) for shape in ("scalar", "column", "row")]
    if module is None:
        ways.insert(0, _with_arrays(field, order))
    if order == "z":  # without a time, its shape is no matter
        ways = ways[: 1 if module is not None else 2]
    first: Exception | None = None
    for way in ways:
        try:
            velocity = way(t, z_mk)
        # what operations of numpy and torch raise for an array of another kind or shape
        except (TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
            first = first or error
            continue
        if velocity.shape == z_mk.shape:
            return way
        first = first or PointsError(
            f"field: it gave shape {velocity.shape} for {len(z_mk):,} starts, velocities {z_mk.shape} were expected"
        )
    assert first is not None
    if isinstance(first, PointsError):
        raise first
    takes = {"tz": "(t, z)", "zt": "(z, t)", "z": "(z)"}[order]
    raise PointsError(
        f"field: called as field{takes} with {z_mk.shape} starts at time {t:g} it raised "
        f"{type(first).__name__}: {first}"
    ) from first


def _order(function: Any) -> str:
    """Which arguments a field takes: ``"tz"``, ``"zt"`` or ``"z"``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions do not tell
        return "tz"
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return "tz"
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if len(positional) < 2 or (required < 2 and positional[1].name not in _TIMES):
        return "z"
    first, second = positional[0].name, positional[1].name
    return "zt" if second in _TIMES and first not in _TIMES else "tz"


def _arguments(order: str, t: Any, z: Any) -> tuple[Any, ...]:
    return {"tz": (t, z), "zt": (z, t), "z": (z,)}[order]


def _with_arrays(field: Any, order: str) -> Field:
    def call(t: float, z_mk: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # what comes of it is checked
            velocity = field(*_arguments(order, t, z_mk))
        return _array(velocity)

    return call


def _with_tensors(field: Any, module: nn.Module | None, order: str, shape: str) -> Field:
    own = None if module is None else next(module.parameters(), None)
    kind = own if own is not None else torch.empty(0)

    def call(t: float, z_mk: np.ndarray) -> np.ndarray:
        z = torch.as_tensor(z_mk).to(kind)
        time = torch.tensor(t).to(kind)
        if shape != "scalar":
            time = time.expand(len(z), 1) if shape == "column" else time.expand(len(z))
        with torch.no_grad():
            return _array(field(*_arguments(order, time, z)))

    return call


def _array(velocity: Any) -> np.ndarray:
    if isinstance(velocity, Tensor):
        velocity = velocity.detach().double().cpu().numpy()
    return np.asarray(velocity, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class VelocityField:
    """A smooth field through the velocities of cells; made by :func:`velocity_field`, called with points ``(m, k)``."""

    velocity_rk: np.ndarray  # (r, k) float64
    bandwidth: float  # standard deviation of the kernel, in units of the latent space
    n_neighbours: int
    tree: Any  # of the cells' latents

    def __call__(self, z_mk: np.ndarray) -> np.ndarray:
        """Velocities at some points, ``(m, k)``."""
        points = np.asarray(z_mk, dtype=np.float64)
        truncated = self.n_neighbours < len(self.velocity_rk)
        distance, nearest = self.tree.query(points, self.n_neighbours + truncated)
        distance, nearest = distance.reshape(len(points), -1), nearest.reshape(len(points), -1)
        weight = np.exp(-0.5 * (distance / self.bandwidth) ** 2)
        if truncated:  # a cell that ceases to be among the nearest has no weight by then: the field does not jump
            weight *= (1 - (distance / np.maximum(distance[:, -1:], 1e-12)) ** 2) ** 2
        mean = np.einsum("mj,mjk->mk", weight, self.velocity_rk[nearest])
        return mean / (weight.sum(axis=1, keepdims=True) + _FAR)


@checked
def velocity_field(
    z_rk: NumbersLike, velocity_rk: NumbersLike, *, n_neighbours: int = 50, bandwidth: float | None = None
) -> VelocityField:
    """A field for :func:`integrate` from the velocities of cells, such as scVelo's or CellRank's.

    The velocity at a point is the mean of those of the nearest cells, with normal weights of their distance. Beyond
    about three bandwidths from the cells it fades to zero: a path stops where nothing is known.

    Parameters
    ----------
    z_rk
        Latents of the cells, ``(r, k)``.
    velocity_rk
        Their velocities in the latent space, ``(r, k)``: with scVelo, ``scv.tl.velocity_embedding(adata,
        basis="scVI")`` leaves them in ``adata.obsm["velocity_scVI"]``.
    n_neighbours
        Cells that are averaged.
    bandwidth
        Standard deviation of the weights; by default the median over cells of the distance to the tenth nearest.

    Raises
    ------
    PointsError
        For shapes that do not fit, fewer than two cells, or NaN and infinite values.
    """
    from scipy.spatial import cKDTree

    check_integer("n_neighbours", n_neighbours, minimum=1)
    if bandwidth is not None:
        check_number("bandwidth", bandwidth, 0.0, open_minimum=True)
    z, velocity = read_array(z_rk, "z_rk").astype(float), read_array(velocity_rk, "velocity_rk").astype(float)
    if z.ndim != 2 or z.shape != velocity.shape or len(z) < 2:
        raise PointsError(
            f"z_rk, velocity_rk: shapes {z.shape} and {velocity.shape} came; latents and velocities of two or more "
            "cells (r, k) were expected"
        )
    bad = ~(np.isfinite(z).all(axis=1) & np.isfinite(velocity).all(axis=1))
    if bad.any():
        raise PointsError(
            f"velocity_rk: {bad.sum():,} of {len(z):,} cells have NaN or infinite velocities or latents; leave them out"
        )
    tree = cKDTree(z)
    if bandwidth is None:
        some = z[:: max(1, len(z) // 2000)]
        away = tree.query(some, min(11, len(z)))[0][:, -1]
        bandwidth = float(np.median(away)) or float(away.mean()) or 1.0
    return VelocityField(velocity, bandwidth, min(n_neighbours, len(z)), tree)
