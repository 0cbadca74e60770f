"""Geodesics: known ones, those of models, and what cannot be."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import make_adata, make_model
from test_geometry_metric import FULL, sphere

import scdecode as sd
from scdecode.errors import ConditionError, ConfigError, ConvergenceWarning, InputError, PointsError
from scdecode.geometry import Geodesic, ParameterMap, geodesic, metric, path_length
from scdecode.geometry.nearness import Nearness
from scdecode.geometry.searching import STEPS, Spline, Task
from scdecode.support import make_support


@pytest.fixture(scope="module")
def ends(model):
    z = model.get_latent_representation(make_adata())
    order = np.argsort(z[:, 0])
    return z[order[5]], z[order[-5]]


def test_a_great_circle():
    a, b = np.array([math.pi / 3, 0.0]), np.array([math.pi / 3, math.pi / 2])
    found = geodesic(ParameterMap.of_function(sphere, 2), a, b, n_points=50)
    assert found.converged
    assert found.length == pytest.approx(math.acos(0.25), rel=1e-4)
    assert found.straight_length == pytest.approx(math.sin(math.pi / 3) * math.pi / 2, rel=1e-6)
    assert found.ratio == pytest.approx(found.straight_length / found.length) and found.ratio > 1.03
    x = sphere(torch.from_numpy(found.points).double()).exp().numpy() - 3
    across = np.cross(x[0], x[-1])
    assert np.abs(x @ across / np.linalg.norm(across)).max() < 2e-3  # all on the plane through the centre
    np.testing.assert_allclose(np.linalg.norm(np.diff(x, axis=0), axis=1), found.length / 49, rtol=2e-3)
    np.testing.assert_array_equal(found.time, np.linspace(0, 1, 50))
    np.testing.assert_allclose(found.points[[0, -1]], [a, b], rtol=1e-6)


def test_a_cylinder_is_flat():
    def cylinder(z):
        return (3 + torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], dim=1)).log()

    bent = np.array([[0.5, 1.4], [1.0, 0.2], [1.5, 1.7]])
    found = geodesic(ParameterMap.of_function(cylinder, 2), [0.0, 0.0], [2.0, 1.0], init=bent)
    assert found.length == pytest.approx(math.sqrt(5), rel=1e-4)
    assert found.start_length > 1.2 * found.length
    assert found.ratio == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found.points[:, 1], found.points[:, 0] / 2, atol=0.01)
    assert "given" in found.origin and not any("longer" in note for note in found.notes)


def test_poisson_counts_are_flat_in_their_root():
    """With mu = (u / 2)^2 the metric is that of u, whatever the latent coordinates."""

    def roots(z):
        return torch.stack([1 + z[:, 0].exp(), 3 + z[:, 1] + 0.3 * z[:, 0] ** 2], dim=1)

    decoder = ParameterMap.of_function(lambda z: 2 * (roots(z) / 2).log(), 2, gene_likelihood="poisson")
    a, b = torch.tensor([[-1.0, 0.0], [1.5, 2.0]], dtype=torch.float64)
    found = geodesic(decoder, a, b, n_knots=12)
    u = roots(torch.from_numpy(found.points).double()).numpy()
    expected = np.linalg.norm(u[-1] - u[0])
    assert found.length == pytest.approx(expected, rel=1e-3)
    assert found.straight_length > found.length
    along = u[0] + found.time[:, None] * (u[-1] - u[0])
    assert np.abs(u - along).max() < 0.02 * expected


def test_no_path_of_the_model_is_shorter_than_its_roots_allow(model, ends):
    """The NB's roots are a flat space around all that is decoded: no path is shorter than the straight line there."""
    found = geodesic(model, *ends, batch="batch_1", penalty=0.0, library_size=1e4)
    p = sd.geometry.parameter_map(model, batch="batch_1", library_size=1e4).slots[0]
    q = p.function(torch.from_numpy(np.stack(ends)))
    theta = q.log_theta.exp()
    root = 2 * theta.sqrt() * torch.asinh((q.log_mu.exp() / theta).sqrt())
    assert (root[1] - root[0]).norm().item() <= found.length * (1 + 1e-4)
    assert found.length <= found.straight_length * (1 + 1e-3)


def test_energy_falls_to_the_squared_length(model, ends):
    found = geodesic(model, *ends, batch="batch_1", penalty=0.0)
    assert isinstance(found, Geodesic) and found.converged and found.n_iterations > 0
    assert len(found.energy) == found.n_iterations + 1 == len(found.penalty)
    assert found.energy[-1] <= found.energy[0]
    assert found.energy[-1] == pytest.approx(found.length**2, rel=0.02)
    segments = path_length(model, found, batch="batch_1").segments
    assert segments.sum() == pytest.approx(found.length, rel=5e-3)
    assert segments.std() < 0.05 * segments.mean()
    assert found.points.dtype == np.float32 and found.points.shape == (100, 4) and len(found) == 100
    np.testing.assert_array_equal(found.points[[0, -1]], np.stack(ends))


