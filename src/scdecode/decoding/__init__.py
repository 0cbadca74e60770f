"""Latents to expression: what is asked of points, the tiles that answer it, and the likelihood itself."""

from scdecode.decoding.mixtures import distribution
from scdecode.decoding.requests import DEFAULT_DRAWS, OURS, QUANTITIES, Request, gene_positions, make_request
from scdecode.decoding.slots import averaged, library_sizes, slot_inputs
from scdecode.decoding.tiles import (
    QUANTILES,
    Tile,
    decode_tiles,
    draw_tiles,
    given_of,
    layer_names,
    noise_of_counting,
    plan_of,
    summary,
)

__all__ = [
    "DEFAULT_DRAWS",
    "OURS",
    "QUANTILES",
    "QUANTITIES",
    "Request",
    "Tile",
    "averaged",
    "decode_tiles",
    "distribution",
    "draw_tiles",
    "gene_positions",
    "given_of",
    "layer_names",
    "library_sizes",
    "make_request",
    "noise_of_counting",
    "plan_of",
    "slot_inputs",
    "summary",
]
