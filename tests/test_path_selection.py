"""Lineages and points selected from paths, paths in files and in tables, results of paths joined."""

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_models import make_adata, make_model

import scdecode as sd
from scdecode import Trajectory
from scdecode.errors import FormatError, InputError, NewerFormatError, OutputError, PointsError, ScdecodeError
from scdecode.formats import path_files

L, N, K = 3, 9, 4
NAMES = ("Ery", "a/b", "2")


@pytest.fixture(scope="module")
def adata():
    return make_adata(200, 30)


@pytest.fixture(scope="module")
def model(adata):
    return make_model(adata, epochs=1)


@pytest.fixture
def paths():
    z = np.random.default_rng(0).normal(size=(L, N, K))
    return Trajectory.from_points(
        z,
        np.arange(N * 1.0),
        spread=np.broadcast_to(0.1 * np.eye(K), (L, N, K, K)),
        lineages=NAMES,
        batch=np.array([["b1"] * 4 + ["b2"] * 5] * L),
        continuous={"age": np.arange(L * N * 1.0).reshape(L, N), "pct": 0.5},
        categorical={"sex": ["f", "m"], "chem": {"v1": 0.25, "v2": 0.75}},
        library_size=1e3,
    )


def check_same(one, other):
    np.testing.assert_array_equal(one.points, other.points)
    np.testing.assert_array_equal(one.time, other.time)
    assert (one.spread is None) == (other.spread is None)
    if one.spread is not None:
        np.testing.assert_array_equal(one.spread, other.spread)
    assert (one.lineages, one.time_name, one.origin) == (other.lineages, other.time_name, other.origin)
    assert one.points.dtype == other.points.dtype == np.float32
    for mine, theirs in ((one.conditions, other.conditions), (one.report, other.report)):
        assert path_files._to_json("", mine) == path_files._to_json("", theirs)


# -- selecting


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        (slice(2, 7), [2, 3, 4, 5, 6]),
        (slice(None, None, 3), [0, 3, 6]),
        (np.arange(N) > 5, [6, 7, 8]),
        (pd.Series(np.arange(N) < 3), [0, 1, 2]),
        ([0, 4, -1], [0, 4, 8]),
        (np.array([1, 2], dtype=np.uint8), [1, 2]),
    ],
)
def test_points_of_a_path(paths, key, rows):
    for name, found in (("Ery", paths["Ery"][key]), ("a/b", paths["a/b", key])):
        i = NAMES.index(name)
        np.testing.assert_array_equal(found.points, paths.points[i, rows])
        np.testing.assert_array_equal(found.time, rows)
        np.testing.assert_array_equal(found.spread, paths.spread[i, rows])
        assert found.lineages == (name,)
        assert found.conditions["batch"].tolist() == np.array(["b1"] * 4 + ["b2"] * 5)[rows].tolist()
        assert found.conditions["continuous"]["age"].tolist() == [i * N + row for row in rows]
        assert found.conditions["continuous"]["pct"] == 0.5
        assert found.origin.endswith(f"{len(rows)} of {N} points")
    every = paths[:, key]
    assert every.lineages == NAMES
    np.testing.assert_array_equal(every.points, paths.points[:, rows])
    np.testing.assert_array_equal(every.conditions["continuous"]["age"], np.arange(L * N).reshape(L, N)[:, rows])


def test_some_of_several_lineages(paths):
    for key, names in (
        (["2", "Ery"], ("2", "Ery")),
        (slice(1, None), NAMES[1:]),
        (np.array([True, False, True]), ("Ery", "2")),
        ([0, 1], NAMES[:2]),
        (["a/b"], ("a/b",)),
    ):
        found = paths[key]
        assert found.lineages == names
        assert found.is_several
        at = [NAMES.index(name) for name in names]
        np.testing.assert_array_equal(found.points, paths.points[at])
        np.testing.assert_array_equal(found.conditions["continuous"]["age"][:, 0], [i * N for i in at])
    assert len(paths) == L * N
    assert len(paths["Ery"]) == N
    assert [one.lineages for one in paths] == [(name,) for name in NAMES]
    assert "a/b" in paths
    assert "b" not in paths
    check_same(paths["Ery"]["Ery"], paths["Ery"])  # a single path by its own name


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (slice(3, 4), r"path\[...\]: 1 of 9 points are left, two or more were expected"),
        (slice(None, None, -1), "points in another order or twice"),
        ([3, 3, 4], "points in another order or twice"),
        (4, "this is a single path; its points are"),
        (np.ones(5, dtype=bool), "got a mask of 5 for 9 points"),
        ([0, 9], "got positions up to 9 for 9 points"),
        (np.ones((2, 2), dtype=bool), "a slice, a mask or positions were expected"),
        (2.5, "a slice, a mask or positions were expected"),
        (None, "a slice, a mask or positions were expected"),
        ("Mono", "got 'Mono', but this is a single path, 'Ery'"),
        ((slice(0, 3), slice(0, 3)), "got 2 parts"),
        (slice(0.5, 2.0), r"expected a slice of whole numbers.*path.time >= first"),
        (slice(None, None, 0), "slice step cannot be zero"),
    ],
)
def test_points_that_are_no_path(paths, key, message):
    with pytest.raises(InputError, match=message):
        paths["Ery"][key]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (7, "got 7, but there are 3"),
        (["Ery", "Mono"], "lineage: 'Mono' is not one of the 3 lineages"),
        (["Ery", "Ery"], "a name each was expected"),
        (np.arange(N) > 3, r"got a mask of 9 for 3 lineages; of the points of each: path\[:, 10:50\]"),
        ([], "a slice, a mask or positions were expected"),
        (slice(5, 9), "no lineage is left"),
        (slice("Ery", "DC"), "expected a slice of whole numbers"),
        (("Ery", slice(0, 3), 1), "got 3 parts"),
    ],
)
def test_lineages_that_are_not_there(paths, key, message):
    with pytest.raises(InputError, match=message):
        paths[key]


