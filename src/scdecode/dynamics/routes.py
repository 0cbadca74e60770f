"""Paths ready to be walked: what was asked for, checked; the smooth curve through the points; draws and their motion.

Between its points a path is a cubic spline, of the points and of the factors L of their covariances L L'. A draw
z(t) + L(t) eps keeps its eps all along the path: it is one trajectory through the tube, and moves at
dz/dt + dL/dt eps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scdecode.conditions import Conditions
from scdecode.decode_plan import Plan
from scdecode.decoding import given_of, plan_of
from scdecode.draws import even_normals
from scdecode.dynamics.tangents import values_and_slopes
from scdecode.errors import (
    InputError,
    PointsError,
    listing,
    unknown_name,
)
from scdecode.expression import Decodable, prepare
from scdecode.points import Path, Points
from scdecode.pseudocounts import PSEUDOCOUNT, pseudocounts

QUANTITIES = ("rate", "scale", "mean")
LEAST_POINTS = 3


@dataclass(frozen=True, eq=False)
class Curve:
    """A smooth curve through the points of a path, with the spread around it."""

    time_n: np.ndarray  # (n,) float64, increasing
    points: Any  # CubicSpline: time -> (k,)
    factors: Any | None  # CubicSpline: time -> (k, k) or (k,), to multiply noise with
    simplex: bool

    def at(self, time_n: np.ndarray, noise_sk: Tensor) -> tuple[Tensor, Tensor]:
        """Draws at some times and their velocities, ``(draws, n, k)`` each."""
        z, velocity = (torch.from_numpy(self.points(time_n, nu)).float().unsqueeze(0) for nu in (0, 1))
        if self.factors is not None:
            factors, turning = (torch.from_numpy(self.factors(time_n, nu)).float() for nu in (0, 1))
            z, velocity = z + _times(factors, noise_sk), velocity + _times(turning, noise_sk)
        if not self.simplex or self.factors is None:
            return z, velocity
        # as draws there are made: cut off at zero, divided by their sum
        velocity = velocity.masked_fill(z <= 0, 0.0)
        z = z.clamp(min=0)
        total = z.sum(-1, keepdim=True).clamp(min=1e-12)
        return z / total, (velocity - z * (velocity.sum(-1, keepdim=True) / total)) / total


def _times(factors: Tensor, noise_sk: Tensor) -> Tensor:
    """Noise by the factors of each point, ``(s, n, k)``."""
    return noise_sk.unsqueeze(1) * factors if factors.dim() == 2 else torch.einsum("nij,sj->sni", factors, noise_sk)


@dataclass(frozen=True, eq=False)
class Route:
    """One path with all that is needed to say what the genes do at any of its points."""

    name: str | None  # of the lineage, where there are several
    curve: Curve
    time_n: np.ndarray  # (n,): where it is walked
    conditions: Conditions  # of the n points
    quantity: str
    plan: Plan
    noise_sk: Tensor  # (draws, k); one draw, of zero, for a bare line
    pseudocount_n: np.ndarray  # (n or 1,) in the unit of the quantity

    @property
    def bare(self) -> bool:
        """Whether there is no spread, and so no error bar."""
        return self.curve.factors is None

    @property
    def steady(self) -> bool:
        """Whether the conditions are the same all along, so that the trends are smooth curves between the points."""
        c = self.conditions
        given = c.given_nd is None or bool((np.isnan(c.given_nd) | (c.given_nd == c.given_nd[:1])).all())
        group = c.group_n is None or bool((c.group_n == c.group_n[0]).all())
        return given and group and bool((c.library_n == c.library_n[0]).all())

    def values(self, rows: slice) -> Tensor:
        """The expression of each draw, ``(draws, p, genes)``."""
        z, _ = self.curve.at(self.time_n[rows], self.noise_sk)
        return self.plan.compute(given_of(z, self.conditions, rows, self.quantity)).view(len(z), z.shape[1], -1)

    def values_and_slopes(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The same, and the derivative of its mean over the draws, ``(p, genes)``."""
        z, velocity = self.curve.at(self.time_n[rows], self.noise_sk)
        given = given_of(z, self.conditions, rows, self.quantity)
        moving = torch.zeros_like(given.inputs_ni)  # what is given beside the latent point does not move
        moving[:, : velocity.shape[-1]] = velocity.reshape(-1, velocity.shape[-1])
        return values_and_slopes(self.plan, given, moving, len(z))

    def pseudocounts(self, rows: slice) -> np.ndarray:
        """Of the points, ``(p or 1, 1)``."""
        few = len(self.pseudocount_n) == 1
        return np.asarray(self.pseudocount_n if few else self.pseudocount_n[rows])[:, None]


