"""Paths through the latent space: every way to make one, what goes wrong, and what decoding makes of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from small_models import make_adata, make_model
from torch.distributions import Normal

import scdecode as sd
from scdecode.errors import ConditionError, ConditionWarning, InputError, PointsError, ScdecodeError, SupportWarning
from scdecode.paths.tube import tube_around
from scdecode.trajectory import SHARE, Trajectory, medoid

K = 4
pytestmark = pytest.mark.filterwarnings("ignore:points")  # of support: paths go where no cell is, at will


def cells(n, centre=0.0, seed=0, spread=1.0):
    return (np.random.default_rng(seed).normal(size=(n, K)) * spread + centre).astype(np.float32)


def line(n=5, k=K):
    return np.linspace(0, 1, n)[:, None] * np.arange(1.0, k + 1)


@pytest.fixture(scope="module")
def ends(model):
    """Two ordinary cells, with only ordinary points between them."""
    z = model.reference_latents()
    middle = z[np.argsort(model.support(z))[:40]]
    apart = np.linalg.norm(middle[:, None] - middle[None], axis=2)
    for i, j in zip(*np.unravel_index(np.argsort(-apart, axis=None), apart.shape), strict=True):
        if (model.support(np.linspace(middle[i], middle[j], 20)) < 95).all():
            return middle[i], middle[j]
    raise AssertionError("no pair of cells has supported points between")


@pytest.fixture(scope="module")
def without_cells(tmp_path_factory):
    """The same weights in scvi-tools' format, which keeps no cells."""
    folder = tmp_path_factory.mktemp("scvi")
    model = make_model(make_adata(150, 20), epochs=1)
    model.save(folder / "ours")
    sd.convert(folder / "ours", folder / "theirs", to="scvi-tools")
    return sd.load(folder / "theirs")


# -- what a trajectory is


def test_it_is_frozen_and_small_in_print(model, ends):
    path = Trajectory.between(model, *ends, n_points=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        path.points = None
    assert repr(path) == "Trajectory: linear, 5 points, between points, with spread"
    assert len(path) == 5
    several = Trajectory.from_points(np.stack([line(), line() + 1]), lineages=["a", "b"])
    assert repr(several) == "Trajectory: 5 points on each of 2 paths, 2 lineages, without spread"
    assert len(several) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((1, K)), "time": np.zeros(1)}, r"points: shape \(1, 4\) came.* n of at least 2"),
        ({"points": np.zeros(K)}, r"points: shape \(4,\) came"),
        ({"points": np.zeros((2, 2, 5, K))}, r"points: shape \(2, 2, 5, 4\) came"),
        ({"time": np.arange(4.0)}, r"time: shape \(4,\) came, one number a point, \(5,\), was expected"),
        ({"time": np.array([0, 1, 2, 2, 3.0])}, "time: it must increase from point to point, without NaN; sort"),
        ({"time": np.array([0, 1, np.nan, 2, 3])}, "time: it must increase"),
        ({"time": np.array([0, 1, 2, 3, np.inf])}, "time: it must increase"),
        ({"spread": np.zeros((5, K))}, r"spread: shape \(5, 4\) came, covariances \(5, 4, 4\) were expected"),
        ({"lineages": ("a", "b")}, r"lineages: \['a', 'b'\] came for 1 paths"),
        ({"points": np.zeros((2, 5, K)), "time": np.arange(10.0).reshape(2, 5)}, "lineages: None came"),
        (
            {"points": np.zeros((2, 5, K)), "time": np.arange(10.0).reshape(2, 5), "lineages": ("a", "a")},
            r"lineages: \['a', 'a'\] came for 2 paths; a name each was expected",
        ),
    ],
)
def test_shapes_are_checked(change, message):
    with pytest.raises(PointsError, match=message):
        Trajectory(**{"points": line().astype(np.float32), "time": np.arange(5.0), **change})


# -- from points


def test_from_points_alone():
    points = line()
    path = Trajectory.from_points(points)
    np.testing.assert_array_equal(path.points, points.astype(np.float32))
    np.testing.assert_allclose(path.time, [0, 0.25, 0.5, 0.75, 1])
    assert path.points.dtype == np.float32
    assert path.time.dtype == np.float64
    assert path.spread is None
    assert path.time_name == SHARE
    assert path.lineages is None
    assert path.origin == "5 points"
    uneven = Trajectory.from_points(np.array([[0.0, 0], [3, 4], [3, 5], [3, 9]]))
    np.testing.assert_allclose(uneven.time, [0, 0.5, 0.6, 1])


def test_from_points_with_times_and_spreads():
    path = Trajectory.from_points(line(), [0, 1, 5, 6, 9], spread=0.5, time_name="days")
    np.testing.assert_array_equal(path.time, [0, 1, 5, 6, 9])
    assert path.time_name == "days"
    assert Trajectory.from_points(line(), range(5)).time_name == "time"
    np.testing.assert_allclose(path.spread, np.broadcast_to(0.25 * np.eye(K), (5, K, K)))
    assert path.spread.dtype == np.float32
    posterior = Trajectory.from_points(Normal(torch.tensor(line()), 2.0))
    np.testing.assert_allclose(posterior.spread, np.broadcast_to(4 * np.eye(K), (5, K, K)))
    assert Trajectory.from_points(Normal(torch.tensor(line()), 2.0), spread=False).spread is None


def test_from_points_of_a_model(model):
    points = model.reference_latents()[:6]
    path = Trajectory.from_points(points, model=model)
    reference = model.reference()
    expected = tube_around(points, reference.latent_rk, reference.variance_rk).spread_nkk
    np.testing.assert_allclose(path.spread, expected, rtol=1e-5)
    assert Trajectory.from_points(points, model=model, spread=False).spread is None
    np.testing.assert_allclose(
        Trajectory.from_points(points, model=model, spread=1.0).spread, np.broadcast_to(np.eye(K), (6, K, K))
    )
    several = Trajectory.from_points(np.stack([points, points[::-1]]), model=model)
    assert several.spread.shape == (2, 6, K, K)
    np.testing.assert_allclose(several.spread[0], path.spread, rtol=1e-5)
    np.testing.assert_allclose(several.spread[1], path.spread[::-1], rtol=1e-4, atol=1e-7)


def test_points_in_a_row_that_are_the_same(model):
    points = model.reference_latents()[[0, 1, 1, 2]]
    with pytest.raises(PointsError, match=r"points: 1 and 2 are the same; .* or pass time="):
        Trajectory.from_points(points)
    path = Trajectory.from_points(points, [0, 1, 2, 3])
    np.testing.assert_array_equal(path.points, points)
    np.testing.assert_array_equal(path.time, [0, 1, 2, 3])
    tube = Trajectory.from_points(points, [0, 1, 2, 3], model=model)
    np.testing.assert_allclose(tube.spread[1], tube.spread[2])
    assert np.isfinite(model.decode(tube, batch="batch_1").X).all()


