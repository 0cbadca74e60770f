"""Likelihoods against literal values, scipy, arithmetic of 40 digits, their identities, their draws, and limits.

Literals come from ``mpmath`` with 40 digits (it comes with torch); scipy agrees with them as far as its own large
log-gammas do not cancel.
"""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from scdecode.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, make_likelihood

mp.mp.dps = 40

# x, mu, theta, log p
NEGATIVE_BINOMIAL = [
    (0, 1, 1, -0.6931471805599453),  # log(1/2)
    (1, 1, 1, -1.3862943611198906),  # log(1/4)
    (3, 2.5, 0.7, -2.4290126505100003),
    (0, 0.01, 10, -0.009995003330835332),
    (10, 4, 2, -3.8539803856194927),
    (250, 300, 5, -5.739142856627879),
    (7, 1e-3, 1, -48.36228295553963),
    (12, 10, 1e5, -2.3562333783667193),
    (1000, 1.2, 0.3, -229.5577143850419),
    (4, 6, 1e8, -2.0110159534357264),
]
# x, mu, log p
POISSON = [
    (0, 2, -2.0),
    (3, 2.5, -1.5428872736055899),
    (0, 1e-6, -1e-6),
    (100, 120, -4.99020127735889),
    (5, 1e-3, -39.327268137692734),
]
# x, mu, theta, pi, log p
ZERO_INFLATED = [
    (0, 1, 1, 0.3, -0.4307829160924543),  # log(0.3 + 0.7 / 2)
    (2, 1, 1, 0.3, -2.436116485618568),
    (0, 40, 3, 0.5, -0.692807645468247),
    (11, 8, 0.5, 0.05, -3.9174431186277863),
]

MEANS = (1e-12, 1e-6, 1e-3, 0.1, 1.0, 30.0, 1e3, 1e6)
THETAS = (1e-4, 1e-2, 1.0, 30.0, 99.0, 101.0, 1e3, 1e5, 1e8)  # 100: from where on Stirling's series is used
COUNTS = (0.0, 1.0, 2.0, 7.0, 100.0, 1e4, 1e6)
EXTREMES = np.array(list(itertools.product(COUNTS, MEANS, THETAS)))


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def logit(p):
    return math.log(p) - math.log1p(-p)


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("x", "mu", "theta", "expected"), NEGATIVE_BINOMIAL)
def test_negative_binomial_of_literal_values(x, mu, theta, expected):
    log_prob = NegativeBinomial(double(mu).log(), double(theta).log()).log_prob(double(x))
    assert log_prob.item() == pytest.approx(expected, rel=1e-10)
    assert scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mu)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("x", "mu", "expected"), POISSON)
def test_poisson_of_literal_values(x, mu, expected):
    assert Poisson(double(mu).log()).log_prob(double(x)).item() == pytest.approx(expected, rel=1e-13)
    assert scipy.stats.poisson.logpmf(x, mu) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("x", "mu", "theta", "pi", "expected"), ZERO_INFLATED)
def test_zero_inflated_of_literal_values(x, mu, theta, pi, expected):
    px = ZeroInflatedNegativeBinomial(double(mu).log(), double(theta).log(), double(logit(pi)))
    assert px.log_prob(double(x)).item() == pytest.approx(expected, rel=1e-13)
    assert px.zi_probs.item() == pytest.approx(pi, rel=1e-14)


def test_normal_of_literal_values():
    px = make_likelihood("normal", double([2.0]).log(), double([0.5]).log(), None)
    assert px.log_prob(double([3.0])).item() == pytest.approx(-2.0 - math.log(0.5) - 0.5 * math.log(2 * math.pi))
    assert (px.mean.item(), px.variance.item()) == pytest.approx((2.0, 0.25))


