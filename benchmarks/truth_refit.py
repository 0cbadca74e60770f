"""Decoded trends, refitted to the counts of the cells: what is left of a decoder's overfit, shrunk away.

A candidate for the package, measured here first. The decoder is trusted with the few time courses that genes follow,
not with how much of each a gene has: log rate = level + sum_j b_j course_j(t), fitted to the pooled counts of the
cells of all lineages together (a cell of the trunk counts in each by its share, so that a gene that does not change
learns its level from all cells), with b_j normal around zero, of variance c s_j^2. The s_j are learned from all genes;
c is a mixture that lets genes be flat or large (adaptive shrinkage: Stephens 2017, Biostatistics 18:275). The result is
the posterior mean and deviation of the log rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from truth_methods import Fit, Pooled, Trend, newton

N_COURSES = 12
SCALES = np.array([0.01, 0.1, 0.4, 1.0, 2.5, 8.0])
ROUNDS = 12


def refit(
    log_ltg: np.ndarray,
    at_t: np.ndarray,
    pooled_l: Sequence[Pooled],
    extra_g: np.ndarray,
    n_courses: int = N_COURSES,
) -> list[Trend]:
    """Refit the decoded log trends of some lineages, all at the same times, to the cells of each.

    ``pooled_l`` has the cells of each lineage by their share in it; ``extra_g`` is 1 / theta of the model.
    """
    lineages, times, genes = log_ltg.shape
    flat = log_ltg.reshape(-1, genes)
    total_g = sum(pooled.counts_bg.sum(0) for pooled in pooled_l)
    change = flat - flat.mean(0)
    n_courses = min(n_courses, len(flat) - 1)
    left = np.linalg.svd(change * np.sqrt(total_g), full_matrices=False)[0]  # well-measured genes tell the courses
    courses = left[:, :n_courses] * np.sqrt(len(flat))
    here = np.hstack([courses, np.ones((len(flat), 1))])
    each = courses.reshape(lineages, times, -1)
    design = np.concatenate([_design(each[i], at_t, pooled.time_b) for i, pooled in enumerate(pooled_l)])
    cells = _joined(pooled_l)
    extra = cells.crowd_b[:, None] * extra_g

    variance_j = np.maximum(((change.T @ courses / len(flat)) ** 2).mean(0), 1e-5)
    share_c = np.full(len(SCALES), 1 / len(SCALES))
    level = np.log((total_g + 0.5) / cells.library_b.sum())
    starts = [np.hstack([np.zeros((genes, n_courses)), level[:, None]]) for _ in SCALES]
    for turn in range(ROUNDS):
        fits = [_fit(design, cells, scale * variance_j, extra, starts[c], turn) for c, scale in enumerate(SCALES)]
        starts = [fit.beta_gp for fit in fits]
        evidence = np.stack([_evidence(fit, scale * variance_j) for fit, scale in zip(fits, SCALES, strict=True)])
        odds = evidence + np.log(share_c + 1e-12)[:, None]
        of_cg = np.exp(odds - odds.max(0))
        of_cg /= of_cg.sum(0)
        share_c = of_cg.mean(1)
        inverses = [np.linalg.inv(fit.curvature_gpp) for fit in fits]
        second = [
            fit.beta_gp[:, :-1] ** 2 + np.einsum("gjj->gj", inverse)[:, :-1]
            for fit, inverse in zip(fits, inverses, strict=True)
        ]
        scaled = [of[:, None] * x / scale for of, x, scale in zip(of_cg, second, SCALES, strict=True)]
        variance_j = sum(scaled).mean(0) + 1e-8

    means = np.stack([here @ fit.beta_gp.T for fit in fits])
    within = np.stack([np.einsum("tj,gjk,tk->tg", here, inverse, here) for inverse in inverses])
    mean = (of_cg[:, None] * means).sum(0)
    deviation = np.sqrt((of_cg[:, None] * (within + means**2)).sum(0) - mean**2)
    shape = log_ltg.shape
    return [Trend.within(m, d) for m, d in zip(mean.reshape(shape), deviation.reshape(shape), strict=True)]


def _design(courses_tj: np.ndarray, at_t: np.ndarray, time_b: np.ndarray) -> np.ndarray:
    columns = [np.interp(time_b, at_t, course) for course in courses_tj.T]
    return np.stack([*columns, np.ones(len(time_b))], axis=1)


def _joined(pooled_l: Sequence[Pooled]) -> Pooled:
    names = ("counts_bg", "library_b", "crowd_b", "time_b", "batch_b")
    return Pooled(*(np.concatenate([getattr(pooled, name) for pooled in pooled_l]) for name in names))


def _fit(
    design: np.ndarray, cells: Pooled, variance_j: np.ndarray, extra: np.ndarray, start: np.ndarray, turn: int
) -> Fit:
    penalty = np.diag(np.r_[1 / variance_j, 1e-6])
    return newton(design, cells, penalty, extra, start, n=3 if turn else 12)


def _evidence(fit: Fit, variance_j: np.ndarray) -> np.ndarray:
    """Log marginal likelihood of each gene, by Laplace's approximation."""
    prior = (fit.beta_gp[:, :-1] ** 2 / variance_j).sum(1) + np.log(variance_j).sum()
    return fit.log_likelihood_g - (prior + np.linalg.slogdet(fit.curvature_gpp)[1]) / 2
