"""What paths are made of, in the forms that people have it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from torch.distributions import Independent, MultivariateNormal, Normal

from scdecode.errors import ConditionError, InputError, PointsError
from scdecode.path_inputs import (
    CONDITIONS,
    by_lineage,
    lineage_names,
    read_conditions,
    read_ordered,
    values_of,
    variances_of,
    width_of,
)
from scdecode.path_parts import check_waypoints, covariances_of, read_parts, read_paths, read_times
from scdecode.trajectory import Trajectory

K, N, L = 3, 5, 2
Z = np.random.default_rng(0).normal(size=(L, N, K)).astype(np.float32)


def read(points, spread=None, lineages=None, n_latent=None):
    return read_paths(points, n_latent, spread, lineages, simplex=False)


# -- points


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        np.float64,
        torch.tensor,
        np.ndarray.tolist,
        pd.DataFrame,
        lambda z: Independent(Normal(torch.tensor(z), 0.5), 1),
    ],
)
@pytest.mark.parametrize("n_latent", [None, K])
def test_one_path(form, n_latent):
    z, _, lineages = read(form(Z[0]), n_latent=n_latent, spread=False)
    np.testing.assert_array_equal(z, Z[0])
    assert z.dtype == np.float32
    assert lineages is None


def test_several_paths():
    z, around, lineages = read(Z)
    np.testing.assert_array_equal(z, Z)
    assert around is None
    assert lineages == ("path_1", "path_2")
    assert read(Z, lineages=["a", 2])[2] == ("a", "2")
    z, _, lineages = read({"left": Z[1], "right": Z[0].tolist()})
    np.testing.assert_array_equal(z, Z[::-1])
    assert lineages == ("left", "right")
    z, _, lineages = read({"left": Z[1], "right": Z[0]}, lineages=["right", "left"])
    np.testing.assert_array_equal(z, Z)
    assert lineages == ("right", "left")


def test_paths_by_name_are_chosen_by_name():
    paths = {"left": Z[0], 2: torch.tensor(Z[1], requires_grad=True)}
    z, _, lineages = read(paths, lineages=[2])
    np.testing.assert_array_equal(z, Z[1:])
    assert lineages == ("2",)
    around = Normal(torch.tensor(Z[0]), 0.5)
    z, spread, _ = read({"a": around, "b": Normal(torch.tensor(Z[1]), 1.0)})
    np.testing.assert_array_equal(z, Z)
    np.testing.assert_allclose(spread[:, 0, 0, 0], [0.25, 1])
    assert read({"a": around}, spread=False)[1] is None
    for points, names, message in (
        (paths, ["middle"], "lineages: 'middle' is not one of the 2 names of the paths"),
        (paths, ["left", "left"], "has a name twice"),
        (paths, "left", "lineages: 'left' came, a list of names"),
        (Z, "ab", "lineages: 'ab' came, a list of names"),
        (Z, 5, "lineages: 5 came, a list of names"),
        ({"a": around, "b": Z[1]}, None, "some paths have a spread of their own"),
        ({"a": Trajectory.from_points(Z[0])}, None, r"a mapping with trajectories came.*path\.points"),
        ({"a": 3.0}, None, r"points: 3\.0 came"),
    ):
        with pytest.raises(PointsError, match=message):
            read(points, lineages=names)


def test_width():
    for points in (Z, Z.tolist(), torch.tensor(Z), Trajectory.from_points(Z[0]), Normal(torch.tensor(Z), 1.0)):
        assert width_of(points) == K
    for odd in (3.0, None, "x", {"a": 1}, [[1.0], [1.0, 2.0]]):
        with pytest.raises(PointsError, match="points: "):
            width_of(odd)


def test_places_and_spreads():
    places, names = check_waypoints((Z[0], Z[1]))
    assert len(places) == 2
    assert names == ["start", "end"]
    assert check_waypoints(Z[0])[1][-1] == "waypoint 4"
    with pytest.raises(PointsError, match=r"spread: got 0.5 \(float\), expected True or False"):
        Trajectory.along_pseudotime(Z[0], np.arange(N), spread=0.5)


def test_a_path_is_a_copy():
    points = Z.copy()
    z, _, _ = read(points)
    z[:] = 0
    np.testing.assert_array_equal(points, Z)


@pytest.mark.parametrize("points", [Z[0], Z])
def test_spread_in_every_form(points):
    shape = points.shape
    eye = np.eye(K)
    for spread, expected in (
        (0.5, 0.25 * eye),
        (np.full(shape, 0.5), 0.25 * eye),
        (np.arange(1.0, K + 1) * np.ones(shape), np.diag([1.0, 4, 9])),
        (eye + 0.5, eye + 0.5),
        (np.broadcast_to(eye + 0.5, (*shape, K)), eye + 0.5),
    ):
        _, around, _ = read(points, spread)
        np.testing.assert_allclose(around, np.broadcast_to(expected, (*shape, K)), rtol=1e-6)
    assert read(points, False)[1] is None
    assert read(points)[1] is None


def test_spread_of_a_distribution():
    _, around, _ = read(Normal(torch.tensor(Z[0]), torch.full((N, K), 0.5)))
    np.testing.assert_allclose(around, np.broadcast_to(0.25 * np.eye(K), (N, K, K)))
    covariance = torch.eye(K) + 0.5
    z, around, _ = read(MultivariateNormal(torch.tensor(Z[0]), covariance))
    np.testing.assert_array_equal(z, Z[0])
    np.testing.assert_allclose(around, covariance.expand(N, K, K), rtol=1e-6)


@pytest.mark.parametrize(
    ("points", "said", "message"),
    [
        (Z[0, :1], {}, r"points: shape \(1, 3\) came, \(n, k\) or \(lineages, n, k\) was expected, n at least 2"),
        (Z[:, :1], {}, r"points: shape \(2, 1, 3\) came"),
        (Z[0, 0], {}, r"points: shape \(3,\) came"),
        (Z[None], {}, r"points: shape \(1, 2, 5, 3\) came"),
        (Z[0], {"n_latent": 4}, r"points: shape \(5, 3\) came, \(\.\.\., 4\) was expected"),
        (np.where(Z[0] > 1, np.nan, Z[0]), {}, "points have NaN"),
        ({"a": Z[0], "b": Z[0, 1:]}, {}, r"paths of shapes \[\(4, 3\), \(5, 3\)\] came; as many points each"),
        ({}, {}, r"paths of shapes \[\] came"),
        (Z[0], {"spread": np.ones(4)}, r"spread: shape \(4,\) came"),
        (Z[0], {"spread": -np.eye(K)}, "negative eigenvalues"),
        (AnnData(Z[0]), {}, r"an AnnData came; pass model\.posterior\(adata\)"),
    ],
)
def test_refused_paths(points, said, message):
    with pytest.raises(PointsError, match=message):
        read(points, **said)


def test_one_name_for_one_path_without_an_axis_of_paths():
    """An error of ours, or a path of that name; not one of numpy's."""
    try:
        path = Trajectory.from_points(Z[0], lineages=["only"])
    except PointsError as error:
        assert "lineages" in str(error)  # noqa: PT017 - either is well
    else:
        assert path.lineages == ("only",)


