"""Latents to expression: tiles of points through the decoder, averaged over conditions, with draws where asked.

Nothing here touches the training state: whatever mode the network is in, it decodes in evaluation mode, and is never
changed. Nor are the global random generators touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scdecode._utils.inference import in_evaluation, inference_on
from scdecode.conditions import Conditions
from scdecode.decode_plan import Given, Plan, make_plan, worth_loops
from scdecode.decoding.mixtures import drawn_counts
from scdecode.decoding.noise import count_noise
from scdecode.decoding.requests import Request
from scdecode.decoding.slots import averaged
from scdecode.draws import even_normals, make_generator
from scdecode.errors import InputError
from scdecode.kernels.threads import own_threads, side_by_side
from scdecode.points import Points, draw
from scdecode.vae import VAE

QUANTILES = {"q05": 0.05, "q95": 0.95}

_STRETCH = 8192  # points that are decoded at once where the result has its place already


@dataclass(frozen=True, eq=False)
class Tile:
    """The expression of the points ``start`` to ``stop``."""

    start: int
    stop: int
    values: np.ndarray  # (points, genes); of "counts": (points x draws, genes), the draws of a point side by side
    layers: dict[str, np.ndarray]  # those of layer_names: (points, genes)


def layer_names(request: Request) -> tuple[str, ...]:
    """What there is beside the expression: standard deviations and quantiles of draws, the noise of counting."""
    drawn = request.quantity != "counts" and request.n_samples is not None
    return (("std", *QUANTILES) if drawn else ()) + (("std_counts",) if request.count_noise else ())


def decode_tiles(
    vae: VAE,
    points: Points,
    conditions: Conditions,
    request: Request,
    device: torch.device,
    into: np.ndarray | None = None,
) -> Iterator[Tile]:
    """Decode the points, some at a time, in order.

    Where there is an array ``into`` of the whole result, ``(n, genes)`` float32, each tile's values are written there,
    and are a view of it; a tile may then be larger than was asked for, as it takes no memory of its own.

    Raises
    ------
    InputError
        For counts of a model that has none.
    """
    if request.quantity == "counts":
        if not vae.config.has_counts:
            raise InputError(
                f"quantity: 'counts' came, but a model with gene_likelihood={vae.config.gene_likelihood!r} draws no "
                "whole numbers; 'rate' is its mean, and model.distribution(z).sample() draws from it"
            )
        return _count_tiles(vae, points, conditions, request, device)
    if request.n_samples is None:
        return _point_tiles(vae, points, conditions, request, device, into)
    return _spread_tiles(vae, points, conditions, request, device, into)


def draw_tiles(
    vae: VAE, points: Points, conditions: Conditions, request: Request, device: torch.device
) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of each tile of points, and what draws around them decode to, ``(draws, n, genes)`` float32.

    The draws of all points are the same ones times each point's spread, from ``request.seed``: those of two conditions,
    or of neighbouring points, belong together. Where the points have no spread there is one, the point itself.
    """
    vae = inference_on(vae, device)
    plan = _plan_for(vae, points, conditions, request, device)
    genes = None if request.genes is None else torch.tensor(request.genes, device=device)
    k = points.z_nk.shape[1]
    noise = torch.zeros(1, k) if request.n_samples is None else even_normals(request.n_samples, k, request.seed)
    for rows in _rows(len(points), request.chunk_size):
        z = draw(points, rows, noise.unsqueeze(1))
        if plan is not None:
            draws = np.empty((len(noise) * z.shape[1], plan.n_genes), dtype=np.float32)
            plan.fill(given_of(z, conditions, rows, request.quantity), draws)
            yield rows, draws.reshape(len(noise), z.shape[1], -1)
        else:
            yield rows, averaged(vae, z.to(device), conditions, rows, request.quantity, genes).cpu().numpy()