def test_random_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    mu, theta, pi = np.exp(rng.normal(0, 3, 5000)), np.exp(rng.normal(1, 3, 5000)), rng.random(5000)
    x = rng.poisson(rng.gamma(1, mu))
    values = torch.from_numpy(x).double()
    log_mu, log_theta, zi_logits = (torch.from_numpy(a) for a in (np.log(mu), np.log(theta), np.log(pi / (1 - pi))))
    expected_nb = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mu))
    expected_zinb = np.where(x == 0, np.logaddexp(np.log(pi), np.log1p(-pi) + expected_nb), np.log1p(-pi) + expected_nb)
    nb = NegativeBinomial(log_mu, log_theta).log_prob(values)
    zinb = ZeroInflatedNegativeBinomial(log_mu, log_theta, zi_logits).log_prob(values)
    np.testing.assert_allclose(nb, expected_nb, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(zinb, expected_zinb, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(Poisson(log_mu).log_prob(values), scipy.stats.poisson.logpmf(x, mu), rtol=1e-12)
    assert (theta < 100).any() and (theta > 100).any() and (x == 0).any() and (x > 1000).any()


def test_moments_are_those_of_scipy():
    log_mu, log_theta = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mu, theta = log_mu.exp().numpy(), log_theta.exp().numpy()
    px = NegativeBinomial(log_mu, log_theta)
    mean, variance = scipy.stats.nbinom.stats(theta, theta / (theta + mu))
    np.testing.assert_allclose(px.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(px.variance, variance, rtol=1e-12)
    np.testing.assert_allclose(px.stddev, np.sqrt(variance), rtol=1e-12)


# -- identities --------------------------------------------------------------------------------------------------------

log_means = st.floats(math.log(1e-3), math.log(50.0))
log_thetas = st.floats(math.log(0.05), math.log(1e6))
logits = st.floats(-20.0, 20.0)


@settings(max_examples=40, deadline=None)
@given(log_means, log_thetas, logits)
def test_probabilities_sum_to_one_and_give_the_moments(log_mu, log_theta, zi_logits):
    x = torch.arange(40_000, dtype=torch.float64)  # the slowest tail falls by e in a thousand counts
    log_mu, log_theta, zi_logits = double(log_mu), double(log_theta), double(zi_logits)
    for px in (
        Poisson(log_mu),
        NegativeBinomial(log_mu, log_theta),
        ZeroInflatedNegativeBinomial(log_mu, log_theta, zi_logits),
    ):
        p = px.log_prob(x).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-9)
        mean = (p * x).sum()
        assert mean.item() == pytest.approx(px.mean.item(), rel=1e-8)
        assert (p * (x - mean) ** 2).sum().item() == pytest.approx(px.variance.item(), rel=1e-7)


@settings(max_examples=50, deadline=None)
@given(log_means, log_thetas, st.integers(0, 500))
def test_without_zero_inflation_it_is_the_negative_binomial(log_mu, log_theta, x):
    log_mu, log_theta, x = double(log_mu), double(log_theta), double(x)
    zinb = ZeroInflatedNegativeBinomial(log_mu, log_theta, double(-400.0))
    nb = NegativeBinomial(log_mu, log_theta)
    torch.testing.assert_close(zinb.log_prob(x), nb.log_prob(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(zinb.mean, nb.mean)
    torch.testing.assert_close(zinb.variance, nb.variance)


@settings(max_examples=50, deadline=None)
@given(log_means, log_thetas, logits, st.integers(0, 500))
def test_zero_inflation_moves_probability_to_zero_alone(log_mu, log_theta, zi_logits, x):
    log_mu, log_theta, zi_logits, x = double(log_mu), double(log_theta), double(zi_logits), double(x)
    nb = NegativeBinomial(log_mu, log_theta).log_prob(x)
    zinb = ZeroInflatedNegativeBinomial(log_mu, log_theta, zi_logits).log_prob(x)
    pi = zi_logits.sigmoid()
    expected = torch.log1p(-pi) + nb if x > 0 else torch.log((1 - pi) * nb.exp() + pi)
    torch.testing.assert_close(zinb, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(log_means, st.integers(0, 500), st.floats(math.log(1e6), 400.0))
def test_a_large_dispersion_gives_the_poisson(log_mu, x, log_theta):
    log_mu, x = double(log_mu), double(x)
    nb = NegativeBinomial(log_mu, double(log_theta)).log_prob(x)
    # the first term of the difference is ((x - mu)^2 - x) / (2 theta)
    bound = (x**2 + log_mu.exp() ** 2).item() * math.exp(-log_theta) + 1e-10 * (1 + x.item())
    assert abs((nb - Poisson(log_mu).log_prob(x)).item()) <= bound


@settings(max_examples=50, deadline=None)
@given(st.floats(-30.0, 15.0), st.floats(-400.0, 400.0), st.floats(-400.0, 400.0), st.integers(0, 10**6))
def test_any_parameters_give_finite_values_and_gradients_in_float32(log_mu, log_theta, zi_logits, x):
    parameters = [torch.tensor([value], requires_grad=True) for value in (log_mu, log_theta, zi_logits)]
    log_prob = ZeroInflatedNegativeBinomial(*parameters).log_prob(torch.tensor([float(x)]))
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all() and log_prob <= 1e-5 * (1 + max(x, math.exp(log_mu)) * 20)
    assert all(torch.isfinite(p.grad).all() for p in parameters)


# -- extremes against 40 digits ----------------------------------------------------------------------------------------


def exactly(x, log_mu, log_theta):
    """Log-probability and its derivatives in log mu and log theta, with 40 digits."""
    x, log_mu, log_theta = mp.mpf(x), mp.mpf(log_mu), mp.mpf(log_theta)
    mu, theta = mp.exp(log_mu), mp.exp(log_theta)
    low, high = mp.log1p(mu / theta), mp.log1p(theta / mu)
    log_prob = mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1) - theta * low - x * high
    by_mu = theta * (x - mu) / (theta + mu)
    by_theta = theta * (mp.digamma(x + theta) - mp.digamma(theta) - low) + theta * (mu - x) / (theta + mu)
    return float(log_prob), float(by_mu), float(by_theta)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 5e-15)])
def test_extremes_are_finite_and_right_with_their_gradients(dtype, tolerance):
    """Means of 1e-12 to 1e6, dispersions of 1e-4 to 1e8, counts of 0 to 1e6.

    The tolerance (8 units of float32's last place, 22 of float64's) is relative to the largest term that the value or
    the derivative is a sum of, for these cancel: at a mean and a count of a million terms of 1e7 leave some nats.
    """
    x = torch.tensor(EXTREMES[:, 0], dtype=dtype)
    log_mu, log_theta = (torch.tensor(np.log(EXTREMES[:, i]), dtype=dtype, requires_grad=True) for i in (1, 2))
    log_prob = NegativeBinomial(log_mu, log_theta).log_prob(x)
    log_prob.sum().backward()
    exact = np.array([exactly(*row) for row in zip(x.tolist(), log_mu.tolist(), log_theta.tolist(), strict=True)])

    count, mean, theta = EXTREMES.T
    larger, logs = np.maximum(count, mean), 1 + np.abs(np.log(theta))
    terms = 1 + count * np.abs(np.log(mean)) + larger * (np.log1p(larger) + logs)
    by_mu = 1 + larger * logs
    by_theta = by_mu + np.where(theta < 100, theta * np.log1p(theta + count), 0)  # digammas that cancel
    found = (log_prob.detach(), log_mu.grad, log_theta.grad)
    for name, ours, expected, scale in zip(
        ("log_prob", "by log mu", "by log theta"), found, exact.T, (terms, by_mu, by_theta), strict=True
    ):
        ours = ours.double().numpy()
        error = np.abs(ours - expected) / scale
        print(f"{dtype}, {name}: at most {error.max():.1e} of the largest term")
        assert np.isfinite(ours).all()
        assert error.max() <= tolerance, (name, EXTREMES[error.argmax()])
        usual = (larger <= 100) & (theta <= 1e5)
        absolute = 0 if name == "log_prob" else 50 * tolerance
        np.testing.assert_allclose(ours[usual], expected[usual], rtol=10 * tolerance, atol=absolute)


def test_stirlings_series_joins_without_a_step():
    log_theta = double([math.log(100 - 1e-9), math.log(100)])
    for x in (1.0, 5.0, 1e3, 1e6):
        below, above = NegativeBinomial(double([3.0, 3.0]), log_theta).log_prob(double(x)).tolist()
        assert below == pytest.approx(above, rel=1e-9)


def test_zero_inflation_of_extreme_logits():
    zi_logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    px = ZeroInflatedNegativeBinomial(torch.zeros(2), torch.zeros(2), zi_logits)
    zero, one = px.log_prob(torch.zeros(2)), px.log_prob(torch.ones(2))
    torch.testing.assert_close(zero, torch.tensor([-math.log(2), 0.0]))
    torch.testing.assert_close(one, torch.tensor([-2 * math.log(2), -200 - 2 * math.log(2)]))
    (zero + one).sum().backward()
    torch.testing.assert_close(zi_logits.grad, torch.tensor([0.0, -1.0]))


# -- gradients by finite differences -----------------------------------------------------------------------------------

POINTS = [(x, mu, theta) for x in (0.0, 1.0, 13.0, 4000.0) for mu in (0.02, 3.0, 900.0) for theta in (0.05, 2.0, 60.0)]
ABOUT_THE_SERIES = [
    (x, mu, theta) for x in (0.0, 2.0, 150.0) for mu in (0.5, 80.0) for theta in (99.9, 100.1, 5e3, 1e6)
]


@pytest.mark.parametrize("points", [POINTS, ABOUT_THE_SERIES], ids=["usual", "about the series"])
def test_gradients_are_finite_differences(points):
    x, mu, theta = double(points).T
    zi_logits = torch.linspace(-4, 4, len(x), dtype=torch.float64)
    parameters = [t.clone().requires_grad_() for t in (mu.log(), theta.log(), zi_logits)]

    def check(px, inputs):
        # 1e-6 of lgamma(4000)'s rounding is 4e-6: hence the absolute tolerance
        assert torch.autograd.gradcheck(lambda *p: px(*p).log_prob(x), inputs, eps=1e-5, atol=1e-4, rtol=1e-5)

    check(Poisson, parameters[:1])
    check(NegativeBinomial, parameters[:2])
    check(ZeroInflatedNegativeBinomial, parameters)
    check(lambda m: make_likelihood("normal", m, double(6.0), None), parameters[:1])


def test_gradients_of_a_shared_dispersion_are_summed_over_cells():
    log_mu = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = double([[0, 1, 5], [2, 0, 0], [9, 9, 0], [0, 0, 1], [1, 30, 2]])
    log_theta = double([-1.0, 0.5, 5.0]).requires_grad_()
    by_cell = log_theta.detach().expand(5, 3).clone().requires_grad_()
    NegativeBinomial(log_mu, log_theta).log_prob(x).sum().backward()
    NegativeBinomial(log_mu, by_cell).log_prob(x).sum().backward()
    torch.testing.assert_close(log_theta.grad, by_cell.grad.sum(0), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda t: NegativeBinomial(log_mu, t).log_prob(x), [log_theta])


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (1, 4), (3, 1), (1,), (), (2, 3, 4), (2, 1, 1)])
@pytest.mark.parametrize("value_shape", [(3, 4), (2, 3, 4), (4,), ()])
def test_any_shape_of_the_dispersion_broadcasts(shape, value_shape):
    # double precision: how float32 rounds depends on the processor's vector width, and so on the number of elements
    generator = torch.Generator().manual_seed(0)
    log_mu = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    log_theta = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
    x = torch.randint(0, 4, value_shape, generator=generator).double()
    full = torch.broadcast_shapes((3, 4), shape, value_shape)
    expected = NegativeBinomial(log_mu.expand(full), log_theta.expand(full).clone()).log_prob(x.expand(full))
    px = NegativeBinomial(log_mu, log_theta)
    torch.testing.assert_close(px.log_prob(x), expected, rtol=1e-12, atol=0)
    batch = torch.broadcast_shapes((3, 4), shape)
    assert px.batch_shape == px.mean.shape == px.variance.shape == px.sample().shape == batch
    assert ZeroInflatedNegativeBinomial(log_mu, log_theta, log_mu).log_prob(x).shape == full


