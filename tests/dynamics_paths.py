"""Paths, and a model whose decoder is set by hand, so that the truth of every trend is known."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from small_models import make_adata

import scdecode as sd


@dataclass(frozen=True, eq=False)
class Line:
    """Anything with points, spread and time is a path."""

    points: Any
    time: Any
    spread: Any = None
    conditions: dict[str, Any] = field(default_factory=dict)
    lineages: tuple[str, ...] | None = None
    time_name: str = "share of the path"


N_LATENT = 4
UP, DOWN, TRANSIENT, VALLEY, FLAT = range(5)
WEIGHTS = np.zeros((40, N_LATENT))
WEIGHTS[UP, 0], WEIGHTS[DOWN, 0], WEIGHTS[TRANSIENT, 1], WEIGHTS[VALLEY, 1] = 2.0, -2.0, 2.0, -2.0
BASE = 20.0
"""Counts of each gene at z = 0, but of the last, which has nearly all of the RNA: the sum over genes hardly moves."""
HAND = {"library_size": 1e8, "pseudocount": 1e-7}
"""At which that is so, with a pseudocount of 0.001 counts."""


def hand_made(batch_effect=0.0):
    """A linear model of 40 genes, whose rate is BASE exp(w z); in the second batch the first gene's is exp(effect)."""
    adata = make_adata()
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = sd.LinearSCVI(adata, n_latent=N_LATENT, n_hidden=8, use_batch_norm=False, bias=True)
    model.train(1, device="cpu", progress=False)
    linear = model.vae.decoder.scale.linear
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:, :N_LATENT] = torch.from_numpy(WEIGHTS)
        linear.weight[UP, N_LATENT + 1] = batch_effect
        linear.bias.fill_(np.log(BASE / HAND["library_size"]))
        linear.bias[-1] = 0.0
    return model


def moving(n=30, *, std=None, first=None, second=None):
    """z1 = t and z2 = sin(pi t), or what ``first`` and ``second`` make of t; the others 0."""
    t = np.linspace(0.0, 1.0, n)
    z = np.zeros((n, N_LATENT))
    z[:, 0] = t if first is None else first(t)
    z[:, 1] = np.sin(np.pi * t) if second is None else second(t)
    spread = None if std is None else np.broadcast_to(np.diag(np.square(std)), (n, N_LATENT, N_LATENT))
    return Line(z, t, spread)


def winding(n=12, k=N_LATENT, *, spread=True, seed=0):
    """A curve in all dimensions, at uneven times, with a spread that turns."""
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.uniform(0.5, 1.5, n))
    z = np.sin(t[:, None] / n * rng.uniform(1, 6, k) + rng.uniform(0, 6, k))
    roots = np.eye(k) * 0.5 + 0.3 * np.sin(t[:, None, None] / n * 2 + rng.uniform(0, 6, (k, k)))
    return Line(z, t, roots @ roots.transpose(0, 2, 1) if spread else None)
