"""Latents to expression: tiles of points through the decoder, averaged over conditions, with draws where asked.

Nothing here touches the training state: whatever mode the network is in, it decodes in evaluation mode, and is left as
it was. Nor are the global random generators touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from scdecode.conditions import Conditions
from scdecode.decode_plan import Given, Plan, make_plan, worth_loops
from scdecode.devices import seeded
from scdecode.draws import even_normals
from scdecode.errors import InputError, PointsError, check_integer, listing, unknown_name
from scdecode.kernels.threads import own_threads, side_by_side
from scdecode.likelihoods import make_likelihood
from scdecode.points import Points, draw
from scdecode.schema import Schema
from scdecode.vae import VAE, evaluating

OURS = {
    "transform_batch": "batch",
    "batch_key": "batch",
    "gene_list": "genes",
    "label": "labels",
    "cat_covs": "categorical",
    "cont_covs": "continuous",
    "size_factor": "library_size",
    "batch_size": "chunk_size",
}
"""Words of scvi-tools' methods, and ours."""

QUANTITIES = ("rate", "scale", "mean", "counts")
DEFAULT_DRAWS = 128  # a power of two, at which a Sobol net is balanced
QUANTILES = {"q05": 0.05, "q95": 0.95}

_TILE_BYTES = 4 * 2**20  # of one tile of the result: it is written and read a few times, so it should stay in the cache
_TILE_POINTS = 128  # at least, if memory allows: with fewer rows the matrix product has too little to do
_STRETCH = 8192  # points that are decoded at once where the result has its place already
_DRAW_BYTES = 16 * 2**20  # of all draws of a tile, which the quantiles need at once, sorted, with their places


@dataclass(frozen=True)
class Request:
    """What is wanted of the points."""

    quantity: str  # one of QUANTITIES
    genes: tuple[int, ...] | None  # positions; None: all
    n_samples: int | None  # None: the points themselves; of "counts": draws of each point
    seed: int
    chunk_size: int  # points


@dataclass(frozen=True, eq=False)
class Tile:
    """The expression of the points ``start`` to ``stop``."""

    start: int
    stop: int
    values: np.ndarray  # (points, genes); of "counts": (points x draws, genes), the draws of a point side by side
    layers: dict[str, np.ndarray]  # std, q05, q95: (points, genes), where draws were asked for


def gene_positions(schema: Schema, genes: Sequence[str] | None) -> tuple[int, ...] | None:
    """Positions of the genes to return; None is all.

    Raises
    ------
    InputError
        For a name that is no gene of the model, a name that comes twice, or none at all.
    """
    if genes is None:
        return None
    if not isinstance(genes, str | Iterable):
        raise InputError(f"genes: {genes!r} came, a list of names was expected")
    names = [genes] if isinstance(genes, str) else [str(gene) for gene in genes]
    for name in names:
        if name not in schema.gene_codes:
            raise InputError(unknown_name("genes", name, schema.genes, "genes of the model"))
    if not names or len(set(names)) < len(names):
        raise InputError(f"genes: {listing(names)} came, which is empty or names a gene twice; each once was expected")
    return tuple(schema.gene_codes[name] for name in names)


