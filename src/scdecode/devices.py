"""Where to compute."""

from __future__ import annotations

import torch

from scdecode.errors import ConfigError, listing, shown


def choose_device(name: str | None) -> torch.device:
    """Return the device of a name; ``"auto"`` is CUDA if there is one, else the CPU, and None is the CPU.

    Raises
    ------
    ConfigError
        For a device that this machine does not have.
    """
    n_cuda, has_mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    if name is None:
        return torch.device("cpu")
    if name == "auto":
        return torch.device("cuda" if n_cuda else "cpu")
    there = ["cpu", *(["cuda"] if n_cuda else []), *(["mps"] if has_mps else [])]
    kind, colon, number = str(name).partition(":")
    count = n_cuda if kind == "cuda" else 1
    if kind not in there or (colon and number not in map(str, range(count))):
        raise ConfigError(f"device: got {shown(name)}, expected one of {listing(['auto', *there])} on this machine")
    return torch.device(name)
