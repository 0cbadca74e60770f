"""Where to compute, and random numbers there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scdecode.errors import ConfigError, listing


def choose_device(name: str) -> torch.device:
    """The device of a name; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises
    ------
    ConfigError
        For a device that is not there.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda else "cpu")
    there = ["cpu", *(["cuda"] if has_cuda else []), *(["mps"] if has_mps else [])]
    if str(name).split(":")[0] not in there:
        raise ConfigError(f"device: {name!r} came, one of {listing(['auto', *there])} was expected on this machine")
    return torch.device(name)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded random numbers on the CPU and on the device; afterwards the global generators are as they were before.

    For what takes no generator of its own: dropout, gamma and Poisson draws, initial weights.
    """
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every other device too, for good
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        if device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
