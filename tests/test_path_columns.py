"""Paths of what is in an AnnData by name, beside the same from arrays; tables of points as pandas writes them."""

import numpy as np
import pandas as pd
import pytest
from small_models import make_adata, make_model

import scdecode as sd
from scdecode import Trajectory
from scdecode.errors import InputError, PointsError
from scdecode.tables import read_points_file

pytestmark = pytest.mark.filterwarnings("ignore:pseudotime.*fewer than:scdecode.errors.SupportWarning")


@pytest.fixture(scope="module")
def adata():
    adata = make_adata(200, 30)
    adata.obs["dpt_pseudotime"] = adata.obs["pseudotime"].to_numpy()
    adata.obs.loc[adata.obs_names[:4], "dpt_pseudotime"] = [np.inf, np.nan, np.inf, np.nan]
    adata.obs["stage"] = pd.Categorical(adata.obs["branch"].map({"trunk": 0, "branch_1": 1, "branch_2": 2}).astype(int))
    return adata


@pytest.fixture(scope="module")
def model(adata):
    return make_model(adata, epochs=1)


def check_same(one, other):
    np.testing.assert_allclose(one.points, other.points, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.time, other.time)
    np.testing.assert_allclose(one.spread, other.spread, rtol=1e-4, atol=1e-6)


def test_columns_of_a_pseudotime_and_of_lineages(model, adata):
    z, time = model.posterior(adata), adata.obs["dpt_pseudotime"]
    reached = np.isfinite(time.to_numpy())
    path = Trajectory.along_pseudotime(model, adata, "dpt_pseudotime", n_points=9)
    check_same(path, Trajectory.along_pseudotime(z, time, reached, n_points=9))
    assert (path.lineages, path.time_name) == (None, "dpt_pseudotime")
    weights = {name: reached & (adata.obs["branch"] == name).to_numpy() for name in adata.obs["branch"].cat.categories}
    expected = Trajectory.along_pseudotime(z, time, weights, n_points=9)
    for given in ("branch", adata.obs["branch"], adata.obs["branch"].astype(str), pd.DataFrame(weights)):
        for call in (
            lambda w: Trajectory.along_pseudotime(model, adata, "dpt_pseudotime", w, n_points=9),
            lambda w: Trajectory.along_pseudotime(model, adata, pseudotime="dpt_pseudotime", weights=w, n_points=9),
            lambda w: Trajectory.along_pseudotime(model=model, adata=adata, pseudotime=time, weights=w, n_points=9),
        ):
            found = call(given)
            assert set(found.lineages) == set(weights)
            check_same(found[list(weights)], expected)
    for name in weights:
        assert Trajectory.along_pseudotime(model, adata, "dpt_pseudotime", "stage", n_points=9).lineages == tuple("012")
        assert found[name].lineages == (name,)


def test_groups_of_cells_by_name(model, adata):
    places = [model.posterior(adata[(adata.obs["branch"] == name).to_numpy()]) for name in ("trunk", "branch_1")]
    expected = Trajectory.between(model, *places, 7, "linear")
    for found in (
        Trajectory.between(model, adata, "trunk", "branch_1", 7, "linear", key="branch"),
        Trajectory.between(model, adata, start="trunk", end="branch_1", key="branch", n_points=7),
        Trajectory.between(model, adata, 0, 1.0, key="stage", n_points=7),
        Trajectory.through(model, adata, ["trunk", "branch_1"], 7, key="branch"),
        Trajectory.through(model, adata, np.array(["trunk", "branch_1"]), n_points=7, key="branch"),
    ):
        check_same(found, expected)
    both = model.posterior(adata[(adata.obs["branch"] != "trunk").to_numpy()])
    union = Trajectory.between(model, adata, "trunk", ["branch_1", "branch_2"], key="branch", n_points=7)
    check_same(union, Trajectory.between(model, places[0], both, 7))
    cells = adata[:20].copy(), adata[20:40].copy()
    for part in cells:  # two AnnData with latents are places themselves
        part.obsm["X_scVI"] = model.get_latent_representation(part)
    assert len(Trajectory.between(model, *cells, 7)) == 7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, a: Trajectory.between(m, a, "trunk", "branch_1"), r"between\(model, adata, start, end, .*'key'"),
        (lambda m, a: Trajectory.between(m, a, "trunk", "brnch_1", key="branch"), "end: 'brnch_1' is not one of the 3"),
        (lambda m, a: Trajectory.between(m, a, "trunk", "branch_1", key="brunch"), "key: 'brunch' is not one of"),
        (lambda m, a: Trajectory.between(m, a, "trunk", [], key="branch"), "end: got no category"),
        (lambda m, a: Trajectory.between(m, a, "trunk", "trunk", key="branch"), "the same point"),
        (lambda m, a: Trajectory.between(m, a[:0].copy(), "trunk", "branch_1", key="branch"), "trunk"),
        (lambda m, a: Trajectory.through(m, a, "trunk", key="branch"), "waypoints: got 'trunk', a list of categories"),
        (lambda m, a: Trajectory.through(m, a, ["trunk"], key="branch"), "1 came, two or more"),
        (lambda m, a: Trajectory.along_pseudotime(m, a), r"along_pseudotime\(model, adata, pseudotime, weights=None"),
        (lambda m, a: Trajectory.along_pseudotime(m, a, "dpt_pseudotme"), "did you mean 'dpt_pseudotime'"),
        (lambda m, a: Trajectory.along_pseudotime(m, a, None), "pseudotime: got None"),
        (lambda m, a: Trajectory.along_pseudotime(m, a.obs["pseudotime"], "branch"), "adata: got Series"),
        (lambda m, a: Trajectory.along_pseudotime(m, a, a.obs["pseudotime"][::-1]), "another order"),
        (lambda m, a: Trajectory.along_pseudotime(m, a, "pseudotime", "brunch"), "weights: 'brunch' is not one of"),
        (lambda m, a: Trajectory.along_pseudotime(m, a, np.ones(3)), "got shape"),
        (
            lambda m, a: Trajectory.along_pseudotime(
                m, a, "pseudotime", {"few": np.arange(200) < 3, "all": np.ones(200)}
            ),
            "pseudotime of lineage 'few': 3 cells came",
        ),
        (
            lambda m, a: Trajectory.along_pseudotime(m.posterior(a), a.obs["pseudotime"], {"no": np.zeros(200)}),
            "weights of lineage 'no': all 200 are zero",
        ),
    ],
)
def test_what_names_cannot_be(model, adata, call, message):
    with pytest.raises(InputError, match=message):
        call(model, adata)


