"""The slots of conditions as tensors, and what the decoder says of points averaged over them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scdecode.conditions import Conditions
from scdecode.vae import VAE


@torch.no_grad()
def averaged(vae: VAE, z: Tensor, conditions: Conditions, rows: slice, quantity: str, genes: Tensor | None) -> Tensor:
    """The scale, rate or mean of points ``(..., n, k)``, averaged over the slots of their conditions; no gradients."""
    total: Tensor | None = None
    for slot in range(conditions.n_slots):
        codes, continuous, weights = slot_inputs(conditions, rows, slot, z.device)
        if quantity == "mean" and vae.config.gene_likelihood == "zinb":
            output = vae.decode(z, codes, continuous, genes=genes)
            assert output.zi_logits is not None, "zero inflation has its logits"
            values = output.log_scale.exp() * torch.sigmoid(-output.zi_logits)
        else:
            values = vae.scale(z, codes, continuous, genes=genes)
        if conditions.n_slots > 1:
            values *= weights
        total = values if total is None else total.add_(values)
    assert total is not None, "there is at least one slot"
    return total if quantity == "scale" else total.mul_(library_sizes(conditions, rows, z.device))


def slot_inputs(
    conditions: Conditions, rows: slice, slot: int | Tensor, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ``(n or 1, c)``, covariates ``(n or 1, d)`` and weights ``(n or 1, 1)`` of one slot of each point.

    ``slot`` is the same for all points, or a tensor of one for each.
    """
    group = np.zeros(1, dtype=np.int64) if conditions.group_n is None else conditions.group_n[rows]
    chosen = slot if isinstance(slot, int) else slot.cpu().numpy()
    codes = torch.from_numpy(conditions.codes_gmc[group, chosen])
    continuous = torch.from_numpy(conditions.continuous_gmd[group, chosen])
    if conditions.given_nd is not None:
        given = torch.from_numpy(conditions.given_nd[rows])
        continuous = torch.where(given.isnan(), continuous, given)
    weights = torch.from_numpy(conditions.weights_gm[group, chosen]).float().unsqueeze(-1)
    return codes.to(device), continuous.to(device), weights.to(device)


def library_sizes(conditions: Conditions, rows: slice, device: torch.device) -> Tensor:
    """Library sizes of the points at ``rows``, ``(n or 1, 1)``."""
    sizes = conditions.library_n if len(conditions.library_n) == 1 else conditions.library_n[rows]
    return torch.from_numpy(sizes).unsqueeze(-1).to(device)
