"""The prior of all genes, learned from their counts, and the posterior of each gene under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scdecode._utils.progress import tracked
from scdecode.refitting.shrinkage import COMPONENTS, Design, Fit, Prior, Rows, advance, fit

_LEARNED_FROM = 1000  # genes: two dozen numbers are learned from them
_ROUNDS = 14  # of expectation and maximisation
_CALIBRATED = 7  # of them, after each of which the scatter of the counts is looked at
_FACTORS = (0.1, 10.0)  # of their variance beyond Poisson's
_RARE = 0.002  # of the genes: a component of no more is left out
_FEWEST_GENES = 10
_AT_ONCE = 2**17  # entries of a row times gene array: such a few fit the cache


def beginning(rows: Rows, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients to begin from: flat, at the level of the counts."""
    level_g = np.log((rows.counts_bg.sum(axis=0) + 0.5) / np.exp(rows.offset_bg).sum(axis=0))
    beta = np.zeros((len(level_g), design.basis_bq.shape[1]))
    beta[:, -1] = level_g
    return beta, np.zeros((len(level_g), design.n_combinations if design.has_offsets else 0))


def learn_prior(rows: Rows, design: Design, variance_j: np.ndarray) -> tuple[Prior, float]:
    """The prior that makes all genes' counts most likely, by expectation and maximisation; and a factor of kappa.

    By that factor the counts of the median gene scatter as much more than is expected of them, beyond Poisson's
    variance: cells of a donor are no independent cells, a theta or a spread may be too small or too large.

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
        variance_hj=np.maximum(
            [variance_j, np.full_like(variance_j, variance_j.mean() if len(variance_j) else 0.0)], 1e-5
        ),
        level=float(level_g.mean()),
        level_variance=float(max(level_g.var(), 0.1)),
        offset_variance=0.01,
        share_s=np.full(len(COMPONENTS), 1 / len(COMPONENTS)),
    )
    begun = [
        fit(rows, design, prior, component, start, n_steps=6, n_averaging=0) for component in range(len(COMPONENTS))
    ]
    starts = [(one.beta_gq, one.delta_gm) for one in begun]
    factor = 1.0
    for n in tracked(range(_ROUNDS), "refitting: the prior of all genes", unit="rounds"):
        scattered = rows.scattered(factor)
        steps = [advance(scattered, design, prior, component, start) for component, start in enumerate(starts)]
        fits, starts = [step[0] for step in steps], [step[1] for step in steps]
        share_sg = responsibilities(prior, fits)
        before, prior = prior, _better(prior, fits, share_sg)
        if n % _CALIBRATED == _CALIBRATED - 1:
            factor = _calibrated(rows, scattered, design, before, fits, share_sg)
            kept = np.flatnonzero(prior.share_s > _RARE)
            starts = [starts[component] for component in kept]
            components = tuple(prior.components[component] for component in kept)
            prior = replace(prior, components=components, share_s=prior.share_s[kept] / prior.share_s[kept].sum())
    return prior, factor


def _calibrated(
    rows: Rows, scattered: Rows, design: Design, prior: Prior, fits: Sequence[Fit], share_sg: np.ndarray
) -> float:
    """The factor of kappa by which the median gene's counts scatter as expected, of genes with counts in all bins."""
    best_g = share_sg.argmax(axis=0)
    square_bg, mean_bg = np.empty_like(rows.counts_bg), np.empty_like(rows.counts_bg)
    left_g = np.empty(len(best_g))
    for component, one in enumerate(fits):
        if (own := best_g == component).any():
            found = one.residuals(scattered, design, prior, component)
            square_bg[:, own], mean_bg[:, own], left_g[own] = (values[..., own] for values in found)
    known = (mean_bg.mean(axis=0) > 1) & (rows.kappa_bg.mean(axis=0) > 0)
    if known.sum() < _FEWEST_GENES:
        return 1.0
    square_bg, mean_bg, kappa_bg = square_bg[:, known], mean_bg[:, known], rows.kappa_bg[:, known]
    low, high = np.log(_FACTORS)
    for _ in range(20):  # by halves: the misfit falls with the factor
        middle = (low + high) / 2
        misfit_g = (square_bg / (mean_bg * (1 + np.exp(middle) * kappa_bg * mean_bg))).sum(axis=0) / left_g[known]
        low, high = (middle, high) if np.median(misfit_g) > 1 else (low, middle)
    return float(np.exp((low + high) / 2))


def _better(prior: Prior, fits: Sequence[Fit], share_sg: np.ndarray) -> Prior:
    """The prior, from what the genes are like under the last one."""
    variance_hj, total_h = np.zeros_like(prior.variance_hj), np.full((len(prior.variance_hj), 1), 1e-9)
    level = square = offset = 0.0
    n_genes = share_sg.shape[1]
    for (shape, scale), one, share_g in zip(prior.components, fits, share_sg, strict=True):
        of_beta, of_delta = one.variances()
        seen_gq = one.beta_gq**2 + of_beta
        variance_hj[shape] += share_g @ seen_gq[:, :-1] / scale
        total_h[shape] += share_g.sum()
        level += float(share_g @ one.beta_gq[:, -1]) / n_genes
        square += float(share_g @ seen_gq[:, -1]) / n_genes
        offset += float(share_g @ (one.delta_gm**2 + of_delta).sum(axis=1)) / n_genes
    n_offsets = max(1, fits[0].delta_gm.shape[1])
    return replace(
        prior,
        variance_hj=np.maximum(variance_hj / total_h, 1e-8),
        level=level,
        level_variance=max(square - level**2, 1e-2),
        offset_variance=max(offset / n_offsets, 1e-6),
        share_s=np.maximum(share_sg.mean(axis=1), 1e-6),
    )


def responsibilities(prior: Prior, fits: Sequence[Fit]) -> np.ndarray:
    """How likely each gene is in each component, ``(components, g)``."""
    log_sg = np.stack([one.evidence_g for one in fits]) + np.log(prior.share_s)[:, None]
    share_sg = np.exp(log_sg - log_sg.max(axis=0))
    return np.asarray(share_sg / share_sg.sum(axis=0))


def fits_of(rows: Rows, design: Design, prior: Prior) -> tuple[list[Fit], np.ndarray]:
    """The posteriors of genes in each component, and how likely each is, ``(components, g)``."""
    fits: list[Fit] = []
    start = beginning(rows, design)
    for component in reversed(range(len(prior.components))):  # from the loosest: the next mode is near
        fits.append(fit(rows, design, prior, component, start))
        start = (fits[-1].beta_gq, fits[-1].delta_gm)
    fits = fits[::-1]
    return fits, responsibilities(prior, fits)


def chunks(n_rows: int, n_genes: int) -> list[slice]:
    """Genes at a time."""
    size = max(32, _AT_ONCE // n_rows)
    return [slice(start, min(start + size, n_genes)) for start in range(0, n_genes, size)]
