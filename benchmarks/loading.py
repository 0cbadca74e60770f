"""From a model directory to a model that decodes, in a fresh interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import peer
import scvi
from children import child
from counts import make_cells, make_counts
from report import Row, Section
from timing import alternate

import scdecode as sd

N_GENES, N_CELLS = 2_000, 25_000  # enough cells that the model keeps as many reference latents as it ever keeps

METHOD = (
    f"A model of {N_GENES:,} genes with 20,000 reference latents, in a fresh interpreter, its files in the page cache. "
    "Counted from after `import torch`: `import scdecode` and `scdecode.load(...)`; scvi-tools: `import scvi` and "
    "`SCVI.load(...)` with the AnnData in memory, which it needs."
)
OURS = """
import sys, time, torch
start = time.perf_counter()
import scdecode
middle = time.perf_counter()
scdecode.load(sys.argv[1])
end = time.perf_counter()
print(end - (start if sys.argv[2] == "import too" else middle))
"""
THEIRS = """
import sys, time, torch, anndata
adata = anndata.read_h5ad(sys.argv[2])
start = time.perf_counter()
import scvi
scvi.model.SCVI.load(sys.argv[1], adata=adata, accelerator="cpu")
print(time.perf_counter() - start)
"""


def measure(*, quick: bool) -> Section:
    cells = make_cells(make_counts(2_000 if quick else N_CELLS, N_GENES))
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, adata = (str(Path(folder) / name) for name in ("ours", "theirs", "cells.h5ad"))
        sd.SCVI.setup_anndata(cells, batch_key="batch")
        model = sd.SCVI(cells)
        model.train(1, device="cpu", progress=False)
        model.save(ours)
        scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
        other = scvi.model.SCVI(cells)
        peer.train(other, 1)
        other.save(theirs)
        cells.write_h5ad(adata)
        sides = {
            "both": child(OURS, ours, "import too"),
            "load": child(OURS, ours, "load alone"),
            "theirs": child(THEIRS, theirs, adata),
        }
        found = alternate(sides, 3 if quick else 9)
    rows = [
        Row("import scdecode and load, after torch", "s", found["both"], found["theirs"], peer.NAME, at_most=1.0),
        Row("import scdecode and load, after torch", "s", found["both"], at_most=1.0),
        Row("load alone", "s", found["load"], at_most=1.0),
    ]
    return Section("Loading a model", rows, METHOD)