def noise_of_counting(vae: VAE, points: Points, conditions: Conditions, request: Request, tile: Tile) -> np.ndarray:
    """The layer ``std_counts`` of a tile whose mean and standard deviation are known."""
    device = next(vae.parameters()).device
    rows = slice(tile.start, tile.stop)
    genes = None if request.genes is None else torch.tensor(request.genes, device=device)

    def drawn() -> Tensor:
        """The draws again, which most likelihoods need not be asked for."""
        if request.n_samples is None:
            return points.z_nk[rows].unsqueeze(0).to(device)
        noise = even_normals(request.n_samples, points.z_nk.shape[1], request.seed)
        return draw(points, rows, noise.unsqueeze(1)).to(device)

    vae = in_evaluation(vae)
    return count_noise(vae, drawn, conditions, rows, request.quantity, genes, tile.values, tile.layers.get("std"))


def _rows(n_points: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n_points)) for start in range(0, n_points, size))


def _spread_tiles(
    vae: VAE,
    points: Points,
    conditions: Conditions,
    request: Request,
    device: torch.device,
    into: np.ndarray | None,
) -> Iterator[Tile]:
    """Means, standard deviations and quantiles over draws."""
    for rows, draws in draw_tiles(vae, points, conditions, request, device):
        tile = summary(draws, rows)
        if request.count_noise:
            tile.layers["std_counts"] = noise_of_counting(vae, points, conditions, request, tile)
        yield _placed(tile, into)


def _point_tiles(
    vae: VAE,
    points: Points,
    conditions: Conditions,
    request: Request,
    device: torch.device,
    into: np.ndarray | None,
) -> Iterator[Tile]:
    """The points themselves."""
    vae = inference_on(vae, device)
    plan = _plan_for(vae, points, conditions, request, device)
    genes = None if request.genes is None else torch.tensor(request.genes, device=device)
    size = request.chunk_size if plan is None or into is None else max(request.chunk_size, _STRETCH)
    for rows in _rows(len(points), size):
        if plan is not None:
            n = rows.stop - rows.start
            values = np.empty((n, plan.n_genes), dtype=np.float32) if into is None else into[rows]
            plan.fill(given_of(points.z_nk[rows], conditions, rows, request.quantity), values)
            tile = Tile(rows.start, rows.stop, values, {})
        else:
            decoded = averaged(vae, points.z_nk[rows].to(device), conditions, rows, request.quantity, genes)
            tile = _placed(Tile(rows.start, rows.stop, decoded.cpu().numpy(), {}), into)
        if request.count_noise:
            tile.layers["std_counts"] = noise_of_counting(vae, points, conditions, request, tile)
        yield tile


def _count_tiles(
    vae: VAE, points: Points, conditions: Conditions, request: Request, device: torch.device
) -> Iterator[Tile]:
    """Drawn counts."""
    assert request.n_samples is not None, "settled by make_request"
    vae = inference_on(vae, device)
    genes = None if request.genes is None else torch.tensor(request.genes, device=device)
    for rows in _rows(len(points), request.chunk_size):
        # a seed a tile: what is drawn for a tile does not depend on the tiles before it
        generator = make_generator(request.seed * 1_000_003 + rows.start)
        shape = (request.n_samples, rows.stop - rows.start, points.z_nk.shape[1])
        with torch.no_grad():
            noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            values = drawn_counts(vae, draw(points, rows, noise).to(device), conditions, rows, genes, generator)
        yield Tile(rows.start, rows.stop, values.transpose(0, 1).reshape(-1, values.shape[-1]).cpu().numpy(), {})


def _placed(tile: Tile, into: np.ndarray | None) -> Tile:
    """The tile with its values where the whole result is."""
    if into is None:
        return tile
    place = into[tile.start : tile.stop]
    place[:] = tile.values
    return replace(tile, values=place)


def _plan_for(vae: VAE, points: Points, conditions: Conditions, request: Request, device: torch.device) -> Plan | None:
    """Compiled loops, where they decode the points."""
    if device.type != "cpu" or not _takes_plan(vae, points, conditions, request):
        return None
    return plan_of(vae, conditions, request.quantity, request.genes)


