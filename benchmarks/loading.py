"""From a model directory to a model that decodes, in a fresh interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import peer
import scvi
import torch
from asked import Asked
from children import child
from counts import make_cells, make_counts
from report import Row, Section
from timing import alternate

import scdecode as sd
from scdecode.devices import seeded
from scdecode.formats import scvi_tools
from scdecode.formats.stored import StoredModel, build_vae
from scdecode.schema import Category, Columns, Schema

N_GENES, N_CELLS = 2_000, 25_000  # enough cells that the model keeps as many reference latents as it ever keeps
TAKES = ("threads",)
N_LARGE, N_BATCHES = 20_000, 1_000  # of the model directories of scvi-tools

METHOD = (
    f"A model of {N_GENES:,} genes with 20,000 reference latents, in a fresh interpreter, its files in the page cache. "
    "Counted from after `import torch`: `import scdecode` and `scdecode.load(...)`; scvi-tools: `import scvi` and "
    "`SCVI.load(...)` with the AnnData in memory, which it needs. "
    f"A directory that scvi-tools saved, of {N_LARGE:,} genes and {N_BATCHES:,} batches: after `import scdecode`, "
    "`scdecode.load(...)`; its memory is how far the peak (VmHWM) rises above what was resident, over the weights."
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
FOREIGN = """
import gc, sys, time, torch, scdecode
from pathlib import Path

def status(key):  # not getrusage: there a child begins with the peak of its parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

gc.collect()
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
start = time.perf_counter()
model = scdecode.load(sys.argv[1])
seconds = time.perf_counter() - start
grown = status("VmHWM") - before
stored = model.stored()
weights = sum(t.nbytes for t in [*stored.vae.state_dict().values(), *stored.kept.values()])
print(seconds if sys.argv[2] == "seconds" else grown / weights)
"""


def write_large(path: Path, dispersion: str) -> None:
    """A directory as scvi-tools saves one, of a model with random weights."""
    schema = Schema(
        genes=tuple(f"ENSG{i:011d}" for i in range(N_LARGE)),
        columns=Columns(batch_key="batch"),
        batch=Category("batch", tuple(f"sample_{i:04d}" for i in range(N_BATCHES))),
        labels=None,
        categorical=(),
        continuous=(),
        n_cells=1_000_000,
    )
    config = sd.ModelConfig(dispersion=dispersion)  # type: ignore[arg-type]
    with seeded(0, torch.device("cpu")):
        vae = build_vae(config, schema).eval().requires_grad_(False)
    history = {"elbo_train": [1.0] * 400}
    summary = {"history": history, "ending": "not trained"}
    scvi_tools.write(path, StoredModel("SCVI", config, schema, vae, None, sd.TrainConfig(), summary, ""))


def measure_foreign(folder: Path, *, quick: bool) -> list[Row]:
    """Seconds and memory of opening large directories of scvi-tools."""
    rows = []
    for dispersion in ("gene", "gene-batch"):
        path = folder / dispersion
        write_large(path, dispersion)
        sides = {what: child(FOREIGN, str(path), what) for what in ("seconds", "memory")}
        found = alternate(sides, 1 if quick else 5)
        what = f"load alone, a directory of scvi-tools, {N_LARGE:,} genes x {N_BATCHES:,} batches, {dispersion}"
        rows.append(Row(what, "s", found["seconds"], at_most=2.0))
        rows.append(Row(f"{what}: peak memory", "x weights", found["memory"], at_most=3.0))
    return rows


def measure(asked: Asked) -> Section:
    quick = asked.quick
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
        found = alternate(sides, 1 if quick else 9)
        foreign = measure_foreign(Path(folder), quick=quick)
    rows = [
        Row(
            "import scdecode and load, after torch",
            "s",
            found["both"],
            found["theirs"],
            peer.NAME,
            at_most=1.0,
            facts={"room": "load"},
        ),
        Row("import scdecode and load, after torch", "s", found["both"], at_most=1.0),
        Row("load alone", "s", found["load"], at_most=1.0),
        *foreign,
    ]
    return Section("Loading a model", rows, METHOD)
