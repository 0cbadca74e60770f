"""The spread of the cells around a path, found among cells of which some are of another branch."""

from __future__ import annotations

import numpy as np
import pytest

from scdecode.errors import PointsError, SupportWarning
from scdecode.paths.graph import make_cell_graph
from scdecode.paths.tube import moments, shares, tube_around

K, N_CELLS, N_POINTS = 5, 4000, 20
EXTENT = 8.0  # of the path, in latent units
UNKNOWN = "ignore:spread. the posterior variances"


def curve(t):
    """A half circle in the first two dimensions."""
    return np.stack(
        [EXTENT * np.sin(np.pi * t / 2), EXTENT * (1 - np.cos(np.pi * t / 2)), *np.zeros((K - 2, len(t)))], 1
    )


def known_covariance(t):
    """Grows along the path, and has a correlation; ``(n, k, k)``."""
    base = np.diag([0.03, 0.03, 0.09, 0.16, 0.05])
    base[2, 3] = base[3, 2] = 0.08
    return base * (1 + 2 * t[:, None, None])


def scattered(t, seed):
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(known_covariance(t))
    return curve(t) + np.einsum("nij,nj->ni", root, rng.normal(size=(len(t), K)))


@pytest.fixture(scope="module")
def on_path():
    """Cells around the curve."""
    return scattered(np.random.default_rng(1).uniform(0, 1, N_CELLS), seed=2)