# -- times, spreads


def test_times():
    time = np.arange(N)
    np.testing.assert_array_equal(read_times(time, (N,)), time)
    np.testing.assert_array_equal(read_times(time, (L, N)), [time, time])
    np.testing.assert_array_equal(read_times([time, time + 1], (L, N)), [time, time + 1])
    read_times(time, (L, N))[0, 0] = 5  # a copy, that may be written to
    for shape in ((N - 1,), (N, L), ()):
        with pytest.raises(PointsError, match=r"time: shape .* came, one number a point"):
            read_times(np.zeros(shape), (L, N))


def test_covariances_and_variances():
    deviations = np.arange(1.0, 7).reshape(2, K)
    np.testing.assert_array_equal(covariances_of(deviations), [np.diag(row**2) for row in deviations])
    np.testing.assert_array_equal(variances_of(deviations), deviations**2)
    both = np.arange(18.0).reshape(2, K, K)
    assert covariances_of(both) is both
    np.testing.assert_array_equal(variances_of(both), [[0, 4, 8], [9, 13, 17]])
    assert variances_of(None) is None


def test_values_of_a_distribution():
    normal = Normal(torch.tensor(Z[0]), 1.0)
    assert values_of(normal) is normal.mean
    assert values_of(Z) is Z
    frame = pd.DataFrame(Z[0])
    assert values_of(frame) is frame  # and not its method mean


# -- pseudotimes and weights by lineage