@dataclass(frozen=True, eq=False)
class Asked:
    """The routes of all lineages, and what is common to them."""

    routes: tuple[Route, ...]
    genes: tuple[str, ...]
    unit: str
    time_name: str
    said: dict[str, Any]  # the conditions, as JSON holds them
    supported: float | None  # the share of the points with training cells near; None: nobody can tell


def read_routes(model: Decodable, path: Any, *, pseudocount: float = PSEUDOCOUNT, **arguments: Any) -> Asked:
    """Check what is asked of a path, and make it ready.

    Parameters
    ----------
    model, path
        The model, and a path of one or several lineages.
    pseudocount
        In counts per ten thousand.
    **arguments
        As for :meth:`scdecode.SCVI.decode`, but for drawn counts.

    Raises
    ------
    PointsError
        For what is no path, fewer than three points, times that do not increase.
    ConditionError
        For unknown names, wrong lengths, impossible library sizes.
    InputError
        For unknown genes or quantities, or numbers out of range.
    """
    quantity = arguments.get("quantity", "rate")
    if quantity not in QUANTITIES:
        raise InputError(unknown_name("quantity", quantity, QUANTITIES, "quantities of trends"))
    if not isinstance(path, Path):
        raise PointsError(
            f"path: {type(path).__name__} came, a trajectory was expected; make one of points in order by "
            "sd.Trajectory.from_points(points)"
        )
    asked = prepare(model, path, count_noise=False, **arguments)
    read, conditions, request = asked.points, asked.conditions, asked.request
    curves = _curves(read)
    noise_sk = torch.zeros(1, model.config.n_latent, dtype=torch.float32)
    if request.n_samples is not None:
        noise_sk = even_normals(request.n_samples, model.config.n_latent, request.seed)
    plan = plan_of(model.vae, conditions, quantity, request.genes)
    counts_n = pseudocounts(model, read, conditions, quantity, pseudocount)
    n = len(curves[0].time_n)
    routes = []
    for i, curve in enumerate(curves):
        rows = np.arange(i * n, (i + 1) * n)
        own_counts = counts_n if len(counts_n) == 1 else counts_n[rows]
        here = at_points(conditions, rows)
        routes.append(Route(_name(read, rows[0]), curve, curve.time_n, here, quantity, plan, noise_sk, own_counts))
    supported = asked.frame.obs["supported"]
    return Asked(
        routes=tuple(routes),
        genes=tuple(asked.frame.var.index),
        unit=asked.frame.uns["scdecode"]["unit"],
        time_name=read.time_name or "time",
        said=conditions.arguments,
        supported=None if supported.isna().any() else float(supported.mean()),
    )


def _name(read: Points, row: int) -> str | None:
    """Of the lineage of a point; None of the only one."""
    if read.lineage is not None:
        return str(read.lineage[row])
    return None if len(read.shape) == 1 else str(row // read.shape[1])


def at_points(conditions: Conditions, rows: np.ndarray) -> Conditions:
    """The conditions of some of the points, in any order."""
    return replace(
        conditions,
        group_n=None if conditions.group_n is None else conditions.group_n[rows],
        given_nd=None if conditions.given_nd is None else conditions.given_nd[rows],
        library_n=conditions.library_n if len(conditions.library_n) == 1 else conditions.library_n[rows],
        obs=conditions.obs.iloc[rows],
    )


def _curves(read: Points) -> list[Curve]:
    """The curve of each lineage."""
    from scipy.interpolate import CubicSpline

    if len(read.shape) not in (1, 2) or read.shape[-1] < LEAST_POINTS:
        raise PointsError(
            f"path: points of shape {(*read.shape, read.z_nk.shape[1])} came; (n, k) or (lineages, n, k) with at least "
            f"{LEAST_POINTS} points a path were expected: with fewer there is nothing between start and end"
        )
    if read.time is None:
        raise PointsError("path: it has no time; one number per point, increasing, was expected")
    n = read.shape[-1]
    z_lnk = read.z_nk.double().numpy().reshape(-1, n, read.z_nk.shape[1])
    time_ln = np.asarray(read.time, dtype=np.float64).reshape(-1, n)
    factors = None if read.factors is None else read.factors.double().numpy()
    curves = []
    for i, (z_nk, time_n) in enumerate(zip(z_lnk, time_ln, strict=True)):
        bad = np.flatnonzero(~(np.diff(time_n) > 0))
        if len(bad):
            raise PointsError(
                f"path: its time does not increase after points {listing(bad.tolist(), 3)}"
                f"{f' of lineage {i}' if len(z_lnk) > 1 else ''}; increasing finite numbers were expected"
            )
        own = None if factors is None else CubicSpline(time_n, factors[i * n : (i + 1) * n])
        curves.append(Curve(time_n, CubicSpline(time_n, z_nk), own, read.simplex))
    return curves