@pytest.fixture(scope="module")
def branch():
    """Cells of another branch, which leaves the curve in its middle and scatters three times as wide."""
    rng = np.random.default_rng(3)
    t = rng.uniform(0, 1, N_CELLS // 2)
    away = np.array([1.0, -1.0, 0, 0, 1.0]) / np.sqrt(3) * EXTENT
    return curve(np.full(len(t), 0.5)) + t[:, None] * away + rng.normal(size=(len(t), K)) * 0.6


TIME = np.linspace(0, 1, N_POINTS)
POINTS = curve(TIME)


def error_of(spread_nkk, rows=slice(None)):
    """Largest error of a covariance, as a share of the size of the known one."""
    known = known_covariance(TIME)
    return (np.linalg.norm(spread_nkk - known, axis=(1, 2)) / np.linalg.norm(known, axis=(1, 2)))[rows]


@pytest.mark.filterwarnings(UNKNOWN)
def test_it_is_that_of_the_cells(on_path):
    """Within 40 % of the size of the covariance everywhere, 27 % on average.

    A covariance of the 500 cells or so within the kernel has an error of sqrt((k + 1) / 500) = 11 % of its size by
    chance. Cells far from the path count less, which takes some ten per cent of the widest direction; and at the ends
    the kernel sees one side alone, where cells scatter less (or more) than at the end itself.
    """
    tube = tube_around(POINTS, on_path)
    assert tube.spread_nkk.shape == (N_POINTS, K, K)
    error = error_of(tube.spread_nkk)
    assert error.max() < 0.4
    assert error.mean() < 0.27
    np.testing.assert_allclose(tube.spread_nkk, tube.spread_nkk.swapaxes(1, 2), atol=1e-12)
    assert (np.linalg.eigvalsh(tube.spread_nkk) > 0).all()
    # it grows (threefold, but the ends are averages over a stretch), and knows of the correlation (0.67)
    assert 1.6 < tube.spread_nkk[-1, 3, 3] / tube.spread_nkk[0, 3, 3] < 4
    correlation = tube.spread_nkk[:, 2, 3] / np.sqrt(tube.spread_nkk[:, 2, 2] * tube.spread_nkk[:, 3, 3])
    assert np.abs(correlation - 0.08 / 0.12).max() < 0.25


@pytest.mark.filterwarnings(UNKNOWN)
@pytest.mark.parametrize("n_cells", [400, 2000, 10_000])
def test_more_cells_do_not_make_it_narrower(n_cells):
    """What is near is a share of the cells: were it a number of them, many cells would be a narrow tube."""
    cells = scattered(np.random.default_rng(1).uniform(0, 1, n_cells), seed=2)
    found = np.trace(tube_around(POINTS, cells).spread_nkk, axis1=1, axis2=2)
    known = np.trace(known_covariance(TIME), axis1=1, axis2=2)
    assert 0.75 < (found / known)[2:-2].mean() < 1.25


@pytest.mark.filterwarnings(UNKNOWN)
def test_cells_of_another_branch_are_left_out(on_path, branch):
    alone, mixed = tube_around(POINTS, on_path), tube_around(POINTS, np.concatenate([on_path, branch]))
    # where the branch leaves the path, cells belong to both; beyond, the found spread is as without it
    fork = np.abs(TIME - 0.5) < 0.15
    assert error_of(mixed.spread_nkk, ~fork).max() < 0.4
    difference = np.linalg.norm(mixed.spread_nkk - alone.spread_nkk, axis=(1, 2))
    assert (difference / np.linalg.norm(alone.spread_nkk, axis=(1, 2)))[~fork].max() < 0.15
    # taken together, cells of the branch, which go to the nearest point of the path, would be many times as wide
    assert np.abs(branch - curve(np.array([0.5]))).max() > 5
    assert (
        np.trace(mixed.spread_nkk, axis1=1, axis2=2).max()
        < 2 * np.trace(known_covariance(TIME), axis1=1, axis2=2).max()
    )


def test_the_mean_posterior_variance_is_added(on_path):
    variance = np.random.default_rng(5).uniform(0.01, 0.05, on_path.shape)
    with pytest.warns(SupportWarning, match="posterior variances of the reference cells are not known"):
        means_alone = tube_around(POINTS, on_path)
    both = tube_around(POINTS, on_path, variance)
    added = both.spread_nkk - means_alone.spread_nkk
    np.testing.assert_allclose(added * (1 - np.eye(K)), 0, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(added, axis1=1, axis2=2), 0.03, atol=0.003)
    same = tube_around(POINTS, on_path, np.full(on_path.shape, 0.04))
    np.testing.assert_allclose(
        same.spread_nkk - means_alone.spread_nkk, np.broadcast_to(0.04 * np.eye(K), (N_POINTS, K, K))
    )


@pytest.mark.filterwarnings(UNKNOWN)
def test_the_order_of_the_cells_does_not_matter(on_path, branch):
    cells = np.concatenate([on_path, branch])
    order = np.random.default_rng(6).permutation(len(cells))
    found, again = tube_around(POINTS, cells), tube_around(POINTS, cells[order])
    np.testing.assert_allclose(again.spread_nkk, found.spread_nkk, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(again.n_cells_n, found.n_cells_n, rtol=1e-8)


@pytest.mark.filterwarnings(UNKNOWN)
def test_neither_do_shifts_turns_and_the_direction_of_the_path(on_path):
    cells = on_path[:1500]
    found = tube_around(POINTS, cells).spread_nkk
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(K, K)))[0]
    turned = tube_around(POINTS @ turn.T + 3, cells @ turn.T + 3).spread_nkk
    np.testing.assert_allclose(turned, turn @ found @ turn.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tube_around(POINTS[::-1], cells).spread_nkk[::-1], found, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(tube_around(3 * POINTS, 3 * cells).spread_nkk, 9 * found, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings(UNKNOWN)
def test_the_number_of_points_hardly_matters(on_path):
    cells = on_path[:1500]
    dense = curve(np.linspace(0, 1, 39))
    coarse, fine = tube_around(POINTS, cells).spread_nkk, tube_around(dense, cells).spread_nkk[::2]
    apart = np.linalg.norm(fine - coarse, axis=(1, 2)) / np.linalg.norm(coarse, axis=(1, 2))
    assert apart.max() < 0.02


@pytest.mark.filterwarnings(UNKNOWN)
def test_a_graph_of_the_cells_will_do(on_path):
    cells = on_path[:500]
    graph = make_cell_graph(cells)
    np.testing.assert_array_equal(tube_around(POINTS, graph).spread_nkk, tube_around(POINTS, cells).spread_nkk)
    other = tube_around(POINTS, cells, n_neighbours=30)
    np.testing.assert_array_equal(
        tube_around(POINTS, make_cell_graph(cells, n_neighbours=30)).spread_nkk, other.spread_nkk
    )


@pytest.mark.filterwarnings(UNKNOWN)
def test_few_cells_are_drawn_to_all_around_the_path(on_path):
    """Of a handful of cells a covariance has no full rank at any point; that of all has."""
    tube = tube_around(POINTS, on_path[:40])
    assert tube.n_cells_n.max() < 20
    assert (np.linalg.eigvalsh(tube.spread_nkk) > 1e-4).all()


@pytest.mark.filterwarnings(UNKNOWN)
def test_too_few_cells(on_path):
    for n in (2, K, K + 1):
        with pytest.raises(PointsError, match=f"{n} reference cells cannot tell how cells scatter in {K} dimensions"):
            tube_around(POINTS, on_path[:n])
    assert np.isfinite(tube_around(POINTS, on_path[: K + 2]).spread_nkk).all()


@pytest.mark.filterwarnings(UNKNOWN)
def test_cells_that_are_all_the_same():
    same = np.broadcast_to(curve(np.array([0.3])), (50, K)).copy()
    tube = tube_around(POINTS, same, np.full((50, K), 0.1))
    assert np.isfinite(tube.spread_nkk).all()
    at = int(np.abs(TIME - 0.3).argmin())
    # the cells lie on the path itself (to an interval of the fine line), so what is left is their variance
    np.testing.assert_allclose(tube.spread_nkk[at], 0.1 * np.eye(K), atol=0.01)


@pytest.mark.filterwarnings(UNKNOWN)
def test_every_cell_twice_is_as_once(on_path):
    """Doubles are neighbours of each other, so the graph is a little shorter sighted; the spread hardly changes."""
    cells = on_path[:1500]
    once, twice = tube_around(POINTS, cells).spread_nkk, tube_around(POINTS, np.concatenate([cells, cells])).spread_nkk
    apart = np.linalg.norm(twice - once, axis=(1, 2)) / np.linalg.norm(once, axis=(1, 2))
    assert apart.max() < 0.4


@pytest.mark.filterwarnings(UNKNOWN)
def test_a_path_far_from_every_cell(on_path):
    tube = tube_around(POINTS + 1e3, on_path)
    assert np.isfinite(tube.spread_nkk).all()


# -- shares, moments


def test_shares_of_the_length():
    np.testing.assert_allclose(shares(np.array([[0, 0], [3, 4], [3, 5], [3, 9]])), [0, 0.5, 0.6, 1])
    with pytest.raises(PointsError, match="they are all the same; a path needs two that differ"):
        shares(np.ones((4, 2)))
    with pytest.raises(PointsError, match=r"points: 1 and 2 are the same; .* pass time="):
        shares(np.array([[0.0], [1.0], [1.0], [2.0]]))


@pytest.mark.filterwarnings(UNKNOWN)
def test_a_path_that_stays_in_a_place_for_a_while(on_path):
    """As one of given times may: it is as long as without."""
    again = np.array([0, 0, 3, 10, 10, 10, 19, 19])
    np.testing.assert_allclose(
        shares(POINTS[again], strict=False), shares(POINTS[again[[0, 2, 3, 6]]])[[0, 0, 1, 2, 2, 2, 3, 3]]
    )
    whole, some = tube_around(POINTS, on_path[:500]), tube_around(np.repeat(POINTS, 2, axis=0), on_path[:500])
    np.testing.assert_allclose(some.spread_nkk[::2], whole.spread_nkk)
    np.testing.assert_allclose(some.spread_nkk[1::2], whole.spread_nkk)


def test_moments_over_paths():
    rng = np.random.default_rng(0)
    points, root = rng.normal(size=(6, 3, K)), rng.normal(size=(6, 3, K, K))
    spread = root @ root.swapaxes(2, 3)
    mean, covariance = moments(points, spread)
    np.testing.assert_allclose(mean, points.mean(axis=0))
    for i in range(3):
        np.testing.assert_allclose(covariance[i], np.cov(points[:, i].T) + spread[:, i].mean(axis=0))
        np.testing.assert_allclose(moments(points, None)[1][i], np.cov(points[:, i].T))
