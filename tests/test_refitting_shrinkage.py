"""The fits of all genes at once: against direct maximisation and integration of one, and what is learned of all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import nbinom, poisson

from scdecode.refitting.expected import between, knots_of
from scdecode.refitting.learning import beginning, fits_of, learn_prior
from scdecode.refitting.shrinkage import COMPONENTS, Design, Prior, Rows, fit

COMPONENT = 3
TIGHT = {"n_steps": 200, "n_averaging": 0}


def problem(n_combinations=1, kappa=0.2, n_genes=6, depth=1.0, seed=0):
    """Counts of 30 rows a combination, of genes with two time courses."""
    rng = np.random.default_rng(seed)
    time = np.tile(np.linspace(0, 1, 30), n_combinations)
    basis = np.column_stack([np.cos(np.pi * time), np.cos(2 * np.pi * time), np.ones(len(time))])
    combination = np.repeat(np.arange(n_combinations), 30)
    beta = rng.normal(size=(n_genes, 3)) * [0.6, 0.3, 0.5] + [0, 0, np.log(depth)]
    delta = 0.3 * rng.normal(size=(n_genes, n_combinations))
    offset = rng.uniform(1, 2, (len(time), n_genes))
    mean = np.exp(basis @ beta.T + delta.T[combination] + offset)
    counts = rng.poisson(mean * (rng.gamma(1 / kappa, kappa, mean.shape) if kappa else 1.0))
    rows = Rows(counts.astype(float), offset, np.full(mean.shape, float(kappa)))
    prior = Prior(
        variance_hj=np.array([[0.3, 0.1], [0.2, 0.2]]),
        level=0.1,
        level_variance=1.5,
        offset_variance=0.09,
        share_s=np.full(len(COMPONENTS), 1 / len(COMPONENTS)),
    )
    return rows, Design(basis, combination, n_combinations), prior


def minus_log_posterior(values, rows, design, prior, gene):
    """As scipy's distributions have it, of coefficients and offsets together."""
    beta, delta = values[:3], values[3:]
    eta = design.basis_bq @ beta + rows.offset_bg[:, gene]
    if design.has_offsets:
        eta = eta + delta[design.combination_b]
    mean, kappa = np.exp(eta), rows.kappa_bg[:, gene]
    if kappa[0] > 0:
        likely = nbinom.logpmf(rows.counts_bg[:, gene], 1 / kappa, 1 / (1 + kappa * mean)).sum()
    else:
        likely = poisson.logpmf(rows.counts_bg[:, gene], mean).sum()
    centre, variance = prior.moments(COMPONENT)
    return -likely + 0.5 * ((beta - centre) ** 2 / variance).sum() + 0.5 * (delta**2).sum() / prior.offset_variance


@pytest.mark.parametrize(("n_combinations", "kappa"), [(1, 0.2), (1, 0.0), (3, 0.2)])
def test_the_mode_is_that_of_a_direct_maximisation(n_combinations, kappa):
    rows, design, prior = problem(n_combinations, kappa)
    found = fit(rows, design, prior, COMPONENT, beginning(rows, design), **TIGHT)
    for gene in range(rows.counts_bg.shape[1]):
        start = np.zeros(3 + found.delta_gm.shape[1])
        best = minimize(minus_log_posterior, start, (rows, design, prior, gene), options={"gtol": 1e-6})
        np.testing.assert_allclose(
            np.concatenate([found.beta_gq[gene], found.delta_gm[gene]]), best.x, rtol=1e-3, atol=1e-3
        )


def test_the_covariance_is_the_inverse_of_the_whole_precision():
    rows, design, prior = problem(3)
    found = fit(rows, design, prior, COMPONENT, beginning(rows, design), **TIGHT)
    at, share = np.array([[0.5, -0.2, 1.0], [0.0, 1.0, 1.0]]), np.array([0.5, 0.3, 0.2])
    mean, variance = found.log_trend(at, share)
    whole = np.column_stack([design.basis_bq, np.eye(3)[design.combination_b]])
    inverse = np.append(1 / prior.moments(COMPONENT)[1], np.full(3, 1 / prior.offset_variance))
    for gene in range(rows.counts_bg.shape[1]):
        coefficients = np.concatenate([found.beta_gq[gene], found.delta_gm[gene]])
        expected = np.exp(whole @ coefficients + rows.offset_bg[:, gene])
        information = expected / (1 + 0.2 * expected)
        covariance = np.linalg.inv((whole.T * information) @ whole + np.diag(inverse))
        target = np.column_stack([at, np.tile(share, (2, 1))])
        np.testing.assert_allclose(mean[:, gene], target @ coefficients)
        np.testing.assert_allclose(variance[:, gene], np.diag(target @ covariance @ target.T))
        variances = [values[gene] for values in found.variances()]
        np.testing.assert_allclose(np.concatenate(variances), np.diag(covariance))