@pytest.mark.parametrize(
    ("points", "said", "message"),
    [
        (line(1), {}, r"points: shape \(1, 4\) came"),
        (np.ones((3, K)), {}, "points: they are all the same; a path needs two that differ"),
        (np.where(line() > 3, np.nan, line()), {}, "points have NaN"),
        (line(), {"time": [0, 1, 2, 4, 3]}, "time: it must increase"),
        (line(), {"time": [0, 1, np.nan, 4, 5]}, "time: it must increase"),
        (line(), {"time": [0, 1]}, r"time: shape \(2,\) came, one number a point, \(5,\)"),
        (line(), {"lineages": ["a", "b"]}, r"lineages: \['a', 'b'\] came for one path"),
        (np.stack([line()] * 2), {"lineages": ["a"]}, r"lineages: \['a'\] came for 2 paths"),
        (line(), {"spread": np.ones(3)}, r"spread: shape \(3,\) came"),
        (line(), {"batches": "a"}, "did you mean 'batch'"),
        (3.0, {}, r"points: 3\.0 came, latent points \(n, k\) were expected"),
        ([], {}, r"points: shape \(0,\) came, which has no points"),
        (line(), {"categorical": "x"}, "categorical: 'x' came, a mapping of covariate names to values was expected"),
        (line(), {"time": list("abcde")}, "time: list came that is no array of numbers .*numbers were expected"),
        (line(), {"time": list("01234")}, "time: list came that is no array of numbers"),
        (line(), {"time": np.ma.masked_array(np.arange(5.0), mask=[0, 1, 0, 0, 0])}, "time: it must increase"),
        (line(), {"time": {"a": np.arange(5.0)}}, "time: dict came that is no array of numbers"),
        (np.stack([line()] * 2), {"lineages": "ab"}, "lineages: got 'ab' .*, expected a list of names"),
        (line(), {"batch": np.array(["a", "b"])}, r"batch: shape \(2,\) came, one value a point, \(5,\)"),
    ],
)
def test_from_points_refuses(points, said, message):
    with pytest.raises(InputError, match=message):
        Trajectory.from_points(points, **said)


def test_from_points_of_another_width(model):
    with pytest.raises(PointsError, match=r"shape \(5, 3\) came, \(\.\.\., 4\) was expected"):
        Trajectory.from_points(line(k=3), model=model)


def test_from_points_of_a_trajectory(model):
    points = np.stack([line(), line() + 1, line() + 2])
    both = Trajectory.from_points(
        points,
        np.arange(5.0),
        spread=0.5,
        lineages=["a", "b", "c"],
        time_name="days",
        batch=np.array([["batch_1"] * 5, ["batch_2"] * 5, ["batch_3"] * 5]),
        continuous={"age": np.arange(5.0), "pct": 0.1},
    )
    same = Trajectory.from_points(both)
    for name in ("points", "time", "spread"):
        np.testing.assert_array_equal(getattr(same, name), getattr(both, name))
    assert (same.lineages, same.time_name) == (both.lineages, "days")
    assert same.conditions["batch"].tolist() == both.conditions["batch"].tolist()
    some = Trajectory.from_points(both, lineages=["c", "a"], continuous={"pct": 0.2}, spread=False, library_size=300)
    np.testing.assert_array_equal(some.points, points[[2, 0]].astype(np.float32))
    assert some.lineages == ("c", "a")
    assert some.spread is None
    assert some.conditions["batch"][:, 0].tolist() == ["batch_3", "batch_1"]
    assert some.conditions["continuous"]["pct"] == 0.2
    np.testing.assert_array_equal(some.conditions["continuous"]["age"], [np.arange(5.0)] * 2)
    assert some.conditions["library_size"] == 300
    other = Trajectory.from_points(both["a"], [0, 2, 4, 6, 9])
    np.testing.assert_array_equal(other.time, [0, 2, 4, 6, 9])
    assert other.time_name == "time"
    with pytest.raises(PointsError, match="lineages: 'd' is not one of the 3 names of the paths"):
        Trajectory.from_points(both, lineages=["d"])


def test_a_spread_that_is_asked_for_is_found(model):
    points = model.reference_latents()[:6]
    expected = Trajectory.from_points(points, model=model).spread
    for form in (points, Normal(torch.tensor(points), 2.0), Trajectory.from_points(points, spread=3.0)):
        for said in (True, np.True_):
            np.testing.assert_array_equal(Trajectory.from_points(form, model=model, spread=said).spread, expected)
    with pytest.raises(PointsError, match="spread: True came, but the points have none of their own"):
        Trajectory.from_points(points, spread=True)
    assert Trajectory.from_points(Normal(torch.tensor(points), 2.0), spread=True).spread[0, 0, 0] == 4


# -- between two places, and through several


def test_between_two_points(model):
    start, end = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 1.0, 0.0, -1.0])
    path = Trajectory.between(model, start, end, n_points=5)
    assert len(path) == 5
    np.testing.assert_array_equal(path.time, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(path.points, start + path.time[:, None] * (end - start))
    assert path.points.dtype == np.float32
    assert "linear" in path.origin
    # two points tell nothing of how cells scatter: the reference cells do
    reference = model.reference()
    expected = tube_around(path.points, reference.latent_rk, reference.variance_rk).spread_nkk
    np.testing.assert_allclose(path.spread, expected, rtol=1e-4, atol=1e-7)
    assert Trajectory.between(model, start, end, n_points=5, spread=False).spread is None
    assert len(Trajectory.between(model, start, end)) == 100


def test_ends_in_every_form(model):
    start, end = cells(8), cells(9, 3.0, seed=1)
    expected = Trajectory.between(model, start, end, n_points=4)
    for form in (torch.tensor, np.ndarray.tolist, np.float64):
        path = Trajectory.between(model, form(start), form(end), n_points=4)
        np.testing.assert_array_equal(path.points, expected.points)
        np.testing.assert_array_equal(path.spread, expected.spread)


def test_between_sets_of_cells_is_a_tube(model):
    start, end = cells(200), cells(300, 2.0, seed=1, spread=0.5)
    path = Trajectory.between(model, start, end, n_points=3)
    np.testing.assert_allclose(path.points[[0, -1]], [start.mean(axis=0), end.mean(axis=0)], atol=1e-5)
    assert path.spread.shape == (3, K, K)
    first, last = np.cov(start.T), np.cov(end.T)
    np.testing.assert_allclose(path.spread[0], first, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.spread[-1], last, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.spread[1], (first + last) / 2, rtol=1e-4, atol=1e-6)
    assert path.origin == "linear, 3 points, between 200 and 300 cells"


def test_a_posterior_adds_its_own_variance(model):
    start, end = cells(50), cells(50, 2.0, seed=1)
    scale = np.random.default_rng(2).uniform(0.1, 0.9, (50, K)).astype(np.float32)
    with_variance = Trajectory.between(
        model, Normal(torch.tensor(start), torch.tensor(scale)), Normal(torch.tensor(end), 0.5), n_points=2
    )
    np.testing.assert_allclose(with_variance.spread[0], np.cov(start.T) + np.diag((scale**2).mean(axis=0)), rtol=1e-4)
    np.testing.assert_allclose(with_variance.spread[1], np.cov(end.T) + 0.25 * np.eye(K), rtol=1e-4, atol=1e-6)
    means_alone = Trajectory.between(model, start, end, n_points=2)
    np.testing.assert_array_equal(with_variance.points, means_alone.points)


def test_bare_lines_run_from_cell_to_cell(model):
    start, end = cells(30), cells(30, 2.0, seed=1)
    for given in ((start, end[0]), (start[:K], end), (start, end)):
        path = Trajectory.between(model, *given, n_points=2, spread=False)
        assert path.spread is None
        for found, end_cells in zip(path.points[[0, -1]], given, strict=True):
            np.testing.assert_allclose(found, medoid(np.atleast_2d(end_cells)), rtol=1e-6)


def test_too_few_cells_at_an_end_for_its_covariance(model):
    """Then the line runs from medoid to medoid, and the spread is found among the reference cells."""
    start, end = cells(30), cells(30, 2.0, seed=1)
    path = Trajectory.between(model, start[:K], end, n_points=3)
    bare = Trajectory.between(model, start[:K], end, n_points=3, spread=False)
    np.testing.assert_array_equal(path.points, bare.points)
    reference = model.reference()
    expected = tube_around(path.points, reference.latent_rk, reference.variance_rk).spread_nkk
    np.testing.assert_allclose(path.spread, expected, rtol=1e-4, atol=1e-7)
    own = Trajectory.between(model, start[: K + 1], end, n_points=3)
    np.testing.assert_allclose(own.spread[0], np.cov(start[: K + 1].T), rtol=1e-4, atol=1e-6)


def test_medoid():
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [2.0, 0.5]])
    np.testing.assert_array_equal(medoid(rows), [2.0, 0.5])


