"""The demonstration writes what it says, and finds what is true of its cells."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdecode as sd
from scdecode import demo
from scdecode.demo import PICTURES, run_demo
from scdecode.errors import OutputError


def test_demo(tmp_path: Path) -> None:
    said: list[str] = []
    done = run_demo(tmp_path / "demo", max_epochs=40, say=said.append)
    assert len(said) == 3
    assert (done.n_cells, done.n_genes, done.epochs) == (1500, 300, 40)
    assert all(path.exists() for path in done.files.values())
    for name in PICTURES:
        assert done.files[name].read_bytes().startswith(b"\x89PNG")
    assert done.agreement > 0.85  # with the truth
    assert done.gap < 5  # nats a cell: not overfitted
    expression = ad.read_h5ad(done.files["expression.h5ad"])
    assert expression.shape == (200, 300)
    np.testing.assert_allclose(expression.X.sum(axis=1), 1e4, rtol=1e-3)
    genes = pd.read_csv(done.files["genes.csv"], index_col="gene")
    assert len(genes) == 300
    assert set(done.passing) == set(genes.index[genes["shape"] == "transient"])
    assert {gene for gene, _ in done.risen} <= set(genes.index[genes["log2_fold_change"] > 1])
    fates, batches = (pd.read_csv(done.files[name]) for name in ("fates.csv", "batches.csv"))
    assert fates["divergence_time"].notna().sum() >= 5 and (batches["q_value"] < 0.05).sum() >= 5
    again = sd.load(done.files["model"]).decode(**sd.decode_arguments(expression))
    np.testing.assert_array_equal(again.X, expression.X)
    with pytest.raises(OutputError, match="overwrite"):  # before the training
        run_demo(tmp_path / "demo")


def test_an_interrupted_demo_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.SCVI, "train", lambda self, *_, **__: setattr(self, "_ending", "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", say=lambda _: None)
    assert not list(tmp_path.iterdir())
