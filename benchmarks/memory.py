"""Peak memory of training above the data, each measurement in a process of its own (Linux alone tells it)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import peer
from children import run_child
from counts import make_counts
from report import Row, Section
from timing import Figure

CASES = ((2_000, 20_000), (20_000, 5_000))  # genes, cells

METHOD = (
    "Resident memory (VmHWM of /proc/self/status, set back before) in a fresh process that has trained a tiny model, "
    "so that all code is loaded (torch's optimisers load some 85 MiB when first used), and holds the AnnData: the most "
    "that setting up, making and training the model (nb, one epoch, defaults) adds to that. 'Whole process' is the "
    "peak less the counts, code and all. The counts take 8 bytes a non-zero entry."
)
COMMON = """
import gc, sys
from pathlib import Path
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))

def run(setup_and_train):
    import numpy as np, scipy.sparse as sp
    from counts import make_cells
    data, indices, indptr, shape = (np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr", "shape"))
    size = (data.nbytes + indices.nbytes + indptr.nbytes) / 2**20
    cells = make_cells(sp.csr_matrix((data, indices, indptr), shape=tuple(shape)))
    setup_and_train(cells[:200, :100].copy())
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    setup_and_train(cells)
    peak = status("VmHWM")
    print(peak - before, peak - size)
"""
OURS = (
    COMMON
    + """
import scdecode as sd
def work(cells):
    sd.SCVI.setup_anndata(cells, batch_key="batch")
    model = sd.SCVI(cells, gene_likelihood="nb")
    model.train(1, device="cpu", progress=False)
run(work)
"""
)
THEIRS = (
    COMMON
    + """
import peer, scvi
def work(cells):
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, gene_likelihood="nb")
    peer.train(model, 1)
run(work)
"""
)


def measure(*, quick: bool) -> Section:
    rows = []
    here = str(Path(__file__).parent)
    for n_genes, n_cells in CASES:
        n_cells = n_cells // 10 if quick else n_cells
        counts = make_counts(n_cells, n_genes)
        ours, theirs = [], []
        with tempfile.TemporaryDirectory() as folder:
            for name in ("data", "indices", "indptr", "shape"):
                np.save(Path(folder) / f"{name}.npy", getattr(counts, name))
            for _ in range(1 if quick else 3):
                ours.append(run_child(OURS, folder, here))
                theirs.append(run_child(THEIRS, folder, here))
        size = (counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes) / 2**20
        for i, words in enumerate(("above data and code", "whole process less the data")):
            name = f"{words}: nb, {n_genes:,} genes, {n_cells:,} cells ({size:,.0f} MiB)"
            figures = [Figure(tuple(numbers[i] for numbers in side)) for side in (ours, theirs)]
            rows.append(Row(name, "MiB", *figures, peer.NAME, at_most=1.0))
    return Section("Peak memory of training", rows, METHOD)
