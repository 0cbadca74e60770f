"""Paths through the graph of cells: near the truth, through the cells, and clear about what cannot be done."""

import itertools

import numpy as np
import pytest
from scipy.spatial import cKDTree

from scdecode.errors import ConfigError, PointsError
from scdecode.paths import graph
from scdecode.paths.graph import Track, make_cell_graph, shortest_track, track_through


def fork(time, branch):
    """A trunk that forks at 0.4, in four dimensions."""
    after = np.clip((time - 0.4) / 0.6, 0, None)
    aside = 1.25 * after**2 / (after + 0.25)
    return np.stack([4 * time, 2.5 * aside * np.where(branch, 1, -1), 1.5 * np.sin(3 * time), 0.8 * aside], axis=1)


def forked_cells(n=2000, seed=0):
    """Cells of a fork, with six more dimensions of noise; and their time and branch."""
    rng = np.random.default_rng(seed)
    time, branch = rng.uniform(size=n), rng.random(n) < 0.5
    signal = fork(time, branch) + 0.25 * rng.normal(size=(n, 4))
    return np.concatenate([signal, rng.normal(size=(n, 6))], axis=1), time, branch


@pytest.fixture(scope="module")
def cells():
    return forked_cells()


def medoid(cells):
    return cells[((cells - cells.mean(axis=0)) ** 2).sum(axis=1).argmin()]


def off(points, branch):
    """Root mean square distance of a path from the true one."""
    true = fork(np.linspace(0, 1, 2000), np.full(2000, branch))
    return np.sqrt((cKDTree(true).query(points[:, :4])[0] ** 2).mean())


