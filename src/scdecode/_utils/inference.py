"""Networks in evaluation mode, on the device that computes, without a change of the network itself.

Several threads may use one network at a time: its modes and its place are never changed for a computation.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def in_evaluation(network: Network) -> Network:
    """Return a network in evaluation mode that shares the weights of another: itself if it is in that mode.

    In training mode, batch normalisation would mix the points of a tile.
    """
    if not any(part.training for part in network.modules()):
        return network
    view = copy.copy(network)
    view.training = False
    view.__dict__["_modules"] = {
        name: None if part is None else in_evaluation(part) for name, part in network._modules.items()
    }
    return view


def inference_on(network: Network, device: torch.device | str) -> Network:
    """Return a network in evaluation mode on a device: itself, a view of its weights, or a copy where they are not."""
    network, device = in_evaluation(network), torch.device(device)
    home = next(network.parameters()).device
    if home.type == device.type and device.index in (None, home.index):
        return network
    return copy.deepcopy(network).to(device)
