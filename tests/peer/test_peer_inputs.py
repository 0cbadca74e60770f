"""Levels of any type, labels of no cell, fractions: what scvi-tools trains and saves opens here, and the other way."""

import datetime
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi

import scdecode as sd
from scdecode.errors import CountsWarning

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
N, G = 60, 10
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def cells(fractions=False):
    rng = np.random.default_rng(0)
    x = rng.poisson(3, (N, G)).astype(np.float32)
    x[:, 0] += 1
    adata = ad.AnnData(x * np.float32(0.83) if fractions else x)
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(N)], [f"g{i}" for i in range(G)]
    return adata


def three(values):
    if isinstance(values, list):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        values = array
    return pd.Series(values[np.arange(N) % 3], index=[f"c{i}" for i in range(N)])


DAYS = ["2024-01-31", "2024-02-29", "2024-03-31"]
BATCHES = {
    "datetime": pd.to_datetime(DAYS),
    "time zone": pd.to_datetime(DAYS).tz_localize("UTC"),
    "date": [datetime.date.fromisoformat(day) for day in DAYS],
    "month": pd.period_range("2024-01", periods=3, freq="M"),
    "quarter": pd.period_range("2024Q1", periods=3, freq="Q"),
    "week": pd.period_range("2024-01-01", periods=3, freq="W"),
    "year": pd.period_range("2024", periods=3, freq="Y"),
    "cut": pd.cut(np.array([1, 20, 50]), [0, 10, 30, 60]),
    "timedelta": pd.to_timedelta([1, 2, 3], unit="D"),
    "tuple": [("a", 1), ("b", 2), ("c", 3)],
    "float32": np.array([0.1, 0.2, 3], dtype=np.float32),
    "bool": np.array([True, False, True]),
    "Int64": pd.array([3, 1, 2], dtype="Int64"),
    "unused": pd.Categorical(["a", "b", "c"], categories=["z", "c", "b", "y", "a"]),
}


def back_and_forth(kind, theirs, adata, key, tmp_path):
    """What scvi-tools saved, opened here, written for scvi-tools, opened there: the same latents three times."""
    theirs.save(tmp_path / "theirs")
    expected = theirs.get_latent_representation()
    fresh = cells()
    fresh.X, fresh.obs[key] = adata.X, adata.obs[key]
    ours = sd.load(tmp_path / "theirs")
    np.testing.assert_allclose(ours.get_latent_representation(fresh), expected, atol=1e-6)
    ours.save(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sd.convert(tmp_path / "ours", tmp_path / "back", to="scvi-tools")
    category = ours.schema.labels if kind == "SCANVI" else ours.schema.batch
    if category.kind == "other":  # as the warning says
        fresh.obs[key] = fresh.obs[key].map(str)
    again = getattr(scvi.model, kind).load(tmp_path / "back", adata=fresh)
    np.testing.assert_allclose(again.get_latent_representation(), expected, atol=1e-6)
    return ours, again


@pytest.mark.parametrize("case", BATCHES)
def test_batches_of_any_type(tmp_path, case):
    adata = cells()
    adata.obs["batch"] = three(BATCHES[case])
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    theirs = scvi.model.SCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="nb")
    theirs.train(max_epochs=1, train_size=1.0, batch_size=20, **QUIET)
    back_and_forth("SCVI", theirs, adata, "batch", tmp_path)


KINDS = np.array(["B", "T", "NK"], dtype=object)[np.arange(N) % 3]
HIDDEN = np.where(np.arange(N) < 20, "Unknown", KINDS)
LABELS = {
    "plain": (HIDDEN, "Unknown"),
    "unused": (pd.Categorical(HIDDEN, categories=["B", "a", "NK", "Unknown", "T", "z"]), "Unknown"),
    "unlabelled unused": (pd.Categorical(KINDS, categories=["B", "NK", "T", "Unknown"]), "Unknown"),
    "both unused, in the middle": (pd.Categorical(KINDS, categories=["B", "Unknown", "NK", "T", "z"]), "Unknown"),
    "both unused, last": (pd.Categorical(KINDS, categories=["B", "x", "NK", "T", "Unknown"]), "Unknown"),
    "absent": (KINDS, "Unknown"),
    "absent, one unused": (pd.Categorical(KINDS, categories=["B", "x", "NK", "T"]), "Unknown"),
    "whole numbers": (np.where(np.arange(N) < 20, -1, np.arange(N) % 3), -1),
    "floats": (np.where(np.arange(N) < 20, -1.0, np.arange(N) % 3), -1.0),
    "floats, said as a whole number": (np.where(np.arange(N) < 20, -1.0, np.arange(N) % 3), -1),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_of_any_type_and_of_no_cell(tmp_path, case):
    adata = cells()
    adata.obs["kind"], unlabeled = LABELS[case]
    scvi.model.SCANVI.setup_anndata(adata, labels_key="kind", unlabeled_category=unlabeled)
    theirs = scvi.model.SCANVI(adata, n_hidden=8, n_latent=2, gene_likelihood="nb")
    theirs.train(max_epochs=2, train_size=1.0, batch_size=20, **QUIET)
    ours, again = back_and_forth("SCANVI", theirs, adata, "kind", tmp_path)
    expected = theirs.predict(soft=True)
    found = ours.predict(cells(), soft=True)
    assert [str(name) for name in found.columns] == [str(name) for name in expected.columns]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(again.predict(soft=True), expected, atol=1e-6)
    assert ours.predict(cells()).astype(str).tolist() == theirs.predict().astype(str).tolist()


def test_whole_numbers_from_here_to_scvi_tools(tmp_path):
    """A model trained here on labels of whole numbers; -1 stays a number."""
    adata = cells()
    adata.obs["kind"] = np.where(np.arange(N) < 20, -1, np.arange(N) % 3)
    sd.SCANVI.setup_anndata(adata, labels_key="kind", unlabeled_category=-1)
    ours = sd.SCANVI(adata, n_hidden=8, n_latent=2, gene_likelihood="nb")
    ours.train(max_epochs=1, device="cpu", progress=False)
    ours.save(tmp_path / "ours")
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    theirs = scvi.model.SCANVI.load(tmp_path / "theirs", adata=adata)
    np.testing.assert_allclose(theirs.get_latent_representation(), ours.get_latent_representation(), atol=1e-6)
    np.testing.assert_array_equal(theirs.predict(), ours.predict())


def test_fractions(tmp_path):
    adata = cells(fractions=True)
    scvi.model.SCVI.setup_anndata(adata)
    theirs = scvi.model.SCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="zinb")
    theirs.train(max_epochs=1, train_size=1.0, batch_size=20, **QUIET)
    theirs.save(tmp_path / "theirs")
    ours = sd.load(tmp_path / "theirs")
    with pytest.warns(CountsWarning, match="not whole numbers"):
        found = ours.get_latent_representation(adata)
    np.testing.assert_allclose(found, theirs.get_latent_representation(), atol=1e-6)


def test_a_cell_without_counts(tmp_path):
    adata = cells()
    scvi.model.SCVI.setup_anndata(adata)
    theirs = scvi.model.SCVI(adata, n_hidden=8, n_latent=2, gene_likelihood="nb")
    theirs.train(max_epochs=1, train_size=1.0, batch_size=20, **QUIET)
    theirs.save(tmp_path / "theirs")
    empty = cells()
    empty.X[3] = 0
    ours = sd.load(tmp_path / "theirs")
    np.testing.assert_allclose(
        ours.get_latent_representation(empty), theirs.get_latent_representation(empty), atol=1e-6
    )
