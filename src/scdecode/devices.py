"""Where to compute."""

from __future__ import annotations

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
