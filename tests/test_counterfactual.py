"""One path in several conditions: each as decoded alone, the differences by hand, and what cannot be compared."""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.counterfactual import PSEUDOCOUNT, counterfactual
from scdecode.decoding import draw_tiles
from scdecode.errors import ConditionError, ConditionWarning, ConfigError, InputError
from scdecode.expression import prepare
from scdecode.results import write_h5ad

pytestmark = pytest.mark.filterwarnings("ignore:points", "ignore:over")  # of support; of other covariates left open
SHARED = {"continuous": {"age": 40.0, "pct": 0.05}, "n_samples": 32}
N = 6


@pytest.fixture(scope="module")
def path(full_model):
    z = full_model.reference_latents()
    return sd.Trajectory.between(full_model, z[0], z[1], n_points=N)


def draws_of(model, path, **said):
    asked = prepare(model, path, **said)
    tiles = draw_tiles(model.vae, asked.points, asked.conditions, asked.request, torch.device("cpu"))
    return np.concatenate([draws for _, draws in tiles], axis=1).astype(np.float64)


OVER = {
    "batch": ("batch", {name: {"batch": name} for name in ("batch_1", "batch_2", "batch_3")}),
    "categorical": ("sex", {name: {"categorical": {"sex": name}} for name in ("female", "male")}),
    "labels": ("labels", {name: {"labels": name} for name in ("trunk", "branch_1", "branch_2")}),
}
MAPPED = {
    "young": {"continuous": {"age": 20}, "batch": "batch_1"},
    "old": {"continuous": {"age": 70}, "batch": "batch_1"},
}


@pytest.mark.filterwarnings("ignore:labels. the model's dispersion")
@pytest.mark.parametrize("kind", ["batch", "categorical", "labels", "mapping"])
def test_expression_is_that_of_each_condition(full_model, path, kind):
    over, own = OVER.get(kind, (MAPPED, MAPPED))
    compared = counterfactual(full_model, path, over, **SHARED)
    found = compared.expression
    assert list(found.obs["condition"].cat.categories) == list(own)
    assert found.obs["condition"].tolist() == [name for name in own for _ in range(N)]
    assert found.obs_names.is_unique
    assert found.obs_names[0] == f"{next(iter(own))}-0"
    for name, said in own.items():
        continuous = SHARED["continuous"] | said.get("continuous", {})
        alone = full_model.decode(path, **{**SHARED, **said, "continuous": continuous})
        rows = found[found.obs["condition"] == name]
        np.testing.assert_allclose(rows.X, alone.X, rtol=1e-5)
        assert set(rows.layers) == set(alone.layers)
        for layer in alone.layers:
            np.testing.assert_allclose(rows.layers[layer], alone.layers[layer], rtol=1e-5)
        for column in alone.obs:
            assert rows.obs[column].tolist() == alone.obs[column].tolist(), column
        np.testing.assert_array_equal(rows.obsm["latent"], path.points)
        np.testing.assert_array_equal(rows.obsm["latent_covariance"].reshape(path.spread.shape), path.spread)


