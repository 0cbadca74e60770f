"""Paths between places of the latent space, bare or with the spread of the cells around them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import make_adata, make_model
from torch.distributions import Normal

import scdecode as sd
from scdecode.errors import InputError, PointsError, ScdecodeError, SupportWarning
from scdecode.trajectory import medoid

K = 4


def cells(n, centre=0.0, seed=0, spread=1.0):
    return (np.random.default_rng(seed).normal(size=(n, K)) * spread + centre).astype(np.float32)


def test_between_two_points(model):
    start, end = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 1.0, 0.0, -1.0])
    path = sd.Trajectory.between(model, start, end, n_points=5)
    assert len(path) == 5
    assert path.spread is None
    np.testing.assert_array_equal(path.time, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(path.points, start + path.time[:, None] * (end - start))
    assert path.points.dtype == np.float32
    assert "linear" in path.origin
    assert len(sd.Trajectory.between(model, start, end)) == 100


def test_ends_in_every_form(model):
    start, end = cells(8), cells(9, 3.0, seed=1)
    expected = sd.Trajectory.between(model, start, end, n_points=4)
    for form in (torch.tensor, np.ndarray.tolist, np.float64):
        path = sd.Trajectory.between(model, form(start), form(end), n_points=4)
        np.testing.assert_array_equal(path.points, expected.points)
        np.testing.assert_array_equal(path.spread, expected.spread)


def test_between_sets_of_cells_is_a_tube(model):
    start, end = cells(200), cells(300, 2.0, seed=1, spread=0.5)
    path = sd.Trajectory.between(model, start, end, n_points=3)
    np.testing.assert_allclose(path.points[[0, -1]], [start.mean(axis=0), end.mean(axis=0)], atol=1e-5)
    assert path.spread.shape == (3, K, K)
    first, last = np.cov(start.T), np.cov(end.T)
    np.testing.assert_allclose(path.spread[0], first, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.spread[-1], last, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(path.spread[1], (first + last) / 2, rtol=1e-4, atol=1e-6)


def test_a_posterior_adds_its_own_variance(model):
    start, end = cells(50), cells(50, 2.0, seed=1)
    scale = np.random.default_rng(2).uniform(0.1, 0.9, (50, K)).astype(np.float32)
    with_variance = sd.Trajectory.between(
        model, Normal(torch.tensor(start), torch.tensor(scale)), Normal(torch.tensor(end), 0.5), n_points=2
    )
    np.testing.assert_allclose(with_variance.spread[0], np.cov(start.T) + np.diag((scale**2).mean(axis=0)), rtol=1e-4)
    np.testing.assert_allclose(with_variance.spread[1], np.cov(end.T) + 0.25 * np.eye(K), rtol=1e-4, atol=1e-6)
    bare = sd.Trajectory.between(model, start, end, n_points=2)
    np.testing.assert_array_equal(with_variance.points, bare.points)


def test_bare_lines_run_from_cell_to_cell(model):
    start, end = cells(30), cells(30, 2.0, seed=1)
    for ends in ((start, end[0]), (start[:K], end), (start, end)):
        path = sd.Trajectory.between(model, *ends, n_points=2, spread=False)
        assert path.spread is None
        for found, end_cells in zip(path.points[[0, -1]], ends, strict=True):
            rows = np.atleast_2d(end_cells)
            assert (np.abs(rows - found).sum(axis=1) < 1e-6).any()
    # too few cells at one end for a covariance of it: no tube at either
    with pytest.warns(SupportWarning, match=rf"{K} cells came, more than {K} are needed for their covariance"):
        bare = sd.Trajectory.between(model, start[:K], end, n_points=2)
    assert bare.spread is None
    assert repr(bare) == f"Trajectory: linear, 2 points, between {K} and 30 cells, without spread"
    assert sd.Trajectory.between(model, start[: K + 1], end, n_points=2).spread is not None


def test_medoid():
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [2.0, 0.5]])
    np.testing.assert_array_equal(medoid(rows), [2.0, 0.5])


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ({"how": "curved"}, InputError, "how: 'curved' is not .*linear"),
        ({"n_points": 1}, ScdecodeError, "n_points: 1 came, a whole number of at least 2"),
        ({"n_points": 2.5}, ScdecodeError, r"n_points: 2\.5 came"),
        ({"end": np.zeros(3)}, PointsError, r"shape \(3,\) came, \(\.\.\., 4\) was expected"),
        ({"end": np.full(4, np.nan)}, PointsError, "NaN"),
        ({"end": np.zeros((0, 4))}, PointsError, "no points"),
        ({"end": np.zeros(4)}, PointsError, "start, end: they are the same point"),
        ({"end": "HSC"}, PointsError, "no array of numbers"),
    ],
)
def test_refused(model, said, kind, message):
    with pytest.raises(kind, match=message):
        sd.Trajectory.between(model, **{"start": np.zeros(4), "end": np.ones(4), **said})


# -- decoded


@pytest.fixture(scope="module")
def ends(
    model,
):
    """Two ordinary cells, with only ordinary points between them."""
    z = model.reference_latents()
    middle = z[np.argsort(model.support(z))[:40]]
    apart = np.linalg.norm(middle[:, None] - middle[None], axis=2)
    for i, j in zip(*np.unravel_index(np.argsort(-apart, axis=None), apart.shape), strict=True):
        if (model.support(np.linspace(middle[i], middle[j], 20)) < 95).all():
            return middle[i], middle[j]
    raise AssertionError("no pair of cells has supported points between")


def test_decode_a_bare_line(model, ends, tmp_path):
    path = sd.Trajectory.between(model, *ends, n_points=20)
    expression = model.decode(path, batch="batch_1", library_size=1e4)
    assert expression.shape == (20, 40)
    assert not expression.layers
    np.testing.assert_array_equal(expression.obs["time"], path.time)
    np.testing.assert_array_equal(expression.X, model.decode(path.points, batch="batch_1").X)
    stored = model.decode(path, batch="batch_1", out=tmp_path / "path.h5ad")
    np.testing.assert_array_equal(stored.obs["time"], path.time)


@pytest.mark.filterwarnings("ignore:points")
def test_decode_a_tube(model):
    """Decoding a path averages over its spread: the mean over the cells around it, and no cell is on its line."""
    z = model.reference_latents()
    order = np.argsort(z[:, 0])
    path = sd.Trajectory.between(model, z[order[:60]], z[order[-60:]], n_points=5)
    tube = model.decode(path, batch="batch_1", n_samples=400)
    assert set(tube.layers) == {"std", "q05", "q95"}
    assert (tube.layers["q05"] <= tube.X * (1 + 1e-5)).mean() > 0.99
    line = model.decode(path.points, batch="batch_1")
    assert not np.allclose(tube.X, line.X, rtol=1e-3)
    rng = np.random.default_rng(0)
    for i in (0, 4):
        drawn = rng.multivariate_normal(path.points[i], path.spread[i], size=4000).astype(np.float32)
        by_hand = model.distribution(torch.tensor(drawn), batch="batch_1", library_size=1e4).mean.numpy()
        error = 6 * by_hand.std(axis=0) / np.sqrt(400)
        assert (np.abs(tube.X[i] - by_hand.mean(axis=0)) < error).all()
    np.testing.assert_array_equal(model.decode(path, batch="batch_1", n_samples=400).X, tube.X)


@pytest.mark.filterwarnings("ignore:points")
def test_the_spread_of_a_path_may_be_overruled(model):
    path = sd.Trajectory.between(model, cells(30, spread=0.1), cells(30, 0.3, seed=1, spread=0.1), n_points=3)
    bare = model.decode(path, spread=False)
    assert not bare.layers
    np.testing.assert_array_equal(bare.X, model.decode(path.points).X)
    assert bare.obs["time"].tolist() == [0, 0.5, 1]
    assert model.decode(path, spread=0.5, n_samples=2).obsm["latent_spread"].shape == (3, K)
    counts = model.decode(path, quantity="counts", n_samples=2)
    assert counts.shape == (6, 40)
    assert counts.obs["time"].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def test_a_path_that_leaves_the_cells_says_so(model):
    path = sd.Trajectory.between(model, np.zeros(4), np.full(4, 30.0), n_points=10)
    with pytest.warns(SupportWarning, match=r"\d+ of 10 are farther"):
        expression = model.decode(path, batch="batch_1")
    assert not expression.obs["supported"].iloc[-1]


def test_a_path_in_a_simplex():
    """Between two points of a simplex the straight line stays in it."""
    model = make_model(make_adata(120, 12), epochs=1, latent_distribution="ln")
    z = model.reference_latents()
    np.testing.assert_allclose(z.sum(axis=1), 1, rtol=1e-4)
    first, second = z[np.argsort(model.support(z))[:2]]
    path = sd.Trajectory.between(model, first, second, n_points=5)
    np.testing.assert_allclose(path.points.sum(axis=1), 1, rtol=1e-4)
    assert model.decode(path, batch="batch_1").shape == (5, 12)
