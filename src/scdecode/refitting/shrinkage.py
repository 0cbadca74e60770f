"""Log-linear fits of all genes at once, whose coefficients are shrunk by a prior that is learned from all genes.

The pooled counts of a gene have mean ``exp(o_b + B_b beta + delta_m)`` in row b, of combination of conditions m, and
variance ``mean + kappa_b mean^2``, as a negative binomial. Coefficients of time courses have the prior of adaptive
shrinkage (Stephens, 2017, Biostatistics 18:275), here in several dimensions: normal with variances ``c s_j^2``, of which
the ``s_j^2`` and how many genes have which scale c are learned, so that genes that do not change are drawn to a flat
line, and those that change a lot are left alone. The last coefficient, the level, is normal around the mean of all
genes; offsets delta of combinations of conditions are normal around zero.

Posteriors are Laplace's: normal at the mode, with the expected information there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SCALES = (0.01, 0.1, 0.4, 1.0, 2.5, 8.0)
"""c: variances of the prior, as multiples of the mean over genes."""

_LEARNED_FROM = 1000  # genes: two dozen numbers are learned from them
_ROUNDS = 14  # of expectation and maximisation
_LARGEST_STEP = 1.5  # of a coefficient, in natural logarithms: so far a quadratic is trusted
_MOST_STEPS = 100
_PRECISE = 1e-6  # a step of that is the last
_AT_ONCE = 2**17  # entries of a row times gene array: such a few fit the cache
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


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of some genes."""

    counts_bg: np.ndarray
    offset_bg: np.ndarray
    kappa_bg: np.ndarray  # variance beyond Poisson's: mean + kappa mean^2

    def genes(self, which: np.ndarray | slice) -> Rows:
        """Of some of the genes."""
        return Rows(self.counts_bg[:, which], self.offset_bg[:, which], self.kappa_bg[:, which])


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of a gene before its counts are looked at."""

    variance_j: np.ndarray  # (q - 1,): of the time courses, at scale one
    level: float
    level_variance: float
    offset_variance: float  # of a combination of conditions
    share_s: np.ndarray  # (scales,): of the genes
    scales: tuple[float, ...] = SCALES

    def moments(self, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances of the q coefficients at a scale."""
        mean = np.zeros(len(self.variance_j) + 1)
        mean[-1] = self.level
        return mean, np.append(scale * self.variance_j, self.level_variance)


@dataclass(frozen=True, eq=False)
class Fit:
    """The posterior of some genes at one scale of the prior.

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
    scale: float,
    start: tuple[np.ndarray, np.ndarray],
    *,
    n_steps: int = _MOST_STEPS,
) -> Fit:
    """The mode of each gene's posterior by Fisher scoring, and the normal around it.

    Parameters
    ----------
    start
        Coefficients to begin from, ``(g, q)`` and ``(g, combinations or 0)``.
    n_steps
        At most.
    """
    mean_q, variance_q = prior.moments(scale)
    beta, delta = (each.copy() for each in start)
    for _ in range(n_steps):
        eta_bg, mean_bg = _means(rows, design, beta, delta)
        spread_bg = 1 + rows.kappa_bg * mean_bg
        score_bg = (rows.counts_bg - mean_bg) / spread_bg
        towards = score_bg.T @ design.basis_bq - (beta - mean_q) / variance_q
        covariance, gain, precision, _ = _curvature(mean_bg / spread_bg, design, variance_q, prior.offset_variance)
        if design.has_offsets:
            pull = _by_combination(score_bg, design) - delta / prior.offset_variance
            towards = towards - (gain @ pull[..., None])[..., 0]
        step = (covariance @ towards[..., None])[..., 0]
        largest = np.abs(step).max(axis=1)
        aside = np.zeros_like(delta)
        if design.has_offsets:
            aside = pull / precision - (step[:, None, :] @ gain)[:, 0]
            largest = np.maximum(largest, np.abs(aside).max(axis=1))
        damped = np.minimum(1.0, _LARGEST_STEP / np.maximum(largest, 1e-300))[:, None]
        beta, delta = beta + damped * step, delta + damped * aside
        if largest.max() < _PRECISE:
            break
    eta_bg, mean_bg = _means(rows, design, beta, delta)
    spread_bg = 1 + rows.kappa_bg * mean_bg
    covariance, gain, precision, log_det = _curvature(
        mean_bg / spread_bg, design, variance_q, prior.offset_variance
    )
    log_prior = -0.5 * ((beta - mean_q) ** 2 / variance_q).sum(axis=1) - 0.5 * np.log(variance_q).sum()
    if design.has_offsets:
        log_prior = log_prior - 0.5 * (delta**2).sum(axis=1) / prior.offset_variance
    evidence = _log_likelihood(rows, eta_bg, mean_bg, spread_bg) + log_prior - 0.5 * log_det
    return Fit(beta, delta, covariance, gain, precision, evidence)


def beginning(rows: Rows, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients to begin from: flat, at the level of the counts."""
    level_g = np.log((rows.counts_bg.sum(axis=0) + 0.5) / np.exp(rows.offset_bg).sum(axis=0))
    beta = np.zeros((len(level_g), design.basis_bq.shape[1]))
    beta[:, -1] = level_g
    return beta, np.zeros((len(level_g), design.n_combinations if design.has_offsets else 0))