def test_the_evidence_tells_scales_apart_as_integration_does():
    """Of a single coefficient the integral is done on a grid."""
    rows, _, prior = problem(kappa=0.0, n_genes=4)
    design = Design(np.ones((30, 1)), np.zeros(30, dtype=int), 1)
    grid = np.linspace(-6, 6, 4001)
    found = []
    for variance in (0.5, 2.0):
        own = Prior(np.zeros((2, 0)), 0.1, variance, 0.09, prior.share_s)
        start = (np.zeros((4, 1)), np.zeros((4, 0)))
        laplace = fit(rows, design, own, 0, start, **TIGHT).evidence_g
        exact = []
        for gene in range(4):
            mean = np.exp(rows.offset_bg[:, gene, None] + grid)
            log = poisson.logpmf(rows.counts_bg[:, gene, None], mean).sum(axis=0) - 0.5 * (grid - 0.1) ** 2 / variance
            exact.append(log.max() + np.log(np.exp(log - log.max()).sum()) - 0.5 * np.log(variance))
        found.append((laplace, np.array(exact)))
    np.testing.assert_allclose(found[0][0] - found[1][0], found[0][1] - found[1][1], atol=2e-3)


def test_where_little_was_counted_the_posterior_is_not_that_at_the_mode():
    counts = np.array([[0.0, 1.0, 3.0, 40.0]])
    rows = Rows(counts, np.zeros((1, 4)), np.zeros((1, 4)))
    design = Design(np.ones((1, 1)), np.zeros(1, dtype=int), 1)
    prior = Prior(np.zeros((2, 0)), 0.0, 2.0, 0.09, np.full(len(COMPONENTS), 1 / len(COMPONENTS)))
    grid = np.linspace(-12, 8, 20001)
    start = (np.zeros((4, 1)), np.zeros((4, 0)))
    laplace, averaged = (fit(rows, design, prior, 0, start, n_averaging=n) for n in (0, 3))
    for gene in range(4):
        log = poisson.logpmf(counts[0, gene], np.exp(grid)) - grid**2 / 4
        weight = np.exp(log - log.max())
        weight /= weight.sum()
        exact = np.exp(grid) @ weight
        means = [np.exp(one.beta_gq[gene, 0] + one.covariance_gqq[gene, 0, 0] / 2) for one in (laplace, averaged)]
        assert abs(means[1] - exact) < abs(means[0] - exact)
        np.testing.assert_allclose(means[1], exact, rtol=0.12)


def test_the_prior_is_learned():
    """Three quarters of the genes are flat, the others have the first course alone."""
    rng = np.random.default_rng(0)
    time = np.linspace(0, 1, 30)
    basis = np.sqrt(2) * np.column_stack([np.cos(np.pi * time), np.cos(2 * np.pi * time)])
    beta = np.zeros((400, 2))
    beta[::4, 0] = 0.8 * rng.normal(size=100)
    level = rng.normal(3.0, 0.7, 400)
    counts = rng.poisson(np.exp(basis @ beta.T + level)).astype(float)
    rows = Rows(counts, np.zeros(counts.shape), np.zeros(counts.shape))
    design = Design(np.column_stack([basis, np.ones(30)]), np.zeros(30, dtype=int), 1)
    prior, factor = learn_prior(rows, design, np.array([0.1, 0.1]))
    assert factor == 1.0
    assert prior.level == pytest.approx(3.0, abs=0.1)
    assert prior.level_variance == pytest.approx(0.49, rel=0.2)
    fits, share = fits_of(rows, design, prior)
    estimate = sum(share_g[:, None] * one.beta_gq for one, share_g in zip(fits, share, strict=True))
    alone = fit(rows, design, Prior(np.full((2, 2), 100.0), 3.0, 100.0, 1.0, prior.share_s), 0, beginning(rows, design))
    flat = np.arange(400) % 4 > 0
    errors = [np.sqrt(np.mean((values[:, :2] - beta) ** 2, axis=1)) for values in (estimate, alone.beta_gq)]
    assert errors[0][flat].mean() < 0.4 * errors[1][flat].mean()
    assert errors[0][~flat].mean() < 1.0 * errors[1][~flat].mean()


def test_the_scatter_is_learned():
    rows, design, _ = problem(2, kappa=0.3, n_genes=200, depth=20.0)
    wrong = Rows(rows.counts_bg, rows.offset_bg, rows.kappa_bg / 4)
    _, factor = learn_prior(wrong, design, np.array([0.3, 0.1]))
    assert factor == pytest.approx(4.0, rel=0.15)


def test_extremes():
    """Genes without a count, and with very many."""
    rows, design, _ = problem(2, n_genes=50)
    rows.counts_bg[:, 0] = 0
    rows.counts_bg[:, 1] *= 1e7
    prior, _ = learn_prior(rows, design, np.array([0.3, 0.1]))
    fits, share = fits_of(rows, design, prior)
    np.testing.assert_allclose(share.sum(axis=0), 1)
    for one in fits:
        mean, variance = one.log_trend(design.basis_bq[:30], np.array([0.5, 0.5]))
        assert np.isfinite(mean).all()
        assert (variance > 0).all()
        assert mean[:, 0].max() < -2
        np.testing.assert_allclose(mean[:, 1].mean() - np.log(1e7), mean[:, 2:].mean(), atol=3)


def test_interpolation():
    time = np.array([0.0, 1.0, 3.0])
    values = np.array([1.0, 2.0, 0.0])
    asked = np.array([-1.0, 0.0, 0.25, 1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(between(time, asked) @ values, np.interp(asked, time, values))
    np.testing.assert_array_equal(knots_of(5, every=False), np.arange(5))
    assert len(knots_of(100, every=False)) == 34
    assert len(knots_of(100, every=True)) == 100