def test_through_waypoints(model):
    corners = np.zeros((4, K))
    corners[1, 0], corners[2, :2], corners[3, :3] = 1, (1, 2), (1, 2, 1)
    path = Trajectory.through(model, corners, n_points=9, spread=False)
    np.testing.assert_allclose(np.linalg.norm(np.diff(path.points, axis=0), axis=1), 0.5, rtol=1e-6)
    np.testing.assert_allclose(path.points[[0, 2, 6, 8]], corners, atol=1e-7)
    assert path.origin == "linear, 9 points, between points through 2 others"
    sets = [cells(20, centre, seed) for seed, centre in enumerate((0.0, 2.0, 6.0))]
    tube = Trajectory.through(model, sets, n_points=3)
    np.testing.assert_allclose(tube.points[[0, 2]], [sets[0].mean(axis=0), sets[2].mean(axis=0)], atol=1e-5)
    assert tube.spread.shape == (3, K, K)


@pytest.mark.parametrize("how", ["graph", "geodesic"])
def test_ways_through_the_cells(model, how):
    z = model.reference_latents()
    order = np.argsort(z[:, 0])
    start, end = z[order[10:30]], z[order[-30:-10]]
    path = Trajectory.between(model, start, end, n_points=12, how=how, batch="batch_2", library_size=500)
    np.testing.assert_allclose(path.points[[0, -1]], [medoid(start), medoid(end)], rtol=1e-4, atol=1e-5)
    assert path.points.shape == (12, K)
    np.testing.assert_allclose(path.time, np.linspace(0, 1, 12))
    reference = model.reference()
    expected = tube_around(path.points, reference.latent_rk, reference.variance_rk).spread_nkk
    np.testing.assert_allclose(path.spread, expected, rtol=1e-4, atol=1e-6)
    assert path.origin == f"{how}, 12 points, between 20 and 20 cells"
    assert path.conditions == {"batch": "batch_2", "library_size": 500}
    assert path.report["length"] > 0
    bare = Trajectory.between(model, start, end, n_points=12, how=how, batch="batch_2", library_size=500, spread=False)
    assert bare.spread is None
    np.testing.assert_array_equal(bare.points, path.points)


def test_report_of_a_geodesic(model):
    """The same but for where the search starts, which is the graph's path at other points."""
    z = model.reference_latents()
    path = Trajectory.between(model, z[0], z[1], n_points=10, how="geodesic", batch="batch_1", spread=False)
    alone = sd.geometry.geodesic(model, z[0], z[1], n_points=10, batch="batch_1")
    assert path.report["length"] == pytest.approx(alone.length, rel=1e-3)
    assert path.report["straight_length"] == pytest.approx(alone.straight_length)
    assert path.report["ratio"] == pytest.approx(alone.ratio, rel=1e-3)
    assert path.report["converged"] is True
    assert path.report["energy"][-1] == pytest.approx(alone.energy[-1], rel=1e-3)
    np.testing.assert_allclose(path.points, alone.points, atol=0.05)


@pytest.mark.parametrize("how", ["graph", "geodesic"])
def test_several_stops_through_the_cells(model, how):
    z = model.reference_latents()
    order = np.argsort(z[:, 0])
    stops = z[order[[20, 150, -20]]]
    path = Trajectory.through(model, stops, n_points=41, how=how, batch="batch_1", spread=False)
    np.testing.assert_allclose(path.points[[0, -1]], stops[[0, -1]], rtol=1e-4, atol=1e-4)
    nearest = np.linalg.norm(path.points - stops[1], axis=1).min()
    assert nearest <= np.linalg.norm(np.diff(path.points, axis=0), axis=1).max()
    if how == "geodesic":
        parts = [sd.geometry.geodesic(model, *pair, n_points=21, batch="batch_1") for pair in (stops[:2], stops[1:])]
        assert path.report["length"] == pytest.approx(sum(part.length for part in parts), rel=2e-3)
        assert [part["length"] for part in path.report["parts"]] == pytest.approx(
            [part.length for part in parts], rel=2e-3
        )


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ({"how": "curved"}, InputError, "how: 'curved' is not .*linear"),
        ({"n_points": 1}, ScdecodeError, r"n_points: got 1 \(int\), expected a whole number from 2"),
        ({"n_points": 2.5}, ScdecodeError, r"n_points: got 2\.5"),
        ({"n_neighbours": 0, "how": "graph"}, ScdecodeError, "n_neighbours: got 0"),
        ({"end": np.zeros(3)}, PointsError, r"shape \(3,\) came, \(\.\.\., 4\) was expected"),
        ({"end": np.full(4, np.nan)}, PointsError, "NaN"),
        ({"end": np.zeros((0, 4))}, PointsError, "no points"),
        ({"end": np.zeros(4)}, PointsError, "start, end: they are the same point"),
        ({"end": "HSC"}, PointsError, "no array of numbers"),
        ({"start": AnnData(np.ones((3, 2)))}, PointsError, r"start: an AnnData came.*model\.posterior\(adata\[...\]\)"),
        ({"end": AnnData(np.ones((3, 2)))}, PointsError, r"end: an AnnData came.*model\.posterior\(adata\[...\]\)"),
        ({"batches": "batch_1"}, InputError, "did you mean 'batch'"),
        ({"batch": np.array(["batch_1"] * 3)}, PointsError, r"batch: shape \(3,\) came, one value a point, \(100,\)"),
        ({"batch": "batch1", "how": "geodesic"}, ConditionError, "batch_1"),
    ],
)
def test_refused(model, said, kind, message):
    with pytest.raises(kind, match=message):
        Trajectory.between(model, **{"start": np.zeros(4), "end": np.ones(4), **said})


