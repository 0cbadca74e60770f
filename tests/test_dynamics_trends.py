"""Trends and their derivatives: against finite differences in double precision, and streamed against all at once."""

import copy

import numpy as np
import pytest
import torch
from dynamics_paths import HAND, N_LATENT, WEIGHTS, Line, hand_made, moving, winding
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.decoding import averaged
from scdecode.dynamics import trends
from scdecode.dynamics.routes import read_routes
from scdecode.dynamics.trends import walk
from scdecode.errors import ConditionError, ConfigError, InputError, PointsError

pytestmark = pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")


def one_route(model, path, **asked):
    (route,) = read_routes(model, path, **asked).routes
    return route


def double_means(model, route, times):
    """The mean over the route's draws at any times, in double precision, by the network itself."""
    vae = copy.deepcopy(model.vae).double()
    n = len(times)
    z = torch.from_numpy(route.curve.points(times)).expand(len(route.noise_sk), n, -1)
    if route.curve.factors is not None:
        factors, noise = torch.from_numpy(route.curve.factors(times)), route.noise_sk.double()
        spread = noise[:, None] * factors if factors.dim() == 2 else torch.einsum("nij,sj->sni", factors, noise)
        z = z + spread
        if route.curve.simplex:
            z = z.clamp(min=0)
            z = z / z.sum(-1, keepdim=True)
    genes = None if route.plan.genes is None else route.plan.genes
    # the covariates are float32
    vae.conditioned = lambda x, codes, continuous, f=vae.conditioned: f(x, codes, continuous.double())
    return averaged(vae, z, route.conditions, slice(0, n), route.quantity, genes).mean(0).numpy()


MODELS = {
    "nb": {},
    "two layers": {"n_layers": 2, "use_layer_norm": "both", "deeply_inject_covariates": True},
    "zinb": {"setup": EVERYTHING, "gene_likelihood": "zinb"},
    "embedding": {"batch_representation": "embedding"},
    "size factor": {"setup": {"size_factor_key": "size_factor"}},
    "simplex": {"latent_distribution": "ln"},
}


def path_for(name):
    if name != "simplex":
        return winding()
    t = np.linspace(0, 1, 12)
    z = np.exp(np.sin(t[:, None] * [1.0, 2.0, 3.0, 4.0]))
    spread = np.broadcast_to(0.15**2 * np.eye(N_LATENT), (12, N_LATENT, N_LATENT))
    return Line(z / z.sum(1, keepdims=True), t, spread)