def learn_prior(rows: Rows, design: Design, variance_j: np.ndarray) -> Prior:
    """The prior that makes all genes' counts most likely, by expectation and maximisation.

    Parameters
    ----------
    rows
        Of all genes; of more than a thousand, a thousand are taken, evenly from the lowest to the highest.
    variance_j
        Of the coefficients of the time courses, to begin from.
    """
    order = np.argsort(rows.counts_bg.sum(axis=0), kind="stable")
    some = np.sort(order[np.unique(np.linspace(0, len(order) - 1, min(_LEARNED_FROM, len(order))).round().astype(int))])
    rows = rows.genes(some)
    start = beginning(rows, design)
    level_g = start[0][:, -1]
    prior = Prior(
        variance_j=np.maximum(variance_j, 1e-5),
        level=float(level_g.mean()),
        level_variance=float(max(level_g.var(), 0.1)),
        offset_variance=0.01,
        share_s=np.full(len(SCALES), 1 / len(SCALES)),
    )
    first = fit(rows, design, prior, 1.0, start, n_steps=8)
    starts = [(first.beta_gq, first.delta_gm)] * len(SCALES)
    for _ in range(_ROUNDS):
        fits = [
            fit(rows, design, prior, scale, start, n_steps=1) for scale, start in zip(SCALES, starts, strict=True)
        ]
        starts = [(one.beta_gq, one.delta_gm) for one in fits]
        prior = _better(prior, fits, responsibilities(prior, fits))
    return prior


def _better(prior: Prior, fits: Sequence[Fit], share_sg: np.ndarray) -> Prior:
    """The prior, from what the genes are like under the last one."""
    variance_j, level, square, offset = np.zeros_like(prior.variance_j), 0.0, 0.0, 0.0
    n_genes = share_sg.shape[1]
    for one, scale, share_g in zip(fits, prior.scales, share_sg, strict=True):
        of_beta, of_delta = one.variances()
        seen_gq = one.beta_gq**2 + of_beta
        variance_j += share_g @ seen_gq[:, :-1] / (scale * n_genes)
        level += float(share_g @ one.beta_gq[:, -1]) / n_genes
        square += float(share_g @ seen_gq[:, -1]) / n_genes
        offset += float(share_g @ (one.delta_gm**2 + of_delta).sum(axis=1)) / n_genes
    n_offsets = max(1, fits[0].delta_gm.shape[1])
    return replace(
        prior,
        variance_j=np.maximum(variance_j, 1e-8),
        level=level,
        level_variance=max(square - level**2, 1e-2),
        offset_variance=max(offset / n_offsets, 1e-6),
        share_s=np.maximum(share_sg.mean(axis=1), 1e-6),
    )


