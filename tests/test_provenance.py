"""What a result says of itself, and that it can be made again from its own output."""

from __future__ import annotations

import json
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_adata, make_model
from torch.distributions import MultivariateNormal, Normal

import scdecode as sd
from scdecode.decoding import QUANTITIES
from scdecode.errors import InputError
from scdecode.provenance import digest_of, unit_of
from scdecode.support import FAR


def typical(model, n):
    z = model.reference_latents()
    return z[np.argsort(np.abs(model.support(z) - 50), kind="stable")[:n]]


@pytest.fixture(scope="module")
def z(full_model):
    return typical(full_model, 6)


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_same(again, first):
    """To the last bit, but for what was not said by the arguments: the names of the points."""
    np.testing.assert_array_equal(dense(again.X), dense(first.X))
    assert set(again.layers) == set(first.layers)
    for name in first.layers:
        np.testing.assert_array_equal(again.layers[name], first.layers[name])
    for name in first.obsm:
        np.testing.assert_array_equal(again.obsm[name], first.obsm[name])
    shared = [column for column in first.obs if column in again.obs]
    assert set(first.obs) - set(shared) <= {"time"}
    pd.testing.assert_frame_equal(
        again.obs[shared].reset_index(drop=True), first.obs[shared].reset_index(drop=True), check_categorical=False
    )
    made, of = again.uns["scdecode"], first.uns["scdecode"]
    assert json.loads(made["arguments"]) == json.loads(of["arguments"])
    assert json.loads(made["conditions"]) == json.loads(of["conditions"])
    np.testing.assert_array_equal(made["shape"], of["shape"])


EVERY_FORM = {
    "nothing": {},
    "one": {"batch": "batch_2", "categorical": {"sex": "male", "chem": "v1"}, "continuous": {"age": 33.3, "pct": 0.1}},
    "some": {"batch": "batch_2", "continuous": {"age": 33.3}},
    "list": {"batch": ["batch_3", "batch_1"], "categorical": {"chem": ("v1", "v2", "v3")}},
    "weights": {"batch": {"batch_3": 0.7, "batch_1": 1.7}, "categorical": {"sex": {"male": 1, "female": 2}}},
    "list of numbers": {"continuous": {"age": [0.1 + 0.2, 1e-7, 30]}},
    "weighted numbers": {"continuous": {"age": {0.1: 1, 33: 5}, "pct": {1 / 3: 1}}},
    "per point": {
        "batch": np.array(["batch_1", "batch_2", "batch_3"] * 2),
        "categorical": {"chem": pd.Categorical(["v1", "v3"] * 3)},
        "continuous": {"age": np.linspace(20.1, 60.7, 6)},
        "library_size": np.geomspace(100, 12_345.678, 6),
    },
    "per point and weights": {
        "batch": np.array(["batch_1", "batch_2"] * 3),
        "categorical": {"sex": ["female", "male"]},
    },
    "library": {"library_size": 1234.567},
    "observed": {"library_size": "observed"},
    "scale": {"quantity": "scale"},
    "mean": {"quantity": "mean"},
    "genes": {"genes": ["gene_30", "gene_02"]},
    "max_conditions": {"max_conditions": 7},
    "chunk": {"chunk_size": 2},
    "numpy's whole numbers": {
        "spread": np.float32(0.3),
        "n_samples": np.int64(3),
        "seed": np.uint8(4),
        "chunk_size": np.int32(2),
        "max_conditions": np.int16(9),
        "library_size": np.int64(5000),
    },
    "spread": {"spread": 0.3, "seed": 4, "n_samples": 11},
    "spreads": {"spread": np.linspace(0.1, 0.5, 24).reshape(6, 4), "n_samples": 5, "chunk_size": 4},
    "covariance": {"spread": np.eye(4) * 0.2 + 0.05, "n_samples": 5, "genes": ["gene_07"]},
    "counts": {"quantity": "counts", "seed": 3},
    "draws of counts": {"quantity": "counts", "n_samples": 4, "chunk_size": 2, "library_size": 500},
    "counts of a spread": {"quantity": "counts", "n_samples": 3, "spread": 0.3, "batch": np.array(["batch_1"] * 6)},
}


