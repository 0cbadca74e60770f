"""The search for a path of least energy: a spline through a few knots, moved by L-BFGS.

Knots move in coordinates in which the energy of a constant metric is a sphere: the spline's stiffness and the metric,
averaged along the first path, are divided out. A few ten steps then suffice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scdecode._utils.progress import counting_progress
from scdecode.geometry.decoded import ParameterMap
from scdecode.geometry.divergences import kl_divergence
from scdecode.geometry.metric import metric_tensor
from scdecode.geometry.nearness import Nearness

STEPS = 64
"""Intervals of the path whose divergences are summed."""


class Spline:
    """Points of a natural cubic spline through knots that are evenly spaced in its parameter, linear in the knots."""

    def __init__(self, n_knots: int, n_steps: int) -> None:
        self.knots = np.linspace(0.0, 1.0, n_knots + 2)
        self.basis = self.at(np.linspace(0.0, 1.0, n_steps + 1))  # (steps + 1, knots + 2)
        stiffness = n_steps * np.diff(self.basis[:, 1:-1], axis=0).T @ np.diff(self.basis[:, 1:-1], axis=0)
        self.relaxed = _power(stiffness, -0.5)

    def at(self, time: np.ndarray) -> np.ndarray:
        """What each knot weighs at times from 0 to 1, ``(times, knots + 2)``."""
        from scipy.interpolate import CubicSpline

        return CubicSpline(self.knots, np.eye(len(self.knots)), bc_type="natural")(time)

    def fit(self, path_mk: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Knots between the ends, ``(knots, k)``, whose spline runs along a path at an even speed, by least squares."""
        behind = np.concatenate([[0.0], np.linalg.norm(np.diff(path_mk, axis=0), axis=1).cumsum()])
        time = np.linspace(0.0, behind[-1], len(self.basis))
        line = np.stack([np.interp(time, behind, column) for column in path_mk.T], axis=1)
        rest = line - self.basis[:, [0, -1]] @ ends
        return np.linalg.lstsq(self.basis[:, 1:-1], rest, rcond=None)[0]


@dataclass(frozen=True, eq=False)
class Cost:
    """What a path costs, in units of the straight line's energy."""

    energy: float
    penalty: float
    slope: np.ndarray  # (knots, k): derivative of the total

    @property
    def total(self) -> float:
        """What is minimised."""
        return self.energy + self.penalty


@dataclass(frozen=True, eq=False)
class Task:
    """The ends of a path, and what it is to pay for."""

    decoder: ParameterMap
    nearness: Nearness | None
    weight: float
    ends: np.ndarray  # (2, k)
    spline: Spline
    unit: float  # the straight line's energy, which costs are in units of

    def line(self, knots: np.ndarray, basis: np.ndarray) -> np.ndarray:
        """The path, ``(n, k)``."""
        return basis[:, 1:-1] @ knots + basis[:, [0, -1]] @ self.ends

    def points(self, knots: np.ndarray, basis: np.ndarray) -> Tensor:
        """The path as the decoder takes it."""
        return self._inside(torch.from_numpy(self.line(knots, basis)).to(self.decoder.dtype))

    def _inside(self, z_nk: Tensor) -> Tensor:
        """Points of a simplex stay there: a spline may reach over its edge."""
        if not self.decoder.simplex:
            return z_nk
        z_nk = z_nk.clamp(min=0)
        return z_nk / z_nk.sum(-1, keepdim=True).clamp(min=1e-12)

    @torch.enable_grad()
    def cost(self, knots: np.ndarray) -> Cost:
        """Energy and penalty of a path, with their derivatives: back through the decoder, a slot at a time."""
        basis = self.spline.basis
        line = torch.from_numpy(self.line(knots, basis)).to(self.decoder.dtype).requires_grad_(True)
        energy, n = 0.0, len(basis) - 1
        for slot in self.decoder.slots:
            parameters = slot.function(self._inside(line))
            before, after = parameters.at(slice(0, n)), parameters.at(slice(1, n + 1))
            total = kl_divergence(self.decoder.gene_likelihood, before, after).sum(dtype=torch.float64)
            total = total * (2 * n * slot.weight / self.unit)
            total.backward()
            energy += total.item()
        leaving = 0.0
        if self.nearness is not None and self.weight > 0:
            price = self.weight * self.nearness.penalty(self._inside(line)).double()
            price.backward()
            leaving = price.item()
        assert line.grad is not None, "it was asked for"
        return Cost(energy, leaving, basis[:, 1:-1].T @ line.grad.double().numpy())


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to."""

    knots: np.ndarray
    trace: list[Cost]
    converged: bool
    message: str

    @property
    def total(self) -> float:
        """What the path found costs."""
        return self.trace[-1].total


def search(task: Task, path_mk: np.ndarray, max_iterations: int) -> Found:
    """Minimise the cost of a path, from a path ``(m, k)`` on."""
    from scipy.optimize import minimize

    first = task.spline.fit(path_mk, task.ends)
    loose = _loose(task, first)
    last = task.cost(first)
    trace = [last]

    def knots_of(u: np.ndarray) -> np.ndarray:
        return first + task.spline.relaxed @ u.reshape(first.shape) @ loose

    def cost(u: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal last
        last = task.cost(knots_of(u))
        return last.total, (task.spline.relaxed @ last.slope @ loose).reshape(-1)

    # totals are near 1, and float32 knows them to about 1e-7
    options = {"maxiter": max_iterations, "ftol": 2e-6, "gtol": 2e-4}
    with counting_progress("searching the geodesic", max_iterations, unit="steps") as add:

        def step(_: np.ndarray) -> None:
            trace.append(last)
            add(1)

        result = minimize(cost, np.zeros(first.size), jac=True, method="L-BFGS-B", options=options, callback=step)
    # a line search that ends in rounding, where the slope is as good as none, has arrived
    arrived = bool(result.success) or (result.status == 2 and float(np.abs(result.jac).max()) < 1e-2)
    best = task.cost(knots_of(result.x))
    return Found(
        knots_of(result.x), [*trace[: result.nit], best] if result.nit else trace, arrived, str(result.message)
    )


def _loose(task: Task, knots: np.ndarray) -> np.ndarray:
    """``H^(-1/2)`` of the curvature H that costs have in each latent direction, ``(k, k)``: metric and penalty."""
    at = task.points(knots, task.spline.basis[:: STEPS // 8])
    curvature = 2 * metric_tensor(task.decoder, at).mean(0).numpy() / task.unit
    values = np.linalg.eigvalsh(curvature)
    floor = 1e-4 * values[-1]
    if task.nearness is not None and task.weight > 0:
        # of the squared excess; knots feel it with the stiffness of half a wave, pi squared, divided out
        floor = max(floor, 2 * task.weight / (np.pi * (task.nearness.edge - task.nearness.typical)) ** 2)
    return _power(curvature + floor * np.eye(len(curvature)), -0.5)


def _power(matrix: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values.clip(min=1e-12 * values[-1]) ** exponent) @ vectors.T
