"""What people do with cells along a known pseudotime, beside decoding: averages of near cells, and a GAM for each gene.

Everything is in natural logarithms of the fraction of RNA, times x genes, from ``Pooled`` counts: those of the cells in
fine bins of time, a batch each. Of Poisson counts the sums in a bin tell all; of negative binomial ones nearly so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline

N_BINS = 100
N_SPLINES = 20
SMOOTH = 10.0 ** np.arange(-1, 6.1, 0.5)  # the penalties that are tried
Z90 = 1.6449  # of a normal distribution, 90 % are within so many standard deviations


@dataclass(frozen=True)
class Pooled:
    """Counts of cells, pooled into bins of time and batch."""

    counts_bg: np.ndarray
    library_b: np.ndarray  # sum over the cells
    crowd_b: np.ndarray  # sum of their squared libraries / square of the sum: 1 / so many cells of one library
    time_b: np.ndarray  # 0 to 1
    batch_b: np.ndarray


@dataclass(frozen=True)
class Trend:
    """A trend of each gene, and where it claims to be certain."""

    log_tg: np.ndarray
    low_tg: np.ndarray | None = None
    high_tg: np.ndarray | None = None

    @classmethod
    def within(cls, log_tg: np.ndarray, deviation_tg: np.ndarray) -> Trend:
        return cls(log_tg, log_tg - Z90 * deviation_tg, log_tg + Z90 * deviation_tg)


def pool(counts_ng: np.ndarray, time_n: np.ndarray, batch_n: np.ndarray, weight_n: np.ndarray) -> Pooled:
    """Cells of a weight above zero, in bins of as many cells each."""
    used = weight_n > 0
    counts, time, batch, weight = counts_ng[used], time_n[used], batch_n[used], weight_n[used]
    edges = np.quantile(time, np.linspace(0, 1, N_BINS + 1)[1:-1])
    levels, codes = np.unique(batch, return_inverse=True)
    _, own = np.unique(np.searchsorted(edges, time) * len(levels) + codes, return_inverse=True)
    into = np.zeros((own.max() + 1, len(time)))
    into[own, np.arange(len(time))] = weight
    library = counts.sum(1)
    batch_b = np.zeros(len(into), dtype=int)
    batch_b[own] = codes
    total = into @ library
    return Pooled(into @ counts, total, into @ library**2 / total**2, into @ time / into.sum(1), batch_b)


def nearest(
    counts_ng: np.ndarray, time_n: np.ndarray, weight_n: np.ndarray, at_t: np.ndarray, sizes: Sequence[int]
) -> dict[int, Trend]:
    """The mean of the k cells nearest in time, for each k."""
    used = weight_n > 0
    counts, order = counts_ng[used], np.abs(time_n[used] - at_t[:, None]).argsort(axis=1)
    found = {}
    for k in sizes:
        sums = np.stack([counts[row[:k]].sum(0) for row in order])
        found[k] = Trend(np.log(sums / sums.sum(1, keepdims=True) + 1e-12))
    return found


def gam(pooled: Pooled, at_t: np.ndarray, extra_g: np.ndarray) -> dict[str, Trend]:
    """A penalised spline of each gene: negative binomial, log link, the library as offset, an effect of batch.

    Twenty cubic B-splines and a penalty on second differences (Eilers and Marx 1996, Statistical Science 11:89).
    ``"UBRE"`` takes the smoothness of the least AIC for each gene, as pygam's grid search and statsmodels do,
    ``"REML"`` the one of the largest marginal likelihood (Laplace's approximation), as mgcv and tradeSeq do. Bands
    are 90 % of the posterior that the penalty stands for (Wood 2006, Australian & New Zealand J. Statistics 48:445).

    ``extra_g`` is 1 / theta: what the variance has beyond the mean, in units of its square.
    """
    basis_bp = splines(pooled.time_b)
    q = basis_bp.shape[1]
    batches = pooled.batch_b.max() + 1
    centred = np.eye(batches) - 1 / batches
    contrast = np.linalg.svd(centred)[0][:, : batches - 1]
    design = np.hstack([basis_bp, contrast[pooled.batch_b]])
    difference = np.diff(np.eye(q), 2, axis=0)
    penalty = np.zeros((design.shape[1],) * 2)
    penalty[:q, :q] = difference.T @ difference
    ridge = np.diag(np.r_[np.full(q, 1e-8), np.ones(batches - 1)])  # effects of batches: normal with deviation 1
    start = np.zeros((pooled.counts_bg.shape[1], design.shape[1]))
    start[:, :q] = np.log((pooled.counts_bg.sum(0) + 0.5) / pooled.library_b.sum())[:, None]
    extra = pooled.crowd_b[:, None] * extra_g
    fits = []
    for smooth in SMOOTH:
        fit = newton(design, pooled, smooth * penalty + ridge, extra, start)
        start = fit.beta_gp
        edf = np.trace(np.linalg.solve(fit.curvature_gpp, fit.information_gpp), axis1=1, axis2=2)
        rough = np.einsum("gi,ij,gj->g", fit.beta_gp, smooth * penalty, fit.beta_gp)
        log_det = np.linalg.slogdet(fit.curvature_gpp)[1]
        reml = -fit.log_likelihood_g + (rough + log_det - (q - 2) * np.log(smooth)) / 2
        fits.append((fit, -2 * fit.log_likelihood_g + 2 * edf, reml))
    here = splines(at_t)
    trends = {}
    for place, name in ((1, "UBRE"), (2, "REML")):
        best = np.stack([fit[place] for fit in fits]).argmin(0)
        rows = np.arange(len(best))
        beta = np.stack([fit[0].beta_gp for fit in fits])[best, rows, :q]
        inverse = np.linalg.inv(np.stack([fit[0].curvature_gpp for fit in fits])[best, rows])[:, :q, :q]
        deviation = np.sqrt(np.einsum("ti,gij,tj->tg", here, inverse, here))
        trends[name] = Trend.within(here @ beta.T, deviation)
    return trends


def splines(time_n: np.ndarray) -> np.ndarray:
    """Cubic B-splines over 0 to 1."""
    inner = np.linspace(0, 1, N_SPLINES - 2)
    knots = np.r_[[0.0] * 3, inner, [1.0] * 3]
    return BSpline.design_matrix(np.clip(time_n, 0, 1), knots, 3).toarray()


@dataclass(frozen=True)
class Fit:
    beta_gp: np.ndarray
    log_likelihood_g: np.ndarray
    information_gpp: np.ndarray  # of the counts
    curvature_gpp: np.ndarray  # with the penalty


def newton(
    design_bp: np.ndarray,
    pooled: Pooled,
    penalty_pp: np.ndarray,
    extra_bg: np.ndarray,
    start_gp: np.ndarray,
    n: int = 25,
) -> Fit:
    """Negative binomial regression with a log link for all genes at once: penalised, by Fisher scoring."""
    rows, p = design_bp.shape
    products = (design_bp[:, :, None] * design_bp[:, None]).reshape(rows, p * p)
    counts, offset, beta = pooled.counts_bg, np.log(pooled.library_b)[:, None], start_gp

    def weights(beta_gp: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        eta = np.clip(design_bp @ beta_gp.T, -30, 3)
        mean = np.exp(eta + offset)
        return eta, mean, mean / (1 + mean * extra_bg)

    for _ in range(n):
        eta, mean, weight = weights(beta)
        curvature = (weight.T @ products).reshape(-1, p, p) + penalty_pp
        target = (weight * (eta + (counts - mean) / mean)).T @ design_bp
        step = np.clip(np.linalg.solve(curvature, target[..., None])[..., 0] - beta, -3, 3)
        beta = beta + step
        if np.quantile(np.abs(step).max(1), 0.98) < 1e-3:  # a gene without a count goes down for ever
            break
    eta, mean, weight = weights(beta)
    information = (weight.T @ products).reshape(-1, p, p)
    spread = np.maximum(extra_bg, 1e-12)
    log_likelihood = (counts * (eta - np.log1p(mean * spread)) - np.log1p(mean * spread) / spread).sum(0)
    return Fit(beta, log_likelihood, information, information + penalty_pp)


def overdispersion(counts_ng: np.ndarray, time_n: np.ndarray, pooled: Pooled) -> np.ndarray:
    """1 / theta of each gene by moments, around a smooth Poisson trend."""
    basis = splines(pooled.time_b)
    difference = np.diff(np.eye(basis.shape[1]), 2, axis=0)
    start = np.tile(np.log((pooled.counts_bg.sum(0) + 0.5) / pooled.library_b.sum())[:, None], basis.shape[1])
    penalty = 1e3 * difference.T @ difference + 1e-8 * np.eye(basis.shape[1])
    beta = newton(basis, pooled, penalty, np.zeros((len(basis), len(start))), start).beta_gp
    mean = counts_ng.sum(1, keepdims=True) * np.exp(splines(time_n) @ beta.T)
    moments = ((counts_ng - mean) ** 2 - mean).sum(0) / np.maximum((mean**2).sum(0), 1e-12)
    return np.clip(moments, 1e-4, 10.0)