def test_numbers_beside_names_that_are_numbers():
    z = np.random.default_rng(0).normal(size=(2, N, K))
    numbered = Trajectory.from_points(z, lineages=["1", "2"])
    np.testing.assert_array_equal(numbered["1"].points, z[0].astype(np.float32))
    np.testing.assert_array_equal(numbered[0].points, numbered["1"].points)  # no lineage is called 0
    with pytest.raises(InputError, match=r"got 1, which is the number of lineage '2' and the name of another; .*path"):
        numbered[1]


# -- files


def test_a_saved_path_is_the_same(paths, model, adata, tmp_path):
    bare = Trajectory.from_points(np.eye(K)[:3] * 1.0)
    cells = Trajectory.along_pseudotime(model, adata, "pseudotime", n_points=12, batch="batch_1")
    for i, path in enumerate((paths, paths["a/b", 2:6], bare, cells, Trajectory.from_points(paths.points, spread=0.5))):
        file = tmp_path / f"{i}.safetensors"
        assert path.save(file) is None
        check_same(Trajectory.load(file), path)
        assert isinstance(Trajectory.load(str(file)), Trajectory)
    again = Trajectory.load(tmp_path / "3.safetensors")
    np.testing.assert_array_equal(model.decode(again).X, model.decode(cells).X)


def test_a_file_that_is_there_stays(paths, tmp_path):
    file = tmp_path / "path.safetensors"
    paths.save(file)
    before = file.read_bytes()
    with pytest.raises(OutputError, match="overwrite"):
        paths["Ery"].save(file)
    assert file.read_bytes() == before
    paths["Ery"].save(file, overwrite=True)
    assert Trajectory.load(file).lineages == ("Ery",)
    assert [one.name for one in tmp_path.iterdir()] == ["path.safetensors"]


