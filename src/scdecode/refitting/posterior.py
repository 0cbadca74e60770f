"""The trends of one lineage, from its cells: courses, prior, posterior, in the conditions that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scdecode._utils.progress import tracked
from scdecode.cells import Cells
from scdecode.conditions import Conditions
from scdecode.expression import Asked
from scdecode.model import SCVI
from scdecode.refitting.cells_along import Along
from scdecode.refitting.expected import Expected, between, expect, knots_of, log_of
from scdecode.refitting.learning import chunks, fits_of, learn_prior
from scdecode.refitting.pooling import Pooled, pool
from scdecode.refitting.shrinkage import Design, Fit, Prior, Rows

_Z90 = 1.6448536269514722  # of a standard normal, 90 % are within that of zero
_NEGLIGIBLE = 1e-6  # of the first time course's size: another is rounding


@dataclass(frozen=True, eq=False)
class Trend:
    """The refitted trends of one lineage."""

    layers: dict[str, np.ndarray]  # (n, g) each
    counts_g: np.ndarray
    misfit_g: np.ndarray
    report: dict[str, Any]


def refit_line(
    model: SCVI,
    asked: Asked,
    points: np.ndarray,
    cells: Cells,
    library_n: np.ndarray,
    along: Along,
    decoded_ng: np.ndarray,
    n_bins: int,
    n_courses: int,
    seed: int | None,
) -> Trend:
    """Refit one lineage, whose points are at positions ``points``."""
    n_labels = model.schema.n_labels if model.config.dispersion == "gene-label" else 0
    pooled = pool(cells, along.rows, library_n[along.rows], along.time_n, along.weight_n, n_bins, n_labels)
    conditions = asked.conditions
    changing = conditions.group_n is not None or conditions.given_nd is not None
    knots = knots_of(len(points), every=changing)
    expected = expect(model, asked.points, points[knots], pooled, seed=seed)
    counts_g = pooled.counts_bg.sum(axis=0)
    course_kj, variance_j = _courses(expected, counts_g, n_courses)
    to_rows, to_points = (
        between(expected.time_k, time) for time in (pooled.time_b, np.asarray(asked.points.time)[points])
    )
    design = Design(_with_ones(to_rows @ course_kj), pooled.combination_b, pooled.n_combinations)
    rows = _rows(pooled, expected, to_rows)
    prior, factor = learn_prior(rows, design, variance_j)
    rows = rows.scattered(factor)
    at_pq = _with_ones(to_points @ course_kj)
    library_p = _library_of(asked, points)
    shift_kg = log_of(decoded_ng[points[knots]] / library_p[knots]) - expected.log_trend_kg
    shares = _shares(conditions, points, pooled.codes_mc)
    layers = {name: np.empty((len(points), len(counts_g))) for name in ("X", "std", "q05", "q95")}
    misfit_g = np.empty(len(counts_g))
    parts = chunks(len(pooled.library_b), len(counts_g))
    for some in tracked(parts, "refitting: genes", unit="parts"):
        part = rows.genes(some)
        fits, share_sg = fits_of(part, design, prior)
        mean_pg, variance_pg = _log_moments(fits, share_sg, prior, at_pq, shares)
        mean_pg += to_points @ shift_kg[:, some]
        half = _Z90 * np.sqrt(variance_pg)
        layers["X"][:, some] = trend_pg = np.exp(mean_pg + variance_pg / 2)
        layers["std"][:, some] = trend_pg * np.sqrt(np.expm1(variance_pg))
        layers["q05"][:, some], layers["q95"][:, some] = np.exp(mean_pg - half), np.exp(mean_pg + half)
        misfit_g[some] = sum(
            share_g * one.misfit(part, design, prior, component)
            for component, (one, share_g) in enumerate(zip(fits, share_sg, strict=True))
        )
    report = {
        "cells": pooled.n_cells,
        "weight": float(along.weight_n.sum()),
        "bins": pooled.n_bins,
        "combinations": pooled.n_combinations,
        "scatter": factor,
        "courses_std": np.sqrt(prior.variance_hj),
        "components": np.array(prior.components),
        "components_share": prior.share_s,
        "offset_std": float(np.sqrt(prior.offset_variance)) if design.has_offsets else 0.0,
    }
    return Trend({name: values * library_p for name, values in layers.items()}, counts_g, misfit_g, report)


def _rows(pooled: Pooled, expected: Expected, to_rows: np.ndarray) -> Rows:
    offset_bg = np.log(pooled.library_b)[:, None] + np.zeros(pooled.counts_bg.shape[1])
    if pooled.n_combinations > 1:
        for m in range(pooled.n_combinations):
            own = pooled.combination_b == m
            offset_bg[own] += to_rows[own] @ expected.log_ratio_mkg[m]
    return Rows(pooled.counts_bg, offset_bg, expected.kappa(pooled))


def _courses(expected: Expected, counts_g: np.ndarray, n_courses: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading time courses of the decoded log trends, ``(k, j)``, and the mean square of their coefficients."""
    centred_kg = expected.log_trend_kg - expected.log_trend_kg.mean(axis=0)
    left_kj, size_j, _ = np.linalg.svd(centred_kg * np.sqrt(counts_g), full_matrices=False)  # of few counts: noise
    kept = size_j > _NEGLIGIBLE * max(size_j[0], 1e-300)
    kept[min(n_courses, len(size_j) - 1) :] = False
    n = len(centred_kg)
    course_kj = left_kj[:, kept] * np.sqrt(n)
    return course_kj, ((centred_kg.T @ course_kj / n) ** 2).mean(axis=0)