def plain_path(z, start, end, n_neighbours=15):
    """The shortest path by plain distance, its corners."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import dijkstra

    distance, near = cKDTree(z).query(z, n_neighbours + 1)
    rows = np.repeat(np.arange(len(z)), n_neighbours)
    graph = csr_array((distance[:, 1:].ravel(), (rows, near[:, 1:].ravel())), shape=(len(z), len(z)))
    before = dijkstra(graph.maximum(graph.T), indices=start, return_predecessors=True)[1]
    way = [end]
    while way[-1] != start:
        way.append(before[way[-1]])
    return z[way[::-1]]


def test_a_path_follows_the_fork(cells):
    z, time, branch = cells
    ends = [np.flatnonzero(mask) for mask in (time < 0.05, (time > 0.95) & branch)]
    start, end = (own[((z[own] - z[own].mean(axis=0)) ** 2).sum(axis=1).argmin()] for own in ends)
    track = shortest_track(z, z[start], z[end])
    assert isinstance(track, Track)
    assert off(track.points_nk[5:-5], True) < 0.2  # cells scatter by 0.25 in each of these dimensions
    plain = plain_path(z, start, end)
    fine = np.concatenate([a + np.linspace(0, 1, 20)[:, None] * (b - a) for a, b in itertools.pairwise(plain)])
    assert off(track.points_nk[5:-5], True) < 0.6 * off(fine, True)
    # in the middle of the noise: a cell is sqrt(6) from there
    assert np.sqrt((track.points_nk[5:-5, 4:] ** 2).sum(axis=1).mean()) < 1.2
    assert (np.diff(time[track.cells]) > 0).mean() > 0.7
    assert branch[track.cells][time[track.cells] > 0.6].all()


def test_from_tip_to_tip_leads_through_the_fork(cells):
    z, time, branch = cells
    tips = [z[(time > 0.95) & (branch == side)].mean(axis=0) for side in (True, False)]
    track = shortest_track(z, *tips)
    assert track.points_nk[:, 0].min() < 2.6  # tips are at 4, where the branches are 5 apart; the fork is at 1.6
    assert track.length > 1.1 * track.straight_length


def test_ends_stay_and_points_are_even(cells):
    z, _, _ = cells
    rng = np.random.default_rng(1)
    start, end = rng.normal(size=(2, 10))
    for smooth in (0.0, 0.04, 0.3):
        track = shortest_track(z, start, end, 37, smooth=smooth)
        assert track.points_nk.shape == (37, 10) and track.points_nk.dtype == np.float32
        np.testing.assert_allclose(track.points_nk[[0, -1]], [start, end], atol=1e-6)
        np.testing.assert_array_equal(track.time_n, np.linspace(0, 1, 37))
        assert track.straight_length == pytest.approx(np.linalg.norm(end - start))
        assert track.length >= track.straight_length - 1e-9
        steps = np.linalg.norm(np.diff(track.points_nk, axis=0), axis=1)
        assert steps.max() < 1.02 * track.length / 36


def test_smoothing_straightens(cells):
    z, time, _ = cells
    ends = medoid(z[time < 0.05]), medoid(z[time > 0.95])
    lengths = [shortest_track(z, *ends, smooth=smooth).length for smooth in (0.0, 0.02, 0.05, 0.1, 0.3)]
    assert (np.diff(lengths) < 0).all()


def test_a_path_through_waypoints_is_its_pieces(cells):
    z, time, branch = cells
    stops = [z[(np.abs(time - at) < 0.05) & branch].mean(axis=0) for at in (0.1, 0.6, 0.9)]
    graph = make_cell_graph(z)
    whole = track_through(graph, stops, 200)
    pieces = [shortest_track(z, a, b) for a, b in itertools.pairwise(stops)]
    np.testing.assert_array_equal(whole.cells, np.concatenate([piece.cells for piece in pieces]))
    assert whole.length == pytest.approx(sum(piece.length for piece in pieces))
    nearest = np.linalg.norm(whole.points_nk - stops[1], axis=1).min()
    assert nearest < whole.length / 199


def test_the_way_back_is_the_way(cells):
    z, time, _ = cells
    ends = medoid(z[time < 0.05]), medoid(z[time > 0.95])
    there, back = shortest_track(z, *ends), shortest_track(z, *ends[::-1])
    np.testing.assert_allclose(there.points_nk, back.points_nk[::-1], atol=1e-5)


def test_the_order_of_the_cells_is_no_matter(cells):
    z, time, _ = cells
    ends = medoid(z[time < 0.05]), medoid(z[time > 0.95])
    order = np.random.default_rng(0).permutation(len(z))
    first, second = shortest_track(z, *ends), shortest_track(z[order], *ends)
    np.testing.assert_allclose(first.points_nk, second.points_nk, atol=1e-5)
    np.testing.assert_array_equal(first.cells, order[second.cells])


def test_cells_in_the_same_place():
    z = np.repeat(np.linspace(0, 1, 40)[:, None] * [1.0, 2.0], 30, axis=0)
    track = shortest_track(z, z[0], z[-1], n_neighbours=60)
    np.testing.assert_allclose(track.points_nk[:, 1], 2 * track.points_nk[:, 0], atol=1e-5)
    assert track.length == pytest.approx(np.sqrt(5), rel=1e-3)


def test_two_cells_are_enough():
    track = shortest_track([[0.0], [1.0]], [0.0], [1.0], 3)
    assert (np.diff(track.points_nk[:, 0]) > 0).all() and track.length == pytest.approx(1)


def test_ends_in_parts_that_nothing_connects():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(60, 3)), rng.normal(size=(40, 3)) + 100, rng.normal(size=(30, 3)) - 100])
    expected = r"graph of 15 .* 130 reference cells has 3 parts, the start is in one of 60 .* one of 40; .*linear"
    with pytest.raises(PointsError, match=expected):
        shortest_track(z, z[0], z[60])
    assert make_cell_graph(z).n_parts == 3
    assert shortest_track(z, z[0], z[60], n_neighbours=70).length > 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: shortest_track(z, z[0], z[0]), "start, end: they are the same point"),
        (lambda z: track_through(z, [z[0], z[1], z[1]]), "waypoints 1 and 2: they are the same point"),
        (lambda z: track_through(z, [z[0]]), r"waypoints: shape \(1, 10\)"),
        (lambda z: track_through(z, z[:2, :4]), "4 dimensions came for cells of 10"),
        (lambda z: shortest_track(z, z[0], z[1] * np.nan), "waypoints: 1 of 2 points have NaN"),
        (lambda z: make_cell_graph(np.where(np.arange(2000)[:, None] < 3, np.inf, z)), "3 of 2,000 cells"),
        (lambda z: make_cell_graph(z[0]), r"latent_rk: shape \(10,\) came"),
    ],
)
def test_what_cannot_be_a_path(cells, call, message):
    with pytest.raises(PointsError, match=message):
        call(cells[0])


def test_options_are_checked(cells):
    z = cells[0]
    for options in ({"n_points": 1}, {"n_neighbours": 0}, {"smooth": -0.1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            shortest_track(z, z[0], z[1], **options)


def test_neighbours_in_many_dimensions_are_those_of_the_tree(monkeypatch):
    """All distances or a tree, whichever is faster: the same cells."""
    cells = np.random.default_rng(0).normal(size=(700, 14)) + 100
    found = make_cell_graph(cells)
    monkeypatch.setattr(graph, "_TREE_DIMENSIONS", 14)
    by_tree = make_cell_graph(cells)
    np.testing.assert_array_equal(np.sort(found.neighbours_rj), np.sort(by_tree.neighbours_rj))
    np.testing.assert_allclose(found.averaged_rk, by_tree.averaged_rk)