def _takes_plan(vae: VAE, points: Points, conditions: Conditions, request: Request) -> bool:
    """Whether compiled loops decode the points."""
    n_values = len(points) * (request.n_samples or 1) * conditions.n_slots * vae.n_genes
    return worth_loops(n_values)


def plan_of(vae: VAE, conditions: Conditions, quantity: str, genes: Sequence[int] | None) -> Plan:
    """The decoder for the scale, rate or mean under these conditions, of a network on the CPU."""
    return make_plan(
        vae.decoder,
        vae.batch_embedding,
        conditions.codes_gmc.reshape(-1, conditions.codes_gmc.shape[-1]),
        conditions.continuous_gmd.reshape(conditions.weights_gm.size, -1),
        conditions.weights_gm.reshape(-1),
        n_latent=vae.config.n_latent,
        n_slots=conditions.n_slots,
        per_point=_given_columns(conditions),
        zero_inflated=quantity == "mean" and vae.config.gene_likelihood == "zinb",
        genes=genes,
    )


def _given_columns(conditions: Conditions) -> list[int]:
    """The continuous covariates that each point has its own value of."""
    return [] if conditions.given_nd is None else np.flatnonzero(~np.isnan(conditions.given_nd[0])).tolist()


def given_of(z: Tensor, conditions: Conditions, rows: slice, quantity: str) -> Given:
    """The points ``(..., n, k)`` at ``rows`` as a plan takes them, one after the other."""
    times = int(np.prod(z.shape[:-2]))
    inputs = z.reshape(-1, z.shape[-1])
    if columns := _given_columns(conditions):
        assert conditions.given_nd is not None, "it has columns"
        own = torch.from_numpy(conditions.given_nd[rows][:, columns])
        inputs = torch.cat([inputs, own.repeat(times, 1)], dim=1)
    n = z.shape[-2]
    group_n = np.zeros(n, dtype=np.int64) if conditions.group_n is None else conditions.group_n[rows]
    library_n = np.ones(1, dtype=np.float32)
    if quantity != "scale":
        library_n = conditions.library_n if len(conditions.library_n) == 1 else conditions.library_n[rows]
    if times > 1:
        group_n = np.tile(group_n, times)
        library_n = library_n if len(library_n) == 1 else np.tile(library_n, times)
    return Given(inputs, np.ascontiguousarray(group_n, dtype=np.int64), np.ascontiguousarray(library_n))


def summary(draws_sng: np.ndarray, rows: slice) -> Tile:
    """The mean, the standard deviation and the quantiles of draws, ``(draws, n, genes)``."""
    found = {name: np.empty(draws_sng.shape[1:], dtype=np.float32) for name in ("mean", "std", *QUANTILES)}

    def part(first: int, last: int) -> None:
        for i in range(first, last):  # a point at a time, whose draws fit the cache, and numpy sorts rows the fastest
            ordered_gs = np.sort(np.ascontiguousarray(draws_sng[:, i].T), axis=1)
            mean = ordered_gs.mean(axis=1)
            found["mean"][i] = mean
            for name, q in QUANTILES.items():
                found[name][i] = _quantile(ordered_gs, q)
            ordered_gs -= mean[:, None]
            found["std"][i] = np.sqrt(np.square(ordered_gs, out=ordered_gs).mean(axis=1))

    with own_threads():
        side_by_side(part, draws_sng.shape[1])
    return Tile(rows.start, rows.stop, found.pop("mean"), found)


def _quantile(ordered_gs: np.ndarray, q: float) -> np.ndarray:
    """The quantile of draws sorted along the last axis, by linear interpolation."""
    place = q * (ordered_gs.shape[1] - 1)
    below = int(place)
    above = min(below + 1, ordered_gs.shape[1] - 1)
    lower, upper = ordered_gs[:, below], ordered_gs[:, above]
    return lower + np.float32(place - below) * (upper - lower)