def _with_ones(values_nj: np.ndarray) -> np.ndarray:
    return np.column_stack([values_nj, np.ones(len(values_nj))])


def _library_of(asked: Asked, points: np.ndarray) -> np.ndarray:
    """What the scale is multiplied with in the result, ``(p, 1)``."""
    library_n = np.ones(1) if asked.request.quantity == "scale" else asked.conditions.library_n.astype(np.float64)
    return (library_n[points] if len(library_n) > 1 else np.full(len(points), library_n[0]))[:, None]


def _shares(
    conditions: Conditions, points: np.ndarray, codes_mc: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Points asked for in the same conditions; the share of each combination of the cells; of others, squared."""
    group_p = np.zeros(len(points), dtype=int) if conditions.group_n is None else conditions.group_n[points]
    known = {tuple(codes): m for m, codes in enumerate(codes_mc.tolist())}
    found = []
    for group in np.unique(group_p):
        share_m = np.zeros(len(codes_mc))
        others: dict[tuple[int, ...], float] = {}
        for codes, weight in zip(conditions.codes_gmc[group], conditions.weights_gm[group], strict=True):
            combination = tuple(codes[:-1].tolist())  # the label is seen by the dispersion alone
            if combination in known:
                share_m[known[combination]] += weight
            else:
                others[combination] = others.get(combination, 0.0) + weight
        found.append((np.flatnonzero(group_p == group), share_m, float(sum(w**2 for w in others.values()))))
    return found


def _log_moments(
    fits: Sequence[Fit],
    share_sg: np.ndarray,
    prior: Prior,
    at_pq: np.ndarray,
    shares: Sequence[tuple[np.ndarray, np.ndarray, float]],
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the log trends over the components, ``(p, g)`` each."""
    mean_pg, square_pg = (np.zeros((len(at_pq), share_sg.shape[1])) for _ in range(2))
    for one, share_g in zip(fits, share_sg, strict=True):
        for own, share_m, others in shares:
            mean, variance = one.log_trend(at_pq[own], share_m)
            if one.delta_gm.shape[1]:
                variance = variance + others * prior.offset_variance
            mean_pg[own] += share_g * mean
            square_pg[own] += share_g * (variance + mean**2)
    return mean_pg, np.maximum(square_pg - mean_pg**2, 0.0)
