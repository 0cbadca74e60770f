"""Our distributions of counts and scvi-tools', on random parameters: log-probabilities, gradients, moments."""

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

from scdecode.likelihoods import make_likelihood

N = 20_000


def random_parameters(seed):
    """Means from 0.001 to 10,000, inverse dispersions from 0.01 to 1,000, and counts near the means, half of them zero.

    In double precision: in single precision scvi-tools' sums of log-gammas are off by more than what is compared.
    """
    rng = np.random.default_rng(seed)
    mu, theta = np.exp(rng.uniform(np.log(1e-3), np.log(1e4), N)), np.exp(rng.uniform(np.log(1e-2), np.log(1e3), N))
    x = rng.poisson(mu * rng.gamma(2, 0.5, N)) * (rng.random(N) > 0.5)
    logits = rng.normal(0, 3, N)
    return tuple(torch.from_numpy(values.astype(np.float64)) for values in (x, mu, theta, logits))


def theirs(likelihood, mu, theta, logits):
    match likelihood:
        case "nb":
            return NegativeBinomial(mu=mu, theta=theta)
        case "zinb":
            return ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=logits)
        case "poisson":
            return Poisson(rate=mu)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_log_prob_and_its_gradients(likelihood, seed):
    x, *parameters = random_parameters(seed)
    found = []
    for whose in ("ours", "theirs"):
        mu, theta, logits = (value.clone().requires_grad_() for value in parameters)
        if whose == "ours":
            log_prob = make_likelihood(likelihood, mu.log(), theta.log(), logits).log_prob(x)
        else:
            log_prob = theirs(likelihood, mu, theta, logits).log_prob(x).reshape(x.shape)  # zinb adds an axis
        gradients = torch.autograd.grad(log_prob.sum(), (mu, theta, logits), allow_unused=True)
        found.append([log_prob.detach(), *(g for g in gradients if g is not None)])
    assert len(found[0]) == len(found[1]) == {"nb": 3, "zinb": 4, "poisson": 2}[likelihood]
    for a, b in zip(*found, strict=True):
        print(f"{likelihood}: differs by at most {((a - b).abs() / (1e-3 + b.abs())).max():.1e}")
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_moments(likelihood):
    _, mu, theta, logits = random_parameters(7)
    a, b = make_likelihood(likelihood, mu.log(), theta.log(), logits), theirs(likelihood, mu, theta, logits)
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-6, atol=0)
    if likelihood != "zinb":  # scvi-tools leaves the zero inflation out of the variance
        torch.testing.assert_close(a.variance, b.variance, rtol=1e-6, atol=0)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_single_precision(likelihood):
    """Ours is no farther than scvi-tools' from what scvi-tools computes in double precision, and mostly nearer."""
    parameters = [value.float() for value in random_parameters(3)]
    x, mu, theta, logits = parameters
    truth = theirs(likelihood, *(value.double() for value in parameters[1:])).log_prob(x.double()).reshape(x.shape)
    a = make_likelihood(likelihood, mu.log(), theta.log(), logits).log_prob(x)
    b = theirs(likelihood, mu, theta, logits).log_prob(x).reshape(x.shape)
    errors = [(value - truth).abs() / (1 + truth.abs()) for value in (a, b)]
    print(f"{likelihood}: off by at most {errors[0].max():.1e}, scvi-tools by {errors[1].max():.1e}")
    assert errors[0].max() <= max(float(errors[1].max()), 1e-6)
    assert errors[0].mean() <= max(float(errors[1].mean()), 1e-7)