def test_scalars():
    px = NegativeBinomial(double(0.0), double(0.0))
    assert px.log_prob(double(1.0)).shape == px.sample().shape == px.mean.shape == ()
    assert px.log_prob(double([0.0, 1.0, 2.0])).exp().tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 8])


@pytest.mark.parametrize(
    "px",
    [
        Poisson(torch.zeros(3, 4)),
        NegativeBinomial(torch.zeros(4), torch.zeros(3, 1)),
        ZeroInflatedNegativeBinomial(torch.zeros(4), torch.zeros(3, 4), torch.zeros(4)),
        ZeroInflatedNegativeBinomial(torch.zeros(4), torch.zeros(4), torch.zeros(3, 1)),
    ],
    ids=repr,
)
def test_shapes_of_draws_and_moments(px):
    assert px.sample().shape == px.batch_shape == px.mean.shape == px.variance.shape == (3, 4)
    assert px.sample((5, 2)).shape == px.sample(torch.Size((5, 2))).shape == (5, 2, 3, 4)
    assert px.log_prob(px.sample((5,))).shape == (5, 3, 4)
    assert repr(px) == f"{type(px).__name__}((3, 4))"
    assert not px.has_rsample


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
def test_counts_may_be_whole_numbers_of_any_type(dtype):
    x = torch.tensor([0, 3, 2000])
    for px in (Poisson(torch.full((3,), 3.0).double()), NegativeBinomial(torch.ones(3).double(), double([0.3, 1, 9]))):
        expected = px.log_prob(x.double())
        assert torch.equal(px.log_prob(x.to(dtype)), expected)
        assert expected.dtype == torch.float64