@pytest.mark.parametrize("baseline", [None, "batch_2"])
def test_difference_by_hand(full_model, path, baseline):
    compared = counterfactual(full_model, path, "batch", baseline=baseline, pseudocount=0.5, **SHARED)
    found, first = compared.difference, baseline or "batch_1"
    assert compared.baseline == first
    others = [name for name in ("batch_1", "batch_2", "batch_3") if name != first]
    assert found.obs["condition"].tolist() == [name for name in others for _ in range(N)]
    assert set(found.layers) == {
        *("std", "q05", "q95"),
        *("log2_fold_change", "log2_fold_change_q05", "log2_fold_change_q95"),
    }
    base = draws_of(full_model, path, batch=first, **SHARED)
    for name in others:
        rows = found[found.obs["condition"] == name]
        draws = draws_of(full_model, path, batch=name, **SHARED)
        apart = draws - base  # of the same cells
        np.testing.assert_allclose(rows.X, draws.mean(axis=0) - base.mean(axis=0), rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(rows.layers["std"], apart.std(axis=0), rtol=1e-3, atol=1e-3)
        fold = np.log2((draws + 0.5) / (base + 0.5))
        means = np.log2((draws.mean(axis=0) + 0.5) / (base.mean(axis=0) + 0.5))
        np.testing.assert_allclose(rows.layers["log2_fold_change"], means, rtol=1e-3, atol=1e-5)
        for layer, q in (("q05", 0.05), ("q95", 0.95)):
            np.testing.assert_allclose(rows.layers[layer], np.quantile(apart, q, axis=0), rtol=1e-3, atol=2e-3)
            np.testing.assert_allclose(
                rows.layers[f"log2_fold_change_{layer}"], np.quantile(fold, q, axis=0), rtol=1e-3, atol=1e-5
            )
        # the same cells twice: unpaired, the interval would be wider
        unpaired = np.sqrt(draws.var(axis=0) + base.var(axis=0))
        assert np.median(rows.layers["std"] / unpaired) < 0.9


def test_a_condition_against_itself(full_model, path):
    same = counterfactual(full_model, path, {"one": {"batch": "batch_1"}, "two": {"batch": "batch_1"}}, **SHARED)
    np.testing.assert_array_equal(same.difference.X, 0)
    for layer in same.difference.layers:
        np.testing.assert_array_equal(same.difference.layers[layer], 0)


def test_levels_genes_and_tiles(full_model, path):
    said = {"levels": ["batch_3", "batch_1"], "genes": ["gene_07", "gene_02"], **SHARED}
    whole = counterfactual(full_model, path, "batch", **said)
    assert whole.baseline == "batch_3"
    assert whole.expression.shape == (2 * N, 2)
    assert list(whole.difference.var_names) == ["gene_07", "gene_02"]
    cut = counterfactual(full_model, path, "batch", chunk_size=2, **said)
    for of_whole, of_cut in ((whole.expression, cut.expression), (whole.difference, cut.difference)):
        np.testing.assert_allclose(of_cut.X, of_whole.X, rtol=1e-4, atol=1e-3)
        for layer in of_whole.layers:
            np.testing.assert_allclose(of_cut.layers[layer], of_whole.layers[layer], rtol=1e-3, atol=1e-3)


def test_bare_lines_have_no_intervals(full_model, path):
    compared = counterfactual(full_model, path, "sex", spread=False, continuous=SHARED["continuous"])
    assert set(compared.expression.layers) == {"std_counts"}
    assert set(compared.difference.layers) == {"log2_fold_change"}
    female, male = (compared.expression[compared.expression.obs["condition"] == name].X for name in ("female", "male"))
    np.testing.assert_allclose(compared.difference.X, male - female, rtol=1e-5, atol=1e-4)
    expected = np.log2((male + PSEUDOCOUNT) / (female + PSEUDOCOUNT))
    np.testing.assert_allclose(compared.difference.layers["log2_fold_change"], expected, rtol=1e-3, atol=1e-5)


def test_what_changes_goes_before_what_the_path_says(full_model):
    z = full_model.reference_latents()
    own = {"batch": "batch_3", "categorical": {"sex": "male", "chem": "v2"}, "continuous": {"age": 30, "pct": 0.1}}
    path = sd.Trajectory.between(full_model, z[0], z[1], n_points=N, spread=False, **own)
    found = counterfactual(full_model, path, "sex").expression.obs
    assert found["sex"].tolist() == ["female"] * N + ["male"] * N
    assert set(found["chem"]) == {"v2"}
    assert set(found["batch"]) == {"batch_3"}
    assert set(found["age"]) == {30}
    by_batch = counterfactual(full_model, path, "batch", levels=["batch_1", "batch_2"]).expression.obs
    assert by_batch["batch"].tolist() == ["batch_1"] * N + ["batch_2"] * N
    assert set(by_batch["sex"]) == {"male"}


def test_labels_matter_with_their_own_dispersion():
    model = make_model(make_adata(150, 20), setup=EVERYTHING, epochs=1, dispersion="gene-label", gene_likelihood="nb")
    model.vae.log_theta.data.copy_(torch.arange(3.0)[:, None].expand(3, 20))
    line = np.linspace(*model.reference_latents()[:2], 3)
    said = {"batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}, "continuous": SHARED["continuous"]}
    found = counterfactual(model, line, "labels", count_noise=True, **said)
    np.testing.assert_array_equal(found.difference.X, 0)  # the rate does not depend on the label
    noise = found.expression.layers["std_counts"].reshape(3, 3, 20)
    assert (np.diff(noise, axis=0) < 0).all()  # theta grows from label to label


def test_several_lineages(full_model):
    z = full_model.reference_latents()
    points = np.stack([np.linspace(z[0], z[i], 4) for i in (1, 2)])
    paths = sd.Trajectory.from_points(points, lineages=["a", "b"], spread=0.3)
    found = counterfactual(full_model, paths, "sex", **SHARED)
    assert found.expression.obs["lineage"].tolist() == (["a"] * 4 + ["b"] * 4) * 2
    assert found.difference.obs["lineage"].tolist() == ["a"] * 4 + ["b"] * 4


def test_what_it_says_of_itself(full_model, path, tmp_path):
    compared = counterfactual(full_model, path, "batch", pseudocount=0.2, **SHARED)
    assert repr(compared) == "Counterfactual: ['batch_1', 'batch_2', 'batch_3'] against 'batch_1', 40 genes"
    made = compared.difference.uns["scdecode"]
    assert made["baseline"] == "batch_1"
    assert made["pseudocount"] == 0.2
    assert made["time_name"] == sd.trajectory.SHARE
    assert "baseline" not in compared.expression.uns["scdecode"]
    for name, result in (("e.h5ad", compared.expression), ("d.h5ad", compared.difference)):
        write_h5ad(result, tmp_path / name)
        read = ad.read_h5ad(tmp_path / name)
        np.testing.assert_array_equal(read.X, result.X)
        for layer in result.layers:
            np.testing.assert_array_equal(read.layers[layer], result.layers[layer])
        pd.testing.assert_frame_equal(read.obs, result.obs, check_dtype=False, check_categorical=False)
        assert list(read.obs["condition"].cat.categories) == list(result.obs["condition"].cat.categories)
        for whole in (result, read):
            with pytest.raises(InputError, match="adata"):
                sd.decode_arguments(whole)


@pytest.mark.parametrize(
    ("over", "said", "kind", "message"),
    [
        ("bach", {}, InputError, r"over: 'bach' is not one of the 4 conditions of the model .*did you mean 'batch'"),
        ("age", {}, InputError, "over: 'age' is not one of the 4 conditions"),
        ("batch", {"levels": ["batch_1"]}, InputError, r"levels: \['batch_1'\] came, two or more conditions"),
        ("batch", {"levels": []}, InputError, r"levels: \[\] came, two or more"),
        ("batch", {"levels": ["batch_1", "batch1"]}, ConditionError, "batch: 'batch1' is not .*did you mean 'batch_1'"),
        ("batch", {"baseline": "batch_9"}, InputError, "baseline: 'batch_9' is not one of the 3 conditions"),
        (MAPPED, {"levels": ["young"]}, InputError, "levels: they came with a mapping of conditions"),
        ({"young": MAPPED["young"]}, {}, InputError, r"levels: \['young'\] came, two or more"),
        ({}, {}, InputError, r"levels: \[\] came, two or more"),
        ("batch", {"quantity": "counts"}, InputError, "quantity: 'counts' came; .* 'rate' or 'mean', can be compared"),
        ("batch", {"pseudocount": -1}, ConfigError, "pseudocount: -1 came"),
        ("batch", {"quantity": "rates"}, InputError, "did you mean 'rate'"),
    ],
)
def test_refused(full_model, path, over, said, kind, message):
    with pytest.raises(kind, match=message):
        counterfactual(full_model, path, over, **SHARED, **said)


@pytest.mark.parametrize(
    ("over", "said", "message"),
    [
        ("batch", {"transform_batch": "batch_1"}, "transform_batch"),
        ({"young": {"age": 20}, "old": {"age": 70}}, {}, "age"),
        ({"young": 20, "old": 70}, {}, "young"),
        ({"a": {"quantity": "counts"}, "b": {}}, {}, "quantity"),
        ({"a": {"spread": False, "n_samples": None}, "b": {}}, {}, "spread"),
        ({"a": {"genes": ["gene_01"]}, "b": {}}, {}, "genes"),
        ("batch", {"levels": "batch_1"}, "levels"),
    ],
)
def test_what_is_no_condition_is_an_error_of_ours(full_model, path, over, said, message):
    with pytest.raises(InputError, match=message):
        counterfactual(full_model, path, over, **SHARED, **said)


def test_a_model_without_conditions():
    model = make_model(make_adata(100, 15), setup={}, epochs=1)
    with pytest.raises(InputError, match="over: 'batch' was given, but there are no conditions of the model"):
        counterfactual(model, model.reference_latents()[:3], "batch")


@pytest.mark.filterwarnings("default:over")
def test_other_covariates_that_are_left_open_are_said(full_model, path):
    names = [category.key for category in full_model.schema.categorical]
    with pytest.warns(ConditionWarning, match="averaged as they occur within each level of 'batch'") as said:
        counterfactual(full_model, path, "batch", **SHARED)
    assert all(name in str(said[0].message) for name in names)
    given = {category.key: category.names[0] for category in full_model.schema.categorical}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConditionWarning)
        warnings.filterwarnings("ignore", message="conditions")  # combinations never seen together
        counterfactual(full_model, path, "batch", categorical=given, **SHARED)


@pytest.mark.parametrize(
    ("over", "levels", "message"),
    [
        ("batch", "batch_1", "levels: got 'batch_1' (str), expected a list"),
        (["batch"], None, "over: got ['batch'] (list), expected a name or a mapping"),
    ],
)
def test_what_names_no_conditions(full_model, path, over, levels, message):
    with pytest.raises(InputError) as error:
        counterfactual(full_model, path, over, levels=levels, **SHARED)
    assert str(error.value).startswith(message)


def test_an_ensemble_is_no_model(model):
    z = model.reference_latents()[:3]
    with pytest.raises(InputError, match=r"^model: got Ensemble.*, expected one model"):
        counterfactual(sd.Ensemble([model, model]), z, "batch")


def test_the_batch_by_the_name_of_its_column(full_model, path):
    by_name, by_column = (
        counterfactual(full_model, path, over, **SHARED) for over in ("batch", full_model.schema.batch.key)
    )
    np.testing.assert_array_equal(by_name.difference.X, by_column.difference.X)


def test_a_value_for_what_changes_is_not_ignored(full_model, path):
    for over, said in (("batch", {"batch": "batch_1"}), ("sex", {"categorical": {"sex": "F"}})):
        with pytest.raises(InputError, match=rf"^over: '{over}' came with a value of its own; .* levels="):
            counterfactual(full_model, path, over, **{**SHARED, **said})


@pytest.mark.filterwarnings("default:over")
def test_covariates_that_the_path_brings_are_not_left_open(full_model):
    z = full_model.reference_latents()
    own = {category.key: category.names[0] for category in full_model.schema.categorical}
    brought = sd.Trajectory.between(full_model, z[0], z[1], n_points=N, categorical=own)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConditionWarning)
        warnings.filterwarnings("ignore", message="conditions")  # combinations never seen together
        found = counterfactual(full_model, brought, "batch", **SHARED)
    assert set(found.expression.obs["sex"]) == {own["sex"]}


