"""The prior of all genes, learned from their counts, and the posterior of each gene under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scdecode.refitting.shrinkage import SCALES, Design, Fit, Prior, Rows, fit

_LEARNED_FROM = 1000  # genes: two dozen numbers are learned from them
_ROUNDS = 14  # of expectation and maximisation
_AT_ONCE = 2**17  # entries of a row times gene array: such a few fit the cache


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
    first = fit(rows, design, prior, 1.0, start, n_steps=8, n_averaging=0)
    starts = [(first.beta_gq, first.delta_gm)] * len(SCALES)
    for _ in range(_ROUNDS):
        fits = [
            fit(rows, design, prior, scale, start, n_steps=1, n_averaging=0)
            for scale, start in zip(SCALES, starts, strict=True)
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