# -- draws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "px",
    [
        Poisson(torch.tensor([0.05, 1.0, 40.0]).log()),
        NegativeBinomial(torch.tensor([0.05, 1.0, 40.0]).log(), torch.tensor([0.4, 2.0, 300.0]).log()),
        ZeroInflatedNegativeBinomial(
            torch.tensor([0.5, 3.0, 40.0]).log(), torch.tensor([2.0, 0.3, 1e6]).log(), torch.tensor([-1.0, 0.0, 2.0])
        ),
    ],
    ids=["poisson", "nb", "zinb"],
)
def test_draws_have_the_distribution(px):
    torch.manual_seed(0)
    n = 100_000
    x = px.sample((n,)).double()
    mean, variance = px.mean.double(), px.variance.double()
    assert torch.equal(x, x.round()) and (x >= 0).all()
    fourth = ((x - mean) ** 4).mean(0)
    assert ((x.mean(0) - mean).abs() < 4.5 * (variance / n).sqrt()).all()
    assert ((x.var(0) - variance).abs() < 4.5 * ((fourth - variance**2) / n).sqrt()).all()
    for count in range(4):
        p = px.log_prob(torch.full((3,), float(count))).exp().double()
        frequency = (x == count).double().mean(0)
        assert ((frequency - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


def test_a_seed_gives_the_same_draws():
    px = ZeroInflatedNegativeBinomial(torch.ones(50), torch.zeros(50), torch.zeros(50))
    torch.manual_seed(3)
    first, second = px.sample(), px.sample()
    torch.manual_seed(3)
    assert torch.equal(px.sample(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("log_theta", [-400.0, -100.0, -46.0, 40.0, 100.0, 400.0])
@pytest.mark.parametrize("log_mu", [-25.0, 0.0, 13.0])
def test_draws_of_extreme_dispersions_are_counts(log_theta, log_mu):
    torch.manual_seed(0)
    px = NegativeBinomial(torch.tensor(log_mu), torch.tensor(log_theta))
    x = px.sample((200,))
    assert torch.isfinite(x).all() and (x >= 0).all()
    if log_theta < 0:
        assert (x == 0).all()  # a dispersion of nearly zero: almost surely nothing
    else:
        assert abs(x.mean() - math.exp(log_mu)) <= 5 * math.sqrt(math.exp(log_mu) / 200)


def test_draws_take_no_gradient():
    log_mu = torch.zeros(3, requires_grad=True)
    assert not NegativeBinomial(log_mu, torch.zeros(3)).sample().requires_grad


# -- by name -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [("poisson", Poisson), ("nb", NegativeBinomial), ("zinb", ZeroInflatedNegativeBinomial), ("normal", Normal)],
)
def test_likelihoods_by_name(name, kind):
    px = make_likelihood(name, double([0.5, 1.0]), double([0.1, 0.2]), double([-1.0, 2.0]))
    assert type(px) is kind
    if name != "zinb":
        torch.testing.assert_close(px.mean, double([0.5, 1.0]).exp())
    else:
        torch.testing.assert_close(px.mean, double([0.5, 1.0]).exp() * (1 - double([-1.0, 2.0]).sigmoid()))
