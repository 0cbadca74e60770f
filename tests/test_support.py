"""Support: a training cell is typical, a far point is far, and neither size nor repetition of the reference matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_adata, make_model

from scdecode.errors import NotTrainedError, PointsError, SupportWarning
from scdecode.support import FAR, make_support


def normal(n, k, seed=0, offset=0.0):
    return (np.random.default_rng([seed, n, k]).normal(size=(n, k)) + offset).astype(np.float32)


def percentile(support, points):
    return support.percentile(torch.as_tensor(points, dtype=torch.float32))


@pytest.mark.parametrize(
    ("n", "k", "offset"),
    [(100, 4, 0), (300, 4, 0), (3000, 2, 0), (3000, 10, 0), (3000, 10, 50), (3000, 50, 0), (7000, 10, 0)],
)
def test_training_cells_are_uniform(n, k, offset):
    """A cell is not its own neighbour, in whatever precision its distance to itself is computed."""
    reference = normal(n, k, offset=offset)
    found = percentile(make_support(reference), reference)
    # binomial standard error of a quantile is at most 50 / sqrt(n), in percent
    for q in (10, 25, 50, 75, 90):
        assert np.percentile(found, q) == pytest.approx(q, abs=1 + 150 / np.sqrt(n))
    assert 45 <= np.median(found) <= 55
    assert (found > FAR).mean() <= 0.02
    assert found.min() >= 0
    assert found.max() <= 100


@pytest.mark.parametrize(("n", "k"), [(1000, 4), (3000, 10), (3000, 50)])
def test_new_cells_of_the_same_kind_are_as_uniform(n, k):
    found = percentile(make_support(normal(n, k)), normal(2000, k, seed=1))
    assert np.median(found) == pytest.approx(50, abs=5)
    assert (found > FAR).mean() < 0.04


def test_a_cell_is_itself_in_half_precision_too():
    reference = normal(2000, 10)
    support = make_support(reference)
    exact, rounded = percentile(support, reference), percentile(support, reference.astype(np.float16))
    np.testing.assert_allclose(rounded, exact, atol=1.0)
    # beside it, but not near enough to be it: as typical as it is
    beside = percentile(support, reference + 0.05)
    assert np.median(beside) < 50


def test_far_points():
    support = make_support(normal(1000, 5))
    for far in (20.0, 1e3, 1e10, 1e25):
        assert percentile(support, np.full((2, 5), far)).tolist() == [100, 100]
    assert percentile(support, np.zeros((1, 5))).item() < 10


def test_rank_correlation_with_the_distance():
    support = make_support(normal(2000, 6))
    direction = normal(1, 6)[0]
    direction /= np.linalg.norm(direction)
    steps = np.linspace(0, 6, 40)
    found = percentile(support, steps[:, None] * direction)
    ranks = found.argsort(kind="stable").argsort()
    assert np.corrcoef(ranks, np.arange(40))[0, 1] > 0.95
    # and with the true distance to the 5 nearest cells, over points of every kind
    points = normal(500, 6, seed=2) * np.linspace(0.3, 3, 500, dtype=np.float32)[:, None]
    distances = np.sort(np.linalg.norm(points[:, None] - normal(2000, 6)[None], axis=2), axis=1)[:, :5].mean(axis=1)
    found = support.distance(torch.tensor(points))
    assert np.corrcoef(found.argsort().argsort(), distances.argsort().argsort())[0, 1] > 0.98


def test_distance_by_hand():
    """With one group it is the distance to the nearest other cell."""
    reference = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [10.0, 0.0]], dtype=np.float32)
    support = make_support(reference)
    np.testing.assert_allclose(support.distance(torch.tensor(reference)), [1, np.sqrt(18), 1, np.sqrt(65)], rtol=1e-5)
    np.testing.assert_allclose(support.distance(torch.tensor([[0.0, -2.0], [10.0, 7.0]])), [2, 7], rtol=1e-5)
    assert percentile(support, reference).tolist() == [25, 62.5, 25, 87.5]
    assert percentile(support, [[0.0, -0.5], [0.0, -2.0], [100.0, 0.0]]).tolist() == [0, 50, 100]


@pytest.mark.parametrize("n", [1, 2, 5, 12, 19, 20, 21, 60])
def test_tiny_references(n):
    reference = normal(n, 4)
    support = make_support(reference)
    found = percentile(support, reference)
    assert np.isfinite(found).all()
    if n > 1:
        assert np.median(found) == pytest.approx(50, abs=15)
    assert (found > FAR).sum() <= n // 50
    assert percentile(support, np.full((1, 4), 100.0)).item() == 100
    if n >= 5:  # a point amid the cells is not far from them
        assert percentile(support, reference.mean(axis=0, keepdims=True)).item() < FAR


def test_duplicates():
    same = make_support(np.ones((200, 4), dtype=np.float32))
    assert percentile(same, np.ones((3, 4))).tolist() == [50, 50, 50]
    assert percentile(same, np.zeros((2, 4))).tolist() == [100, 100]
    half = make_support(np.concatenate([np.zeros((200, 4), dtype=np.float32), normal(200, 4) * 2]))
    assert percentile(half, np.zeros((1, 4))).item() < 50
    assert percentile(half, np.full((1, 4), 20.0)).item() == 100
    each_twice = np.repeat(normal(300, 4), 2, axis=0)
    found = percentile(make_support(each_twice), each_twice)
    assert np.isfinite(found).all()
    assert np.median(found) == pytest.approx(50, abs=10)


def test_the_order_and_the_tiles_do_not_matter():
    reference, points = normal(1500, 8), normal(700, 8, seed=3)
    support = make_support(reference)
    together = percentile(support, points)
    apart = np.concatenate([percentile(support, point[None]) for point in points[:50]])
    np.testing.assert_allclose(apart, together[:50], atol=0.2)
    np.testing.assert_array_equal(percentile(make_support(reference), points), together)
    turned = percentile(support, points[::-1].copy())[::-1]
    np.testing.assert_allclose(turned, together, atol=0.2)


@given(st.floats(0.01, 100), st.floats(-100, 100))
@settings(max_examples=20, deadline=None)
def test_units_and_place_do_not_matter(factor, shift):
    reference, points = normal(400, 3), normal(50, 3, seed=4)
    usual = percentile(make_support(reference), points)
    moved = percentile(make_support(reference * np.float32(factor) + np.float32(shift)), points * factor + shift)
    # what is left of the cells' own digits, where they are small and far from zero
    lost = 3e-7 * abs(shift) / factor
    np.testing.assert_allclose(moved, usual, atol=2.0 + 1000 * lost)


# -- through the model


def test_model_support(model):
    z = model.reference_latents()
    found = model.support(z)
    assert found.shape == (len(z),)
    assert found.dtype == np.float32
    assert 45 <= np.median(found) <= 55
    assert model.support(z[0]).shape == ()
    assert model.support(z[:6].reshape(2, 3, 4)).shape == (2, 3)
    np.testing.assert_array_equal(model.support(z[:6].reshape(2, 3, 4)).ravel(), model.support(z[:6]))


def test_support_takes_points_as_decode_does(model, adata):
    adata.obsm["X_scVI"] = model.get_latent_representation(adata)
    z = adata.obsm["X_scVI"]
    for points in (adata, torch.tensor(z), z.tolist(), z.astype(np.float64)):
        np.testing.assert_array_equal(model.support(points), model.support(z))
    adata.obsm["other"] = z[::-1]
    np.testing.assert_array_equal(model.support(adata, use_rep="other"), model.support(z[::-1]))
    with pytest.raises(PointsError, match="NaN"):
        model.support(z * np.nan)
    with pytest.raises(PointsError, match="expected"):
        model.support(z[:, :2])


def test_flagged_and_counted_in_one_warning(model):
    z = model.reference_latents()
    z = z[np.argsort(np.abs(model.support(z) - 50), kind="stable")[:5]]
    points = np.concatenate([z, np.full((3, 4), 50.0)])
    with pytest.warns(SupportWarning, match="3 of 8 are farther from the training cells than 99 %") as caught:
        expression = model.decode(points, batch="batch_1", chunk_size=2)
    assert [w.filename for w in caught] == [__file__]
    assert expression.obs["supported"].tolist() == [True] * 5 + [False] * 3
    np.testing.assert_array_equal(expression.obs["support"], model.support(points))
    assert (expression.obs["support"] <= FAR).tolist() == expression.obs["supported"].tolist()
    model.decode(z, batch="batch_1")  # no warning


def test_a_model_of_few_cells():
    tiny = make_model(make_adata(12, 10), epochs=1)
    found = tiny.support(tiny.reference_latents())
    assert np.isfinite(found).all()
    assert np.ptp(found) > 50  # ten training cells: were each its own neighbour, all would be alike
    tiny.decode(tiny.reference_latents()[np.argmin(found)])


def test_not_trained():
    untrained = make_model(make_adata(30, 10), epochs=0)
    with pytest.raises(NotTrainedError):
        untrained.support(np.zeros((1, 4)))
    with pytest.raises(NotTrainedError):
        untrained.decode(np.zeros((1, 4)))
