"""What is wanted of latent points: the quantity, the genes, the draws, the size of a tile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scdecode.errors import LARGEST_DRAWS, InputError, PointsError, check_integer, listing, unknown_name
from scdecode.points import Points
from scdecode.schema import Schema

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

TILE_BYTES = 4 * 2**20  # of one tile of the result: it is written and read a few times, so it should stay in the cache
_TILE_POINTS = 128  # at least, if memory allows: with fewer rows the matrix product has too little to do
_DRAW_BYTES = 16 * 2**20  # of all draws of a tile, which the quantiles need at once, sorted, with their places


@dataclass(frozen=True)
class Request:
    """What is wanted of the points."""

    quantity: str  # one of QUANTITIES
    genes: tuple[int, ...] | None  # positions; None: all
    n_samples: int | None  # None: the points themselves; of "counts": draws of each point
    seed: int
    chunk_size: int  # points
    count_noise: bool  # whether to tell how far observed counts scatter


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
    count_noise: bool | None = None,
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
        check_integer("n_samples", n_samples, 1, LARGEST_DRAWS)
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
        points_of_tile = max(TILE_BYTES // (4 * n_genes), min(_TILE_POINTS, _DRAW_BYTES // (4 * n_genes)))
        if n_samples is not None:
            points_of_tile = min(points_of_tile, _DRAW_BYTES // (4 * n_genes * n_samples))
        chunk_size = min(max(points_of_tile, 1 if n_samples else 16), 4096)
    check_integer("chunk_size", chunk_size, minimum=1)
    if seed is not None:
        check_integer("seed", seed, minimum=0)
    in_counts = quantity in ("rate", "mean")
    if count_noise and not in_counts:
        raise InputError(
            f"count_noise: True came with quantity {quantity!r}; the noise of counting is that of 'rate' and 'mean'"
        )
    if count_noise is None:  # of a path, whose values people plot beside observed cells
        count_noise = in_counts and points.time is not None
    # as Python's own numbers, since they are written down
    n_samples = None if n_samples is None else int(n_samples)
    return Request(quantity, genes, n_samples, 0 if seed is None else int(seed), int(chunk_size), bool(count_noise))