def test_what_a_file_of_a_path_cannot_be(paths, tmp_path):
    for name in ("path.npy", "path", "path.pkl"):
        for act in (paths.save, Trajectory.load):
            with pytest.raises(InputError, match=r"ends in \.safetensors"):
                act(tmp_path / name)
    with pytest.raises(InputError, match="there is no such file"):
        Trajectory.load(tmp_path / "none.safetensors")
    odd = Trajectory.from_points(paths.points, library_size=1.0)
    object.__setattr__(odd, "conditions", {"batch": object()})
    with pytest.raises(InputError, match="conditions"):
        odd.save(tmp_path / "odd.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_says_so(paths, tmp_path):
    file = tmp_path / "path.safetensors"
    paths.save(file)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in [0, 7, 8, 9, 40, 200, len(whole) - 1, *rng.integers(0, len(whole), 60)]:
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            file.write_bytes(damaged)
            with pytest.raises(FormatError):
                Trajectory.load(file)
    for size in (0, 4, 8, 100, len(whole) - 5):
        file.write_bytes(whole[:size])
        with pytest.raises(FormatError, match="truncated or edited"):
            Trajectory.load(file)


def test_files_of_others_and_of_later_versions(paths, tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    file = tmp_path / "path.safetensors"
    save_file({"points": np.zeros((2, 3), dtype=np.float32)}, file)
    with pytest.raises(FormatError, match="no path of scdecode"):
        Trajectory.load(file)
    monkeypatch.setattr(path_files, "FORMAT_VERSION", 2)
    paths.save(file, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(NewerFormatError, match="format version is 2"):
        Trajectory.load(file)
    arrays = {"points": paths.points, "time": paths.time[:, ::-1].copy()}  # falling
    text = json.dumps({"format": "scdecode path", "format_version": 1, "version": "1", "lineages": list(NAMES)})
    save_file(arrays, file, {"scdecode": text, "sha256": path_files._digest(text, arrays)})
    with pytest.raises(FormatError, match="missing or of the wrong kind"):
        Trajectory.load(file)


# -- tables


def test_a_table_of_points(paths):
    table = paths.to_df()
    assert list(table) == [
        *("lineage", "time", "batch", "age", "pct", "sex", "chem", "library_size"),
        *(f"latent_{i}" for i in range(K)),
    ]
    assert len(table) == L * N
    np.testing.assert_array_equal(table[[f"latent_{i}" for i in range(K)]], paths.points.reshape(-1, K))
    assert table["lineage"].tolist() == np.repeat(NAMES, N).tolist()
    assert table["age"].tolist() == list(range(L * N))
    assert set(table["sex"]) == set(table["chem"]) == {"average"}
    assert set(table["library_size"]) == {1e3}
    one = paths["2"][:2].to_df()
    assert one["batch"].tolist() == ["b1", "b1"]
    bare = Trajectory.from_points(np.eye(K)[:2], continuous={"time": 3.0}).to_df()
    assert list(bare)[:2] == ["time", "condition_time"]


# -- joined results


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_decoded_paths_and_cells_are_joined(model, adata, tmp_path, join):
    path = Trajectory.along_pseudotime(model, adata, "pseudotime", n_points=6)
    results = [
        model.decode(path, n_samples=8),
        model.decode(path[1:4], n_samples=8),
        model.decode(model.posterior(adata[:5]), n_samples=8),
        model.decode(model.get_latent_representation(adata[:4])),
    ]
    assert all(np.ndim(value) == 2 for result in results for value in result.obsm.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joined = ad.concat(results, join=join, index_unique="-", label="what")
    assert joined.shape == (18, 30)
    np.testing.assert_array_equal(joined.X, np.concatenate([result.X for result in results]))
    np.testing.assert_array_equal(joined.obsm["latent"][:6], path.points)
    layers = {"std", "q05", "q95", "std_counts"} if join == "outer" else set()
    assert set(joined.layers) == layers
    assert set(joined.obsm) == ({"latent", "latent_covariance", "latent_spread"} if join == "outer" else {"latent"})
    if join == "outer":
        np.testing.assert_array_equal(joined.obsm["latent_covariance"][:6].reshape(6, K, K), path.spread)
        assert np.isnan(joined.obsm["latent_covariance"][9:]).all()
        np.testing.assert_array_equal(joined.layers["std"][:6], results[0].layers["std"])
    joined.write_h5ad(tmp_path / "joined.h5ad")
    with pytest.raises(ScdecodeError, match="uns"):
        sd.decode_arguments(joined)
    same = ad.concat(results[:2], join=join, index_unique="-", uns_merge="same")
    with pytest.raises(ScdecodeError, match="several results"):
        sd.decode_arguments(same)


def test_arguments_of_new_and_old_results(model, adata):
    path = Trajectory.along_pseudotime(model, adata, "pseudotime", n_points=6)
    for points in (path, model.posterior(adata[:6])):
        result = model.decode(points, n_samples=8)
        np.testing.assert_array_equal(model.decode(**sd.decode_arguments(result)).X, result.X)
    old = model.decode(path, n_samples=8)
    covariance = old.obsm["latent_covariance"].reshape(6, K, K)
    del old.obsm["latent_covariance"]
    old.obsm["latent_spread"] = covariance  # as results of before have it
    for name in ("row_columns", "row_digests"):
        del old.uns["scdecode"][name]
    np.testing.assert_array_equal(model.decode(**sd.decode_arguments(old)).X, old.X)


def test_the_name_of_a_single_lineage_stays(model, adata):
    cells = adata.copy()
    cells.obs["Ery"] = cells.obs["branch"] != "branch_2"
    for path in (
        Trajectory.from_lineages(model, cells, pseudotime="pseudotime", weights="Ery", n_points=8),
        Trajectory.along_pseudotime(model, cells, "pseudotime", "Ery", n_points=8),
        next(iter(Trajectory.from_points(model.get_latent_representation(adata[:4])[None], lineages=["Ery"]))),
    ):
        assert path.points.ndim == 2
        assert path.lineages == ("Ery",)
        expression = model.decode(path)
        assert expression.obs["lineage"].tolist() == ["Ery"] * len(path)
        assert sd.decode_arguments(expression)["points"].lineages == ("Ery",)
        assert Trajectory.from_points(path).lineages == ("Ery",)
    assert set(sd.dynamics.gene_dynamics(model, path)["lineage"]) == {"Ery"}
    with pytest.raises(PointsError, match="has one name"):
        Trajectory.from_points(np.eye(K)[:3], lineages=["Ery", "Mono"])