@pytest.mark.filterwarnings("ignore:conditions", "ignore:max_conditions", "ignore:continuous.* outside of the range")
@pytest.mark.parametrize("said", EVERY_FORM)
@pytest.mark.parametrize("place", ["memory", "h5ad", "zarr"])
def test_a_result_makes_itself_again(full_model, z, tmp_path, said, place):
    said = EVERY_FORM[said]
    if place == "memory":
        first = full_model.decode(z, **said)
        arguments = sd.decode_arguments(first)
    else:
        out = tmp_path / f"x.{place}"
        arguments = sd.decode_arguments(full_model.decode(z, out=out, **said))
        first = ad.io.read_h5ad(out) if place == "h5ad" else ad.io.read_zarr(out)
        assert str(sd.decode_arguments(first)) == str(arguments)
    assert_same(full_model.decode(**arguments), first)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (3, 1, 2)])
@pytest.mark.parametrize("kind", [None, "h5ad", "zarr"])
def test_leading_axes_come_back(full_model, z, tmp_path, shape, kind):
    points = z[: int(np.prod(shape))].reshape(*shape, 4)
    for number, said in enumerate(
        ({}, {"quantity": "counts", "n_samples": 2}, {"spread": np.eye(4) * 0.1 + 0.01, "n_samples": 2})
    ):
        out = None if kind is None else tmp_path / f"{number}.{kind}"
        first = full_model.decode(points, out=out, **said)
        arguments = sd.decode_arguments(first.to_memory())
        assert arguments["points"].shape == points.shape
        np.testing.assert_array_equal(arguments["points"], points)
        assert_same(full_model.decode(**arguments), first.to_memory())


@pytest.mark.filterwarnings("ignore:points")
def test_distributions_and_paths_come_back(full_model, adata):
    posterior = full_model.posterior(adata[:5])
    covariance = torch.eye(4) * 0.1
    path = sd.Trajectory.between(full_model, *np.split(full_model.reference_latents()[:20], 2), n_points=4)
    assert path.spread is not None
    for points in (posterior, MultivariateNormal(posterior.loc, covariance), Normal(posterior.loc[0], 0.1), path):
        first = full_model.decode(points, n_samples=3, batch="batch_1")
        assert_same(full_model.decode(**sd.decode_arguments(first)), first)


def test_labels_come_back():
    model = make_model(
        make_adata(120, 12), setup={"batch_key": "batch", "labels_key": "cell_type"}, dispersion="gene-label", epochs=1
    )
    z = typical(model, 3)
    forms = (
        None,
        "trunk",
        ["trunk", "branch_1"],
        {"trunk": 1, "branch_2": 3},
        np.array(["trunk", "branch_1", "trunk"]),
    )
    for labels in forms:
        first = model.decode(z, labels=labels, quantity="counts", n_samples=2)
        assert_same(model.decode(**sd.decode_arguments(first)), first)


def test_size_factors_and_other_latents_come_back():
    for setup, options in (
        ({"size_factor_key": "size_factor"}, {}),
        ({"batch_key": "batch"}, {"latent_distribution": "ln"}),
        ({}, {"gene_likelihood": "poisson"}),
    ):
        model = make_model(make_adata(120, 12), setup=setup, epochs=1, **options)
        z = typical(model, 3)
        first = model.decode(z)
        assert_same(model.decode(**sd.decode_arguments(first)), first)