def make_request(
    quantity: str,
    points: Points,
    n_genes: int,
    *,
    genes: tuple[int, ...] | None,
    n_samples: int | None,
    seed: int | None,
    chunk_size: int | None,
) -> Request:
    """Check what is wanted, and settle what was left open.

    Raises
    ------
    InputError
        For an unknown quantity, or numbers that are not whole and positive.
    PointsError
        Where draws are asked for of points that have no spread.
    """
    if quantity not in QUANTITIES:
        raise InputError(unknown_name("quantity", quantity, QUANTITIES, "quantities"))
    if n_samples is not None:
        check_integer("n_samples", n_samples, minimum=1)
    if quantity == "counts":
        n_samples = 1 if n_samples is None else n_samples
    elif points.spread is not None:
        n_samples = DEFAULT_DRAWS if n_samples is None else n_samples
        if n_samples < 2:
            raise PointsError("n_samples: 1 came, but one draw has no spread; 2 or more were expected, or spread=False")
    elif n_samples is not None:
        raise PointsError(
            "n_samples: draws were asked for, but the points have no spread to draw from; pass spread=..., a normal "
            "distribution (model.posterior(adata)) or a trajectory; or quantity='counts' to draw counts"
        )
    if chunk_size is None:
        points_of_tile = max(_TILE_BYTES // (4 * n_genes), min(_TILE_POINTS, _DRAW_BYTES // (4 * n_genes)))
        if n_samples is not None:
            points_of_tile = min(points_of_tile, _DRAW_BYTES // (4 * n_genes * n_samples))
        chunk_size = min(max(points_of_tile, 1 if n_samples else 16), 4096)
    check_integer("chunk_size", chunk_size, minimum=1)
    if seed is not None:
        check_integer("seed", seed, minimum=0)
    # as Python's own numbers, since they are written down
    n_samples = None if n_samples is None else int(n_samples)
    return Request(quantity, genes, n_samples, 0 if seed is None else int(seed), int(chunk_size))


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
    if request.quantity == "counts" and not vae.config.has_counts:
        raise InputError(
            f"quantity: 'counts' came, but a model with gene_likelihood={vae.config.gene_likelihood!r} draws no whole "
            "numbers; 'rate' is its mean, and model.distribution(z).sample() draws from it"
        )
    return _tiles(vae, points, conditions, request, device, into)


def _tiles(
    vae: VAE,
    points: Points,
    conditions: Conditions,
    request: Request,
    device: torch.device,
    into: np.ndarray | None,
) -> Iterator[Tile]:
    home = next(vae.parameters()).device  # not the CPU where it is decoded between two epochs on a GPU
    if home != device:
        vae.to(device)
    try:
        plan = None
        if device.type == "cpu" and _takes_plan(vae, points, conditions, request):
            plan = plan_of(vae, conditions, request.quantity, request.genes)
        size = request.chunk_size
        if plan is not None and into is not None and request.n_samples is None:
            size = max(size, _STRETCH)
        genes = None if request.genes is None else torch.tensor(request.genes, device=device)
        noise = None  # of the error bars: one net, made once, for all tiles
        if request.quantity != "counts" and request.n_samples is not None:
            noise = even_normals(request.n_samples, points.z_nk.shape[1], request.seed)
        for start in range(0, len(points), size):
            rows = slice(start, min(start + size, len(points)))
            # for counts, a seed a tile: what is drawn for a tile does not depend on the tiles before it
            generator = torch.Generator().manual_seed((request.seed * 1_000_003 + start) % 2**63)
            place = None if into is None else into[rows]
            if plan is not None:
                with torch.no_grad():
                    tile = _plan_rows(plan, points, rows, conditions, request, noise, place)
            else:
                with torch.inference_mode(), evaluating(vae):
                    tile = _decode_rows(vae, points, rows, conditions, request, genes, noise, generator, device)
                if place is not None:
                    place[:] = tile.values
                    tile = replace(tile, values=place)
            yield tile
    finally:
        if home != device:
            vae.to(home)


def _takes_plan(vae: VAE, points: Points, conditions: Conditions, request: Request) -> bool:
    """Whether compiled loops decode the points."""
    n_values = len(points) * (request.n_samples or 1) * conditions.n_slots * vae.n_genes
    return request.quantity != "counts" and worth_loops(n_values)


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


def _plan_rows(
    plan: Plan,
    points: Points,
    rows: slice,
    conditions: Conditions,
    request: Request,
    noise: Tensor | None,
    place: np.ndarray | None,
) -> Tile:
    """What :func:`_decode_rows` does, by compiled loops."""
    n = rows.stop - rows.start
    if noise is None:
        values = np.empty((n, plan.n_genes), dtype=np.float32) if place is None else place
        plan.fill(given_of(points.z_nk[rows], conditions, rows, request.quantity), values)
        return Tile(rows.start, rows.stop, values, {})
    z = draw(points, rows, noise.unsqueeze(1))
    draws = np.empty((len(noise) * n, plan.n_genes), dtype=np.float32)
    plan.fill(given_of(z, conditions, rows, request.quantity), draws)
    tile = _summary(torch.from_numpy(draws).view(len(noise), n, -1), rows)
    if place is not None:
        place[:] = tile.values
        tile = replace(tile, values=place)
    return tile


def _decode_rows(
    vae: VAE,
    points: Points,
    rows: slice,
    conditions: Conditions,
    request: Request,
    genes: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator,
    device: torch.device,
) -> Tile:
    start, stop = rows.start, rows.stop
    if request.quantity == "counts":
        assert request.n_samples is not None, "settled by make_request"
        shape = (request.n_samples, stop - start, points.z_nk.shape[1])
        own_noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        z = draw(points, rows, own_noise).to(device)
        values = _counts(vae, z, conditions, rows, genes, generator)
        return Tile(start, stop, values.transpose(0, 1).reshape(-1, values.shape[-1]).cpu().numpy(), {})
    if noise is None:
        values = averaged(vae, points.z_nk[rows].to(device), conditions, rows, request.quantity, genes)
        return Tile(start, stop, values.cpu().numpy(), {})
    z = draw(points, rows, noise.unsqueeze(1)).to(device)
    return _summary(averaged(vae, z, conditions, rows, request.quantity, genes), rows)


def _summary(draws: Tensor, rows: slice) -> Tile:
    """The mean, the standard deviation and the quantiles of draws, ``(draws, n, genes)``."""
    draws_sng = draws.cpu().numpy()
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


def _counts(
    vae: VAE, z_snk: Tensor, conditions: Conditions, rows: slice, genes: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Counts drawn from the likelihood, ``(draws, n, genes)``; each draw has one of its point's conditions."""
    drawn = []
    group = slice(None) if conditions.group_n is None else conditions.group_n[rows]
    weights = torch.from_numpy(conditions.weights_gm[group]).expand(z_snk.shape[1], -1)
    log_library = library_sizes(conditions, rows, z_snk.device).log()
    with seeded(int(torch.randint(2**62, (1,), generator=generator, device="cpu")), z_snk.device):
        for z in z_snk.split(max(1, _TILE_BYTES // (4 * vae.n_genes * z_snk.shape[1]))):
            slot = torch.multinomial(weights, len(z), replacement=True).t() if conditions.n_slots > 1 else 0
            codes, continuous, _ = slot_inputs(conditions, rows, slot, z.device)
            output = vae.decode(z, codes, continuous, genes=genes)
            drawn.append(vae.likelihood(output, log_library, codes, genes).sample())
    return torch.cat(drawn)


def distribution(vae: VAE, z: Tensor, conditions: Conditions, genes: Tensor | None) -> Distribution:
    """p(x | z) of points ``(n, k)``, differentiable in z and in the weights.

    Averaged over several conditions it is, for each gene, the mixture over them.
    """
    with evaluating(vae):
        return _distribution(vae, z, conditions, genes)


def _distribution(vae: VAE, z: Tensor, conditions: Conditions, genes: Tensor | None) -> Distribution:
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
