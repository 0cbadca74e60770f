"""The decoder and its derivative in one pass: Jacobian-vector products by forward differentiation, written out.

With a point z that moves at the velocity v, each layer is given its input and how fast that changes, and hands on both.
A linear map is its own derivative, ReLU lets through what it lets through, and of the softmax rho of the logits a,

    d rho_g / dt = rho_g (da_g / dt - sum_h rho_h da_h / dt)

so that the derivative costs what the value costs, whatever the number of latent dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scdecode.decode_plan import Affine, Given, Plan


@torch.no_grad()
def values_and_slopes(plan: Plan, given: Given, velocity_ni: Tensor, n_samples: int) -> tuple[Tensor, Tensor]:
    """Decode draws around points, and how fast their mean changes.

    Parameters
    ----------
    plan
        The decoder for some conditions.
    given
        ``n_samples`` draws around each of p points: rows ``(draws, points)``, the draws of one point ``p`` rows apart.
    velocity_ni
        How fast each row of ``given.inputs_ni`` moves.

    Returns
    -------
    tuple
        The expression, ``(draws, p, genes)``, and the derivative of its mean over the draws, ``(p, genes)``.
    """
    values: Tensor | None = None
    slope: Tensor | None = None
    library_n1 = torch.from_numpy(given.library_n)[:, None]
    for slot in range(plan.n_slots):
        at = torch.from_numpy(given.group_n * plan.n_slots + slot)
        factor_n1 = library_n1 * torch.from_numpy(plan.weight_s)[at, None].float()
        more, steeper = _slot(plan, given.inputs_ni, velocity_ni, at, factor_n1.expand(len(given), 1), n_samples)
        values = more if values is None else values.add_(more)
        slope = steeper if slope is None else slope.add_(steeper)
    assert values is not None and slope is not None, "there is at least one slot"
    return values, slope


def _slot(
    plan: Plan, inputs_ni: Tensor, velocity_ni: Tensor, at: Tensor, factor_n1: Tensor, n_samples: int
) -> tuple[Tensor, Tensor]:
    """The same for one condition of each point, times its weight and its library size."""
    hidden, moving = inputs_ni, velocity_ni
    for layer in plan.layers:
        hidden, moving = _affine(layer, hidden, at), moving @ layer.weight_io
        if layer.norm is not None:
            hidden, moving = _normalised(hidden, moving, layer.norm)
        moving = moving.masked_fill_(hidden <= 0, 0.0)
        hidden = hidden.relu_()
    logits, change = _affine(plan.scale, hidden, at), moving @ plan.scale.weight_io
    if plan.softmax:
        values = torch.softmax(logits, dim=-1)
        change.mul_(values)
        common_n1 = change.sum(-1, keepdim=True)
        if plan.genes is not None:
            values, change = values[:, plan.genes], change[:, plan.genes]
    else:
        values = softplus(logits)
        change.mul_(torch.sigmoid(logits))
        common_n1 = torch.zeros_like(factor_n1)
    if plan.zi_logits is not None:
        zi = _affine(plan.zi_logits, hidden, at)
        kept = torch.sigmoid(-zi)
        # (1 - pi) v changes by (1 - pi) dv - pi (1 - pi) v d(zi)
        change = change.mul_(kept).sub_((moving @ plan.zi_logits.weight_io).mul_(1 - kept).mul_(kept).mul_(values))
        values = values * kept
    values.mul_(factor_n1)
    # the mean over draws of what is weighted by draw: products with the weights, and no more passes over the draws
    n_points = len(inputs_ni) // n_samples
    by_point_psg = change.view(n_samples, n_points, -1).transpose(0, 1)
    factor_p1s = factor_n1.view(n_samples, n_points).t().unsqueeze(1)
    common_p1s = common_n1.view(n_samples, n_points).t().unsqueeze(1)
    values_spg = values.view(n_samples, n_points, -1)
    total_p1g = factor_p1s @ by_point_psg - common_p1s @ values_spg.transpose(0, 1)
    return values_spg, total_p1g.squeeze(1) / n_samples


def _affine(layer: Affine, x: Tensor, at: Tensor) -> Tensor:
    return torch.addmm(layer.shift_so[at] if len(layer.shift_so) > 1 else layer.shift_so, x, layer.weight_io)


def _normalised(x: Tensor, moving: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Layer normalisation without weights, and its derivative: what is left of the motion across mean and scale."""
    centred = x - x.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = centred * inverse
    motion = moving - moving.mean(-1, keepdim=True)
    return y, inverse * (motion - y * (y * motion).mean(-1, keepdim=True))