@pytest.mark.parametrize("genes", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_mean(name, genes):
    model = make_model(make_adata(), **MODELS[name])
    names = [model.schema.genes[i] for i in (7, 3, 20)] if genes else None
    route = one_route(
        model, path_for(name), quantity="mean" if name == "zinb" else "rate", genes=names, n_samples=16, seed=1
    )
    found = walk(route)
    inner = route.time_n[1:-1]
    step = 1e-6
    before, at, after = (double_means(model, route, inner + d) for d in (-step, 0.0, step))
    if names is not None and route.plan.genes is None:  # of a softplus the plan keeps no other genes
        before, at, after = (a[:, [7, 3, 20]] for a in (before, at, after))
    np.testing.assert_allclose(found.mean_ng[1:-1], at, rtol=2e-5)
    slopes = (after - before) / (2 * step)
    # a unit that switches within the step, one in many draws, is off by as little
    size = np.abs(slopes).max(0)
    np.testing.assert_allclose(found.slope_ng[1:-1] / size, slopes / size, rtol=1e-3, atol=1e-3)


def test_a_bare_line_has_the_derivative_of_the_line(model):
    route = one_route(model, winding(spread=False))
    found = walk(route)
    assert route.bare
    assert found.change_sg is None
    inner, step = route.time_n[1:-1], 1e-6
    slopes = (double_means(model, route, inner + step) - double_means(model, route, inner - step)) / (2 * step)
    np.testing.assert_allclose(found.slope_ng[1:-1], slopes, rtol=1e-3, atol=1e-4 * np.abs(slopes).max())


@pytest.mark.parametrize("asked", [{}, {"batch": "batch_1"}, {"batch": {"batch_1": 1, "batch_2": 3}}], ids=str)
@pytest.mark.parametrize("quantity", ["rate", "scale", "mean"])
def test_means_are_those_of_decode(full_model, asked, quantity):
    path = winding()
    found = walk(one_route(full_model, path, quantity=quantity, n_samples=32, seed=3, **asked))
    decoded = full_model.decode(
        Line(path.points, path.time, path.spread), quantity=quantity, n_samples=32, seed=3, **asked
    )
    np.testing.assert_allclose(found.mean_ng, decoded.X, rtol=3e-5)


def test_means_of_a_tube_are_those_of_the_lognormal():
    """E[exp(w z)] = exp(w m + w^2 s^2 / 2); the derivative is w m' times it."""
    model = hand_made()
    std = [0.3, 0.2, 0.1, 0.1]
    found = walk(one_route(model, moving(std=std), n_samples=2048, **HAND))
    t = np.linspace(0, 1, 30)
    z = np.stack([t, np.sin(np.pi * t)], 1)
    velocity = np.stack([np.ones(30), np.pi * np.cos(np.pi * t)], 1)
    w = WEIGHTS[:5, :2]
    mean = 20.0 * np.exp(z @ w.T + 0.5 * (w**2 @ np.square(std[:2])))
    np.testing.assert_allclose(found.mean_ng[:, :5], mean, rtol=5e-3)
    # the spline's own derivative at the ends is off by the cube of the step
    np.testing.assert_allclose(found.slope_ng[:, :5], mean * (velocity @ w.T), rtol=1e-2, atol=0.02)


def test_the_streamed_change_is_that_of_all_draws(model):
    path = winding(40)
    route = one_route(model, path, n_samples=64, library_size=1e4)
    found = walk(route)
    draws_sng, slopes_ng = route.values_and_slopes(slice(0, 40))
    np.testing.assert_allclose(route.values(slice(0, 40)), draws_sng, rtol=1e-5)
    logs = np.log2(draws_sng.numpy() + 0.1)
    mean = draws_sng.mean(0).numpy()
    high, low, at = mean.argmax(0), mean.argmin(0), np.arange(mean.shape[1])
    np.testing.assert_allclose(found.mean_ng, mean, rtol=1e-5)
    np.testing.assert_allclose(found.slope_ng, slopes_ng, rtol=1e-4, atol=1e-5 * np.abs(slopes_ng.numpy()).max())
    np.testing.assert_allclose(found.change_sg, logs[:, high, at] - logs[:, low, at], atol=1e-4)


def test_threads_and_tiles_change_nothing(model, monkeypatch):
    path = winding(40)
    route = one_route(model, path, n_samples=128)
    found = walk(route)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shared = walk(route)
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(trends, "_TILE_ROWS", 1024)
    single = walk(route)
    for other in (shared, single):
        for name in ("mean_ng", "slope_ng", "change_sg"):
            np.testing.assert_allclose(getattr(other, name), getattr(found, name), rtol=1e-4, atol=1e-5)


def test_the_path_brings_its_conditions(model):
    path = winding()
    own = Line(path.points, path.time, path.spread, {"batch": "batch_2", "library_size": 500.0})
    found = walk(one_route(model, own))
    told = walk(one_route(model, path, batch="batch_2", library_size=500.0))
    np.testing.assert_array_equal(found.mean_ng, told.mean_ng)
    overruled = walk(one_route(model, own, batch="batch_1", library_size=1e4))
    np.testing.assert_array_equal(overruled.mean_ng, walk(one_route(model, path, batch="batch_1")).mean_ng)


def test_conditions_that_change_along_the_path(full_model):
    path = winding()
    steady = one_route(full_model, path, continuous={"age": np.full(12, 40.0)}, batch=np.array(["batch_1"] * 12))
    assert steady.steady
    fixed = one_route(full_model, path, continuous={"age": 40.0}, batch="batch_1")
    for name in ("mean_ng", "slope_ng"):
        np.testing.assert_allclose(getattr(walk(steady), name), getattr(walk(fixed), name), rtol=1e-4, atol=1e-3)
    for changing in (
        {"continuous": {"age": np.linspace(20, 80, 12)}},
        {"batch": np.array(["batch_1", "batch_2"] * 6)},
        {"library_size": np.linspace(100, 200, 12)},
    ):
        assert not one_route(full_model, path, **changing).steady


def test_several_lineages_are_several_routes(model):
    paths = [winding(seed=seed) for seed in (0, 1)]
    both = Line(
        np.stack([p.points for p in paths]),
        np.stack([p.time for p in paths]),
        np.stack([p.spread for p in paths]),
        {"library_size": np.repeat([1e4, 2e4], 12).reshape(2, 12)},
        ("erythroid", "myeloid"),
    )
    routes = read_routes(model, both).routes
    assert [route.name for route in routes] == ["erythroid", "myeloid"]
    for route, path, size in zip(routes, paths, (1e4, 2e4), strict=True):
        assert route.steady
        np.testing.assert_allclose(
            walk(route).mean_ng, walk(one_route(model, path, library_size=size)).mean_ng, rtol=1e-5
        )
    unnamed = Line(both.points, both.time, None)
    assert [route.name for route in read_routes(model, unnamed).routes] == ["0", "1"]


def test_the_pseudocount_is_per_ten_thousand():
    path = winding()
    model = make_model(make_adata())
    assert one_route(model, path, library_size=2e4, pseudocount=0.5).pseudocount_n == pytest.approx(1.0)
    assert one_route(model, path, quantity="scale", pseudocount=0.5).pseudocount_n == pytest.approx(5e-5)
    sized = make_model(make_adata(), setup={"size_factor_key": "size_factor"})
    route = one_route(sized, path, library_size=2.0, pseudocount=1.0)
    total = sized.decode(path.points, library_size=2.0).X.sum(1).mean()
    assert route.pseudocount_n == pytest.approx(total / 1e4, rel=1e-4)


@pytest.mark.parametrize(
    ("path", "asked", "error", "match"),
    [
        (np.zeros((5, 4)), {}, PointsError, "a trajectory was expected"),
        (Line(np.zeros((2, 4)), [0, 1]), {}, PointsError, "at least 3 points"),
        (Line(np.zeros((4, 5, 3, 4)), np.zeros((4, 5, 3))), {}, PointsError, "at least 3 points"),
        (Line(np.eye(4), [0, 1, 1, 2]), {}, PointsError, r"does not increase after points \[1\]"),
        (Line(np.eye(4), None), {}, PointsError, "it has no time"),
        (Line(np.eye(4), [0, 1, np.nan, 2]), {}, PointsError, "does not increase"),
        (Line(np.eye(4), [0, 1, 2, 3]), {"n_samples": 8}, PointsError, "no spread to draw from"),
        (winding(), {"n_samples": 1}, PointsError, "2 or more"),
        (winding(), {"seed": -1}, ConfigError, "seed"),
        (winding(), {"quantity": "counts"}, InputError, "quantities of trends"),
        (winding(), {"pseudocount": 0.0}, ConfigError, "pseudocount"),
        (winding(), {"genes": ["GATA1"]}, InputError, "genes of the model"),
        (winding(), {"batch": "batch_9"}, ConditionError, "batch_9"),
    ],
)
def test_what_cannot_be_walked(model, path, asked, error, match):
    with pytest.raises(error, match=match):
        read_routes(model, path, **asked)


def test_a_spread_of_standard_deviations(model):
    t = np.linspace(0, 1, 12)
    path = Line(winding().points, t, np.full((12, 4), 0.3))
    matrices = Line(path.points, t, np.broadcast_to(0.09 * np.eye(4), (12, 4, 4)))
    np.testing.assert_allclose(
        walk(one_route(model, path)).mean_ng, walk(one_route(model, matrices)).mean_ng, rtol=1e-4
    )


def test_a_trajectory_is_a_path(model):
    z = model.get_latent_representation(make_adata())
    path = sd.Trajectory.between(model, z[:40], z[40:90], n_points=5)
    route = one_route(model, path)
    np.testing.assert_allclose(walk(route).mean_ng, model.decode(path).X, rtol=1e-4)
