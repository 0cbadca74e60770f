"""Fisher information and Kullback-Leibler divergence of the likelihoods, in what the decoder gives: log mu, zi logits.

Both are sums over genes, which are independent given z, and both are closed. For the negative binomial of mean mu and
inverse dispersion theta the Fisher information on mu is ``theta / (mu (theta + mu))``, so on log mu it is

    m = mu theta / (mu + theta)

For the zero-inflated one, with ``pi = sigmoid(a)``, ``n0 = NB(0)`` and ``w = sigmoid(a - log n0)``, the share of the
zeros that are lost counts, x = 0 is taken apart and the rest is a truncated sum, by the moments of the full one:

    F = (1 - pi) [ m - n0 m^2 w   ,  -n0 m w         ]     in (log mu, a)
                 [ -n0 m w        ,  pi w (1 - n0)   ]

A divergence is split in the same way (the chain rule of relative entropy): whether a count is zero, and which it is
when it is not. Between neighbours on a path divergences are of second order in a difference that float32 can hardly
see, so no term here is the difference of larger ones: all go through :func:`_bregman`.

theta is that of the point, and what its own change along a path would tell (``dispersion="gene-cell"``) is left out:
two distributions are compared at the geometric mean of their theta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scdecode._utils.checks import checked
from scdecode.errors import InputError

_LOG_THETA_BOUNDS = (-46.0, 40.0)  # those of the likelihoods
_SMALL = 0.5  # below it differences of logarithms are taken by series
_EXP = tuple(1 / math.factorial(n) for n in range(2, 12))
_ATANH = tuple(1 / n for n in range(3, 17, 2))
_LEAST_LOGIT = -60.0  # where sigmoid is exp, in float32 and in the divergences


@dataclass(frozen=True, eq=False)
class Parameters:
    """What a likelihood is told of each point and gene."""

    log_mu: Tensor  # (..., g): log of the mean, log counts
    zi_logits: Tensor | None = None  # (..., g): of the zero inflation; "zinb" alone
    log_theta: Tensor | None = None  # broadcasts with log_mu: log inverse dispersion, log standard deviation ("normal")

    @checked
    def at(self, rows: slice) -> Parameters:
        """Those of some of the points, which are the axis before the genes."""
        n = self.log_mu.shape[-2]

        def some(values: Tensor | None) -> Tensor | None:
            by_point = values is not None and values.ndim > 1 and values.shape[-2] == n
            return values[..., rows, :] if values is not None and by_point else values

        return Parameters(self.log_mu[..., rows, :], some(self.zi_logits), some(self.log_theta))

    def joined(self) -> Tensor:
        """What the information is on, side by side: log mu, and the zi logits where there are some."""
        if self.zi_logits is None:
            return self.log_mu
        return torch.cat([self.log_mu, self.zi_logits.expand_as(self.log_mu)], dim=-1)

    @checked
    def split(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Those of values that lie as :meth:`joined` lays them: on log mu, and on the zi logits."""
        if values.is_meta or values.layout is not torch.strided:
            raise InputError(f"values: got a tensor with layout {values.layout}, expected values of a dense tensor")
        if self.zi_logits is None:
            return values, None
        mean, zero = values.chunk(2, dim=-1)
        return mean, zero


