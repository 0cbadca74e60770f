"""The distributions of one count given the decoder's output, in plain torch: the reference for every faster kernel.

Means and inverse dispersions come as logarithms, since that is what the decoder has: ``log mu = log l + log softmax``.
In that form nothing needs a small constant inside a logarithm to stay finite, for any mean; and for any dispersion, as
log theta is kept within bounds beyond which the distribution no longer changes.

With ``d = log mu - log theta`` and ``s = softplus`` the negative binomial of mean mu and variance ``mu + mu^2 / theta``
(Lopez et al. 2018, Nature Methods 15:1053, Methods) is

    log p(x) = lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - theta s(d) - x s(-d)

of which the first three terms vanish together where x = 0: they are computed at the other entries alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal
from torch.nn import functional

from scdecode._utils.transforms import is_transformed
from scdecode.draws import draw_normal

__all__ = [
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "make_likelihood",
]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)


_LARGE_THETA = 100.0  # from here on lgamma(x + theta) - lgamma(theta) cancels to noise in float32
# theta of 1e-20 gives zeros, one of 2e17 a Poisson; beyond, float32 would overflow in the gradients and in the draws
_LOG_THETA_BOUNDS = (-46.0, 40.0)


class _CountDistribution(Distribution):
    """What the distributions of counts share: their shape, and that each entry is a distribution of its own."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (the name and the kind are torch's)
    has_rsample = False

    def __init__(self, log_mu: Tensor, *others: Tensor) -> None:
        self.log_mu = log_mu
        shape = torch.broadcast_shapes(log_mu.shape, *(other.shape for other in others))
        super().__init__(batch_shape=shape, validate_args=False)

    @property
    def mu(self) -> Tensor:
        """Mean before zero inflation, in counts."""
        return self.log_mu.exp()

    @property
    def mean(self) -> Tensor:
        """Mean, in counts."""
        return self.mu.expand(self.batch_shape)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({tuple(self.batch_shape)})"


class Poisson(_CountDistribution):
    """Poisson counts.

    Parameters
    ----------
    log_mu
        Log of the mean, in log counts; any shape.
    """

    def __init__(self, log_mu: Tensor) -> None:
        super().__init__(log_mu)

    @property
    def variance(self) -> Tensor:
        """Variance, in counts squared."""
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts, in nats."""
        value = value.to(self.log_mu.dtype)  # whole numbers too
        return value * self.log_mu - self.mu - torch.lgamma(value + 1)

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, ``(*sample_shape, *shape)``, in counts; by default from torch's global generator."""
        with torch.no_grad():
            return torch.poisson(self.mu.expand(self._extended_shape(torch.Size(sample_shape))), generator)


class NegativeBinomial(_CountDistribution):
    """Negative binomial counts of a given mean and inverse dispersion.

    Parameters
    ----------
    log_mu
        Log of the mean, in log counts; any shape.
    log_theta
        Log of the inverse dispersion theta; any shape that broadcasts with ``log_mu``. The variance is
        ``mu + mu^2 / theta``. Kept within -46 and 40.
    """

    def __init__(self, log_mu: Tensor, log_theta: Tensor) -> None:
        self.log_theta = log_theta.clamp(*_LOG_THETA_BOUNDS)
        super().__init__(log_mu, log_theta)

    @property
    def theta(self) -> Tensor:
        """Inverse dispersion."""
        return self.log_theta.exp()

    @property
    def variance(self) -> Tensor:
        """Variance, in counts squared."""
        return self.mu + self.mu**2 / self.theta

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts, in nats."""
        value = value.to(self.log_mu.dtype)  # whole numbers too
        d = self.log_mu - self.log_theta
        return _gamma_terms(value, self.log_theta) - self.theta * _softplus(d) - value * _softplus(-d)

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, ``(*sample_shape, *shape)``, in counts: Poisson counts of a gamma-distributed mean.

        By default they are drawn from torch's global generator.
        """
        with torch.no_grad():
            theta = self.theta.expand(self._extended_shape(torch.Size(sample_shape)))
            return torch.poisson(torch._standard_gamma(theta, generator) * (self.mu / self.theta), generator)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Negative binomial counts of which a fraction pi is lost: ``pi [x = 0] + (1 - pi) NB(x)``.

    Parameters
    ----------
    log_mu, log_theta
        As in :class:`NegativeBinomial`, before the loss.
    zi_logits
        Logit of pi; any shape that broadcasts with ``log_mu``.
    """

    def __init__(self, log_mu: Tensor, log_theta: Tensor, zi_logits: Tensor) -> None:
        self.log_theta, self.zi_logits = log_theta.clamp(*_LOG_THETA_BOUNDS), zi_logits
        _CountDistribution.__init__(self, log_mu, log_theta, zi_logits)

    @property
    def zi_probs(self) -> Tensor:
        """The fraction pi."""
        return torch.sigmoid(self.zi_logits)

    @property
    def mean(self) -> Tensor:
        """Mean after the loss, in counts."""
        return (torch.sigmoid(-self.zi_logits) * self.mu).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance after the loss, in counts squared."""
        return torch.sigmoid(-self.zi_logits) * (self.mu + self.mu**2 * (self.zi_probs + 1 / self.theta))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of counts, in nats."""
        count = super().log_prob(value)
        log_zero_or_lost = torch.logaddexp(self.zi_logits, count)  # log(pi + (1 - pi) NB(0)) - log(1 - pi)
        return torch.where(value > 0, count, log_zero_or_lost) - _softplus(self.zi_logits)

    def sample(self, sample_shape: Any = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws, ``(*sample_shape, *shape)``, in counts; by default from torch's global generator."""
        with torch.no_grad():
            counts = super().sample(sample_shape, generator=generator)
            return counts * (torch.rand_like(counts, generator=generator) >= self.zi_probs)


