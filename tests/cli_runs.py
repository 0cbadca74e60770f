"""What the tests of the command line share: a run of it as a user types it, and a folder with cells and a model."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import scdecode as sd
from scdecode.cli import main

TRAIN = (
    *("--layer", "counts", "--batch-key", "batch", "--categorical-key", "sex", "--continuous-key", "age"),
    *("--n-latent", "4", "--n-hidden", "8", "--max-epochs", "2", "--gene-likelihood", "nb"),
    *("--set", "use_layer_norm=encoder", "--set", "n_epochs_kl_warmup=1"),
)


def make_place(folder: Path, *more: str) -> Path:
    """Cells, points and a model that the command line trained, with ``more`` options, in a folder."""
    adata = sd.datasets.simulate_branching(300, 40, n_batches=3)
    adata.obs["age"] = np.linspace(20, 60, adata.n_obs)
    adata.obs["sex"] = np.where(np.arange(adata.n_obs) % 2, "F", "M")
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(folder / "cells.h5ad")
    np.save(folder / "points.npy", adata.obsm["latent"][:7, :4].astype(np.float32))
    assert run("train", folder / "cells.h5ad", "--out", folder / "model", *TRAIN, *more) == 0
    return folder


def run(*arguments: object) -> int:
    """What the shell would see: the exit status."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", ["scdecode", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
