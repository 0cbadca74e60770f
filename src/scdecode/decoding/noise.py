"""How far observed counts scatter around what a path decodes to: the noise of counting, of one cell.

By the law of total variance the counts of cells around a point have the variance of their means, which the draws show,
and the mean of their variances, which is this: ``E[Var(x | z)]`` over the draws of z. Where conditions are averaged
over, a cell is of any of them, and how far their means are apart is part of ``Var(x | z)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scdecode.conditions import Conditions
from scdecode.decoding.slots import library_sizes, slot_inputs
from scdecode.likelihoods import NegativeBinomial, make_likelihood
from scdecode.vae import VAE

_EVALUATIONS = 640  # draws times combinations of conditions that are looked at, about, where there is no closed form
_FEWEST = 8  # draws of each, at least
_BYTES = 16 * 2**20  # of the parameters of some draws


@torch.no_grad()
def count_noise(
    vae: VAE,
    drawn: Callable[[], Tensor],
    conditions: Conditions,
    rows: slice,
    quantity: str,
    genes: Tensor | None,
    mean_ng: np.ndarray,
    std_ng: np.ndarray | None,
) -> np.ndarray:
    """Standard deviation of an observed count around its cell's mean, ``(n, genes)``, in counts.

    Parameters
    ----------
    drawn
        Gives the draws, ``(draws, n, k)``, more even than chance from the first on, where no closed form does without.
    quantity
        ``"rate"``: of counts before zero inflation; ``"mean"``: after it.
    mean_ng, std_ng
        Mean and standard deviation of the rate over the draws, which tell the noise where the model has no zero
        inflation and one combination of conditions: mu + (mean^2 + std^2) / theta for the negative binomial.
    """
    config, device = vae.config, next(vae.parameters()).device
    kind = "nb" if config.gene_likelihood == "zinb" and quantity == "rate" else config.gene_likelihood
    if conditions.n_slots == 1:
        if kind == "poisson":
            return np.sqrt(mean_ng)
        if kind == "nb" and config.dispersion != "gene-cell":
            codes, _, _ = slot_inputs(conditions, rows, 0, device)
            log_theta = vae.log_theta_of(None, codes, genes)
            assert log_theta is not None, "the negative binomial has a dispersion"
            theta = NegativeBinomial(log_theta, log_theta).theta.cpu().numpy()  # kept within its bounds
            square = mean_ng.astype(np.float64) ** 2 + (0.0 if std_ng is None else std_ng.astype(np.float64) ** 2)
            return np.sqrt(mean_ng + square / theta).astype(np.float32)
    draws = drawn()[: max(_FEWEST, _EVALUATIONS // conditions.n_slots)]
    log_library = library_sizes(conditions, rows, device).log()
    total = torch.zeros(mean_ng.shape, device=device)
    for some in draws.split(max(1, _BYTES // (4 * mean_ng.size))):
        within = torch.zeros((len(some), *mean_ng.shape), device=device)
        first, second, origin = torch.zeros_like(within), torch.zeros_like(within), None
        for slot in range(conditions.n_slots):
            codes, continuous, weights = slot_inputs(conditions, rows, slot, device)
            output = vae.decode(some, codes, continuous, genes=genes)
            log_theta = vae.dispersion(output, codes, genes)
            likelihood = make_likelihood(kind, log_library + output.log_scale, log_theta, output.zi_logits)
            origin = likelihood.mean if origin is None else origin
            apart = likelihood.mean - origin  # of the means themselves, the squares would cancel to noise in float32
            within += weights * likelihood.variance
            first += weights * apart
            second += weights * apart**2
        total += (within + (second - first**2).clamp(min=0)).sum(0)
    return (total / len(draws)).sqrt().cpu().numpy()