def test_a_geodesic_decodes(model, ends):
    found = geodesic(model, *ends, batch="batch_1", n_points=7)
    assert found.spread is None
    genes = model.decoder(batch="batch_1")(found.points)
    assert genes.shape == (7, 40)
    np.testing.assert_allclose(found.support, model.support(found.points))
    assert found.report["ratio"] == found.ratio and found.report["conditions"]["batch"] == "batch_1"
    assert repr(found).startswith("Geodesic: geodesic from the graph path, 7 points, 8 knots; length ")


def test_every_likelihood_and_condition(full_model):
    z = full_model.get_latent_representation(make_adata())
    found = geodesic(full_model, z[0], z[100], n_knots=3, **FULL)
    assert found.length <= found.start_length * (1 + 1e-3)
    assert geodesic(full_model, z[0], z[100], n_points=2, n_knots=2, max_conditions=400).points.shape == (2, 4)


def test_points_of_a_simplex_stay_there():
    simplex = make_model(make_adata(), epochs=1, latent_distribution="ln")
    z = simplex.get_latent_representation(make_adata())
    found = geodesic(simplex, [0.97, 0.01, 0.01, 0.01], z[0], batch="batch_1", init="linear")
    assert (found.points >= 0).all()
    np.testing.assert_allclose(found.points.sum(1), 1, atol=1e-5)


def ring(n=600, seed=0):
    """Cells on a ring, a bit spread."""
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) + np.random.default_rng(seed + 1).normal(0, 0.05, (n, 2))


def test_the_penalty_keeps_to_the_cells():
    flat = ParameterMap.of_function(lambda z: (5 + z).log(), 2, reference=ring())
    a, b = [1.0, 0.0], [-1.0, 0.0]
    free = geodesic(flat, a, b, penalty=0.0)
    assert free.length == pytest.approx(2, rel=1e-3) and free.support.max() == 100
    assert any("outside the support" in note for note in free.notes)
    kept = geodesic(flat, a, b, penalty=1.0)
    assert kept.length == pytest.approx(math.pi, rel=0.1) and kept.ratio < 0.75
    assert kept.penalty[-1] < 0.2 * kept.energy[-1]
    assert np.linalg.norm(kept.points, axis=1).min() > 0.8
    assert any("straight line, which leaves the support further" in note for note in kept.notes)
    assert kept.start_length > 3


def test_without_reference_cells_there_is_no_penalty():
    flat = ParameterMap.of_function(lambda z: (5 + z).log(), 2)
    found = geodesic(flat, [0.0, 0.0], [1.0, 1.0])
    assert found.support is None and (found.penalty == 0).all()
    assert any("no reference cells: nothing keeps" in note for note in found.notes)
    assert any("the search starts from the straight line" in note for note in found.notes)
    assert found.length == pytest.approx(math.sqrt(2), rel=1e-6) and found.ratio == pytest.approx(1)


def test_the_cost_has_its_derivative():
    cells = ring()
    decoder = ParameterMap.of_function(sphere, 2, reference=cells)
    rng = np.random.default_rng(0)
    task = Task(decoder, Nearness.of(decoder.support), 0.7, np.array([[0.5, 0.0], [1.0, 1.0]]), Spline(4, STEPS), 1.3)
    knots = rng.normal(0, 0.5, (4, 2))
    way = task.cost(knots).slope / np.linalg.norm(task.cost(knots).slope)
    near = [task.cost(knots + h * way) for h in (1e-2, -1e-2)]  # distances to cells are measured in float32
    assert near[0].penalty > 1
    assert (task.cost(knots).slope * way).sum() == pytest.approx((near[0].total - near[1].total) / 2e-2, rel=1e-2)
    free = replace(task, weight=0.0)
    near = [free.cost(knots + h * way) for h in (1e-5, -1e-5)]
    assert near[0].penalty == 0
    assert (free.cost(knots).slope * way).sum() == pytest.approx((near[0].total - near[1].total) / 2e-5, rel=1e-6)


def test_nearness_is_the_support_on_another_scale():
    cells = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    support = make_support(cells)
    nearness = Nearness.of(support)
    z = torch.from_numpy(np.random.default_rng(1).normal(0, 1.5, (300, 3)).astype(np.float32))
    distance = (nearness.edge - nearness.typical) * nearness.excess(z).numpy() + nearness.typical
    np.testing.assert_allclose(distance, support.distance(z), rtol=1e-3, atol=1e-3)
    edge = nearness.excess(z).numpy() > 1
    assert (edge == (support.percentile(z) > 99)).mean() > 0.99
    z.requires_grad_(True)
    nearness.penalty(z).backward()
    assert torch.isfinite(z.grad).all() and (z.grad != 0).any()
    assert Nearness.of(None) is None
    assert Nearness.of(make_support(np.zeros((1, 3), dtype=np.float32))) is None


