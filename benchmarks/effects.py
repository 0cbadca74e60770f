"""How much smaller decoded effects of a condition are than counted ones: interferon on real monocytes.

A model of all cells (batch: with or without interferon; covariate: the donor) decodes the control monocytes in both
conditions (``sd.counterfactual``). Beside it stand the counts: log2 fold changes of the mean counts per ten thousand of
the monocytes with and without interferon, with the same pseudocount. A single seed is a single measurement.

    benchmarks/effects.py                    # one seed, two minutes on two cores
    benchmarks/effects.py --seeds 3
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import anndata
import numpy as np

import scdecode as sd
from scdecode.pseudocounts import PSEUDOCOUNT

DATA = Path(os.environ.get("SCDECODE_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILE, CELL_TYPE = "kang_muscat_4samples.h5ad", "CD14+ Monocytes"
LEAST = 0.5  # counts per ten thousand, in either condition: below it counted fold changes are mostly noise


def measure(file: Path, seed: int, max_epochs: int | None) -> tuple[float, float, int]:
    """Return correlation and slope of decoded on counted log2 fold changes, and the number of genes."""
    adata = anndata.io.read_h5ad(file)
    adata.obs["donor"] = adata.obs["sample_id"].astype(str).str[-3:].astype("category")
    adata.obs["group_id"] = adata.obs["group_id"].astype(str).astype("category")
    sd.SCVI.setup_anndata(adata, batch_key="group_id", categorical_covariate_keys=["donor"])
    model = sd.SCVI(adata, n_latent=10, gene_likelihood="nb", seed=seed)
    model.train(max_epochs, n_epochs_kl_warmup=50, early_stopping=True, seed=seed, progress=False)
    cells = adata[(adata.obs["cluster_id"] == CELL_TYPE).to_numpy()]
    control = cells[(cells.obs["group_id"] == "ctrl").to_numpy()]
    found = sd.counterfactual(
        model, model.posterior(control), "batch", baseline="ctrl", categorical={"donor": {"101": 0.5, "107": 0.5}}
    ).table.set_index("gene")
    counts_ng = cells.X.toarray() if hasattr(cells.X, "toarray") else np.asarray(cells.X)
    counts_ng = 1e4 * counts_ng / counts_ng.sum(axis=1, keepdims=True)
    mean = {}
    for group in ("ctrl", "stim"):
        donors = [((cells.obs["group_id"] == group) & (cells.obs["donor"] == d)).to_numpy() for d in ("101", "107")]
        mean[group] = np.mean([counts_ng[mask].mean(axis=0) for mask in donors], axis=0)
    counted = np.log2((mean["stim"] + PSEUDOCOUNT) / (mean["ctrl"] + PSEUDOCOUNT))
    decoded = found.loc[adata.var_names, "log2_fold_change"].to_numpy()
    kept = np.maximum(mean["ctrl"], mean["stim"]) >= LEAST
    r = float(np.corrcoef(counted[kept], decoded[kept])[0, 1])
    return r, float(np.polyfit(counted[kept], decoded[kept], 1)[0]), int(kept.sum())


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="trainings, of the seeds 0, 1, ... [1]")
    parser.add_argument("--max-epochs", type=int, help="passes over the cells [400, stopped early]")
    asked = parser.parse_args()
    if not (DATA / FILE).is_file():
        parser.error(f"{DATA}: no file {FILE}; set SCDECODE_DATA to its folder")
    for seed in range(asked.seeds):
        r, slope, n_genes = measure(DATA / FILE, seed, asked.max_epochs)
        print(f"{CELL_TYPE}, seed {seed}: r = {r:.2f}, slope of decoded on counted = {slope:.2f}, {n_genes:,} genes")


if __name__ == "__main__":
    main()
