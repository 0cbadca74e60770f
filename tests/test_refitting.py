"""Trends refitted to the counts of cells: against simulated truth, in every kind of model, and bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_models import EVERYTHING, make_model

import scdecode as sd
from scdecode.errors import ConfigError, CountsError, InputError, PointsError, SupportWarning
from scdecode.refitting import refit
from scdecode.simulation import true_scale

LINEAGES = ("branch_1", "branch_2")


def simulated(n_batches=1, noise="nb", **options):
    """600 cells x 120 genes, with a column of weights for each lineage."""
    adata = sd.datasets.simulate_branching(
        600, 120, n_batches=n_batches, noise=noise, library_size=400.0, truth_layers=False, **options
    )
    for name in LINEAGES:
        adata.obs[name] = adata.obs["branch"].isin(["trunk", name]).astype(float)
    return adata


def trained(adata, **options):
    return make_model(adata, epochs=60, train={"n_epochs_kl_warmup": 10}, n_hidden=64, n_latent=6, **options)


def along(model, adata, lineage="branch_1", n_points=31, **options):
    return sd.Trajectory.along_pseudotime(
        model.posterior(adata), adata.obs["pseudotime"], adata.obs[lineage], n_points=n_points, **options
    )


@pytest.fixture(scope="module")
def cells():
    return simulated()


@pytest.fixture(scope="module")
def trained_model(cells):
    return trained(cells)


@pytest.fixture(scope="module")
def path(trained_model, cells):
    return along(trained_model, cells)


@pytest.fixture(scope="module")
def refitted(trained_model, path):
    return refit(trained_model, path, pseudotime="pseudotime", weights="branch_1")


def errors(refitted, adata, lineage="branch_1", batches=None):
    """RMSE of log1p per ten thousand of the refitted and the decoded trends, and the coverage of the band."""
    time = np.clip(refitted.obs["time"].to_numpy(), 0, 1)
    truth = true_scale(adata, time, lineage)
    if batches is not None:  # the trend is that of the average cell, over batches
        truth = sum(share * true_scale(adata, time, lineage, name) for name, share in batches.items())
    truth = truth * (1 - adata.var["zero_inflation"].to_numpy())  # of observed counts, what is lost is no part
    truth *= 1e4 / truth.sum(axis=1, keepdims=True)
    rmse = [
        float(np.sqrt(np.mean((np.log1p(x) - np.log1p(truth)) ** 2))) for x in (refitted.X, refitted.layers["decoded"])
    ]
    inside = (truth >= refitted.layers["q05"]) & (truth <= refitted.layers["q95"])
    return (*rmse, float(inside.mean()))


def test_it_is_nearer_to_the_truth_and_the_band_covers_it(refitted, cells):
    rmse, before, coverage = errors(refitted, cells)
    print(f"refitted {rmse:.4f}, decoded {before:.4f}, coverage {coverage:.3f}")
    assert rmse < 0.8 * before
    assert 0.8 < coverage < 0.97


@pytest.mark.parametrize(("noise", "likelihood"), [("poisson", "poisson"), ("zinb", "zinb"), ("nb", "nb")])
def test_likelihoods_and_batches(noise, likelihood):
    adata = simulated(n_batches=3, noise=noise)
    model = trained(adata, gene_likelihood=likelihood)
    found = refit(model, along(model, adata), pseudotime="pseudotime", weights="branch_1", quantity="mean")
    batches = adata.obs["batch"].value_counts(normalize=True).to_dict()
    rmse, before, coverage = errors(found, adata, batches=batches)
    print(f"{noise}: refitted {rmse:.4f}, decoded {before:.4f}, coverage {coverage:.3f}")
    assert rmse < 0.9 * before
    assert 0.8 < coverage < 0.97
    assert found.uns["scdecode"]["refit"]["path"]["combinations"] == 3


def test_the_result(trained_model, path, refitted, cells, tmp_path):
    decoded = trained_model.decode(path)
    assert refitted.shape == decoded.shape
    assert set(refitted.layers) == {"std", "q05", "q95", "decoded"}
    np.testing.assert_allclose(refitted.layers["decoded"], decoded.X, rtol=1e-4)
    pd.testing.assert_frame_equal(refitted.obs, decoded.obs)
    assert (refitted.layers["q05"] < refitted.X).all()
    assert (refitted.layers["q95"] > refitted.X).all()
    on = (cells.obs["branch_1"] > 0).to_numpy()
    np.testing.assert_allclose(refitted.var["counts"], np.asarray(cells.X[on].sum(axis=0)).ravel())
    assert 0.7 < refitted.var["misfit"].median() < 1.3
    assert refitted.uns["scdecode"]["band"] == "90 % of the trend"
    done = refitted.uns["scdecode"]["refit"]["path"]
    assert done["cells"] == on.sum()
    assert done["bins"] == 40
    assert done["components_share"].sum() == pytest.approx(1, abs=1e-4)
    refitted.write_h5ad(tmp_path / "refitted.h5ad")
    table = sd.dynamics.trend_table(refitted, ["gene_1"]) if "gene_1" in refitted.var_names else None
    assert table is None or {"mean", "q05", "q95"} <= set(table)


def test_counts_add_up(trained_model, path, cells, refitted):
    """What the trend expects of all cells on it is what was counted: the means are not biased as modes would be."""
    on = (cells.obs["branch_1"] > 0).to_numpy()
    library = np.asarray(cells.X[on].sum(axis=1)).ravel()
    time = cells.obs["pseudotime"].to_numpy()[on]
    expected = np.array([library @ np.interp(time, path.time, refitted.X[:, g]) / 1e4 for g in range(120)])
    counted = np.asarray(cells.X[on].sum(axis=0)).ravel()
    assert expected.sum() == pytest.approx(counted.sum(), rel=0.01)
    many = counted > 200
    np.testing.assert_allclose(expected[many], counted[many], rtol=0.1)


def test_quantities_libraries_and_genes(trained_model, path, refitted, cells):
    how = {"pseudotime": "pseudotime", "weights": "branch_1"}
    names = list(cells.var_names[[7, 3]])
    rate = refit(trained_model, path, **how, genes=names, library_size=2e3)
    assert list(rate.var_names) == names
    np.testing.assert_allclose(rate.X, refitted[:, names].X / 5, rtol=1e-5)
    np.testing.assert_allclose(rate.layers["q95"], refitted[:, names].layers["q95"] / 5, rtol=1e-5)
    scale = refit(trained_model, path, **how, genes=names, quantity="scale")
    np.testing.assert_allclose(scale.X, refitted[:, names].X / 1e4, rtol=1e-5)
    each = np.linspace(1e3, 2e3, len(path))
    np.testing.assert_allclose(
        refit(trained_model, path, **how, genes=names, library_size=each).X, scale.X * each[:, None], rtol=1e-5
    )


def test_genes_in_pieces(trained_model, path, refitted, monkeypatch):
    monkeypatch.setattr("scdecode.refitting.learning._AT_ONCE", 1)
    monkeypatch.setattr("scdecode.refitting.pooling._PIECE", 100)
    found = refit(trained_model, path, pseudotime="pseudotime", weights="branch_1")
    for layer in ("q05", "q95"):
        np.testing.assert_allclose(found.layers[layer], refitted.layers[layer], rtol=1e-3)
    np.testing.assert_allclose(found.X, refitted.X, rtol=1e-3)


def test_order_and_form_of_the_cells_do_not_matter(trained_model, path, cells, refitted):
    shuffled = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    found = refit(trained_model, path, shuffled, pseudotime="pseudotime", weights=shuffled.obs["branch_1"] * 0.7)
    np.testing.assert_allclose(found.X, refitted.X, rtol=1e-4)
    np.testing.assert_allclose(found.layers["q05"], refitted.layers["q05"], rtol=1e-4)
    found = refit(
        trained_model, path, pseudotime=list(cells.obs["pseudotime"]), weights=cells.obs["branch_1"].to_numpy() > 0
    )
    np.testing.assert_array_equal(found.X, refitted.X)


def test_cells_of_no_weight_do_not_count(trained_model, path, cells, refitted):
    only = cells[(cells.obs["branch_1"] > 0).to_numpy()].copy()
    found = refit(trained_model, path, only, pseudotime="pseudotime")
    np.testing.assert_allclose(found.X, refitted.X, rtol=1e-5)
    times = cells.obs["pseudotime"].where(cells.obs["branch_1"] > 0)  # NaN elsewhere
    found = refit(trained_model, path, pseudotime=times, weights="branch_1")
    np.testing.assert_array_equal(found.X, refitted.X)


def test_half_the_cells_have_a_wider_band(trained_model, path, cells, refitted):
    half = cells.obs["branch_1"].to_numpy() * (np.arange(cells.n_obs) % 2)
    found = refit(trained_model, path, pseudotime="pseudotime", weights=half)
    relative = [(one.layers["std"] / one.X).mean() for one in (found, refitted)]
    assert 1.1 < relative[0] / relative[1] < 1.7
    fraction = np.where(np.arange(cells.n_obs) % 5 == 0, 1.0, 0.375) * cells.obs["branch_1"].to_numpy()
    found = refit(trained_model, path, pseudotime="pseudotime", weights=fraction)  # half the cells, too
    assert 1.1 < (found.layers["std"] / found.X).mean() / relative[1] < 1.7


def test_where_there_are_no_cells_the_band_is_wide(trained_model, path, cells, refitted):
    early = cells.obs["branch_1"] * (cells.obs["pseudotime"] < 0.6)
    found = refit(trained_model, path, pseudotime="pseudotime", weights=early)
    relative = found.layers["std"] / found.X
    changing = np.flatnonzero((cells.var["kind"] == "switch").to_numpy() & (refitted.var["counts"] > 300).to_numpy())
    assert relative[-1, changing].mean() > 1.5 * relative[10, changing].mean()
    assert relative[-1, changing].mean() > 1.5 * (refitted.layers["std"] / refitted.X)[-1, changing].mean()


def test_several_lineages(trained_model, cells, refitted):
    both = sd.Trajectory.along_pseudotime(
        trained_model.posterior(cells), cells.obs["pseudotime"], cells.obs[list(LINEAGES)], n_points=31
    )
    found = refit(trained_model, both, pseudotime="pseudotime", weights=cells.obs[list(LINEAGES)])
    assert list(found.obs["lineage"].unique()) == list(LINEAGES)
    first = refit(trained_model, both["branch_1"], pseudotime="pseudotime", weights="branch_1")
    np.testing.assert_allclose(found[found.obs["lineage"] == "branch_1"].X, first.X, rtol=1e-4)
    assert {"counts_branch_1", "counts_branch_2", "misfit_branch_1", "misfit_branch_2"} <= set(found.var)
    assert set(found.uns["scdecode"]["refit"]) == set(LINEAGES)
    with pytest.raises(InputError, match=r"weights: none came, and the path has lineages.*path\['branch_1'\]"):
        refit(trained_model, both, pseudotime="pseudotime")
    with pytest.raises(InputError, match=r"weights: lineages \['a', 'b'\] came"):
        refit(trained_model, both, pseudotime="pseudotime", weights=pd.DataFrame(np.ones((600, 2)), columns=["a", "b"]))
    with pytest.raises(InputError, match="for a path that is one"):
        refit(trained_model, both["branch_1"], pseudotime="pseudotime", weights=cells.obs[list(LINEAGES)].to_numpy())


SETUPS = {
    "everything": {"setup": EVERYTHING, "gene_likelihood": "zinb"},
    "gene-batch": {"dispersion": "gene-batch"},
    "gene-label": {"setup": {"batch_key": "batch", "labels_key": "cell_type"}, "dispersion": "gene-label"},
    "gene-cell": {"dispersion": "gene-cell", "gene_likelihood": "zinb"},
    "size factor": {"setup": {"size_factor_key": "size_factor", "batch_key": "batch"}},
    "learned library": {"use_observed_lib_size": False},
    "simplex": {"latent_distribution": "ln"},
}


@pytest.mark.parametrize("kind", SETUPS)
def test_every_kind_of_model(kind, adata):
    model = make_model(adata, **SETUPS[kind])
    latent = model.get_latent_representation(adata)
    path = sd.Trajectory.from_points(
        latent[np.argsort(adata.obs["pseudotime"].to_numpy())[::30]], np.linspace(0, 1, 10)
    )
    path = replace(path, spread=None if kind == "simplex" else np.broadcast_to(0.1 * np.eye(4, dtype="f4"), (10, 4, 4)))
    found = refit(model, path, pseudotime="pseudotime", library_size=1e4 if kind != "size factor" else None)
    for name in ("std", "q05", "q95"):
        assert np.isfinite(found.layers[name]).all()
    library = adata.obs["size_factor"] if kind == "size factor" else adata.X.sum(axis=1)
    if kind == "learned library":
        library = model.get_latent_library_size(adata)
    unit = 1e4 if kind != "size factor" else float(np.median(adata.obs["size_factor"]))
    if kind not in ("everything", "gene-cell"):  # those lose counts to zero inflation
        expected = found.X.mean(axis=0) * float(np.sum(library)) / unit
        np.testing.assert_allclose(expected.sum(), adata.X.sum(), rtol=0.1)


def test_conditions_of_the_trend(adata):
    model = make_model(adata, epochs=20)
    path = sd.Trajectory.along_pseudotime(model.posterior(adata), adata.obs["pseudotime"], n_points=12)
    each = {name: refit(model, path, pseudotime="pseudotime", batch=name) for name in ("batch_1", "batch_2")}
    ratio = np.log(each["batch_1"].X / each["batch_2"].X).mean(axis=0)
    effect = adata.varm["batch_effect"][:, 0] - adata.varm["batch_effect"][:, 1]
    many = each["batch_1"].var["counts"].to_numpy() > 1000
    assert np.corrcoef(ratio[many], effect[many])[0, 1] > 0.8
    # conditions of each point; the path's own
    names = np.array(["batch_1"] * 6 + ["batch_2"] * 6)
    changing = refit(model, path, pseudotime="pseudotime", batch=names)
    np.testing.assert_allclose(changing.X[:6], each["batch_1"].X[:6], rtol=1e-4)
    np.testing.assert_allclose(changing.X[6:], each["batch_2"].X[6:], rtol=1e-4)
    own = refit(model, replace(path, conditions={"batch": "batch_2"}), pseudotime="pseudotime")
    np.testing.assert_array_equal(own.X, each["batch_2"].X)
    # a batch without cells
    two = adata[(adata.obs["batch"] != "batch_3").to_numpy()].copy()
    known, unknown = (refit(model, path, two, pseudotime="pseudotime", batch=name) for name in ("batch_1", "batch_3"))
    assert (unknown.layers["std"] / unknown.X).mean() > (known.layers["std"] / known.X).mean()


def test_bad_input(trained_model, path, cells):
    good = {"pseudotime": "pseudotime", "weights": "branch_1"}
    ones = np.ones(cells.n_obs)
    for change, kind, message in (
        ({"pseudotime": "dpt"}, InputError, "'dpt' is not one of the"),
        ({"pseudotime": ones[:-1]}, InputError, r"shape \(599,\) came, one number a cell, \(600,\)"),
        ({"pseudotime": None}, InputError, "pseudotime: None came"),
        ({"pseudotime": ["a"] * 600}, InputError, "no numbers"),
        ({"pseudotime": cells.obs["pseudotime"][::-1]}, InputError, "order"),
        ({"pseudotime": ones * np.nan}, InputError, "cells with weight have none"),
        ({"pseudotime": 100 * cells.obs["pseudotime"]}, PointsError, r"before or after the path, whose time \(pseudo"),
        ({"weights": -ones}, InputError, "weights: negative"),
        ({"weights": 0 * ones}, InputError, "none of 600 cells has weight"),
        ({"quantity": "counts"}, InputError, "'counts' came, one of"),
        ({"genes": ["nobody"]}, InputError, "'nobody' is not one of"),
        ({"n_bins": 1}, ConfigError, "n_bins: 1 came"),
        ({"n_courses": 0}, ConfigError, "n_courses: 0 came"),
    ):
        with pytest.raises(kind, match=message):
            refit(trained_model, path, **{**good, **change})
    with pytest.raises(CountsError, match="missing"):
        refit(trained_model, path, cells[:, 5:].copy(), **good)
    with pytest.raises(PointsError, match="without a time"):
        refit(trained_model, path.points, **good)
    share = sd.Trajectory.from_points(path.points, spread=path.spread)
    with pytest.raises(PointsError, match="share of its length"):
        refit(trained_model, share, pseudotime=10 + cells.obs["pseudotime"])
    short = replace(path, points=path.points[:25], time=path.time[:25], spread=path.spread[:25])
    with pytest.warns(SupportWarning, match="are left out"):
        found = refit(trained_model, short, **good)
    assert found.n_obs == 25


def test_a_model_of_no_counts(adata):
    model = make_model(adata, gene_likelihood="normal", epochs=1)
    path = sd.Trajectory.from_points(np.eye(4)[:3], np.arange(3.0), spread=False)
    with pytest.raises(InputError, match="'normal' came, which is not one of counts"):
        refit(model, path, pseudotime="pseudotime")


def test_cells_without_a_condition(full_model, adata):
    path = sd.Trajectory.from_points(full_model.reference_latents()[:3], np.arange(3.0) / 2, spread=False)
    del adata.obs["age"]
    with pytest.raises(InputError, match="'age' is not one of"):
        refit(full_model, path, adata, pseudotime="pseudotime")