@dataclass(frozen=True, eq=False)
class Fisher:
    """Fisher information of one count on the decoder's outputs, a number or a 2 x 2 matrix a gene."""

    mean: Tensor  # (..., g): on log mu
    cross: Tensor | None = None  # (..., g): between log mu and the zi logit
    zero: Tensor | None = None  # (..., g): on the zi logit

    @checked
    def product(self, mean: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The information times changes of log mu and of the zi logit."""
        for place, change in (("mean", mean), ("zero", zero)):
            if change is not None and not _fits(change, self.mean):
                raise InputError(
                    f"{place}: got a tensor of {change.dtype} of shape {tuple(change.shape)}, expected floating-point "
                    f"changes of shape {tuple(self.mean.shape)}"
                )
        if self.cross is None or self.zero is None or zero is None:
            return self.mean * mean, None
        return self.mean * mean + self.cross * zero, self.cross * mean + self.zero * zero


def _fits(change: Tensor, mean: Tensor) -> bool:
    usable = change.is_floating_point() and not change.is_meta and change.layout is torch.strided
    return usable and all(a == b or 1 in (a, b) for a, b in zip(change.shape[::-1], mean.shape[::-1], strict=False))


@checked
def fisher_information(gene_likelihood: str, parameters: Parameters) -> Fisher:
    """Fisher information on log mu and on the zi logit.

    Parameters
    ----------
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"`` or ``"normal"``.
    parameters
        Of the points.
    """
    log_mu = parameters.log_mu
    if gene_likelihood == "poisson":
        return Fisher(log_mu.exp())
    log_theta = _log_theta(gene_likelihood, parameters.log_theta)
    if gene_likelihood == "normal":
        return Fisher((2 * (log_mu - log_theta)).exp())
    m = (log_mu - softplus(log_mu - log_theta, threshold=40.0)).exp()
    if gene_likelihood == "nb":
        return Fisher(m)
    assert parameters.zi_logits is not None, "the zero-inflated likelihood has its logits"
    a = parameters.zi_logits
    y = _log_surprise_of_zero(log_mu, log_theta).exp()  # -log n0
    kept, n0, lost = torch.sigmoid(-a), (-y).exp(), torch.sigmoid(a + y)
    return Fisher(
        mean=kept * m * (1 - n0 * m * lost),  # n0 m < 1 / e: nothing cancels
        cross=-kept * n0 * m * lost,
        zero=kept * torch.sigmoid(a) * lost * -torch.expm1(-y),
    )


@checked
def kl_divergence(gene_likelihood: str, first: Parameters, second: Parameters) -> Tensor:
    """KL(first || second) of each gene, in nats.

    Parameters
    ----------
    gene_likelihood
        ``"zinb"``, ``"nb"``, ``"poisson"`` or ``"normal"``.
    first, second
        Of the points; where their theta differ, both are taken at the geometric mean.

    Returns
    -------
    torch.Tensor
        ``(..., g)``, differentiable in all parameters.
    """
    log_mu, delta = first.log_mu, first.log_mu - second.log_mu
    if gene_likelihood == "poisson":
        return _poisson(log_mu, delta)
    log_theta = _log_theta(gene_likelihood, first.log_theta)
    if second.log_theta is not None and second.log_theta is not first.log_theta:
        log_theta = (log_theta + _log_theta(gene_likelihood, second.log_theta)) / 2
    if gene_likelihood == "normal":
        # mu1 - mu2 = mu1 (1 - exp(-delta)), from the larger of the two, where nothing overflows
        larger = torch.maximum(log_mu, second.log_mu)
        return 0.5 * ((larger - log_theta).exp() * torch.expm1(-delta.abs())).square()
    if gene_likelihood == "nb":
        return _count(log_mu, delta, log_theta)
    assert first.zi_logits is not None and second.zi_logits is not None, "the zero-inflated likelihood has its logits"
    # here float32 would do for the sum over genes, not for each: logits of a zero are differences themselves
    mu1, mu2, a1, a2 = (v.double() for v in (log_mu, second.log_mu, first.zi_logits, second.zi_logits))
    log_theta = log_theta.double()
    zero1, zero2 = (_zero_logits(log_mu, log_theta) for log_mu in (mu1, mu2))
    seen1, seen2 = zero1.seen(a1), zero2.seen(a2)
    # once whether x = 0; and, where a count is there, the NB's divergence without what its own zeros tell
    own = _bernoulli(zero1.logit, zero1.logit - zero2.logit)
    total = _bernoulli(seen1, seen1 - seen2) + torch.sigmoid(-a1) * (_count(mu1, mu1 - mu2, log_theta) - own)
    return total.to(log_mu.dtype)


def _count(log_mu: Tensor, delta: Tensor, log_theta: Tensor) -> Tensor:
    """``mu1 delta - (mu1 + theta) (s(d1) - s(d2))``: a Bregman divergence of softplus, times mu1 + theta."""
    return torch.minimum(log_mu, log_theta).exp() * _bregman(log_mu - log_theta, delta)


@dataclass(frozen=True, eq=False)
class _Zero:
    """The probability n0 of zero of a negative binomial."""

    log_n0: Tensor
    log_other: Tensor  # log(1 - n0)

    @property
    def logit(self) -> Tensor:
        return self.log_n0 - self.log_other

    def seen(self, zi_logits: Tensor) -> Tensor:
        """Logit of a zero where counts are lost, too: 1 - P0 = (1 - pi)(1 - n0)."""
        return torch.logaddexp(zi_logits, self.log_n0) - self.log_other


def _zero_logits(log_mu: Tensor, log_theta: Tensor) -> _Zero:
    log_y = _log_surprise_of_zero(log_mu, log_theta)
    y = log_y.exp()
    # log(1 - exp(-y)), which below 1e-6 is log y: there y itself may have underflowed
    other = torch.where(log_y < -14, log_y, (-torch.expm1(-y.clamp(min=1e-7))).log())
    return _Zero(-y, other)


def _log_surprise_of_zero(log_mu: Tensor, log_theta: Tensor) -> Tensor:
    """``log(-log NB(0)) = log theta + log softplus(d)``."""
    d = log_mu - log_theta
    least = -15.0  # softplus is exp, and would underflow further down
    return log_theta + torch.where(d < least, d, softplus(d.clamp(min=least), threshold=40.0).log())


def _log_theta(gene_likelihood: str, log_theta: Tensor | None) -> Tensor:
    assert log_theta is not None, "every likelihood but the Poisson has a dispersion"
    return log_theta if gene_likelihood == "normal" else log_theta.clamp(*_LOG_THETA_BOUNDS)


def _poisson(log_mu: Tensor, delta: Tensor) -> Tensor:
    """``mu1 delta - mu1 + mu2``."""
    near = delta.abs() < _SMALL
    mu = log_mu.exp()
    return torch.where(
        near, mu * _exp_remainder(torch.where(near, -delta, 0.0)), mu * (delta - 1) + (log_mu - delta).exp()
    )


def _bernoulli(logit: Tensor, delta: Tensor) -> Tensor:
    """KL of two Bernoullis whose logits are ``logit`` and ``logit - delta``."""
    return torch.sigmoid(-logit.abs()) * _bregman(logit, delta)


def _bregman(t: Tensor, delta: Tensor) -> Tensor:
    """``(p delta + s(t - delta) - s(t)) / min(p, 1 - p)``, with s = softplus and p = sigmoid(t).

    It is the same for ``(-t, -delta)``: turned so that p is at most 1/2, small differences can be written as

        p delta + log1p(p w) = p (w + delta) + (log1p(p w) - p w),   w = exp(-delta) - 1

    two terms of second order that do not cancel; large ones as they are.
    """
    delta = torch.where(t > 0, -delta, delta)
    t = -t.abs()
    t = t.clamp(min=_LEAST_LOGIT)
    near = delta.abs() < _SMALL
    small = torch.where(near, delta, 0.0)
    p, w = torch.sigmoid(t), torch.expm1(-small)
    x = p * w
    y2 = (x / (2 + x)).square()
    # log1p(x) = 2 atanh(x / (2 + x)); less x, over p
    rest = (w / (2 + x)) * (x - 2 * y2 * _series(y2, _ATANH))
    far = torch.where(near, _SMALL, delta)
    as_is = far + (softplus(t - far, threshold=40.0) - softplus(t, threshold=40.0)) / p
    return torch.where(near, _exp_remainder(-small) - rest, as_is)


def _exp_remainder(x: Tensor) -> Tensor:
    """``exp(x) - 1 - x`` where x is small."""
    return x.square() * _series(x, _EXP)


def _series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """``c0 + c1 x + c2 x^2 + ...``, by Horner."""
    *others, last = coefficients
    total: Tensor | float = last
    for coefficient in reversed(others):
        total = coefficient + x * total
    assert isinstance(total, Tensor), "there is more than one coefficient"
    return total
