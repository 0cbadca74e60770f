"""Cells to latents: the posterior, its mean, or draws from it.

Where there is enough to do, counts stay sparse on the CPU: each thread takes some cells through the whole encoder, the
first layer by a compiled loop over the counts that are not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import relu

from scdecode import kernels
from scdecode._utils.inference import inference_on
from scdecode._utils.memory import check_draws
from scdecode._utils.progress import tracked
from scdecode.cells import Cells
from scdecode.config import ModelConfig
from scdecode.draws import even_normals, make_generator
from scdecode.errors import LARGEST_DRAWS, check_integer
from scdecode.kernels.threads import own_threads, side_by_side
from scdecode.minibatches import gather, rows_of
from scdecode.networks import LEAST_VARIANCE, Encoder, HiddenLayer
from scdecode.vae import VAE

BATCH_SIZE = 256
"""Cells that are made dense at once."""

LARGE = 2**25
"""Entries of the cells, zeros too: for fewer, fetching the compiled loops takes longer than they save."""

_STRETCH = 512  # batches of cells between two reports of progress

_MEAN_DRAWS = 5000  # for the mean of a logistic normal, which has no closed form


@dataclass(frozen=True, eq=False)
class Posterior:
    """The normal posterior q(z | x) of each cell; for ``latent_distribution="ln"`` that of z before its softmax."""

    mean_nk: Tensor  # (n, k) float32
    variance_nk: Tensor  # (n, k) float32


@torch.no_grad()
def encode(
    vae: VAE,
    cells: Cells,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
    device: str | torch.device = "cpu",
) -> Posterior:
    """The posterior of each cell, some cells at a time.

    Parameters
    ----------
    vae
        Whatever mode it is in, it encodes in evaluation mode; it is not changed.
    cells
        In the model's genes and codes.
    rows
        Positions of the cells to encode; by default all.
    batch_size
        Cells that are made dense at once.
    device
        Where to compute.
    """
    check_integer("batch_size", batch_size, minimum=1)
    device = torch.device(device)
    rows = np.arange(len(cells)) if rows is None else rows
    vae = inference_on(vae, device)
    if stays_sparse(vae, len(rows), device):
        return Posterior(*encode_sparse(vae.z_encoder, cells, rows, batch_size))
    means, variances = [], []
    batches = rows_of(rows, batch_size, lone=True)
    for some in tracked(batches, "encoding", unit="cells", total=len(rows), size=len):
        posterior = vae.encode(gather(cells, some, device))
        means.append(posterior.mean.cpu())
        variances.append(posterior.variance.cpu())
    return Posterior(torch.cat(means), torch.cat(variances))


def stays_sparse(vae: VAE, n_cells: int, device: torch.device) -> bool:
    """Whether so many cells are encoded, or evaluated, by compiled loops over their sparse counts."""
    here = device.type == "cpu" and next(vae.parameters()).device.type == "cpu"
    return here and vae.takes_sparse and n_cells * vae.n_genes >= LARGE and kernels.usable()


@torch.no_grad()
def encode_sparse(encoder: Encoder, cells: Cells, rows: np.ndarray, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the posterior of cells, of a network at rest on the CPU; see :func:`stays_sparse`."""
    from scdecode.kernels.sparse_loops import product

    first, *others = encoder.mlp.layers
    assert isinstance(first, HiddenLayer), "that is what a network is made of"
    # the loop wants a row for each gene, and counts say nothing before their logarithm
    weight_gh = first.linear.weight.detach().t().contiguous().numpy()
    bias_h = first.linear.bias.detach().numpy()
    n_out = encoder.mean.out_features
    mean, variance = np.empty((len(rows), n_out), np.float32), np.empty((len(rows), n_out), np.float32)

    def part(before: int, start: int, stop: int) -> None:
        first_row, last_row = (before + start) * batch_size, min((before + stop) * batch_size, len(rows))
        for lo in range(first_row, last_row, batch_size):
            some = slice(lo, min(lo + batch_size, len(rows)))
            indptr, indices, logs = _logs(cells.counts, rows[some])
            hidden = torch.empty(len(indptr) - 1, weight_gh.shape[1])
            product(0, len(hidden), indptr, indices, logs, weight_gh, bias_h, hidden.numpy())
            hidden = _rest_of_layer(first, hidden)
            for layer in others:
                hidden = layer(hidden, None)
            mean[some] = encoder.mean(hidden).numpy()
            variance[some] = (encoder.log_variance(hidden).exp() + LEAST_VARIANCE).numpy()

    n_batches = -(-len(rows) // batch_size)
    stretches = [range(start, min(start + _STRETCH, n_batches)) for start in range(0, n_batches, _STRETCH)]
    with own_threads():
        for some in tracked(stretches, "encoding", unit="batches", total=n_batches, size=len):
            side_by_side(partial(part, some.start), len(some))
    return torch.from_numpy(mean), torch.from_numpy(variance)


def _rest_of_layer(layer: HiddenLayer, hidden: Tensor) -> Tensor:
    """What a layer at rest does after its linear map."""
    for norm in (layer.batch_norm, layer.layer_norm):
        hidden = hidden if norm is None else norm(hidden)
    return relu(hidden)


def _logs(counts: sp.csr_matrix, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a CSR matrix as the loop takes them: where each begins, the genes, and log1p of the counts."""
    if len(rows) and (np.diff(rows) == 1).all():  # as they lie: none is copied
        indptr = counts.indptr[rows[0] : rows[-1] + 2].astype(np.int64)
        entries = slice(int(indptr[0]), int(indptr[-1]))
        indptr -= indptr[0]
        indices, values = counts.indices[entries], counts.data[entries]
    else:
        some = counts[rows]
        indptr, indices, values = some.indptr.astype(np.int64), some.indices, some.data
    return indptr, indices.astype(np.int32, copy=False), np.log1p(values, dtype=np.float32)


def latent_mean(posterior: Posterior, config: ModelConfig, *, n_draws: int = _MEAN_DRAWS, seed: int = 0) -> np.ndarray:
    """The posterior mean of each cell's latent point, ``(n, k)`` float32.

    For ``"ln"`` it is the mean of ``n_draws`` draws of the softmax: the softmax of the mean is another point.
    """
    if config.latent_distribution == "normal":
        return posterior.mean_nk.numpy()
    check_integer("mc_samples", n_draws, 1, LARGEST_DRAWS)
    total = torch.zeros_like(posterior.mean_nk)
    sd_nk = posterior.variance_nk.sqrt()
    for noise_k in even_normals(n_draws, sd_nk.shape[1], seed):  # a cell's mean does not depend on those beside it
        total += torch.softmax(posterior.mean_nk + sd_nk * noise_k, dim=-1)
    return (total / n_draws).numpy()


def latent_draws(posterior: Posterior, config: ModelConfig, n_samples: int, *, seed: int = 0) -> np.ndarray:
    """Draws from the posterior of each cell's latent point, ``(n_samples, n, k)`` float32."""
    check_integer("n_samples", n_samples, 1, LARGEST_DRAWS)
    check_draws(n_samples, posterior.mean_nk.numel())
    generator = make_generator(seed)
    shape = (n_samples, *posterior.mean_nk.shape)
    draws = posterior.mean_nk + posterior.variance_nk.sqrt() * torch.randn(shape, generator=generator)
    return (draws if config.latent_distribution == "normal" else torch.softmax(draws, dim=-1)).numpy()