@given(
    st.dictionaries(st.sampled_from(["batch_1", "batch_2", "batch_3"]), st.floats(1e-9, 1e9), min_size=1),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3, unique=True),
    st.floats(20, 1e8),
    st.integers(0, 2**40),
)
@settings(max_examples=20, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_numbers_come_back(full_model, z, batch, ages, library_size, seed):
    said = {"batch": batch, "continuous": {"age": ages}, "library_size": library_size, "seed": seed}
    first = full_model.decode(z[:1], spread=0.1, n_samples=2, **said)
    assert_same(full_model.decode(**sd.decode_arguments(first)), first)


# -- what decode_arguments cannot do


def test_another_anndata(full_model, z, adata):
    for other in (adata, ad.AnnData(np.zeros((2, 2)))):
        with pytest.raises(InputError, match=r"a result of model\.decode"):
            sd.decode_arguments(other)
    result = full_model.decode(z)
    del result.obsm["latent"]
    with pytest.raises(InputError, match=r"a result of model\.decode"):
        sd.decode_arguments(result)


def test_a_part_of_the_draws_of_counts(full_model, z):
    """Which points were drawn beside which is part of the draws: a part is not what it was."""
    result = full_model.decode(z, quantity="counts", n_samples=2)
    with pytest.raises(InputError, match=r"got 4 rows of 12 that were drawn, .* the whole result"):
        sd.decode_arguments(result[:4])


# -- what a result says


def test_what_was_done_is_written_down(full_model, z):
    made = full_model.decode(z, quantity="mean", batch="batch_1", max_conditions=1000).uns["scdecode"]
    assert made["version"] == version("scdecode")
    assert made["quantity"] == "mean"
    assert made["unit"] == unit_of("mean", full_model.schema)
    assert made["shape"].tolist() == [6]
    assert made["conditions_covered"] == 1
    rows = json.loads(made["conditions"])
    assert {row["batch"] for row in rows} == {"batch_1"}
    assert sum(row["weight"] for row in rows) == pytest.approx(1)
    weights = [row["weight"] for row in rows]
    assert weights == sorted(weights, reverse=True)
    arguments = json.loads(made["arguments"])
    assert arguments["batch"] == "batch_1"
    assert arguments["categorical"] == arguments["continuous"] == {}
    assert arguments["library_size"] == 1e4


@pytest.mark.filterwarnings("ignore:max_conditions")
def test_what_is_left_out_of_an_average_is_written_down(full_model, z):
    made = full_model.decode(z, max_conditions=5).uns["scdecode"]
    rows = json.loads(made["conditions"])
    table = full_model.schema.conditions
    assert len(rows) == 5
    assert 0 < made["conditions_covered"] < 1
    keys = np.column_stack([table.codes_mc[:, :-1], table.continuous_md])  # the label changes nothing
    _, combination = np.unique(keys, axis=0, return_inverse=True)
    cells = np.bincount(combination.reshape(-1), weights=table.n_cells_m)
    assert made["conditions_covered"] == pytest.approx(np.sort(cells)[::-1][:5].sum() / cells.sum())


def test_frame(full_model, z):
    names = list("abcdef")
    result = full_model.decode(pd.DataFrame(z, index=names), batch="batch_1", continuous={"age": 30})
    assert list(result.obs_names) == names
    assert list(result.var_names) == list(full_model.schema.genes)
    assert result.obs["batch"].tolist() == ["batch_1"] * 6
    assert result.obs["sex"].tolist() == ["average"] * 6
    assert result.obs["age"].tolist() == [30] * 6
    assert result.obs["pct"].isna().all()
    assert result.obs["library_size"].tolist() == [1e4] * 6
    np.testing.assert_array_equal(result.obs["support"], full_model.support(z))
    assert result.obs["supported"].tolist() == (full_model.support(z) <= FAR).tolist()
    np.testing.assert_array_equal(result.obsm["latent"], z)
    assert "latent_spread" not in result.obsm
    assert list(full_model.decode(z, spread=1.0, n_samples=2).obsm) == ["latent", "latent_spread"]


def test_every_quantity_has_a_unit(model):
    point = model.reference_latents().mean(axis=0)
    assert {q: model.decode(point, quantity=q).uns["scdecode"]["unit"] for q in QUANTITIES} == {
        "scale": "fraction of the cell's RNA of the model's genes",
        "rate": "expected counts, before zero inflation, in a cell of library_size counts",
        "mean": "expected counts, after zero inflation, in a cell of library_size counts",
        "counts": "counts drawn from the model, in a cell of library_size counts",
    }


def test_units_of_a_model_with_a_size_factor():
    model = make_model(make_adata(), setup={"size_factor_key": "size_factor"}, epochs=1)
    point = model.reference_latents().mean(axis=0)
    made = {q: model.decode(point, quantity=q).uns["scdecode"] for q in ("scale", "rate")}
    assert {m["library"] for m in made.values()} == {"size factor"}
    assert made["scale"]["unit"] == "expression of a cell of size factor one"
    assert made["rate"]["unit"].endswith("in a cell of the size factor in library_size")


def test_results_do_not_share_memory(full_model, z):
    first, second = full_model.decode(z), full_model.decode(z)
    first.obsm["latent"][:] = 0
    first.X[:] = 0
    assert second.obsm["latent"].any()
    np.testing.assert_array_equal(full_model.decode(z).X, second.X)


def test_the_genes_of_the_model_are_written_down(full_model, z):
    made = full_model.decode(z, genes=["gene_03"]).uns["scdecode"]
    assert made["n_model_genes"] == 40
    assert made["model_genes"] == digest_of(reversed(full_model.schema.genes)) != digest_of(["gene_03"])
    assert made["gene_likelihood"] == full_model.config.gene_likelihood