def test_by_lineage():
    time = np.arange(6.0) / 4
    assert by_lineage("weights", None) == {}
    for values in (time, list(time), pd.Series(time, index=list("abcdef"), name="t"), torch.tensor(time)):
        (name, found), *others = by_lineage("pseudotime", values).items()
        assert name is None
        assert not others
        np.testing.assert_array_equal(found, time)
    two = np.stack([time, time[::-1]], axis=1)
    for values, names in (
        (two, ["lineage_1", "lineage_2"]),
        (pd.DataFrame(two, columns=["a", "b"]), ["a", "b"]),
        ({"a": two[:, 0], "b": two[:, 1]}, ["a", "b"]),
    ):
        found = by_lineage("weights", values)
        assert list(found) == names
        np.testing.assert_array_equal(np.stack(list(found.values()), axis=1), two)
    for place in ("pseudotime", "weights"):
        np.testing.assert_array_equal(by_lineage(place, pd.Series([1, None, 0], dtype=object))[None], [1, np.nan, 0])
        np.testing.assert_array_equal(by_lineage(place, pd.array([1, None], dtype="Float64"))[None], [1, np.nan])
        masked = np.ma.masked_array([1.0, 9.0], mask=[0, 1])
        np.testing.assert_array_equal(by_lineage(place, masked)[None], [1, np.nan])
        np.testing.assert_array_equal(by_lineage(place, pd.Series([True, None], dtype=object))[None], [1, np.nan])
        with pytest.raises(InputError, match=rf"{place}: the lineages \['1', '1'\] came; names that differ"):
            by_lineage(place, {1: [1.0], "1": [2.0]})
    with pytest.raises(InputError, match=r"weights: shape \(1, 6, 2\) came, one a cell, \(n,\) or \(n, lineages\)"):
        by_lineage("weights", two[None])


def test_weights_by_name():
    for values in (
        ["b", "a", None, "b"],
        ["b", "a", np.nan, "b"],
        pd.Series(["b", "a", None, "b"], dtype="string"),
        pd.Categorical(["b", "a", None, "b"]),
        np.ma.masked_array(["b", "a", "c", "b"], mask=[0, 0, 1, 0]),
    ):
        found = by_lineage("weights", values)
        assert {name: column.tolist() for name, column in found.items()} == {"b": [1, 0, 0, 1], "a": [0, 1, 0, 0]}
    for odd in (["0", "1"], ["a", "1"], ["a", 1], np.array(["0.5", "nan"])):
        with pytest.raises(PointsError, match=r"weights: strings came of which .* the name of each cell's lineage"):
            by_lineage("weights", odd)
    for odd in (["a", "b"], np.array(["0", "1"]), pd.Series(["0", "1"]), ["0", None], np.array(["2020"], "datetime64")):
        with pytest.raises(PointsError, match=r"pseudotime: .* that is no array of numbers .*numbers were expected"):
            by_lineage("pseudotime", odd)


def test_series_in_a_mapping_keep_their_order_and_must_share_it():
    a = pd.Series([1.0, 2.0, 3.0], index=["z", "y", "x"])
    found = by_lineage("pseudotime", {"a": a, "b": a + 1, "c": pd.Series([7.0, 8, 9]), "d": [4, 5, 6]})
    assert [column.tolist() for column in found.values()] == [[1, 2, 3], [2, 3, 4], [7, 8, 9], [4, 5, 6]]
    z = np.zeros((3, K), dtype=np.float32)
    for other, said in ((a[::-1], "another order"), (a.rename({"x": "w"}), "other names than the cells have")):
        with pytest.raises(ConditionError, match=rf"weights\['b'\]: .* {said}"):
            read_ordered(z, np.arange(3.0), {"a": a, "b": other})
    levels = a.set_axis(pd.MultiIndex.from_tuples([("z", 1), ("y", 1), ("x", 1)]))
    with pytest.raises(ConditionError, match="bring it into theirs"):
        read_ordered(z, np.arange(3.0), {"a": levels, "b": levels[::-1]})


def test_cells_in_order():
    time = np.arange(6.0) / 4
    cells = read_ordered(Normal(torch.tensor(np.ones((6, K))), 0.5), time, pd.DataFrame({"a": time, "b": 1.0}))
    assert cells.lineages == ("a", "b")
    np.testing.assert_array_equal(cells.variance_nk, np.full((6, K), 0.25))
    assert list(cells.time) == [None]
    swapped = read_ordered(
        np.ones((6, K)), pd.DataFrame({"b": time, "a": -time}), pd.DataFrame({"a": time, "b": -time})
    )
    assert swapped.lineages == ("b", "a")
    assert (swapped.weight["a"] >= 0).all()
    named = read_ordered(np.ones((6, K)), np.stack([time, -time], axis=1), {"x": time, "y": time})
    assert list(named.time) == ["x", "y"]
    names = np.array(["lineage_1", "lineage_2"] * 3)  # names, and not columns without
    with pytest.raises(InputError, match=r"weights: the lineages .* came, but those of the pseudotime are"):
        read_ordered(np.ones((6, K)), {"x": time, "y": time}, names)


def test_names_of_lineages():
    one, two = {None: 0}, {"a": 0, "b": 0}
    assert lineage_names(one, {}) is None
    assert lineage_names(one, one) is None
    assert lineage_names({}, {}) is None
    assert lineage_names(two, one) == lineage_names(one, two) == lineage_names(two, two) == ("a", "b")
    with pytest.raises(
        InputError, match=r"weights: the lineages \['a', 'c'\] came, but .* pseudotime are \['a', 'b'\]"
    ):
        lineage_names(two, {"a": 0, "c": 0})


