"""Curves along a pseudotime against what is known of the cells: the mean, the covariance, the ends, the errors."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdecode.errors import ConfigError, PointsError, SupportWarning
from scdecode.paths.curves import fit_curve

K = 6


def mean_at(time):
    curve = np.zeros((len(time), K))
    curve[:, 0], curve[:, 1], curve[:, 2] = 3 * time, np.sin(6 * time), 0.5 * time**2
    return curve


def covariance_at(time):
    covariance = np.zeros((len(time), K, K))
    covariance[:, range(3), range(3)] = (0.3 + 0.3 * time)[:, None] ** 2
    covariance[:, range(3, K), range(3, K)] = 1
    covariance[:, 3, 4] = covariance[:, 4, 3] = 0.6 * np.cos(3 * time)
    return covariance


def draw(time, seed=0):
    rng = np.random.default_rng(seed)
    factor = np.linalg.cholesky(covariance_at(time))
    return mean_at(time) + (factor @ rng.normal(size=(len(time), K, 1)))[..., 0]


def uniform(n, seed=0):
    return np.random.default_rng(seed + 100).uniform(size=n)


def rms(x):
    return float(np.sqrt((x**2).sum(axis=tuple(range(1, x.ndim))).mean()))


def test_mean_and_covariance_within_sampling_error():
    time = uniform(8000)
    curve = fit_curve(draw(time), time)
    assert curve.points_nk.shape == (100, K) and curve.points_nk.dtype == np.float32
    assert curve.spread_nkk.shape == (100, K, K) and curve.spread_nkk.dtype == np.float32
    assert curve.time_n[0] == time.min() and curve.time_n[-1] == time.max()
    # of n effective cells of a total variance of about 3.6
    expected = np.sqrt((np.trace(covariance_at(curve.time_n), axis1=1, axis2=2) / curve.n_effective_n).mean())
    assert rms(curve.points_nk - mean_at(curve.time_n)) < 1.5 * expected
    assert rms(curve.spread_nkk - covariance_at(curve.time_n)) < 0.25  # its own size is 1.9 to 2.2
    ratio = np.trace(curve.spread_nkk, axis1=1, axis2=2) / np.trace(covariance_at(curve.time_n), axis1=1, axis2=2)
    assert abs(ratio.mean() - 1) < 0.02


def test_a_line_is_met_everywhere_without_bias_at_the_ends():
    """A kernel mean would be drawn inwards by most of a bandwidth, and its own way would count as spread."""
    time = uniform(500)
    line = np.array([5.0, -2.0, 0.0])
    curve = fit_curve(time[:, None] * line + 1.0, time, bandwidth=0.3)
    np.testing.assert_allclose(curve.points_nk, curve.time_n[:, None] * line + 1.0, atol=1e-5)
    assert np.abs(curve.spread_nkk).max() < 1e-6


@pytest.mark.parametrize("n", [40, 200])
def test_the_spread_has_no_bias_where_cells_are_few(n):
    traces = []
    for seed in range(60):
        z = np.random.default_rng(seed).normal(size=(n, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SupportWarning)
            curve = fit_curve(z, uniform(n, seed), bandwidth=0.15)
        traces.append(np.trace(curve.spread_nkk, axis1=1, axis2=2).mean())
    assert np.mean(traces) == pytest.approx(3, abs=3.5 * np.std(traces) / np.sqrt(60) + 0.06)


def test_posterior_variance_is_added():
    time = uniform(2000)
    z = draw(time)
    variance = np.stack([0.1 + time] * K, axis=1)
    alone, together = fit_curve(z, time), fit_curve(z, time, variance_nk=variance)
    added = together.spread_nkk - alone.spread_nkk
    np.testing.assert_allclose(added[:, 0, 1], 0, atol=1e-6)
    np.testing.assert_allclose(added[20:-20, 2, 2], 0.1 + together.time_n[20:-20], atol=0.05)


def test_the_bandwidth_follows_the_shape():
    time = uniform(3000)
    rng = np.random.default_rng(0)
    noise = 0.3 * rng.normal(size=(3000, 2))
    slow, fast = (fit_curve(np.stack([np.sin(w * time), time], axis=1) + noise, time) for w in (2, 40))
    assert fast.bandwidth < slow.bandwidth / 3
    # the bandwidth chosen is about as good as the best one
    errors = []
    for bandwidth in (0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SupportWarning)
            points = fit_curve(np.stack([np.sin(40 * time), time], axis=1) + noise, time, bandwidth=bandwidth).points_nk
        errors.append(rms(points[:, :1] - np.sin(40 * fast.time_n)[:, None]))
    assert rms(fast.points_nk[:, :1] - np.sin(40 * fast.time_n)[:, None]) < 1.25 * min(errors)


def test_the_order_of_the_cells_is_no_matter():
    time = np.round(uniform(700), 2)
    z = draw(time)
    order = np.random.default_rng(3).permutation(700)
    first, second = fit_curve(z, time), fit_curve(z[order], time[order])
    np.testing.assert_allclose(first.points_nk, second.points_nk, atol=1e-5)
    np.testing.assert_allclose(first.spread_nkk, second.spread_nkk, atol=1e-5)
    assert first.bandwidth == second.bandwidth


def test_weights_are_repeats_and_only_their_ratios_matter():
    time = uniform(400)
    z = draw(time)
    repeats = np.random.default_rng(0).integers(0, 4, 400)
    at = np.linspace(0.1, 0.9, 30)
    weighted = fit_curve(z, time, repeats, at=at, bandwidth=0.1)
    scaled = fit_curve(z, time, 7.5 * repeats, at=at, bandwidth=0.1)
    repeated = fit_curve(np.repeat(z, repeats, axis=0), np.repeat(time, repeats), at=at, bandwidth=0.1)
    np.testing.assert_allclose(weighted.points_nk, scaled.points_nk, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(weighted.spread_nkk, scaled.spread_nkk, rtol=1e-5, atol=1e-6)
    # bins, and how wide kernels are, know how many cells there are; the mean hardly changes
    assert rms(weighted.points_nk - repeated.points_nk) < 0.03
    assert (weighted.n_effective_n < repeated.n_effective_n).all()  # repeats of a cell are not new cells


def test_cells_without_weight_may_be_anything():
    time, other = uniform(500), np.full(50, np.nan)
    z = draw(time)
    alone = fit_curve(z, time)
    both = fit_curve(
        np.concatenate([z, np.full((50, K), np.nan)]), np.concatenate([time, other]), np.r_[np.ones(500), np.zeros(50)]
    )
    np.testing.assert_array_equal(alone.points_nk, both.points_nk)


def test_tips_of_other_lineages_are_left_out():
    """Fate probabilities are never zero: cells of another branch reach farther in time at a weight of 0.005."""
    time = np.concatenate([np.linspace(0, 1, 1000), np.linspace(1, 2, 500)])
    weight = np.concatenate([np.linspace(0.3, 1, 1000), np.full(500, 0.005)])
    curve = fit_curve(draw(np.minimum(time, 1)), time, weight)
    assert curve.time_n[0] == 0 and 0.99 < curve.time_n[-1] < 1.05


def test_few_distinct_times():
    time = np.round(uniform(4000) * 7) / 7
    curve = fit_curve(draw(time), time)
    assert rms(curve.points_nk - mean_at(curve.time_n)) < 0.2
    at_bins = fit_curve(draw(time), time, at=np.arange(8) / 7)
    means = np.stack([draw(time)[time == value].mean(axis=0) for value in np.unique(time)])
    assert rms(at_bins.points_nk - means) < 0.15
    two = fit_curve(draw(np.repeat([0.0, 1.0], 50)), np.repeat([0.0, 1.0], 50))
    middle = (two.points_nk[0] + two.points_nk[-1]) / 2
    np.testing.assert_allclose(two.points_nk[49:51].mean(axis=0), middle, atol=0.05)


def test_gaps_are_bridged_and_said():
    time = uniform(3000)
    time = np.where(time < 0.5, 0.7 * time, 1 - 0.7 * (1 - time))  # none between 0.35 and 0.65
    curve = fit_curve(draw(time), time)
    assert rms(curve.points_nk - mean_at(curve.time_n)) < 0.35
    lone = np.concatenate([np.linspace(0, 0.2, 200), [0.99, 1.0]])
    with pytest.warns(SupportWarning, match=r"fewer than 7 effective cells.* at .*\(times .* to 1\)"):
        fit_curve(draw(lone), lone)


def test_units_of_the_pseudotime_pass_through():
    time = uniform(600)
    z = draw(time)
    first, second = fit_curve(z, time), fit_curve(z, 1e4 * time - 300)
    np.testing.assert_allclose(second.time_n, 1e4 * first.time_n - 300)
    np.testing.assert_allclose(second.points_nk, first.points_nk, atol=1e-4)
    assert second.bandwidth == pytest.approx(1e4 * first.bandwidth)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(5, 60),
    k=st.integers(1, 12),
    distinct=st.integers(2, 60),
    seed=st.integers(0, 10_000),
    weighted=st.booleans(),
)
def test_any_cells_give_finite_points_and_covariances(n, k, distinct, seed, weighted):
    rng = np.random.default_rng(seed)
    time = rng.integers(0, distinct, n).astype(float)
    time[:2] = 0, distinct
    weight = rng.random(n) ** 4 + 1e-6 if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SupportWarning)
        if weight is not None and weight.sum() ** 2 / (weight**2).sum() < 5:
            with pytest.raises(PointsError, match="nearly all of the weight"):
                fit_curve(rng.normal(size=(n, k)), time, weight)
            return
        curve = fit_curve(rng.normal(size=(n, k)), time, weight, n_points=20)
    assert np.isfinite(curve.points_nk).all() and np.isfinite(curve.spread_nkk).all()
    assert (np.diff(curve.time_n) > 0).all()
    values = np.linalg.eigvalsh(curve.spread_nkk.astype(float))
    assert (values > -1e-5 * values.max()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"time_n": np.r_[np.full(30, np.nan), np.full(5, np.inf), np.arange(265)]},
            "pseudotime: 35 of 300 cells .*weights",
        ),
        ({"time_n": np.ones(300)}, "all 300 cells have the same pseudotime, 1"),
        ({"time_n": np.arange(299)}, r"pseudotime: shape \(299,\) came for 300 cells"),
        ({"weights_n": np.zeros(300)}, "weights: all 300 are zero"),
        ({"weights_n": np.r_[-1.0, np.ones(299)]}, "weights: 1 of 300 are negative"),
        ({"weights_n": np.r_[np.nan, np.ones(299)]}, "weights: 1 of 300 are negative, NaN"),
        ({"weights_n": np.ones(3)}, r"weights: shape \(3,\)"),
        ({"weights_n": np.r_[np.ones(4), np.zeros(296)]}, "4 cells came, at least 5"),
        (
            {"weights_n": np.r_[1.0, np.full(299, 1e-6)]},
            "weights: 1 of 300 cells have nearly all .* count as 1.0 cells",
        ),
        ({"weights_n": np.r_[np.ones(4), np.full(296, 1e-300)]}, "weights: 4 of 300 cells .* count as 4.0 cells"),
        (
            {"time_n": np.full(300, "0.5")},
            "pseudotime: ndarray came that is no array of numbers .*numbers were expected",
        ),
        ({"weights_n": np.full(300, "a")}, "weights: ndarray came that is no array of numbers"),
        ({"z_nk": "cells"}, "z: str came that is no array of numbers"),
        ({"variance_nk": np.ones((300, 2))}, r"variance: shape \(300, 2\)"),
        ({"variance_nk": -np.ones((300, K))}, "variance: negative"),
        ({"z_nk": np.full((300, K), np.nan)}, "z: 300 of 300 cells"),
        ({"z_nk": np.ones(300)}, r"z: shape \(300,\)"),
        ({"at": [0.5, 0.4]}, "at: .* increasing"),
        ({"at": [0.5, 4.0]}, "at: 1 of 2 times lie outside"),
    ],
)
def test_what_cannot_be_a_curve(change, message):
    time = uniform(300)
    given_ = {"z_nk": draw(time), "time_n": time} | change
    with pytest.raises(PointsError, match=message):
        fit_curve(**given_)


@pytest.mark.parametrize("tiny", [1e-2, 1e-6, 1e-12, 1e-300])
def test_effective_cells_are_neither_negative_nor_more_than_the_cells(tiny):
    time, weight = uniform(2000), np.full(2000, tiny)
    weight[:6] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SupportWarning)
        curve = fit_curve(draw(time), time, weight)
    assert (curve.n_effective_n >= 0).all() and (curve.n_effective_n <= 2000).all()
    assert np.isfinite(curve.points_nk).all() and np.isfinite(curve.spread_nkk).all()


def test_what_is_masked_is_missing_and_tensors_may_have_gradients():
    time, z = uniform(300), draw(uniform(300))
    out = np.arange(300) < 30
    plain = fit_curve(z, time, ~out)
    masked = np.ma.masked_array(np.where(out, 1e3, time), mask=out)
    np.testing.assert_array_equal(fit_curve(z, masked, ~out).points_nk, plain.points_nk)
    with pytest.raises(PointsError, match="pseudotime: 30 of 300 cells have a NaN"):
        fit_curve(z, masked)
    tensors = [torch.tensor(values, requires_grad=True) for values in (z, time, (~out).astype(float))]
    np.testing.assert_array_equal(fit_curve(*tensors).points_nk, plain.points_nk)


def test_options_are_checked():
    time = uniform(300)
    for options in ({"n_points": 1}, {"bandwidth": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            fit_curve(draw(time), time, **options)
