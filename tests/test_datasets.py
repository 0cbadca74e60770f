"""The cells that scdecode brings along: the real ones are what they were, the simulated ones obey their own truth."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scdecode.datasets import PBMC_FILE, pbmc68k_reduced, simulate_branching, true_scale
from scdecode.errors import ConditionError, ConfigError, CountsError, InputError, MissingExtraError

FIND_SPEC = importlib.util.find_spec
needs_scanpy = pytest.mark.skipif(FIND_SPEC("scanpy") is None, reason="scanpy's wheel carries the cells")


def pretend_scanpy(monkeypatch: pytest.MonkeyPatch, spec: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "scanpy" else FIND_SPEC(name))


# Real cells


@needs_scanpy
def test_pbmc_counts_are_the_known_ones() -> None:
    adata = pbmc68k_reduced()
    assert adata.shape == (700, 765)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert adata.X.data.min() == 1
    assert adata.X.sum(dtype=np.float64) == 486_651
    assert adata.X.max() == 259
    cell_totals = np.asarray(adata.X.sum(axis=1)).ravel()
    assert (cell_totals.min(), np.median(cell_totals), cell_totals.max()) == (342, 653, 1654)
    assert np.asarray(adata.X.sum(axis=0)).min() == 3  # no empty gene


@needs_scanpy
def test_pbmc_annotation() -> None:
    adata = pbmc68k_reduced()
    assert list(adata.obs) == [
        "cell_type",
        "louvain",
        "phase",
        "fraction_mito",
        "total_counts_all_genes",
        "n_genes_all_genes",
    ]
    assert adata.obs["cell_type"].value_counts()["Dendritic"] == 240
    assert adata.obs["cell_type"].cat.categories.size == 10
    assert not adata.obs.isna().to_numpy().any()
    assert 0 <= adata.obs["fraction_mito"].min() <= adata.obs["fraction_mito"].max() < 0.05
    assert (adata.obs["total_counts_all_genes"] > np.asarray(adata.X.sum(axis=1)).ravel()).all()
    assert adata.var_names[:3].tolist() == ["HES4", "TNFRSF4", "SSU72"]
    assert adata.var["highly_variable"].sum() == 309
    assert {k: v.shape for k, v in adata.obsm.items()} == {"X_pca": (700, 50), "X_umap": (700, 2)}
    assert adata.raw is None
    assert not adata.layers
    assert not adata.uns
    assert not adata.obsp
    # A marker where it belongs: the B cell's receptor component
    per_type = {t: float(adata[adata.obs["cell_type"] == t, "CD79A"].X.mean()) for t in ("CD19+ B", "CD14+ Monocyte")}
    assert per_type["CD19+ B"] > 10 * per_type["CD14+ Monocyte"]


def test_pbmc_without_scanpy(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_scanpy(monkeypatch, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'scdecode\[scanpy\]'"):
        pbmc68k_reduced()


def test_pbmc_file_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_scanpy(monkeypatch, SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(CountsError, match=r"scanpy .* is installed and there is no file .*10x_pbmc68k_reduced\.h5ad"):
        pbmc68k_reduced()


def test_pbmc_scanpy_has_no_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    pretend_scanpy(monkeypatch, SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(CountsError, match="scanpy of unknown version is installed"):
        pbmc68k_reduced()


def shifted(stored: ad.AnnData) -> ad.AnnData:
    stored.obs["n_counts"] = stored.obs["n_counts"] * 1.37  # another normalisation: counts are no longer whole
    return stored


def smaller(stored: ad.AnnData) -> ad.AnnData:
    return stored[:-1].copy()


def negative(stored: ad.AnnData) -> ad.AnnData:
    raw = stored.raw.to_adata()
    raw.X.data[0] = -0.5  # as centred values would be
    stored.raw = raw
    return stored


def unlabelled(stored: ad.AnnData) -> ad.AnnData:
    del stored.obs["bulk_labels"]
    return stored


def rawless(stored: ad.AnnData) -> ad.AnnData:
    stored.raw = None
    return stored


@needs_scanpy
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shifted, r"counts up to 0\.\d\d away from a whole number"),
        (smaller, r"shape \(699, 765\).*shape \(700, 765\)"),
        (negative, "negative counts"),
        (unlabelled, "lacks \\['bulk_labels'\\]"),
        (rawless, "lacks raw"),
    ],
)
def test_pbmc_file_was_changed(change: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = FIND_SPEC("scanpy")
    assert spec is not None
    assert spec.origin is not None
    copy = tmp_path / PBMC_FILE
    copy.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is in an old layout
        change(ad.read_h5ad(Path(spec.origin).parent / PBMC_FILE)).write_h5ad(copy)
    pretend_scanpy(monkeypatch, SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(CountsError, match=message) as error:
        pbmc68k_reduced()
    assert f"scanpy {importlib.metadata.version('scanpy')} is installed" in str(error.value)


def test_pbmc_file_is_truncated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / PBMC_FILE
    copy.parent.mkdir()
    copy.write_bytes(b"\x89HDF\r\n\x1a\n")
    pretend_scanpy(monkeypatch, SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(CountsError, match="cannot be read"):
        pbmc68k_reduced()


# Simulated cells: what comes back


def test_simulation_has_what_it_promises() -> None:
    adata = simulate_branching(300, 80, n_branches=3, n_batches=2, n_latent=6)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.shape == (300, 80)
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert adata.X.data.min() >= 1
    assert (np.asarray(adata.X.sum(axis=1)) > 0).all()
    assert list(adata.obs["branch"].cat.categories) == ["trunk", "branch_1", "branch_2", "branch_3"]
    assert list(adata.obs["batch"].cat.categories) == ["batch_1", "batch_2"]
    assert adata.obs["pseudotime"].between(0, 1).all()
    assert ((adata.obs["branch"] == "trunk") == (adata.obs["pseudotime"] <= 0.4)).all()
    assert adata.obsm["latent"].shape == (300, 6)
    assert np.linalg.matrix_rank(adata.obsm["latent"]) == 4  # pseudotime and three branches
    assert adata.varm["batch_effect"].shape == (80, 2)
    assert set(adata.var["kind"]) == {"constant", "switch", "transient"}
    np.testing.assert_allclose(adata.layers["scale"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(adata.layers["rate"].sum(axis=1), adata.obs["library_size"], rtol=1e-5)
    np.testing.assert_allclose(adata.layers["scale"].mean(axis=0), adata.var["mean_scale"], rtol=1e-5)


def test_means_are_spread_as_in_cells() -> None:
    mean_scale = simulate_branching(200).var["mean_scale"]
    assert 1.2 < np.log(mean_scale).std() < 2.0
    assert mean_scale.median() < 0.5 * mean_scale.mean()  # most genes are low
    assert mean_scale.max() < 0.15


def test_same_seed_same_cells() -> None:
    first, again, other = (simulate_branching(100, 50, n_batches=2, noise="zinb", seed=s) for s in (3, 3, 4))
    assert (first.X != again.X).nnz == 0
    assert first.obs.equals(again.obs)
    assert first.var.equals(again.var)
    assert (first.X != other.X).nnz > 0


def test_genes_do_not_depend_on_the_cells() -> None:
    few, many = simulate_branching(10, 50), simulate_branching(5000, 50, noise="poisson", library_size=50.0)
    columns = ["kind", "driver", "log_base", "log_fold_change", "center", "width"]
    assert few.var[columns].equals(many.var[columns])


def test_first_counts_are_the_known_ones() -> None:
    # A change of these numbers changes every benchmark made on this data: say so in the changelog.
    adata = simulate_branching(50, 20, seed=1, library_size=100.0, n_batches=2)
    assert adata.X.sum() == 4657
    np.testing.assert_allclose(adata.var["mean_scale"].to_numpy()[:3], [0.00061691, 0.08434839, 0.46699416], rtol=1e-4)


def test_layers_are_optional_and_true_scale_replaces_them() -> None:
    full = simulate_branching(200, 60, n_batches=3)
    bare = simulate_branching(200, 60, n_batches=3, truth_layers=False)
    assert not bare.layers
    assert (bare.X != full.X).nnz == 0
    obs = bare.obs
    scale = true_scale(bare, obs["pseudotime"], obs["branch"])
    np.testing.assert_allclose(scale, full.layers["scale"], rtol=1e-5)
    rate = obs["library_size"].to_numpy()[:, None] * true_scale(bare, obs["pseudotime"], obs["branch"], obs["batch"])
    np.testing.assert_allclose(rate, full.layers["rate"], rtol=1e-5)


def test_more_cells_than_a_chunk() -> None:
    adata = simulate_branching(4500, 30)
    scale = true_scale(adata, adata.obs["pseudotime"], adata.obs["branch"])
    np.testing.assert_allclose(scale, adata.layers["scale"], rtol=1e-5)
    residual = (adata.X.toarray() - adata.layers["rate"])[4000:].mean(axis=0)
    assert (np.abs(residual) < 0.2 * adata.layers["rate"].mean(axis=0) + 1).all()


def test_speed() -> None:
    simulate_branching(10, 10)
    start = time.perf_counter()
    simulate_branching()
    assert time.perf_counter() - start < 5  # 0.3 s on two quiet cores; the rest is for a busy one


# Simulated cells: the counts obey the truth


@pytest.mark.parametrize("noise", ["nb", "poisson", "zinb"])
def test_counts_near_a_pseudotime_average_to_the_true_scale(noise: Any) -> None:
    adata = simulate_branching(20_000, 40, noise=noise, library_size=2000.0)
    near = (adata.obs["branch"] == "branch_2").to_numpy() & (np.abs(adata.obs["pseudotime"] - 0.8) < 0.05).to_numpy()
    assert near.sum() > 500
    library = adata.obs["library_size"].to_numpy()[near, None]
    fraction = adata.X[near].toarray() / library / (1 - adata.var["zero_inflation"].to_numpy())
    truth = true_scale(adata, np.linspace(0.75, 0.85, 21), "branch_2").mean(axis=0)
    error = fraction.std(axis=0) / np.sqrt(near.sum())
    assert (np.abs(fraction.mean(axis=0) - truth) < 4.5 * error + 0.02 * truth).all()
    correct = np.abs(fraction.mean(axis=0) - truth) / truth
    assert np.median(correct) < 0.05


@pytest.mark.parametrize("noise", ["nb", "poisson"])
def test_variance_is_that_of_the_likelihood(noise: Any) -> None:
    adata = simulate_branching(20_000, 30, noise=noise, inverse_dispersion=2.0)
    rate, count = adata.layers["rate"].astype(float), adata.X.toarray().astype(float)
    theta = adata.var["inverse_dispersion"].to_numpy()
    assert np.isinf(theta).all() == (noise == "poisson")
    expected = (rate + rate**2 / theta).mean(axis=0)
    observed = ((count - rate) ** 2).mean(axis=0)
    np.testing.assert_allclose(observed, expected, rtol=0.25)
    assert abs(np.log(observed / expected).mean()) < 0.03


def test_dispersions_have_the_median_asked_for() -> None:
    theta = simulate_branching(10, 4000, inverse_dispersion=3.0).var["inverse_dispersion"]
    assert theta.median() == pytest.approx(3.0, rel=0.05)
    assert np.log(theta).std() == pytest.approx(0.5, rel=0.05)


def test_zero_inflation_makes_the_zeros_it_says() -> None:
    adata = simulate_branching(10_000, 30, noise="zinb", zero_inflation=0.3)
    pi, theta = adata.var["zero_inflation"].to_numpy(), adata.var["inverse_dispersion"].to_numpy()
    assert np.median(pi) == pytest.approx(0.3, abs=0.08)
    rate = adata.layers["rate"].astype(float)
    expected = (pi + (1 - pi) * (theta / (theta + rate)) ** theta).mean(axis=0)
    np.testing.assert_allclose((adata.X.toarray() == 0).mean(axis=0), expected, atol=0.02)
    assert (simulate_branching(10, 10, zero_inflation=0.3).var["zero_inflation"] == 0).all()  # nb has none


def test_batch_effects_are_in_the_counts_and_sum_to_zero() -> None:
    adata = simulate_branching(20_000, 40, n_batches=2, noise="poisson", batch_sd=0.5)
    effect = adata.varm["batch_effect"]
    np.testing.assert_allclose(effect.sum(axis=1), 0, atol=1e-12)
    touched = (effect != 0).any(axis=1)
    assert 10 < touched.sum() < 30
    batch = adata.obs["batch"].to_numpy()
    per_batch = [
        adata.X[batch == name].sum(axis=0).A1 / adata.obs["library_size"][batch == name].sum()
        for name in ("batch_1", "batch_2")
    ]
    fold = np.log(per_batch[1] / per_batch[0])
    fold -= fold[~touched].mean()  # the softmax moves all genes of a batch together
    np.testing.assert_allclose(fold, effect[:, 1] - effect[:, 0], atol=0.1)


def test_batch_sd_is_the_spread_of_the_effects() -> None:
    for n_batches in (2, 4):
        effect = simulate_branching(10, 4000, n_batches=n_batches, batch_sd=0.4).varm["batch_effect"]
        assert effect[effect != 0].std() == pytest.approx(0.4, rel=0.05)


def test_one_batch_has_no_effect() -> None:
    adata = simulate_branching(50, 20, batch_sd=1.0)
    assert (adata.varm["batch_effect"] == 0).all()
    assert (true_scale(adata, 0.3, "trunk", "batch_1") == true_scale(adata, 0.3, "trunk")).all()


def test_library_sizes() -> None:
    log = np.log(simulate_branching(20_000, 5, library_size=300.0, library_sd=0.4).obs["library_size"])
    assert log.mean() == pytest.approx(np.log(300), abs=0.02)
    assert log.std() == pytest.approx(0.4, rel=0.05)


def test_no_cell_is_empty_though_most_draws_are() -> None:
    adata = simulate_branching(500, 20, library_size=0.5, noise="zinb", zero_inflation=0.5)
    assert (np.asarray(adata.X.sum(axis=1)) > 0).all()
    assert adata.uns["simulation"]["n_redrawn"] > 500
    assert simulate_branching(500, 20).uns["simulation"]["n_redrawn"] == 0


# The truth where there is no cell


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return simulate_branching(200, 100, n_branches=2, n_batches=2)


def test_true_scale_is_continuous_across_the_branch_point(adata: ad.AnnData) -> None:
    trunk = true_scale(adata, 0.4, "trunk")
    for branch in ("branch_1", "branch_2"):
        np.testing.assert_array_equal(true_scale(adata, 0.4, branch), trunk)
        after = true_scale(adata, 0.4 + np.array([1e-6, 2e-6]), branch)
        before = true_scale(adata, 0.4 - np.array([1e-6, 2e-6]), "trunk")
        np.testing.assert_allclose(after[0], trunk[0], rtol=1e-4)
        # No kink either: the slope is the same on both sides
        np.testing.assert_allclose((after[1] - after[0]) / 1e-6, (before[0] - before[1]) / 1e-6, atol=2e-5)


def test_branches_share_the_trunk_and_then_part(adata: ad.AnnData) -> None:
    early, late = np.linspace(0, 0.4, 9), np.array([1.0])
    np.testing.assert_array_equal(true_scale(adata, early, "branch_1"), true_scale(adata, early, "branch_2"))
    np.testing.assert_array_equal(true_scale(adata, early, "branch_1"), true_scale(adata, early, "trunk"))
    fold = np.log(true_scale(adata, late, "branch_1") / true_scale(adata, late, "branch_2"))[0]
    switch = (adata.var["kind"] == "switch").to_numpy()
    own = switch & (adata.var["driver"] == "branch_1").to_numpy()
    constant = (adata.var["kind"] == "constant").to_numpy()
    drift = np.median(fold[constant])
    np.testing.assert_allclose(fold[constant], drift, atol=1e-12)
    np.testing.assert_allclose(fold[own] - drift, adata.var["log_fold_change"][own], rtol=0.15)


def test_constant_genes_hardly_move() -> None:
    for seed in range(5):
        adata = simulate_branching(5, seed=seed)
        constant = (adata.var["kind"] == "constant").to_numpy()
        log = np.log(true_scale(adata, np.linspace(0, 1, 101), "branch_1")[:, constant])
        assert np.ptp(log, axis=0).max() < 0.3


def test_kinds_are_what_they_say(adata: ad.AnnData) -> None:
    log = np.log(true_scale(adata, np.linspace(0, 1, 401), "branch_1"))
    constant = (adata.var["kind"] == "constant").to_numpy()
    log -= log[:, constant][:, :1]  # without the drift of the total
    steps = np.diff(log, axis=0)
    for kind, driver, gene in zip(adata.var["kind"], adata.var["driver"], range(adata.n_vars), strict=True):
        rises, falls = (steps[:, gene] > 1e-9).any(), (steps[:, gene] < -1e-9).any()
        if kind == "constant" or driver == "branch_2":
            assert not rises
            assert not falls
        else:
            assert (rises and falls) == (kind == "transient")


def test_true_scale_is_the_formula_of_the_docstring(adata: ad.AnnData) -> None:
    t = 0.7
    s = (t - 0.4) / 0.6
    coordinate = {"none": 0.0, "pseudotime": t, "branch_1": 0.0, "branch_2": 1.25 * s**2 / (s + 0.25)}
    shape = {
        "constant": lambda x: 0.0,
        "switch": lambda x: 1 / (1 + np.exp(-x)),
        "transient": lambda x: np.exp(-x * x / 2),
    }
    expression = np.array(
        [
            np.exp(
                gene.log_base
                + gene.log_fold_change * shape[gene.kind]((coordinate[gene.driver] - gene.center) / gene.width)
            )
            for gene in adata.var.itertuples()
        ]
    )
    np.testing.assert_allclose(true_scale(adata, t, "branch_2")[0], expression / expression.sum(), rtol=1e-10)
    expression *= np.exp(adata.varm["batch_effect"][:, 0])
    truth = true_scale(adata, t, "branch_2", "batch_1")[0]
    np.testing.assert_allclose(truth, expression / expression.sum(), rtol=1e-10)


def test_latent_keeps_distances(adata: ad.AnnData) -> None:
    coordinates = adata.obsm["latent"] @ adata.uns["simulation"]["rotation"].T
    np.testing.assert_allclose(coordinates[:, 0], adata.obs["pseudotime"], atol=1e-12)
    on_first = (adata.obs["branch"] == "branch_1").to_numpy()
    assert (coordinates[on_first, 1] > 0).all()
    np.testing.assert_allclose(coordinates[~on_first, 1], 0, atol=1e-12)


def test_truth_survives_a_file(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    t = np.linspace(0, 1, 11)
    for batch in (None, "batch_2"):
        np.testing.assert_array_equal(true_scale(read, t, "branch_2", batch), true_scale(adata, t, "branch_2", batch))
    assert (read.X != adata.X).nnz == 0
    assert read.uns["simulation"]["seed"] == 0
    assert read.uns["simulation"]["noise"] == "nb"


def test_truth_of_a_subset_is_its_composition(adata: ad.AnnData) -> None:
    # Only branch_2's genes and one cell: every other category is gone after the copy.
    genes = np.flatnonzero(adata.var["driver"] == "branch_2")[::-1]
    part = adata[:1, genes].copy()
    whole = true_scale(adata, [0.1, 0.9], "branch_2", "batch_2")[:, genes]
    truth = true_scale(part, [0.1, 0.9], "branch_2", "batch_2")
    np.testing.assert_allclose(truth, whole / whole.sum(axis=1, keepdims=True), rtol=1e-12)


def test_true_scale_takes_one_or_many(adata: ad.AnnData) -> None:
    t, branches, batches = [0.1, 0.5, 0.9], ["trunk", "branch_2", "branch_1"], ["batch_1", "batch_2", "batch_1"]
    many = true_scale(adata, t, branches, batches)
    assert many.shape == (3, 100)
    assert many.dtype == np.float64
    np.testing.assert_allclose(many.sum(axis=1), 1)
    for row, one in zip(many, zip(t, branches, batches, strict=True), strict=True):
        np.testing.assert_array_equal(true_scale(adata, *one), row[None])


# Bad arguments


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_cells", 0),
        ("n_genes", 1),
        ("n_branches", 0),
        ("n_branches", "two"),
        ("n_batches", 0),
        ("n_batches", 1.5),
        ("n_latent", 2),
        ("seed", -1),
        ("library_size", 0.0),
        ("library_size", float("nan")),
        ("library_sd", -0.1),
        ("batch_sd", -0.1),
        ("inverse_dispersion", 0.0),
        ("zero_inflation", 1.0),
        ("noise", "gaussian"),
    ],
)
def test_simulation_refuses(argument: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{argument}: "):
        simulate_branching(**{argument: value})


def test_simulation_refuses_a_library_that_leaves_cells_empty() -> None:
    with pytest.raises(ConfigError, match=r"library_size: .* no count at all in 101 draws"):
        simulate_branching(20, 5, library_size=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.2, "branch_1"), ConfigError, "pseudotime: 1.2 came"),
        ((float("nan"), "branch_1"), ConfigError, "pseudotime: nan came"),
        (("late", "branch_1"), ConfigError, "pseudotime: 'late' came"),
        (([[0.1]], "branch_1"), ConfigError, "a vector of numbers in 0 to 1"),
        ((0.5, "branch_3"), ConfigError, "branch: 'branch_3' is not one of the 3"),
        ((0.5, "trunk"), ConfigError, "the trunk ends at 0.4"),
        (([0.1, 0.2, 0.3], ["trunk", "trunk"]), ConfigError, "branch: 2 names came"),
        ((0.5, "branch_1", "batch1"), ConditionError, "did you mean 'batch_1'"),
        (([0.1, 0.2, 0.3], "trunk", ["batch_1"] * 2), ConditionError, "batch: 2 names came"),
    ],
)
def test_true_scale_refuses(arguments: Any, error: type[Exception], message: str, adata: ad.AnnData) -> None:
    with pytest.raises(error, match=message):
        true_scale(adata, *arguments)


def test_true_scale_refuses_other_cells() -> None:
    with pytest.raises(InputError, match="give what simulate_branching returned"):
        true_scale(ad.AnnData(np.ones((2, 3))), 0.5, "trunk")
