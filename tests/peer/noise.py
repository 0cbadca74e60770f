"""The same draws in both packages, whatever the order and the shape in which they take them.

scvi-tools draws by the methods of torch's ``Normal``; scdecode by ``torch.normal``, from generators of its own.
"""

import contextlib

import torch
from torch.distributions import Normal


@contextlib.contextmanager
def _drawing(standard):
    """Draw standard normal numbers by a function of a tensor of their shape."""

    def rsample(self, sample_shape=()):
        like = self.loc.expand((*sample_shape, *self.loc.shape))
        return like + self.scale * standard(like)

    kept = Normal.rsample, Normal.sample, torch.normal
    Normal.rsample = Normal.sample = rsample
    torch.normal = lambda mean, std, *, generator=None: mean + std * standard(mean)
    try:
        yield
    finally:
        Normal.rsample, Normal.sample, torch.normal = kept


def the_same_noise():
    """Every draw from a normal takes its noise from its size alone; dropout is left to torch's generator.

    scvi-tools draws z before the library size, and we after it; it draws z of labelled cells and does not use it.
    """

    def standard(like):
        generator = torch.Generator().manual_seed(like.numel() * 1000 + like.shape[-1])
        return torch.randn(like.numel(), generator=generator).reshape(like.shape)

    return _drawing(standard)


def no_noise():
    """Every draw from a normal is its mean."""
    return _drawing(torch.zeros_like)
