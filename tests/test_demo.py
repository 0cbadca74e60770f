"""The demonstration writes what it says, and finds the biology that is there."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdecode as sd
from scdecode.demo import PICTURES, run_demo


@pytest.mark.filterwarnings("ignore:points:scdecode.errors.SupportWarning")  # few epochs: not yet settled
def test_demo(tmp_path: Path) -> None:
    said: list[str] = []
    done = run_demo(tmp_path / "demo", max_epochs=60, say=said.append)
    assert len(said) == 3
    assert (done.n_cells, done.n_genes, done.epochs) == (700, 765, 60)
    assert all(path.exists() for path in done.files.values())
    for name in PICTURES:
        assert done.files[name].read_bytes().startswith(b"\x89PNG")
    expression = ad.read_h5ad(done.files["expression.h5ad"])
    assert expression.shape == (100, 765)
    np.testing.assert_allclose(expression.X.sum(axis=1), 1e4, rtol=1e-3)
    table = pd.read_csv(done.files["expression.csv"], index_col="point")
    np.testing.assert_allclose(table["LYZ"], expression[:, "LYZ"].X[:, 0], rtol=1e-5)
    assert expression[-1, "LYZ"].X[0, 0] > 3 * expression[0, "LYZ"].X[0, 0]  # monocytes' lysozyme rises
    assert expression[0, "STMN1"].X[0, 0] > 3 * expression[-1, "STMN1"].X[0, 0]  # progenitors' stathmin falls
    genes = pd.read_csv(done.files["genes.csv"], index_col="gene")
    assert len(genes) == 765
    assert genes.loc["LYZ", "shape"] == "up" and genes.loc["STMN1", "shape"] == "down"
    again = sd.load(done.files["model"]).decode(**sd.decode_arguments(expression))
    np.testing.assert_array_equal(again.X, expression.X)
