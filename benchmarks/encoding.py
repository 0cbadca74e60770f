"""Encoded cells a second: get_latent_representation of both packages."""

from __future__ import annotations

import peer
from asked import Asked
from counts import DENSITY, make_cells, make_counts
from models import train_ours, train_theirs
from report import Row, Section
from timing import alternate, rate_of

CASES = ((2_000, 20_000), (20_000, 4_000))  # genes, cells
TAKES = ("genes", "threads")
BATCH_SIZES = (128, 512, 2048)  # of scvi-tools; 128 is its default
N_TRAINED = 512  # cells

METHOD = (
    f"`model.get_latent_representation(adata)` of cells with {DENSITY:.0%} non-zero counts, the same AnnData for both, "
    "two batches, a model that was trained for one epoch (nb). scdecode with its defaults; scvi-tools with its best "
    f"batch_size of {', '.join(map(str, BATCH_SIZES))}, which the row names, and with its default."
)


def measure(asked: Asked) -> Section:
    """Both packages, at both sizes."""
    rows = []
    for n_genes, n_cells in CASES if asked.genes is None else ((asked.genes, 80_000_000 // asked.genes),):
        n_cells = n_cells // 10 if asked.quick else n_cells
        few = make_cells(make_counts(N_TRAINED, n_genes))
        ours, theirs = train_ours(few), train_theirs(few)
        cells = make_cells(make_counts(n_cells, n_genes, seed=1))

        peers = {
            str(size): rate_of(lambda m=theirs, c=cells, s=size: m.get_latent_representation(c, batch_size=s), n_cells)
            for size in BATCH_SIZES
        }
        found = alternate(
            {"ours": rate_of(lambda m=ours, c=cells: m.get_latent_representation(c), n_cells), **peers},
            1 if asked.quick else 5,
        )
        best = max(peers, key=lambda size: found[size].median)
        for size in dict.fromkeys((best, str(BATCH_SIZES[0]))):
            rows.append(
                Row(
                    f"latent means, {n_genes:,} genes, {n_cells:,} cells",
                    "cells/s",
                    found["ours"],
                    found[size],
                    f"{peer.NAME}, batch_size={size}",
                    facts={"genes": n_genes, "best": size == best},
                )
            )
    return Section("Encoding", rows, METHOD)