# the table of effects


def test_table_by_hand(full_model, path):
    compared = counterfactual(full_model, path, "batch", pseudocount=0.5, **SHARED)
    table = compared.table
    assert list(table.columns) == [
        *("gene", "condition", "log2_fold_change", "low", "high", "std", "q_value"),
        *("baseline_expression", "expression"),
    ]
    assert len(table) == 2 * 40
    base = draws_of(full_model, path, batch="batch_1", **SHARED)
    for name in ("batch_2", "batch_3"):
        own = table[table["condition"] == name].set_index("gene").loc[list(full_model.schema.genes)]
        draws = draws_of(full_model, path, batch=name, **SHARED)
        means = np.log2((draws.mean(axis=(0, 1)) + 0.5) / (base.mean(axis=(0, 1)) + 0.5))
        np.testing.assert_allclose(own["log2_fold_change"], means, rtol=1e-3, atol=1e-5)
        folds = np.log2((draws + 0.5) / (base + 0.5)).reshape(-1, 40)  # of all points: six are few
        np.testing.assert_allclose(own["low"], np.quantile(folds, 0.05, axis=0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(own["high"], np.quantile(folds, 0.95, axis=0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(own["std"], folds.std(axis=0), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(own["expression"], draws.mean(axis=(0, 1)), rtol=1e-3)
        np.testing.assert_allclose(own["baseline_expression"], base.mean(axis=(0, 1)), rtol=1e-3)
        # the expected share of wrong signs among a gene and all that are surer
        share = (np.sign(folds) != np.sign(means)).mean(axis=0)
        wrong = np.maximum(share, norm.cdf(-np.sign(means) * folds.mean(axis=0) / folds.std(axis=0)))
        expected = np.array([wrong[wrong <= each].mean() for each in wrong])
        np.testing.assert_allclose(own["q_value"], expected, rtol=0.02, atol=1e-4)
        ordered = table[table["condition"] == name]["q_value"].to_numpy()
        assert (np.diff(ordered) >= 0).all()


def test_an_effect_of_nothing_is_not_sure(full_model, path):
    same = counterfactual(full_model, path, {"one": {"batch": "batch_1"}, "two": {"batch": "batch_1"}}, **SHARED).table
    assert (same["q_value"] == 1).all() and (same[["log2_fold_change", "low", "high", "std"]] == 0).all().all()


def test_table_of_bare_lines_and_lineages(full_model):
    z = full_model.reference_latents()
    points = np.stack([np.linspace(z[0], z[i], 4) for i in (1, 2)])
    bare = counterfactual(full_model, points[0], "sex", continuous=SHARED["continuous"]).table
    assert bare[["low", "high", "std", "q_value"]].isna().all().all()
    assert (np.diff(bare["log2_fold_change"].abs()) <= 1e-12).all()
    paths = sd.Trajectory.from_points(points, lineages=["a", "b"], spread=0.3)
    both = counterfactual(full_model, paths, "sex", **SHARED).table
    alone = counterfactual(full_model, sd.Trajectory.from_points(points[1], spread=0.3), "sex", **SHARED).table
    of_b = both[both["lineage"] == "b"].set_index("gene").drop(columns="lineage").loc[alone["gene"]]
    pd.testing.assert_frame_equal(of_b, alone.set_index("gene"), rtol=1e-4, atol=1e-4)


def test_known_effects_are_found_with_their_signs():
    adata = sd.datasets.simulate_branching(400, 60, n_batches=2, batch_sd=0.8, library_size=3000.0)
    model = make_model(adata, setup={"batch_key": "batch"}, epochs=40, train={"lr": 5e-3})
    table = counterfactual(model, model.posterior(adata[:100]), "batch", n_samples=8).table.set_index("gene")
    time, branch = adata.obs["pseudotime"][:100], adata.obs["branch"][:100].astype(str)
    truth = [sd.datasets.true_scale(adata, time, branch, batch).mean(axis=0) for batch in ("batch_1", "batch_2")]
    effect = np.log2((truth[1] + 1e-5) / (truth[0] + 1e-5))
    sure = (table.loc[adata.var_names, "q_value"] < 0.01).to_numpy() & (np.abs(effect) > 0.5)
    found = table.loc[adata.var_names, "log2_fold_change"].to_numpy()
    assert sure.sum() >= 10
    assert (np.sign(found[sure]) == np.sign(effect[sure])).mean() > 0.95
    assert np.corrcoef(found[np.abs(effect) > 0.5], effect[np.abs(effect) > 0.5])[0, 1] > 0.8


def test_the_table_says_what_it_means(full_model, path):
    attrs = counterfactual(full_model, path, "batch", **SHARED).table.attrs
    assert attrs["baseline"] == "batch_1"
    assert "smaller than counted ones" in attrs["shrinkage"] and "no test between replicates" in attrs["q_value"]


def test_few_draws_of_many_points_are_kept(full_model, monkeypatch):
    module = sys.modules["scdecode.counterfactual"]  # the name in the package is that of the function
    monkeypatch.setattr(module, "_KEPT", 32 * 40 * 20)
    z = full_model.reference_latents()
    long = sd.Trajectory.between(full_model, z[0], z[1], n_points=200)
    some = counterfactual(full_model, long, "sex", chunk_size=64, **SHARED).table.set_index("gene")
    monkeypatch.setattr(module, "_KEPT", 2**25)
    every = counterfactual(full_model, long, "sex", **SHARED).table.set_index("gene").loc[some.index]
    np.testing.assert_allclose(some["log2_fold_change"], every["log2_fold_change"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(some["low"], every["low"], atol=0.05)
    np.testing.assert_allclose(some["high"], every["high"], atol=0.05)
