"""p(x | z) as a distribution, and counts drawn from it, under conditions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from scdecode._utils.inference import in_evaluation
from scdecode.conditions import Conditions
from scdecode.decoding.requests import TILE_BYTES
from scdecode.decoding.slots import library_sizes, slot_inputs
from scdecode.draws import make_generator
from scdecode.likelihoods import draw_counts, make_likelihood
from scdecode.vae import VAE


def drawn_counts(
    vae: VAE, z_snk: Tensor, conditions: Conditions, rows: slice, genes: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Counts drawn from the likelihood, ``(draws, n, genes)``; each draw has one of its point's conditions."""
    drawn = []
    seed = int(torch.randint(2**62, (1,), generator=generator, device="cpu"))
    there = make_generator(seed, z_snk.device)
    here = there if z_snk.device.type == "cpu" else make_generator(seed)
    group = slice(None) if conditions.group_n is None else conditions.group_n[rows]
    weights = torch.from_numpy(conditions.weights_gm[group]).expand(z_snk.shape[1], -1)
    log_library = library_sizes(conditions, rows, z_snk.device).log()
    for z in z_snk.split(max(1, TILE_BYTES // (4 * vae.n_genes * z_snk.shape[1]))):
        slot: Tensor | int = 0
        if conditions.n_slots > 1:
            slot = torch.multinomial(weights, len(z), replacement=True, generator=here).t()
        codes, continuous, _ = slot_inputs(conditions, rows, slot, z.device)
        output = vae.decode(z, codes, continuous, genes=genes)
        drawn.append(draw_counts(vae.likelihood(output, log_library, codes, genes), there))
    return torch.cat(drawn)


def distribution(vae: VAE, z: Tensor, conditions: Conditions, genes: Tensor | None) -> Distribution:
    """p(x | z) of points ``(n, k)``, differentiable in z and in the weights.

    Averaged over several conditions it is, for each gene, the mixture over them.
    """
    vae = in_evaluation(vae)
    rows = slice(0, len(z))
    log_library = library_sizes(conditions, rows, z.device).log()
    if conditions.n_slots == 1:
        codes, continuous, _ = slot_inputs(conditions, rows, 0, z.device)
        return vae.likelihood(vae.decode(z, codes, continuous, genes=genes), log_library, codes, genes)
    inputs = [slot_inputs(conditions, rows, slot, z.device) for slot in range(conditions.n_slots)]
    codes = torch.stack([codes for codes, _, _ in inputs])
    continuous = torch.stack([continuous for _, continuous, _ in inputs])
    z_mnk = z.expand(len(inputs), *z.shape)
    output = vae.decode(z_mnk, codes, continuous, genes=genes)
    log_theta = vae.dispersion(output, codes, genes)
    shape = output.log_scale.shape
    # torch's mixture wants the components, here the first of (slots, n, genes), as the last axis
    log_mu, log_theta, zi_logits = (
        None if t is None else t.expand(shape).movedim(0, -1)
        for t in (log_library + output.log_scale, log_theta, output.zi_logits)
    )
    assert log_mu is not None, "there is always a mean"
    component = make_likelihood(vae.config.gene_likelihood, log_mu, log_theta, zi_logits)
    weights = torch.cat([weights for _, _, weights in inputs], dim=-1)  # (n or 1, slots)
    # as logarithms: of weights, torch would raise those of zero to its smallest number, which then win in the tails
    mixture = Categorical(logits=weights.log().unsqueeze(1).expand(log_mu.shape), validate_args=False)
    return MixtureSameFamily(mixture, component, validate_args=False)
