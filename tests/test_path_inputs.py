"""What paths are made of, in the forms that people have it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from torch.distributions import Independent, MultivariateNormal, Normal

from scdecode.errors import InputError, PointsError
from scdecode.path_inputs import (
    CONDITIONS,
    by_lineage,
    covariances_of,
    lineage_names,
    read_conditions,
    read_paths,
    read_times,
    values_of,
    variances_of,
)

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
    assert read({"left": Z[1], "right": Z[0]}, lineages=["x", "y"])[2] == ("x", "y")


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
    from scdecode.trajectory import Trajectory

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
    time = np.arange(6.0)
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
    with pytest.raises(InputError, match=r"weights: shape \(1, 6, 2\) came, one a cell, \(n,\) or \(n, lineages\)"):
        by_lineage("weights", two[None])


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
    ("given", "kind", "message"),
    [
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