def draw_counts(likelihood: Distribution, generator: torch.Generator) -> Tensor:
    """Draw once from a distribution of :func:`make_likelihood`, with a generator on the device of its parameters."""
    if isinstance(likelihood, Normal):
        return draw_normal(likelihood, generator)
    assert isinstance(likelihood, Poisson | NegativeBinomial), "the other likelihoods"
    return likelihood.sample(generator=generator)


def make_likelihood(
    gene_likelihood: str, log_mu: Tensor, log_theta: Tensor | None, zi_logits: Tensor | None
) -> Distribution:
    """The distribution that an option of the model names.

    Parameters
    ----------
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"`` or ``"normal"``.
    log_mu
        Log of the mean, in log counts.
    log_theta
        Log inverse dispersion; the log standard deviation for ``"normal"``; unused for ``"poisson"``.
    zi_logits
        Logits of the zero inflation; used for ``"zinb"`` alone.
    """
    if gene_likelihood == "poisson":
        return Poisson(log_mu)
    assert log_theta is not None, "every likelihood but the Poisson has a dispersion"
    if gene_likelihood == "normal":
        return Normal(log_mu.exp(), log_theta.exp(), validate_args=False)
    if gene_likelihood == "nb":
        return NegativeBinomial(log_mu, log_theta)
    assert zi_logits is not None, "the zero-inflated likelihood has its logits"
    return ZeroInflatedNegativeBinomial(log_mu, log_theta, zi_logits)


def _softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; torch's own threshold of 20, from where on it gives x, is right to float32 alone."""
    return functional.softplus(x, threshold=40.0)


def _gamma_terms(x: Tensor, log_theta: Tensor) -> Tensor:
    """``lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)``, computed where x is not zero."""
    shape = torch.broadcast_shapes(x.shape, log_theta.shape)
    x = torch.atleast_1d(x.expand(shape))
    if is_transformed(x):  # how many counts are not zero is then unknown
        log_theta = log_theta.expand(shape)
        terms = torch.where(x > 0, lgamma_ratio(x, log_theta.exp()) - torch.lgamma(x + 1), 0.0)
        return terms.reshape(shape)
    at = x.nonzero(as_tuple=True)
    counts = x[at]
    # a dispersion of the gene alone is gathered from its own row, so that its gradient is not a dense matrix
    by_gene = log_theta.shape == x.shape[-1:]
    log_theta_at = log_theta[at[-1]] if by_gene else log_theta.expand(x.shape)[at]
    terms = lgamma_ratio(counts, log_theta_at.exp()) - torch.lgamma(counts + 1)
    return torch.zeros(x.shape, dtype=terms.dtype, device=x.device).index_put(at, terms).reshape(shape)


def lgamma_ratio(x: Tensor, theta: Tensor) -> Tensor:
    """``lgamma(x + theta) - lgamma(theta)``; by Stirling's series where theta is so large that they cancel."""
    small = theta.clamp(max=_LARGE_THETA)
    large = theta.clamp(min=_LARGE_THETA)
    direct = torch.lgamma(x + small) - torch.lgamma(small)
    series = (
        (large - 0.5) * torch.log1p(x / large)
        + x * (torch.log(large + x) - 1)
        + (1 / (large + x) - 1 / large) / 12
        - (1 / (large + x) ** 3 - 1 / large**3) / 360
    )
    return torch.where(theta < _LARGE_THETA, direct, series)
