"""Log-linear fits of all genes at once, whose coefficients are shrunk by a prior that is learned from all genes.

The pooled counts of a gene have mean ``exp(o_b + B_b beta + delta_m)`` in row b, of combination of conditions m, and
variance ``mean + kappa_b mean^2``, as a negative binomial. Coefficients of time courses have the prior of adaptive
shrinkage (Stephens, 2017, Biostatistics 18:275), for several coefficients as of Urbut et al. (2019, Nature Genetics
51:187): a mixture of normals with variances ``c s_hj^2``, of shapes h and scales c. The shapes and how many genes are
in which component are learned, so that genes that do not change are drawn to a flat line, those that change a lot are
left alone, and courses that few genes have are not lost among those of most. The last coefficient, the level, is normal
around the mean of all genes; offsets delta of combinations of conditions are normal around zero.

How likely each component is comes from Laplace's method at the mode. The posterior itself is the normal of which, at
its mean, ``counts - E[mean]`` and the pull of the prior balance, E over that normal (Gaussian variational inference:
Opper and Archambeau, 2009, Neural Computation 21:786, for the Poisson; its precision at the averaged means): where
little was counted the mode is above the mean, and what was expected would exceed what was counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

COMPONENTS = (*((0, scale) for scale in (0.01, 0.1, 0.5, 2.0, 8.0)), *((1, scale) for scale in (0.1, 0.5, 2.0, 8.0)))
"""The normals of the prior: the number of the shape, and its scale c."""

_LARGEST_STEP = 1.5  # of a coefficient, in natural logarithms: so far a quadratic is trusted
_MOST_STEPS = 100
_PRECISE = 1e-4  # a step of that is the last
_AVERAGING = 3  # steps, after which a third digit of a standard deviation no longer changes
_BOUNDS = (-60.0, 30.0)  # of what is exponentiated, beside the library


@dataclass(frozen=True, eq=False)
class Design:
    """What the means of the rows depend on, the same for all genes."""

    basis_bq: np.ndarray  # (b, q): time courses, and a last column of ones
    combination_b: np.ndarray  # (b,)
    n_combinations: int  # one: there are no offsets

    @property
    def has_offsets(self) -> bool:
        """Whether combinations of conditions have offsets of their own."""
        return self.n_combinations > 1

    @cached_property
    def of_combination(self) -> list[np.ndarray]:
        """The rows of each combination."""
        return [np.flatnonzero(self.combination_b == m) for m in range(self.n_combinations)]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of some genes."""

    counts_bg: np.ndarray
    offset_bg: np.ndarray
    kappa_bg: np.ndarray  # variance beyond Poisson's: mean + kappa mean^2

    def genes(self, which: np.ndarray | slice) -> Rows:
        """Of some of the genes."""
        return Rows(self.counts_bg[:, which], self.offset_bg[:, which], self.kappa_bg[:, which])

    def scattered(self, factor: float) -> Rows:
        """With so many times the variance beyond Poisson's."""
        return replace(self, kappa_bg=self.kappa_bg * factor)


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of a gene before its counts are looked at."""

    variance_hj: np.ndarray  # (shapes, q - 1): of the time courses, at scale one
    level: float
    level_variance: float
    offset_variance: float  # of a combination of conditions
    share_s: np.ndarray  # (components,): of the genes
    components: tuple[tuple[int, float], ...] = COMPONENTS

    def moments(self, component: int) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances of the q coefficients in a component."""
        shape, scale = self.components[component]
        mean = np.zeros(self.variance_hj.shape[1] + 1)
        mean[-1] = self.level
        return mean, np.append(scale * self.variance_hj[shape], self.level_variance)