def responsibilities(prior: Prior, fits: Sequence[Fit]) -> np.ndarray:
    """How likely each gene has each scale, ``(scales, g)``."""
    log_sg = np.stack([one.evidence_g for one in fits]) + np.log(prior.share_s)[:, None]
    share_sg = np.exp(log_sg - log_sg.max(axis=0))
    return np.asarray(share_sg / share_sg.sum(axis=0))


def fits_of(rows: Rows, design: Design, prior: Prior) -> tuple[list[Fit], np.ndarray]:
    """The posteriors of genes at each scale, and how likely each scale is, ``(scales, g)``."""
    fits: list[Fit] = []
    start = beginning(rows, design)
    for scale in prior.scales[::-1]:  # from the loosest: the next mode is near
        fits.append(fit(rows, design, prior, scale, start))
        start = (fits[-1].beta_gq, fits[-1].delta_gm)
    fits = fits[::-1]
    return fits, responsibilities(prior, fits)


def chunks(n_rows: int, n_genes: int) -> list[slice]:
    """Genes at a time."""
    size = max(32, _AT_ONCE // n_rows)
    return [slice(start, min(start + size, n_genes)) for start in range(0, n_genes, size)]


def _means(rows: Rows, design: Design, beta: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    eta_bg = design.basis_bq @ beta.T
    if design.has_offsets:
        eta_bg += delta.T[design.combination_b]
    np.clip(eta_bg, *_BOUNDS, out=eta_bg)
    eta_bg += rows.offset_bg
    return eta_bg, np.exp(eta_bg)


def _log_likelihood(rows: Rows, eta_bg: np.ndarray, mean_bg: np.ndarray, spread_bg: np.ndarray) -> np.ndarray:
    """Of each gene, but for what does not depend on the mean."""
    log_spread = np.log(spread_bg)
    kappa = np.maximum(rows.kappa_bg, 1e-12)  # its limit is Poisson's: log(1 + kappa mean) / kappa -> mean
    last = np.where(rows.kappa_bg > 1e-12, log_spread / kappa, mean_bg)
    return np.asarray((rows.counts_bg * (eta_bg - log_spread) - last).sum(axis=0))


def _curvature(
    information_bg: np.ndarray, design: Design, variance_q: np.ndarray, offset_variance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Covariance of beta, gain and precision of delta, and the log determinant of the whole precision.

    Rows of a combination share one offset, so that the precision of all offsets is diagonal: they are eliminated, and
    what is inverted is as small as beta.
    """
    basis_bq = design.basis_bq
    q, g = basis_bq.shape[1], information_bg.shape[1]
    upper = np.triu_indices(q)
    packed = information_bg.T @ (basis_bq[:, upper[0]] * basis_bq[:, upper[1]])
    precision_gqq = np.empty((g, q, q))
    precision_gqq[:, upper[0], upper[1]] = packed
    precision_gqq[:, upper[1], upper[0]] = packed
    precision_gqq[:, np.arange(q), np.arange(q)] += 1 / variance_q
    gain, own, log_det = np.zeros((g, q, 0)), np.zeros((g, 0)), np.zeros(g)
    if design.has_offsets:
        own = _by_combination(information_bg, design) + 1 / offset_variance
        cross = np.stack(
            [
                information_bg[design.combination_b == m].T @ basis_bq[design.combination_b == m]
                for m in range(design.n_combinations)
            ],
            axis=2,
        )
        gain = cross / own[:, None, :]
        precision_gqq -= gain @ cross.transpose(0, 2, 1)
        log_det = np.log(own).sum(axis=1)
    factor = np.linalg.cholesky(precision_gqq)
    log_det = log_det + 2 * np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
    half = np.linalg.inv(factor)
    return half.transpose(0, 2, 1) @ half, gain, own, log_det


def _by_combination(values_bg: np.ndarray, design: Design) -> np.ndarray:
    """Sums over the rows of each combination, ``(g, m)``."""
    return np.stack(
        [values_bg[design.combination_b == m].sum(axis=0) for m in range(design.n_combinations)], axis=1
    )