def test_refit_by_names(model, adata):
    paths = Trajectory.along_pseudotime(model, adata, "dpt_pseudotime", "branch", n_points=9)
    options = {"n_bins": 6, "n_courses": 3}
    found = sd.refit(model, paths["trunk"], adata, pseudotime="dpt_pseudotime", weights="branch", **options)
    inside = np.isfinite(adata.obs["dpt_pseudotime"].to_numpy()) & (adata.obs["branch"] == "trunk").to_numpy()
    expected = sd.refit(model, paths["trunk"], adata, pseudotime="pseudotime", weights=inside, **options)
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-5)
    assert {"counts", "misfit"} <= set(found.var)
    assert set(found.obs["lineage"]) == {"trunk"}
    with pytest.raises(InputError, match="numbers of clusters or weights"):
        sd.refit(model, paths["trunk"], adata, pseudotime="pseudotime", weights=adata.obs["stage"].astype(int))
    slashed = Trajectory.from_points(paths, lineages=paths.lineages)
    object.__setattr__(slashed, "lineages", ("a/b", "a_b", "c"))
    weights = {name: adata.obs["branch"] == old for name, old in zip(slashed.lineages, paths.lineages, strict=True)}
    both = sd.refit(model, slashed, adata, pseudotime="dpt_pseudotime", weights=weights, **options)
    assert {"counts_a_b", "counts_a_b_1", "counts_c"} <= set(both.var)


# -- tables of points


Z = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
CELLS = pd.Index([f"00{i}" for i in range(5)])
NAMED = pd.DataFrame(Z, columns=[f"latent_{i}" for i in range(4)])


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "TSV"])
@pytest.mark.parametrize(
    ("table", "options", "names"),
    [
        (pd.DataFrame(Z, index=CELLS), {}, CELLS),
        (pd.DataFrame(Z), {}, "01234"),
        (pd.DataFrame(Z, index=CELLS.rename("cell")), {}, CELLS),
        (pd.DataFrame(Z, index=CELLS.rename("0")), {}, CELLS),
        (pd.DataFrame(Z), {"index": False}, "01234"),
        (NAMED, {"index": False}, "01234"),
        (NAMED.set_axis(CELLS), {}, CELLS),
        (pd.DataFrame(Z, index=CELLS, columns=range(1, 5)), {}, CELLS),
        (pd.DataFrame(Z[:, :1], index=CELLS), {}, CELLS),
    ],
)
def test_tables_as_pandas_writes_them(tmp_path, ending, table, options, names):
    file = tmp_path / f"points.{ending}"
    table.to_csv(file, sep="," if "csv" in ending else "\t", **options)
    found = read_points_file(file)
    np.testing.assert_array_equal(found.to_numpy(dtype=np.float32), table.to_numpy())
    assert [str(name) for name in found.index] == list(names)


def test_tables_that_are_none(tmp_path):
    for name, options in (("a.csv", {}), ("b.csv", {"index": False}), ("c.csv.gz", {})):
        pd.DataFrame(Z, index=CELLS).to_csv(tmp_path / name, header=False, **options)
        with pytest.raises(PointsError, match="its first row is numbers"):
            read_points_file(tmp_path / name)
    (tmp_path / "d.csv.gz").write_bytes(b"\x1f\x8b no gzip")
    (tmp_path / "e.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    (tmp_path / "f.csv").write_text("")
    for name in "d.csv.gz", "e.csv", "f.csv":
        with pytest.raises(PointsError, match="holds no array of numbers"):
            read_points_file(tmp_path / name)
