"""The same draws in both packages, whatever the order and the shape in which they take them."""

import contextlib

import torch
from torch.distributions import Normal


@contextlib.contextmanager
def the_same_noise():
    """Every draw from a normal takes its noise from its size alone; dropout is left to torch's generator.

    scvi-tools draws z before the library size, and we after it; it draws z of labelled cells and does not use it.
    """

    def rsample(self, sample_shape=()):
        assert not sample_shape
        generator = torch.Generator().manual_seed(self.loc.numel() * 1000 + self.loc.shape[-1])
        noise = torch.randn(self.loc.numel(), generator=generator)
        return self.loc + self.scale * noise.reshape(self.loc.shape)

    kept = Normal.rsample
    Normal.rsample = rsample
    try:
        yield
    finally:
        Normal.rsample = kept