def test_a_path_that_ends_worse_than_the_straight_line_is_tried_again():
    """Two ways around a bump: the one given is the long one."""

    def bump(z):
        height = 3 * torch.exp(-((z[:, 0] - 0.2) ** 2) - z[:, 1] ** 2)
        return (9 + torch.stack([z[:, 0], z[:, 1], height], dim=1)).log()

    decoder = ParameterMap.of_function(bump, 2)
    wide = np.stack([np.linspace(-2, 2, 20), -6 * np.sin(np.linspace(0, np.pi, 20))], axis=1)
    found = geodesic(decoder, [-2.0, 0.6], [2.0, 0.6], init=wide)
    assert found.length <= found.straight_length * (1 + 1e-3)


def test_a_search_that_is_cut_short_warns(model, ends):
    with pytest.warns(ConvergenceWarning, match=r"^geodesic: the search did not converge in 1 steps"):
        found = geodesic(model, *ends, batch="batch_1", max_iterations=1)
    assert not found.converged and found.n_iterations == 1
    assert any("did not converge" in note for note in found.notes)


def test_ends_may_be_sets_of_cells(model, ends):
    around = np.stack([ends[0] - 0.3, ends[0], ends[0] + 0.3])
    found = geodesic(model, around, ends[1], batch="batch_1", n_knots=2)
    np.testing.assert_array_equal(found.points[0], ends[0])


def test_bad_input_says_so(model, ends):
    a, b = ends
    with pytest.raises(PointsError, match=r"^start, end: they are the same point"):
        geodesic(model, a, a, batch="batch_1")
    with pytest.raises(ConfigError, match=r"^n_points: 1 came"):
        geodesic(model, a, b, n_points=1)
    with pytest.raises(ConfigError, match=r"^n_knots: 0 came"):
        geodesic(model, a, b, n_knots=0)
    with pytest.raises(ConfigError, match=r"^penalty: -1"):
        geodesic(model, a, b, penalty=-1)
    with pytest.raises(ConfigError, match=r"^max_iterations: 0"):
        geodesic(model, a, b, max_iterations=0)
    with pytest.raises(InputError, match=r"^init: 'grph' .* did you mean 'graph'"):
        geodesic(model, a, b, init="grph", batch="batch_1")
    with pytest.raises(PointsError, match=r"\(\.\.\., 4\) was expected"):
        geodesic(model, a[:3], b)
    with pytest.raises(ConditionError, match=r"does not change along a geodesic"):
        geodesic(model, a, b, batch=np.array(["batch_1"] * 100))
    with pytest.raises(PointsError, match=r"between them the decoder gives NaN"):
        geodesic(ParameterMap.of_function(lambda z: (0.5 - z).log(), 2), [0.0, 0.0], [1.0, 0.0])
    with pytest.raises(PointsError, match=r"the decoder does not tell them apart"):
        geodesic(ParameterMap.of_function(lambda z: 0 * z[:, :1], 2), [0.0, 0.0], [1.0, 0.0])


def test_ends_that_the_graph_does_not_connect():
    far = np.concatenate([ring(200), ring(200, seed=5) + 50])
    flat = ParameterMap.of_function(lambda z: (5 + z.abs()).log(), 2, reference=far)
    with pytest.raises(PointsError, match=r"init='linear' starts from the straight line$"):
        geodesic(flat, [1.0, 0.0], [51.0, 50.0])


def test_the_metric_is_exported():
    assert sd.geometry.metric is metric


@pytest.mark.parametrize("batch", [None, ["batch_1", "batch_2"], {"batch_1": 1.0, "batch_3": 3.0}])
def test_an_averaged_geodesic_decodes_in_its_conditions(model, ends, batch):
    found = geodesic(model, *ends, batch=batch, n_points=5, n_knots=2)
    expected = model.decode(found.points, batch=batch)
    np.testing.assert_allclose(model.decode(found, count_noise=False).X, expected.X, rtol=1e-6)
    assert found.report["conditions"]["batch"] == "average"
    fine = geodesic(model, *ends, batch=batch, n_knots=2)
    assert path_length(model, fine).length == pytest.approx(fine.length, rel=1e-3)  # in its own conditions
    assert path_length(model, fine, batch="batch_2").length != pytest.approx(fine.length, rel=1e-4)


@pytest.mark.filterwarnings("ignore:max_conditions")
def test_the_search_sees_the_heaviest_conditions_and_the_length_all(full_model):
    z = full_model.get_latent_representation(make_adata())
    found = geodesic(full_model, z[0], z[100], n_knots=2, max_conditions=40)
    (note,) = (note for note in found.notes if note.startswith("the search saw"))
    assert note.startswith("the search saw the 10 heaviest of the 40 conditions")
    ends = found.points[[0, -1]]
    straight = path_length(full_model, ends, max_conditions=40).length
    assert found.straight_length == pytest.approx(straight, rel=1e-6)