def test_too_few_waypoints_and_two_that_are_the_same(model):
    for n in (0, 1):
        with pytest.raises(PointsError, match=f"waypoints: {n} came, two or more were expected"):
            Trajectory.through(model, line()[:n])
    for odd in (5.0, "ab", Normal(0.0, 1.0), None):
        with pytest.raises(PointsError, match=r"waypoints: .*a list of points or sets of cells"):
            Trajectory.through(model, odd)
    with pytest.raises(PointsError, match="waypoints: 0 came"):
        Trajectory.through(model, np.array(5.0))
    frame = Trajectory.through(model, pd.DataFrame(line()[:3]), 5, spread=False)
    np.testing.assert_array_equal(frame.points, Trajectory.through(model, line()[:3], 5, spread=False).points)
    with pytest.raises(PointsError, match="waypoint 1, waypoint 2: they are the same point"):
        Trajectory.through(model, line()[[0, 1, 1, 2]])
    same = cells(20)
    with pytest.raises(PointsError, match=r"the same point; .* \(sets of cells stand for their mean\)"):
        Trajectory.between(model, same, same)


def test_a_condition_that_changes_along_a_geodesic(model):
    z = model.reference_latents()
    batch = np.array(["batch_1"] * 5 + ["batch_2"] * 5)
    with pytest.raises(ConditionError, match=r"batch.*(changes|same|one)"):
        Trajectory.between(model, z[0], z[1], n_points=10, how="geodesic", batch=batch)
    # along a straight line it may
    path = Trajectory.between(model, z[0], z[1], n_points=10, batch=batch)
    assert model.decode(path).obs["batch"].tolist() == batch.tolist()


def test_ends_in_parts_of_the_cells_that_nothing_connects():
    model = make_model(make_adata(150, 20), epochs=1)
    z = np.concatenate([cells(60, spread=0.2), cells(60, 50.0, seed=1, spread=0.2)])
    model.attach_reference(z)
    for how in ("graph", "geodesic"):
        with pytest.raises(PointsError, match=r"start, end: no cells connect them; .*n_neighbours=30"):
            Trajectory.between(model, z[0], z[-1], how=how, batch="batch_1")
    assert len(Trajectory.between(model, z[0], z[-1], spread=False)) == 100


def test_latent_points_alone_as_reference():
    """Without posteriors of the reference cells the spread is too small, and a warning says so."""
    model = make_model(make_adata(150, 20), epochs=1)
    z = model.reference_latents()
    full = Trajectory.between(model, z[0], z[1], n_points=3)
    variance = model.reference().variance_rk.mean()
    model.attach_reference(z)
    with pytest.warns(SupportWarning, match=r"posterior variances .* not known .*attach_reference\(adata\)"):
        path = Trajectory.between(model, z[0], z[1], n_points=3)
    less = np.trace(full.spread - path.spread, axis1=1, axis2=2) / K
    np.testing.assert_allclose(less, variance, rtol=0.3)


def test_a_model_without_reference_cells(without_cells):
    bare = Trajectory.between(without_cells, np.zeros(K), np.ones(K), n_points=3, spread=False)
    with pytest.warns(
        SupportWarning, match=r"no reference cells .* bare line, .* biased; call model\.attach_reference"
    ):
        path = Trajectory.between(without_cells, np.zeros(K), np.ones(K), n_points=3)
    assert path.spread is None
    np.testing.assert_array_equal(path.points, bare.points)
    with pytest.warns(SupportWarning, match="bare line"):
        assert Trajectory.from_points(line(), model=without_cells).spread is None
    assert Trajectory.between(without_cells, cells(20), cells(20, 2.0), n_points=3).spread is not None
    with pytest.raises(InputError, match=r"how: 'graph' goes from cell to cell, and this model keeps none .*'linear'"):
        Trajectory.between(without_cells, np.zeros(K), np.ones(K), how="graph")
    expression = without_cells.decode(path, batch="batch_1")
    assert expression.obs["support"].isna().all()
    assert set(expression.layers) == {"std_counts"}
    with pytest.warns(SupportWarning, match="bare line"):
        found = Trajectory.between(without_cells, np.zeros(K), np.ones(K), n_points=3, how="geodesic", batch="batch_1")
    assert found.report["length"] > 0


def test_a_model_without_weights():
    model = make_model(make_adata(150, 20), epochs=0)
    for how in ("graph", "geodesic"):
        with pytest.raises(sd.errors.NotTrainedError):
            Trajectory.between(model, np.zeros(K), np.ones(K), how=how)


# -- along a pseudotime