@dataclass(frozen=True, eq=False)
class Fit:
    """The posterior of some genes in one component of the prior.

    The covariance of beta is ``covariance``; given beta, offsets are independent of one another, with variances
    ``1 / precision``, and move by ``-gain`` with it.
    """

    beta_gq: np.ndarray
    delta_gm: np.ndarray
    covariance_gqq: np.ndarray
    gain_gqm: np.ndarray
    precision_gm: np.ndarray
    evidence_g: np.ndarray  # log, but for a constant

    def log_trend(self, at_pq: np.ndarray, share_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of ``at beta + share delta``, ``(p, g)`` each."""
        mean_pg = at_pq @ self.beta_gq.T
        if not self.delta_gm.shape[1]:
            reach_gpq = np.broadcast_to(at_pq, (len(self.beta_gq), *at_pq.shape))
            own_g: np.ndarray | float = 0.0
        else:
            mean_pg = mean_pg + self.delta_gm @ share_m
            reach_gpq = at_pq - (self.gain_gqm @ share_m)[:, None, :]
            own_g = (share_m**2 / self.precision_gm).sum(axis=1)
        return mean_pg, ((reach_gpq @ self.covariance_gqq) * reach_gpq).sum(axis=2).T + own_g

    def residuals(
        self, rows: Rows, design: Design, prior: Prior, component: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared residuals and means of the rows, ``(b, g)``, and the rows that coefficients leave over, ``(g,)``."""
        at = _curvature(rows, design, prior, component, self.beta_gq, self.delta_gm, 0.0)
        of_beta, of_delta = self.variances()
        used_g = (1 - of_beta / prior.moments(component)[1]).sum(axis=1) + (1 - of_delta / prior.offset_variance).sum(
            axis=1
        )
        return (rows.counts_bg - at.mean_bg) ** 2, at.mean_bg, np.maximum(len(at.mean_bg) - used_g, 1.0)

    def misfit(self, rows: Rows, design: Design, prior: Prior, component: int) -> np.ndarray:
        """Mean squared Pearson residual of each gene."""
        square_bg, mean_bg, left_g = self.residuals(rows, design, prior, component)
        return np.asarray((square_bg / (mean_bg * (1 + rows.kappa_bg * mean_bg))).sum(axis=0) / left_g)

    def variances(self) -> tuple[np.ndarray, np.ndarray]:
        """Of beta, ``(g, q)``, and of delta, ``(g, m)``."""
        own = 1 / self.precision_gm
        if self.delta_gm.shape[1]:
            own = own + ((self.covariance_gqq @ self.gain_gqm) * self.gain_gqm).sum(axis=1)
        return np.diagonal(self.covariance_gqq, axis1=1, axis2=2), own


def fit(
    rows: Rows,
    design: Design,
    prior: Prior,
    component: int,
    start: tuple[np.ndarray, np.ndarray],
    *,
    n_steps: int = _MOST_STEPS,
    n_averaging: int = _AVERAGING,
) -> Fit:
    """A normal for each gene's posterior, by Fisher scoring.

    Parameters
    ----------
    start
        Coefficients to begin from, ``(g, q)`` and ``(g, combinations or 0)``.
    n_steps
        To the mode, at most.
    n_averaging
        Steps from Laplace's normal, at the mode, to one nearer to the posterior; 0 for none.
    """
    beta, delta = (each.copy() for each in start)
    variance_bg: np.ndarray | float = 0.0
    for _ in range(n_steps):
        at = _curvature(rows, design, prior, component, beta, delta, variance_bg)
        largest, beta, delta = _step(rows, design, prior, component, beta, delta, at)
        if largest < _PRECISE:
            break
    at = _curvature(rows, design, prior, component, beta, delta, variance_bg)
    evidence_g = _evidence(rows, design, prior, component, beta, delta, at)
    for _ in range(n_averaging):
        variance_bg = at.log_variance(design)
        at = _curvature(rows, design, prior, component, beta, delta, variance_bg)
        _, beta, delta = _step(rows, design, prior, component, beta, delta, at)
    return Fit(beta, delta, at.covariance_gqq, at.gain_gqm, at.precision_gm, evidence_g)


def advance(
    rows: Rows, design: Design, prior: Prior, component: int, start: tuple[np.ndarray, np.ndarray]
) -> tuple[Fit, tuple[np.ndarray, np.ndarray]]:
    """Laplace's normal as if these coefficients were the mode, and the coefficients one step nearer to it."""
    at = _curvature(rows, design, prior, component, *start, 0.0)
    evidence_g = _evidence(rows, design, prior, component, *start, at)
    _, beta, delta = _step(rows, design, prior, component, *start, at)
    return Fit(*start, at.covariance_gqq, at.gain_gqm, at.precision_gm, evidence_g), (beta, delta)


def _step(
    rows: Rows, design: Design, prior: Prior, component: int, beta: np.ndarray, delta: np.ndarray, at: _Curvature
) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest change, and the coefficients after it."""
    mean_q, variance_q = prior.moments(component)
    score_bg = (rows.counts_bg - at.mean_bg) / at.spread_bg
    towards = score_bg.T @ design.basis_bq - (beta - mean_q) / variance_q
    pull = _by_combination(score_bg, design) - delta / prior.offset_variance
    step = (at.covariance_gqq @ (towards - (at.gain_gqm @ pull[..., None])[..., 0])[..., None])[..., 0]
    aside = pull / at.precision_gm - (step[:, None, :] @ at.gain_gqm)[:, 0]
    largest_g = np.abs(np.concatenate([step, aside], axis=1)).max(axis=1)
    damped = np.minimum(1.0, _LARGEST_STEP / np.maximum(largest_g, 1e-300))[:, None]
    return float(largest_g.max()), beta + damped * step, delta + damped * aside


def _evidence(
    rows: Rows, design: Design, prior: Prior, component: int, beta: np.ndarray, delta: np.ndarray, at: _Curvature
) -> np.ndarray:
    """Log probability of each gene's counts by Laplace's method, but for a constant."""
    mean_q, variance_q = prior.moments(component)
    log_spread = np.log(at.spread_bg)
    kappa = np.maximum(rows.kappa_bg, 1e-12)  # its limit is Poisson's: log(1 + kappa mean) / kappa -> mean
    last = np.where(rows.kappa_bg > 1e-12, log_spread / kappa, at.mean_bg)
    log_mean = np.log(np.maximum(at.mean_bg, 1e-300))
    likely = (rows.counts_bg * (log_mean - log_spread) - last).sum(axis=0)
    likely -= 0.5 * ((beta - mean_q) ** 2 / variance_q).sum(axis=1) + 0.5 * np.log(variance_q).sum()
    likely -= 0.5 * (delta**2).sum(axis=1) / prior.offset_variance
    return np.asarray(likely - 0.5 * at.log_det_g)


@dataclass(frozen=True, eq=False)
class _Curvature:
    """Means of the rows, and the normal that the likelihood and the prior make at some coefficients.

    Rows of a combination share one offset, so that the precision of all offsets is diagonal: they are eliminated, and
    what is inverted is as small as beta.
    """

    mean_bg: np.ndarray
    spread_bg: np.ndarray  # variance over mean
    covariance_gqq: np.ndarray  # of beta
    gain_gqm: np.ndarray
    precision_gm: np.ndarray  # of delta, given beta

    @property
    def log_det_g(self) -> np.ndarray:
        """Of the precision of all coefficients."""
        factor = np.linalg.cholesky(self.covariance_gqq)
        log_det_g = -2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        return np.asarray(log_det_g + np.log(self.precision_gm).sum(axis=1))

    def log_variance(self, design: Design) -> np.ndarray:
        """Of the log means of the rows, ``(b, g)``."""
        first, second = np.triu_indices(design.basis_bq.shape[1])
        twice = np.where(first == second, 1.0, 2.0) * design.basis_bq[:, first] * design.basis_bq[:, second]
        variance_bg = twice @ self.covariance_gqq[:, first, second].T
        if design.has_offsets:
            moved = self.covariance_gqq @ self.gain_gqm
            own_gm = (moved * self.gain_gqm).sum(axis=1) + 1 / self.precision_gm
            for m, own in enumerate(design.of_combination):
                variance_bg[own] += own_gm[:, m] - 2 * design.basis_bq[own] @ moved[:, :, m].T
        return variance_bg


def _curvature(
    rows: Rows,
    design: Design,
    prior: Prior,
    component: int,
    beta: np.ndarray,
    delta: np.ndarray,
    variance_bg: np.ndarray | float,
) -> _Curvature:
    """At these coefficients, or averaged over a normal of so much variance of the log means around them."""
    eta_bg = design.basis_bq @ beta.T
    if design.has_offsets:
        eta_bg += delta.T[design.combination_b]
    np.clip(eta_bg, *_BOUNDS, out=eta_bg)
    mean_bg = np.exp(eta_bg + rows.offset_bg + variance_bg / 2)
    spread_bg = 1 + rows.kappa_bg * mean_bg
    information_bg = mean_bg / spread_bg
    basis_bq = design.basis_bq
    q, g = basis_bq.shape[1], information_bg.shape[1]
    upper = np.triu_indices(q)
    packed = information_bg.T @ (basis_bq[:, upper[0]] * basis_bq[:, upper[1]])
    precision_gqq = np.empty((g, q, q))
    precision_gqq[:, upper[0], upper[1]] = packed
    precision_gqq[:, upper[1], upper[0]] = packed
    precision_gqq[:, np.arange(q), np.arange(q)] += 1 / prior.moments(component)[1]
    gain, own = np.zeros((g, q, 0)), np.zeros((g, 0))
    if design.has_offsets:
        own = _by_combination(information_bg, design) + 1 / prior.offset_variance
        cross = np.stack([information_bg[rows_m].T @ basis_bq[rows_m] for rows_m in design.of_combination], axis=2)
        gain = cross / own[:, None, :]
        precision_gqq -= gain @ cross.transpose(0, 2, 1)
    return _Curvature(mean_bg, spread_bg, np.linalg.inv(precision_gqq), gain, own)


def _by_combination(values_bg: np.ndarray, design: Design) -> np.ndarray:
    """Sums over the rows of each combination, ``(g, m)``; of a single one there is no offset."""
    if not design.has_offsets:
        return np.zeros((values_bg.shape[1], 0))
    return np.stack([values_bg[rows_m].sum(axis=0) for rows_m in design.of_combination], axis=1)