# -- conditions


def test_conditions_of_every_kind():
    names = np.array(list("abcde"))
    found = read_conditions(
        (L, N),
        {
            "batch": names,
            "labels": ["x", "y"],
            "library_size": 5e3,
            "categorical": {"sex": pd.Series(names), "chem": "v1", "donor": {"d1": 0.5, "d2": 0.5}},
            "continuous": {"age": np.arange(10.0).reshape(L, N), "pct": np.float64(0.1)},
        },
    )
    np.testing.assert_array_equal(found["batch"], [names, names])
    assert found["labels"] == ["x", "y"]  # a list is to be averaged over
    assert found["library_size"] == 5e3
    np.testing.assert_array_equal(found["categorical"]["sex"], [names, names])
    assert found["categorical"]["chem"] == "v1"
    assert found["categorical"]["donor"] == {"d1": 0.5, "d2": 0.5}
    np.testing.assert_array_equal(found["continuous"]["age"], np.arange(10.0).reshape(L, N))
    assert found["continuous"]["pct"] == 0.1
    assert read_conditions((N,), {"batch": None, "continuous": None}) == {}
    np.testing.assert_array_equal(read_conditions((N,), {"batch": pd.Categorical(names)})["batch"], names)


@pytest.mark.parametrize(
    "form",
    [
        np.asarray,
        torch.tensor,
        lambda v: torch.tensor(v, requires_grad=True),
        pd.Series,
        pd.Index,
        pd.array,
        lambda v: pd.Series(v, index=list("vwxyz")),
        np.ma.masked_array,
    ],
)
def test_conditions_of_each_point_in_every_form(form):
    age = np.arange(20.0, 25)
    found = read_conditions((L, N), {"continuous": {"age": form(age)}, "library_size": form(age)})
    np.testing.assert_array_equal(found["continuous"]["age"], [age, age])
    np.testing.assert_array_equal(found["library_size"], [age, age])
    assert read_conditions((L, N), {"library_size": np.array(5.0)}) == {"library_size": 5.0}
    assert read_conditions((L, N), {"library_size": torch.tensor(5.0)}) == {"library_size": 5.0}


def test_conditions_that_are_masked_are_missing():
    mask = [False, True, False, False, False]
    found = read_conditions((N,), {"library_size": np.ma.masked_array(np.arange(5), mask=mask)})
    np.testing.assert_array_equal(found["library_size"], [0, np.nan, 2, 3, 4])
    found = read_conditions((N,), {"batch": np.ma.masked_array(list("abcde"), mask=mask)})
    assert found["batch"].tolist() == ["a", None, "c", "d", "e"]


def test_conditions_and_times_of_named_points():
    points = pd.DataFrame(Z[0], index=list("vwxyz"))
    batch = pd.Series(list("aabbb"), index=points.index)

    def parts(**given):
        conditions = {key: value for key, value in given.items() if key != "time"}
        return read_parts(points, K, given.get("time"), None, None, conditions, simplex=False)

    assert parts(batch=batch, time=pd.Series(range(N), index=points.index)).conditions["batch"].tolist() == list(batch)
    assert parts(batch=batch.to_numpy()[::-1]).conditions["batch"].tolist() == list("bbbaa")
    assert parts(batch=batch.reset_index(drop=True)).conditions["batch"].tolist() == list(batch)
    for given, place in (
        ({"batch": batch[::-1]}, "batch"),
        ({"categorical": {"sex": batch[::-1]}}, r"categorical\['sex'\]"),
        ({"time": pd.Series(range(N), index=list("zyxwv"))}, "time"),
    ):
        with pytest.raises(ConditionError, match=place + ": a Series came that names the points in another order"):
            parts(**given)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"continuous": 3}, ConditionError, "continuous: 3 came, a mapping of covariate names to values"),
        ({"batches": "a"}, InputError, "'batches' is not one of the 5 conditions of a path .*did you mean 'batch'"),
        ({"batch": np.array(["a", "b"])}, PointsError, r"batch: shape \(2,\) came, one value a point, \(2, 5\)"),
        ({"continuous": {"age": np.zeros(4)}}, PointsError, r"continuous\['age'\]: shape \(4,\) came"),
        ({"categorical": {"sex": np.zeros((N, L))}}, PointsError, r"categorical\['sex'\]: shape \(5, 2\) came"),
    ],
)
def test_refused_conditions(given, kind, message):
    with pytest.raises(kind, match=message):
        read_conditions((L, N), given)
    assert len(CONDITIONS) == 5