@pytest.fixture(scope="module")
def ordered():
    """Cells that move along a line at known speed, their pseudotime, and a second branch with its weights."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0, 10, 600)
    right = rng.random(600) < 0.5
    z = np.zeros((600, K))
    z[:, 0] = t
    z[:, 1] = np.where(right, 1, -1) * np.maximum(t - 5, 0)
    z += rng.normal(size=z.shape) * [0.1, 0.1, 0.3, 0.2]
    return z.astype(np.float32), t, right


def posterior(z, scale=0.2):
    return Normal(torch.tensor(z), torch.full(z.shape, scale))


def test_along_pseudotime(ordered):
    z, t, right = ordered
    path = Trajectory.along_pseudotime(posterior(z), pd.Series(t, name="dpt_pseudotime"), right, n_points=21)
    assert path.points.shape == (21, K)
    assert path.spread.shape == (21, K, K)
    assert path.time_name == "dpt_pseudotime"
    assert path.origin == "along dpt_pseudotime, 21 points, 600 cells"
    assert path.lineages is None
    assert path.report["bandwidth"].shape == (1,)
    np.testing.assert_allclose([path.time[0], path.time[-1]], [t[right].min(), t[right].max()])
    np.testing.assert_allclose(np.diff(path.time), np.diff(path.time)[0])
    expected = np.stack([path.time, np.maximum(path.time - 5, 0), 0 * path.time, 0 * path.time], axis=1)
    np.testing.assert_allclose(path.points, expected, atol=0.25)  # the ends have few cells of a scatter of 0.3
    # the cells' scatter and the posterior's
    np.testing.assert_allclose(path.spread[5:-5, 2, 2].mean(), 0.09 + 0.04, rtol=0.25)
    np.testing.assert_allclose(path.spread[5:-5, 3, 3].mean(), 0.04 + 0.04, rtol=0.25)


def test_latent_points_have_no_posterior_variance(ordered):
    z, t, right = ordered
    with pytest.warns(SupportWarning, match=r"no posterior, so the spread is .* too small; pass model\.posterior"):
        path = Trajectory.along_pseudotime(z, t, right, n_points=11)
    full = Trajectory.along_pseudotime(posterior(z), t, right, n_points=11)
    np.testing.assert_allclose(full.spread - path.spread, np.broadcast_to(0.04 * np.eye(K), (11, K, K)), atol=1e-4)
    np.testing.assert_array_equal(full.points, path.points)
    assert Trajectory.along_pseudotime(z, t, right, n_points=11, spread=False).spread is None


def test_several_lineages_along_a_pseudotime(ordered):
    z, t, right = ordered
    weights = pd.DataFrame({"left": ~right, "right": right}).astype(float)
    both = Trajectory.along_pseudotime(posterior(z), t, weights, n_points=11, time_name="days", batch="batch_1")
    assert both.lineages == ("left", "right")
    assert both.points.shape == (2, 11, K)
    assert both.time.shape == (2, 11)
    assert both.time_name == "days"
    for name in both.lineages:
        alone = Trajectory.along_pseudotime(posterior(z), t, weights[name], n_points=11)
        np.testing.assert_array_equal(both[name].points, alone.points)
        np.testing.assert_array_equal(both[name].time, alone.time)
        np.testing.assert_array_equal(both[name].spread, alone.spread)
    own = np.where(np.stack([~right, right], axis=1), t[:, None], np.nan)  # a pseudotime each, NaN outside
    numbered = Trajectory.along_pseudotime(posterior(z), own, weights.to_numpy(), n_points=11)
    assert numbered.lineages == ("lineage_1", "lineage_2")
    np.testing.assert_array_equal(numbered.points, both.points)
    # one without names takes the other's
    for given in ((own, weights), (pd.DataFrame(own, columns=["left", "right"]), weights.to_numpy())):
        named = Trajectory.along_pseudotime(posterior(z), *given, n_points=11)
        assert named.lineages == ("left", "right")
        np.testing.assert_array_equal(named.points, both.points)
    with pytest.raises(InputError, match=r"weights: the lineages \['left', 'right', 'up'\] came, but .* \['lineage_1'"):
        Trajectory.along_pseudotime(posterior(z), own, weights.assign(up=1.0))
    side = np.where(right, "right", "left")  # of names of each cell nobody knows which column is whose
    with pytest.raises(InputError, match=r"weights: the lineages .* came, but .* \['lineage_1'"):
        Trajectory.along_pseudotime(posterior(z), own, side)
    by_name = Trajectory.along_pseudotime(posterior(z), t, side, n_points=11)
    np.testing.assert_array_equal(by_name["left"].points, both["left"].points)


def test_names_of_the_cells_are_heeded(ordered):
    """A Series goes by position, so one in another order is an error wherever names tell it."""
    z, t, right = ordered
    names = pd.Index([f"cell_{i}" for i in range(600)])
    time, weight = pd.Series(t, names), pd.Series(right.astype(float), names)
    with pytest.warns(SupportWarning, match="no posterior"):
        plain = Trajectory.along_pseudotime(pd.DataFrame(z, index=names), time, weight, n_points=5)
    expected = Trajectory.along_pseudotime(posterior(z), t, right, n_points=5)
    np.testing.assert_array_equal(plain.points, expected.points)
    for given in (
        (pd.DataFrame(z, index=names), time[::-1]),
        (pd.DataFrame(z, index=names), time, weight[::-1]),
        (pd.DataFrame(z, index=names), time, {"a": weight, "b": weight[::-1]}),
        (pd.DataFrame(z, index=names), pd.DataFrame({"a": time, "b": time})[::-1]),
        (posterior(z), time, weight[::-1]),
        (posterior(z), {"a": time}, weight.to_frame("a")[::-1]),
    ):
        with pytest.raises(
            ConditionError,
            match=r"(pseudotime|weights)(\['b'\])?: a (Series|DataFrame) came .* in another order .*to_numpy",
        ):
            Trajectory.along_pseudotime(*given)
    shuffled = {"a": weight[::-1], "b": weight[::-1]}  # in the order in which they came, not sorted
    found = Trajectory.along_pseudotime(posterior(z), t, shuffled, n_points=5)
    np.testing.assert_array_equal(
        found["a"].points, Trajectory.along_pseudotime(posterior(z), t, right[::-1], n_points=5).points
    )


def test_masked_and_missing_pseudotimes(ordered):
    z, t, right = ordered
    expected = Trajectory.along_pseudotime(posterior(z), t, right, n_points=5).points
    nullable = pd.Series(t, dtype="Float64").mask(~right)
    for time in (np.ma.masked_array(np.where(right, t, 1e6), mask=~right), nullable, nullable.array):
        np.testing.assert_array_equal(
            Trajectory.along_pseudotime(posterior(z), time, right, n_points=5).points, expected
        )
        with pytest.raises(PointsError, match="cells have a NaN or infinite pseudotime"):
            Trajectory.along_pseudotime(posterior(z), time)
    member = pd.Series(right, dtype=object)
    np.testing.assert_array_equal(Trajectory.along_pseudotime(posterior(z), t, member, n_points=5).points, expected)
    member[0] = None
    for weights in (member, np.ma.masked_array(right, mask=np.arange(600) < 1)):
        with pytest.raises(PointsError, match="weights: 1 of 600 are negative, NaN"):
            Trajectory.along_pseudotime(posterior(z), t, weights)
    grad = torch.tensor(z, requires_grad=True)
    Trajectory.along_pseudotime(Normal(grad, 0.1), torch.tensor(t, requires_grad=True), right, n_points=5)


@pytest.mark.parametrize("spread", [0.5, np.eye(K), None, "yes"])
def test_found_spreads_are_yes_or_no(model, ordered, spread):
    z, t, _ = ordered
    with pytest.raises(PointsError, match=r"spread: got .*, expected True or False; .*from_points"):
        Trajectory.between(model, np.zeros(K), np.ones(K), spread=spread)
    with pytest.raises(PointsError, match=r"spread: got .*, expected True or False"):
        Trajectory.along_pseudotime(posterior(z), t, spread=spread)
    assert Trajectory.between(model, np.zeros(K), np.ones(K), 3, spread=np.False_).spread is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pseudotime": np.full(600, np.nan)}, "600 of 600 cells have a NaN or infinite pseudotime; leave"),
        ({"weights": np.zeros(600)}, "all 600 are zero"),
        ({"weights": np.full(600, -1.0)}, "600 of 600 are negative"),
        ({"pseudotime": np.ones(600)}, "have the same pseudotime, 1; a curve needs two"),
        ({"pseudotime": np.arange(5.0)}, r"shape \(5,\) came for 600 cells"),
        ({"weights": np.ones(5)}, r"shape \(5,\) came for 600 cells"),
        ({"weights": np.arange(600) < 2}, r"2 cells .*came, at least"),
        ({"weights": np.ones((600, 2, 2))}, r"weights: shape \(600, 2, 2\) came"),
        ({"n_points": 1}, r"n_points: got 1 \(int\), expected a whole number from 2"),
        ({"batch": np.array(["a", "b"])}, r"batch: shape \(2,\) came"),
        ({"bandwidth": -1.0}, "bandwidth"),
        ({"z": 5.0}, r"z: 5\.0 came, latent points \(n, k\) were expected"),
        ({"pseudotime": np.arange(600).astype(str)}, "pseudotime: .* numbers were expected"),
        ({"pseudotime": ["a"] * 600}, "pseudotime: .* numbers were expected"),
        ({"pseudotime": pd.Series(np.arange(600.0)).astype(str)}, "pseudotime: .* numbers were expected"),
        ({"weights": np.arange(600).astype(str)}, "weights: strings came .* the name of each cell's lineage"),
        ({"weights": {"a": np.full(600, "x")}}, r"weights\['a'\]: .* numbers were expected"),
        ({"weights": {}}, r"weights: the lineages \[\] came"),
        ({"weights": np.ones((600, 0))}, r"weights: shape \(600, 0\) came"),
        ({"pseudotime": None}, "time"),
    ],
)
def test_along_pseudotime_refuses(ordered, change, message):
    z, t, _ = ordered
    with pytest.raises(InputError, match=message):
        Trajectory.along_pseudotime(**{"z": posterior(z), "pseudotime": t, **change})


def test_cells_without_a_pseudotime_need_weight_zero(ordered):
    z, t, right = ordered
    lost = np.where(right, t, np.nan)
    with pytest.raises(PointsError, match=r"cells have a NaN or infinite pseudotime; leave such cells out"):
        Trajectory.along_pseudotime(posterior(z), lost)
    path = Trajectory.along_pseudotime(posterior(z), lost, right, n_points=11)
    np.testing.assert_array_equal(path.points, Trajectory.along_pseudotime(posterior(z), t, right, n_points=11).points)


def test_an_anndata_is_no_points(adata):
    with pytest.raises(PointsError, match=r"an AnnData came; pass model\.posterior\(adata\), or .*from_lineages"):
        Trajectory.along_pseudotime(adata, adata.obs["pseudotime"])


# -- what other tools leave


def test_from_lineages(model, adata):
    path = Trajectory.from_lineages(model, adata, pseudotime="pseudotime", weights="cell_type", n_points=11)
    assert path.lineages == tuple(adata.obs["cell_type"].cat.categories)
    assert path.time_name == "pseudotime"
    chosen = adata.obs["cell_type"] == "trunk"
    alone = Trajectory.along_pseudotime(model.posterior(adata), adata.obs["pseudotime"], chosen, n_points=11)
    np.testing.assert_allclose(path["trunk"].points, alone.points, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path["trunk"].spread, alone.spread, rtol=1e-5, atol=1e-6)
    two = Trajectory.from_lineages(
        model, adata, pseudotime="pseudotime", weights="cell_type", lineages=["branch_2", "trunk"], n_points=11
    )
    assert two.lineages == ("branch_2", "trunk")
    adata.obs["palantir_pseudotime"] = adata.obs["pseudotime"]
    fates = pd.DataFrame({"a": 0.25, "b": 0.75}, index=adata.obs_names)
    adata.obsm["palantir_fate_probabilities"] = fates
    found = Trajectory.from_lineages(model, adata, n_points=11, time_name="mine", spread=False, batch="batch_1")
    assert found.lineages == ("a", "b")
    assert found.time_name == "mine"
    assert found.spread is None
    assert found.conditions == {"batch": "batch_1"}
    with pytest.raises(InputError, match=r"'pseudotme'.*did you mean 'pseudotime'"):
        Trajectory.from_lineages(model, adata, pseudotime="pseudotme")


def test_one_lineage_of_another_tool(model, adata):
    adata.obs["dpt_pseudotime"] = adata.obs["pseudotime"]
    path = Trajectory.from_lineages(model, adata, "dpt", n_points=11)
    assert path.lineages is None
    assert path.time_name == "dpt_pseudotime"
    assert path.points.shape == (11, K)
    assert path.spread.shape == (11, K, K)


# -- flows


def test_flow_of_a_known_field():
    turn = np.zeros((K, K))
    turn[0, 1], turn[1, 0] = -1, 1
    t = np.linspace(0, np.pi, 13)
    path = Trajectory.flow(lambda t, z: z @ turn.T, np.array([2.0, 0, 0, 1]), t)
    expected = np.stack([2 * np.cos(t), 2 * np.sin(t), 0 * t, 0 * t + 1], axis=1)
    np.testing.assert_allclose(path.points, expected, atol=1e-4)
    np.testing.assert_array_equal(path.time, t)
    assert path.time_name == "time"
    assert path.spread is None
    assert path.origin == "flow of 1 points over 13 times"
    assert path.lineages is None


def test_flow_from_tensors_with_gradients_and_with_few_evaluations():
    start = torch.ones(K, requires_grad=True)
    times = torch.tensor([0.0, 1.0], requires_grad=True)
    path = Trajectory.flow(lambda t, z: z, start, times)
    np.testing.assert_allclose(path.points[-1], np.full(K, np.e), rtol=1e-4)
    with pytest.raises(PointsError, match=r"field: 10 evaluations led from time 0 .* or a larger max_evaluations"):
        Trajectory.flow(lambda t, z: z, np.ones(K), [0.0, 1.0], max_evaluations=10)
    for odd in ("abc", 3.0):
        with pytest.raises(PointsError, match="z0: "):
            Trajectory.flow(lambda t, z: z, odd, [0.0, 1.0])


def test_flow_backward_is_turned_round():
    path = Trajectory.flow(lambda t, z: np.ones_like(z), np.zeros(K), [3.0, 2.0, 0.0])
    np.testing.assert_array_equal(path.time, [0, 2, 3])
    np.testing.assert_allclose(path.points[:, 0], [-3, -1, 0], atol=1e-5)


def test_flow_of_many_points_pooled(model):
    starts = cells(50, spread=0.5)
    rates = np.array([-1.0, -0.5, 0.5, 0.0])
    flow = Trajectory.flow(lambda t, z: z * rates, starts, [0.0, 0.5, 1.0], batch="batch_2", time_name="days")
    assert flow.points.shape == (50, 3, K)
    assert flow.lineages[0] == "path_1"
    pooled = flow.pooled()
    for i, t in enumerate(pooled.time):
        moved = starts * np.exp(rates * t)
        np.testing.assert_allclose(pooled.points[i], moved.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(pooled.spread[i], np.cov(moved.T), atol=1e-3)
    assert pooled.conditions == {"batch": "batch_2"}
    assert pooled.lineages is None
    assert pooled.time_name == "days"
    assert repr(pooled).endswith("pooled, with spread")
    assert set(model.decode(pooled).layers) == {"std", "q05", "q95", "std_counts"}


def test_flow_with_the_spread_of_a_model(model):
    start = model.reference_latents()[0]
    path = Trajectory.flow(lambda t, z: np.ones_like(z), start, [0, 0.5, 1], model=model)
    assert path.spread.shape == (3, K, K)
    module = torch.nn.Linear(K, K)

    class Field(torch.nn.Module):
        def forward(self, t, z):
            return module(z)

    assert Trajectory.flow(Field(), torch.tensor(start), torch.tensor([0.0, 1.0])).points.shape == (2, K)


def test_a_flow_that_comes_to_rest(model):
    """It converges to a point, and then stays: in float32 the last points are the same."""
    goal = model.reference_latents()[0]
    t = np.linspace(0, 60, 20)
    path = Trajectory.flow(lambda t, z: goal - z, goal + 1, t)
    np.testing.assert_allclose(path.points, goal + np.exp(-t)[:, None], atol=1e-4)
    tube = Trajectory.flow(lambda t, z: goal - z, goal + 1, t, model=model)
    assert tube.spread.shape == (20, K, K)
    assert np.isfinite(model.decode(tube, batch="batch_1").X).all()


@pytest.mark.parametrize(
    ("field", "t", "message"),
    [
        (lambda t, z: z**2, [0.0, 5.0], "field: it blew up|the solver did not get beyond"),
        (lambda t, z: z * 100, [0.0, 5.0], "field: it blew up"),
        (lambda t, z: z * np.nan, [0.0, 1.0], "NaN or infinite velocities at time 0"),
        (lambda t, z: z[:, :2], [0.0, 1.0], "field"),
        (lambda t, z: z, [0.0], r"t: shape \(1,\) came, two or more times"),
        (lambda t, z: z, [0.0, 1.0, 0.5], "all increasing or all decreasing"),
        (lambda t, z: z, 1.0, r"t: shape \(\) came"),
        ("velocity", [0.0, 1.0], "field: got 'velocity' .*, expected a function"),
    ],
)
def test_flow_refuses(field, t, message):
    with pytest.raises(PointsError, match=message):
        Trajectory.flow(field, np.ones(K), t)


# -- lineages


@pytest.fixture
def three():
    points = np.stack([line() + i for i in range(3)])
    age = np.arange(15.0).reshape(3, 5)
    return Trajectory.from_points(
        points,
        lineages=["a", "b", "c"],
        spread=0.5,
        batch=np.array([["batch_1"] * 5, ["batch_2"] * 5, ["batch_3"] * 5]),
        continuous={"age": age, "pct": 0.1},
        library_size=np.arange(1.0, 6.0),
        categorical={"sex": "male"},
    )


def test_one_of_several(three):
    for i, name in enumerate("abc"):
        for path in (three[name], three[i], three[i - 3], list(three)[i]):
            np.testing.assert_array_equal(path.points, three.points[i])
            np.testing.assert_array_equal(path.time, three.time[i])
            np.testing.assert_array_equal(path.spread, three.spread[i])
            assert path.lineages == (name,)
            assert path.origin.endswith(f", {name}")
            assert path.conditions["batch"].tolist() == [f"batch_{i + 1}"] * 5
            np.testing.assert_array_equal(path.conditions["continuous"]["age"], np.arange(5) + 5.0 * i)
            assert path.conditions["continuous"]["pct"] == 0.1
            assert path.conditions["categorical"] == {"sex": "male"}
            np.testing.assert_array_equal(path.conditions["library_size"], np.arange(1.0, 6))
    assert [path.origin for path in three["a"]] == [three["a"].origin]  # of a single path: itself


def test_one_of_several_refuses(three):
    with pytest.raises(InputError, match="lineage: 'd' is not one of the 3 lineages"):
        three["d"]
    with pytest.raises(IndexError):
        three[3]
    with pytest.raises(InputError, match=r"lineage: 0 came, but this is a single path; its points are path\.points"):
        three["a"][0]


@pytest.mark.filterwarnings("ignore:(batch|age). the paths differ")
def test_pooled(three):
    pooled = three.pooled()
    assert pooled.conditions.keys() == {"continuous", "library_size", "categorical"}
    np.testing.assert_array_equal(pooled.conditions["library_size"], np.arange(1.0, 6))
    np.testing.assert_allclose(pooled.points, three.points.mean(axis=0))
    for i in range(5):
        np.testing.assert_allclose(pooled.spread[i], np.cov(three.points[:, i].T) + 0.25 * np.eye(K), rtol=1e-5)
    np.testing.assert_array_equal(pooled.time, three.time[0])


def test_conditions_that_the_paths_agree_on_are_those_of_the_pooled_path(three):
    points, pct = np.stack([line() + i for i in range(3)]), np.linspace(0, 1, 5)
    age = np.arange(15.0).reshape(3, 5)
    path = Trajectory.from_points(points, spread=0.5, continuous={"age": age, "pct": pct}, labels=["a", "b"])
    with pytest.warns(ConditionWarning, match="age: the paths differ in it, so the pooled path is without it"):
        pooled = path.pooled()
    assert pooled.conditions["continuous"].keys() == {"pct"}
    np.testing.assert_array_equal(pooled.conditions["continuous"]["pct"], pct)
    assert pooled.conditions["labels"] == ["a", "b"]


def test_pooled_refuses(three):
    with pytest.raises(PointsError, match="pooled: a single path came, several lineages were expected"):
        three["a"].pooled()
    points = np.stack([line(), line() + 1])
    with pytest.raises(PointsError, match="pooled: the lineages have other times"):
        Trajectory.from_points(points, [np.arange(5.0), np.arange(5.0) * 2]).pooled()
    with pytest.warns(SupportWarning, match="pooled: 2 paths came, more than 4 tell a covariance of full rank"):
        Trajectory.from_points(points).pooled()


# -- decoded


def test_decode_a_bare_line(model, ends, tmp_path):
    path = Trajectory.between(model, *ends, n_points=20, spread=False)
    expression = model.decode(path, batch="batch_1", library_size=1e4)
    assert expression.shape == (20, 40)
    assert set(expression.layers) == {"std_counts"}
    np.testing.assert_array_equal(expression.obs["time"], path.time)
    np.testing.assert_array_equal(expression.X, model.decode(path.points, batch="batch_1").X)
    assert expression.uns["scdecode"]["time_name"] == SHARE
    assert "lineage" not in expression.obs
    stored = model.decode(path, batch="batch_1", out=tmp_path / "path.h5ad")
    np.testing.assert_array_equal(stored.obs["time"], path.time)


def test_decode_a_tube(model):
    """Decoding a path averages over its spread: the mean over the cells around it, and no cell is on its line."""
    z = model.reference_latents()
    order = np.argsort(z[:, 0])
    path = Trajectory.between(model, z[order[:60]], z[order[-60:]], n_points=5)
    tube = model.decode(path, batch="batch_1", n_samples=400)
    assert set(tube.layers) == {"std", "q05", "q95", "std_counts"}
    assert (tube.layers["q05"] <= tube.X * (1 + 1e-5)).mean() > 0.99
    bare = model.decode(path.points, batch="batch_1")
    assert not np.allclose(tube.X, bare.X, rtol=1e-3)
    rng = np.random.default_rng(0)
    for i in (0, 4):
        drawn = rng.multivariate_normal(path.points[i], path.spread[i], size=4000).astype(np.float32)
        by_hand = model.distribution(torch.tensor(drawn), batch="batch_1", library_size=1e4).mean.numpy()
        error = 6 * by_hand.std(axis=0) / np.sqrt(400)
        assert (np.abs(tube.X[i] - by_hand.mean(axis=0)) < error).all()
    np.testing.assert_array_equal(model.decode(path, batch="batch_1", n_samples=400).X, tube.X)


def test_the_spread_of_a_path_may_be_overruled(model):
    path = Trajectory.between(model, cells(30, spread=0.1), cells(30, 0.3, seed=1, spread=0.1), n_points=3)
    bare = model.decode(path, spread=False)
    assert set(bare.layers) == {"std_counts"}
    np.testing.assert_array_equal(bare.X, model.decode(path.points).X)
    assert bare.obs["time"].tolist() == [0, 0.5, 1]
    assert model.decode(path, spread=0.5, n_samples=2).obsm["latent_spread"].shape == (3, K)
    counts = model.decode(path, quantity="counts", n_samples=2)
    assert counts.shape == (6, 40)
    assert counts.obs["time"].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_conditions_travel_with_the_path_and_may_be_overruled(full_model):
    z = full_model.reference_latents()
    age = np.linspace(20, 60, 5)
    own = {
        "batch": np.array(["batch_1", "batch_2", "batch_1", "batch_3", "batch_1"]),
        "categorical": {"sex": "male", "chem": "v1"},
        "continuous": {"age": age, "pct": 0.05},
        "library_size": 3000,
    }
    path = Trajectory.between(full_model, z[0], z[1], n_points=5, **own)
    found, said = full_model.decode(path), full_model.decode(path.points, spread=path.spread, **own)
    np.testing.assert_array_equal(found.X, said.X)
    np.testing.assert_allclose(found.obs["age"], age)
    assert found.obs["batch"].tolist() == own["batch"].tolist()
    assert set(found.obs["sex"]) == {"male"}
    assert set(found.obs["library_size"]) == {3000}
    # what is said to decode goes before, one covariate at a time
    over = full_model.decode(
        path, batch="batch_2", categorical={"sex": "female"}, continuous={"pct": 0.2}, library_size=500
    )
    assert set(over.obs["batch"]) == {"batch_2"}
    assert set(over.obs["sex"]) == {"female"}
    assert set(over.obs["chem"]) == {"v1"}
    np.testing.assert_allclose(over.obs["age"], age)
    np.testing.assert_allclose(over.obs["pct"], 0.2)
    assert set(over.obs["library_size"]) == {500}


def test_decode_several_lineages(model, tmp_path):
    z = model.reference_latents()
    points = np.stack([np.linspace(z[0], z[i], 6) for i in (1, 2)])
    batch = np.array([["batch_1"] * 6, ["batch_2"] * 6])
    both = Trajectory.from_points(points, model=model, lineages=["left", "right"], batch=batch, library_size=500)
    expression = model.decode(both)
    assert expression.shape == (12, 40)
    assert expression.obs["lineage"].tolist() == ["left"] * 6 + ["right"] * 6
    assert list(expression.obs["lineage"].cat.categories) == ["left", "right"]
    np.testing.assert_array_equal(expression.obs["time"], both.time.ravel())
    for i, name in enumerate(both.lineages):
        alone, rows = model.decode(both[name]), expression[expression.obs["lineage"] == name]
        np.testing.assert_allclose(alone.X, rows.X, rtol=1e-5)
        for layer in alone.layers:
            np.testing.assert_allclose(alone.layers[layer], rows.layers[layer], rtol=1e-4)
        assert set(alone.obs["batch"]) == {f"batch_{i + 1}"}
    stored = model.decode(both, out=tmp_path / "x.h5ad").to_memory()
    pd.testing.assert_series_equal(stored.obs["lineage"], expression.obs["lineage"])


@pytest.mark.parametrize("form", ["tube", "line", "lineages"])
def test_the_arguments_of_a_decoded_path_make_it_again(full_model, form, tmp_path):
    z = full_model.reference_latents()
    path = Trajectory.from_points(
        np.linspace(z[:2], z[2:4], 5).swapaxes(0, 1) if form == "lineages" else np.linspace(z[0], z[1], 5),
        spread=False if form == "line" else 0.3,
        categorical={"sex": "male"},
        continuous={"age": np.linspace(20, 60, 5)},
        batch=["batch_1", "batch_2"],
    )
    first = full_model.decode(path, out=tmp_path / "x.h5ad").to_memory()
    again = full_model.decode(**sd.decode_arguments(first))
    np.testing.assert_array_equal(again.X, first.X)
    assert set(again.layers) == set(first.layers)
    for layer in first.layers:
        np.testing.assert_allclose(again.layers[layer], first.layers[layer], rtol=1e-6)


def test_a_path_that_leaves_the_cells_says_so(model):
    path = Trajectory.between(model, np.zeros(4), np.full(4, 30.0), n_points=10)
    with pytest.warns(SupportWarning, match=r"\d+ of 10 are farther"):
        expression = model.decode(path, batch="batch_1")
    assert not expression.obs["supported"].iloc[-1]


# -- latent points on a simplex


@pytest.fixture(scope="module")
def simplex():
    """A model with ``latent_distribution="ln"``, and its cells."""
    adata = make_adata(150, 12)
    return make_model(adata, epochs=1, latent_distribution="ln"), adata


def test_a_path_in_a_simplex(simplex):
    """Between two points of a simplex the straight line stays in it."""
    model, _ = simplex
    z = model.reference_latents()
    np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-4)
    first, second = z[np.argsort(model.support(z))[:2]]
    path = Trajectory.between(model, first, second, n_points=5)
    np.testing.assert_allclose(path.points.sum(axis=1), 1, rtol=1e-4)
    expression = model.decode(path, batch="batch_1")
    assert expression.shape == (5, 12)
    assert np.isfinite(expression.X).all()
    # a spread of points on a simplex is one on it: none off the plane on which they sum to one, but for that of the
    # posterior, of which the diagonal alone is taken
    reference = model.reference()
    means = tube_around(path.points, reference.latent_rk, np.zeros_like(reference.latent_rk)).spread_nkk
    np.testing.assert_allclose(means.sum(axis=2), 0, atol=1e-5)
    added = np.diagonal(path.spread - means, axis1=1, axis2=2)
    assert (added > 0).all()
    assert (added < 0.25).all()  # variances of numbers between 0 and 1


def test_lineages_in_a_simplex(simplex):
    model, adata = simplex
    path = Trajectory.from_lineages(model, adata, pseudotime="pseudotime", n_points=7)
    np.testing.assert_allclose(path.points.sum(axis=-1), 1, rtol=1e-3)
    assert path.spread is not None
    assert np.isfinite(model.decode(path, batch="batch_1").X).all()
    graph = Trajectory.between(model, path.points[0], path.points[-1], n_points=7, how="graph")
    np.testing.assert_allclose(graph.points.sum(axis=1), 1, rtol=1e-3)
