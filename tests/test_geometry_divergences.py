"""Fisher information and divergences, against sums over all counts, automatic derivatives and limits."""

import warnings

import pytest
import torch

from scdecode.geometry.divergences import Parameters, fisher_information, kl_divergence
from scdecode.likelihoods import make_likelihood

KINDS = ("nb", "zinb", "poisson")


def some_parameters(kind, n_genes=200, seed=0):
    """Means from 1e-4 to 150, theta from 0.05 to 150, zero inflation of every size."""
    generator = torch.Generator().manual_seed(seed)
    log_mu = torch.rand(n_genes, generator=generator) * 14 - 9
    log_theta = torch.rand(n_genes, generator=generator) * 8 - 3
    zi_logits = torch.randn(n_genes, generator=generator) * 3
    return Parameters(log_mu, zi_logits if kind == "zinb" else None, None if kind == "poisson" else log_theta)


def moved(parameters, by, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def away(values):
        return None if values is None else values + by * torch.randn(values.shape, generator=generator)

    return Parameters(away(parameters.log_mu), away(parameters.zi_logits), parameters.log_theta)


def double(parameters):
    values = (parameters.log_mu, parameters.zi_logits, parameters.log_theta)
    return Parameters(*(None if v is None else v.double() for v in values))


def log_probs(kind, parameters, n_counts=20_000):
    p = double(parameters)
    counts = torch.arange(n_counts, dtype=torch.float64)[:, None]
    return make_likelihood(kind, p.log_mu, p.log_theta, p.zi_logits).log_prob(counts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [2.0, 0.3, 0.02])
def test_divergences_are_the_sums_over_all_counts(kind, by):
    first = some_parameters(kind)
    second = moved(first, by)
    p, q = log_probs(kind, first), log_probs(kind, second)
    assert ((p.exp().sum(0) - 1).abs() < 1e-10).all()
    expected = (p.exp() * (p - q)).sum(0)
    torch.testing.assert_close(kl_divergence(kind, first, second).double(), expected, rtol=2e-5, atol=1e-11)
    torch.testing.assert_close(kl_divergence(kind, double(first), double(second)), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_information_is_the_expected_square_of_the_score(kind):
    parameters = some_parameters(kind, n_genes=60)
    p = log_probs(kind, parameters)
    given = double(parameters)
    inputs = [given.log_mu] if given.zi_logits is None else [given.log_mu, given.zi_logits]
    counts = torch.arange(20_000, dtype=torch.float64)[:, None]

    def log_prob(*moving):
        zi_logits = moving[1] if len(moving) > 1 else None
        return make_likelihood(kind, moving[0], given.log_theta, zi_logits).log_prob(counts)

    # each count's probability depends on its own gene alone: a direction of ones gives every gene's derivative
    scores = []
    for i in range(len(inputs)):
        directions = tuple(torch.ones_like(x) if i == j else torch.zeros_like(x) for j, x in enumerate(inputs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what torch says of itself, the first time
            scores.append(torch.func.jvp(log_prob, tuple(inputs), directions)[1])
    fisher = fisher_information(kind, parameters)
    close = {"rtol": 1e-5, "atol": 1e-9}
    torch.testing.assert_close(fisher.mean.double(), (p.exp() * scores[0] ** 2).sum(0), **close)
    if kind == "zinb":
        torch.testing.assert_close(fisher.cross.double(), (p.exp() * scores[0] * scores[1]).sum(0), **close)
        torch.testing.assert_close(fisher.zero.double(), (p.exp() * scores[1] ** 2).sum(0), **close)


@pytest.mark.parametrize("kind", [*KINDS, "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_divergence_is_half_the_information(kind, dtype):
    first = some_parameters("zinb" if kind == "zinb" else "nb")
    values = [first.log_mu, first.zi_logits, None if kind == "poisson" else first.log_theta]
    first = Parameters(*(None if v is None else v.to(dtype) for v in values))
    second = moved(first, 1e-3)
    step = second.log_mu - first.log_mu
    zero = None if first.zi_logits is None else second.zi_logits - first.zi_logits
    force, force_zero = fisher_information(kind, first).product(step, zero)
    half = step * force / 2 if zero is None else (step * force + zero * force_zero) / 2
    kl = kl_divergence(kind, first, second)
    assert (kl >= 0).all()
    assert kl.sum().item() == pytest.approx(half.sum().item(), rel=3e-3)
    big = half > 1e-12
    assert (kl[big] / half[big] - 1).abs().max() < 0.02


@pytest.mark.parametrize("kind", [*KINDS, "normal"])
def test_extreme_parameters_stay_finite_with_their_gradients(kind):
    log_mu, log_theta, zi_logits = (
        t.reshape(-1).clone().requires_grad_(True)
        for t in torch.meshgrid(
            torch.tensor([-80.0, -20.0, 0.0, 8.0]),
            torch.tensor([-46.0, -5.0, 0.0, 20.0, 40.0] if kind != "normal" else [-3.0, 0.0, 3.0]),
            torch.tensor([-40.0, 0.0, 40.0]),
            indexing="ij",
        )
    )
    first = Parameters(log_mu, zi_logits, log_theta)
    for by in (0.0, 1e-4, 1.0, -9.0):
        second = Parameters(log_mu + by, zi_logits - by, log_theta)
        kl = kl_divergence(kind, first, second)
        assert torch.isfinite(kl).all() and (kl >= 0).all()
        inputs = [log_mu, *([zi_logits] if kind == "zinb" else [])]
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(kl.sum(), inputs))
    fisher = fisher_information(kind, first)
    assert torch.isfinite(fisher.mean).all() and (fisher.mean >= 0).all()
    if kind == "zinb":
        determinant = fisher.mean.double() * fisher.zero.double() - fisher.cross.double() ** 2
        assert (determinant >= -1e-5 * fisher.mean.double() * fisher.zero.double() - 1e-30).all()


def test_a_large_theta_is_the_poisson():
    nb, poisson = some_parameters("nb"), some_parameters("poisson")
    nb = Parameters(nb.log_mu, None, torch.full_like(nb.log_mu, 40.0))
    there = moved(nb, 0.3)
    alone = Parameters(there.log_mu)
    torch.testing.assert_close(
        kl_divergence("nb", nb, there), kl_divergence("poisson", poisson, alone), rtol=5e-5, atol=0
    )
    torch.testing.assert_close(fisher_information("nb", nb).mean, fisher_information("poisson", poisson).mean)


def test_no_zero_inflation_is_the_negative_binomial():
    first = some_parameters("nb")
    second = moved(first, 0.3)
    lost = torch.full_like(first.log_mu, -60.0)
    zinb = [Parameters(p.log_mu, lost, p.log_theta) for p in (first, second)]
    torch.testing.assert_close(kl_divergence("zinb", *zinb), kl_divergence("nb", first, second), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", [*KINDS, "normal"])
def test_gradients_are_those_of_finite_differences(kind):
    first = double(some_parameters("zinb" if kind == "zinb" else "nb", n_genes=12))
    second = moved(first, 0.4)
    theta = None if kind == "poisson" else first.log_theta

    def kl(log_mu1, log_mu2, zi1, zi2):
        zi = (zi1, zi2) if kind == "zinb" else (None, None)
        return kl_divergence(kind, Parameters(log_mu1, zi[0], theta), Parameters(log_mu2, zi[1], theta)).sum()

    zi = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inputs = tuple(v.clone().requires_grad_(True) for v in (first.log_mu, second.log_mu, zi, zi + 0.2))
    assert torch.autograd.gradcheck(kl, inputs, atol=1e-6)


def test_two_dispersions_meet_at_their_geometric_mean():
    first = some_parameters("nb")
    second = Parameters(first.log_mu + 0.1, None, first.log_theta + 1.0)
    middle = first.log_theta + 0.5
    expected = kl_divergence("nb", Parameters(first.log_mu, None, middle), Parameters(second.log_mu, None, middle))
    torch.testing.assert_close(kl_divergence("nb", first, second), expected)
