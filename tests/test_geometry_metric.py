"""The pulled-back metric and lengths in it, against known geometries and finite differences."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import make_adata, make_model

import scdecode as sd
from scdecode.errors import ConditionError, InputError, NotTrainedError, PointsError
from scdecode.geometry import ParameterMap, metric, parameter_map, path_length
from scdecode.geometry.metric import divergence

FULL = {"batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}, "continuous": {"age": 50.0, "pct": 0.05}}


def some_points(n, k=4, seed=0):
    return np.random.default_rng(seed).normal(0, 0.7, (n, k))


def sphere(z):
    """Colatitude and longitude to a sphere of radius 1, far enough from zero to be means."""
    colatitude, longitude = z[:, 0], z[:, 1]
    x = torch.stack([colatitude.sin() * longitude.cos(), colatitude.sin() * longitude.sin(), colatitude.cos()], dim=1)
    return (3 + x).log()


@pytest.fixture(scope="module", params=["poisson", "normal", "nb by cell", "nb by batch", "size factor", "ln"])
def other_model(request):
    options = {
        "poisson": {"gene_likelihood": "poisson"},
        "normal": {"gene_likelihood": "normal"},
        "nb by cell": {"dispersion": "gene-cell"},
        "nb by batch": {"dispersion": "gene-batch", "n_layers": 2},
        "size factor": {"setup": {"batch_key": "batch", "size_factor_key": "size_factor"}},
        "ln": {"latent_distribution": "ln"},
    }[request.param]
    return make_model(make_adata(), epochs=1, **options)


def assert_second_order(decoder, points):
    """``KL(z || z + e v) = e^2 / 2 v^T G v`` for a small e, in double precision."""
    z = decoder.read(points)
    v = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(0))
    g = torch.from_numpy(metric(decoder, z))
    half = torch.einsum("na,nab,nb->n", v, g, v) / 2
    for small, allowed in ((1e-3, 1e-3), (1e-5, 1e-4)):
        kl = divergence(decoder, z, z + small * v).sum(1) / small**2
        assert (kl / half - 1).abs().quantile(0.8) < allowed  # a step over the bend of a hidden unit is off


def test_divergences_are_the_metric_to_second_order(model):
    assert_second_order(parameter_map(model, batch="batch_2", dtype=torch.float64), some_points(20))


def test_divergences_are_the_metric_with_zero_inflation(full_model):
    assert_second_order(parameter_map(full_model, **FULL, dtype=torch.float64), some_points(20))


def test_divergences_are_the_metric_of_every_model(other_model):
    points = np.abs(some_points(20))
    points = points / points.sum(1, keepdims=True)  # of a simplex, which one of the models asks for
    decoder = parameter_map(other_model, batch="batch_1", dtype=torch.float64)
    assert_second_order(decoder, points)
    double = metric(decoder, points)
    single = metric(other_model, points.astype(np.float32), batch="batch_1")
    np.testing.assert_allclose(single, double, rtol=1e-2, atol=1e-4 * np.abs(double).max())


def test_the_metric_is_the_jacobian_by_finite_differences(model):
    decoder = parameter_map(model, batch="batch_1", dtype=torch.float64)
    z = torch.from_numpy(some_points(3))
    steps = 1e-6 * torch.eye(4, dtype=torch.float64)
    function = decoder.slots[0].function
    jacobian = torch.stack([(function(z + e).log_mu - function(z - e).log_mu) / 2e-6 for e in steps])
    p = function(z)
    mu, theta = p.log_mu.exp(), p.log_theta.exp()
    fisher = mu**2 * theta / (mu * (theta + mu))  # as the issue writes it: on mu, and mu^2 for log mu
    expected = torch.einsum("ang,ng,bng->nab", jacobian, fisher, jacobian)
    found = metric(decoder, z)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    assert found.shape == (3, 4, 4) and found.dtype == np.float64
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))


def test_the_information_grows_with_the_library(model):
    z = some_points(4).astype(np.float32)
    few, many = (np.trace(metric(model, z, batch="batch_1", library_size=n), axis1=1, axis2=2) for n in (100, 1e4))
    assert (many > few).all() and (many < 101 * few).all()


def test_an_average_of_conditions_is_the_average_of_metrics(model):
    z = some_points(5).astype(np.float32)
    alone = [metric(model, z, batch=batch) for batch in ("batch_1", "batch_2")]
    both = metric(model, z, batch={"batch_1": 1, "batch_2": 3})
    np.testing.assert_allclose(both, 0.25 * alone[0] + 0.75 * alone[1], rtol=1e-5, atol=1e-4)
    decoder = parameter_map(model, batch={"batch_1": 1, "batch_2": 3})
    decoded = model.decoder(batch={"batch_1": 1, "batch_2": 3})(z)
    np.testing.assert_allclose(decoder.log_mean(torch.from_numpy(z)).exp().numpy(), decoded, rtol=1e-4)


def test_a_tile_at_a_time_is_all_at_once(model, monkeypatch):
    z = some_points(9).astype(np.float32)
    whole, length = metric(model, z, batch="batch_1"), path_length(model, z, batch="batch_1")
    monkeypatch.setattr("scdecode.geometry.decoded.TILE_VALUES", 40 * 8)
    np.testing.assert_allclose(metric(model, z, batch="batch_1"), whole, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(path_length(model, z, batch="batch_1").segments, length.segments, rtol=1e-4)


def test_the_model_is_left_as_it_was(model):
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    learned = [p.requires_grad for p in model.vae.parameters()]
    model.vae.train()
    metric(model, some_points(2), batch="batch_1")
    assert model.vae.training and [p.requires_grad for p in model.vae.parameters()] == learned
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, before[name])
    model.vae.eval()


def test_lengths_on_a_sphere():
    decoder = ParameterMap.of_function(sphere, 2)
    equator = np.array([[math.pi / 2, 0.0], [math.pi / 2, 1.0]])
    assert path_length(decoder, equator).length == pytest.approx(1, rel=1e-9)
    circle = path_length(decoder, [[math.pi / 3, 0.0], [math.pi / 3, 1.0], [math.pi / 3, 3.0]])
    np.testing.assert_allclose(circle.segments, np.sin(math.pi / 3) * np.array([1, 2]), rtol=1e-6)
    assert circle.energy == pytest.approx(2 * (circle.segments**2).sum())
    np.testing.assert_allclose(circle.share, [0, 1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(metric(decoder, equator[:1])[0], np.eye(2), atol=1e-9)


def test_lengths_of_counts_are_those_of_their_root(model):
    """One count's family is a line: a root straightens it out (2 sqrt(theta) asinh(sqrt(mu / theta)) for the NB)."""
    decoder = parameter_map(model, batch="batch_1", dtype=torch.float64)
    z = torch.from_numpy(np.linspace(*some_points(2), 2001))
    p = decoder.slots[0].function(z)
    theta = p.log_theta.exp()
    root = 2 * theta.sqrt() * torch.asinh((p.log_mu.exp() / theta).sqrt())
    expected = (root[1:] - root[:-1]).norm(dim=1).sum().item()
    assert path_length(decoder, z).length == pytest.approx(expected, rel=1e-4)


def test_a_path_that_goes_nowhere_has_no_length(model):
    still = path_length(model, np.zeros((3, 4)), batch="batch_1")
    assert still.length == 0
    np.testing.assert_array_equal(still.share, [0, 0.5, 1])


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("batch", {"batch": np.array(["batch_1", "batch_2"])}),
        ("batch", {"batch": pd.Series(["batch_1"])}),
        ("batch", {"batch": pd.Categorical(["batch_1", "batch_2"])}),
        ("library_size", {"library_size": [1e3, 1e4]}),
        ("library_size", {"library_size": torch.tensor([1e3, 1e4])}),
        (r"categorical\['sex'\]", {"categorical": {"sex": np.array(["male", "female"])}}),
        (r"continuous\['age'\]", {"continuous": {"age": np.array([1.0, 2.0])}}),
    ],
)
def test_a_condition_that_changes_is_refused(full_model, place, said):
    with pytest.raises(ConditionError, match=f"^{place}: an array of . came, but a condition does not change"):
        path_length(full_model, some_points(2), **said)


def test_bad_input_says_so(model):
    decoder = ParameterMap.of_function(sphere, 2)
    assert parameter_map(decoder) is decoder
    with pytest.raises(ConditionError, match=r"^batch: it was given beside a decoder"):
        metric(decoder, np.zeros((1, 2)), batch="batch_1")
    with pytest.raises(InputError, match=r"ParameterMap.of_function"):
        metric(sphere, np.zeros((1, 2)))
    with pytest.raises(NotTrainedError):
        metric(make_model(make_adata(), epochs=0), some_points(1))
    with pytest.raises(PointsError, match=r"1 point came"):
        path_length(model, some_points(1), batch="batch_1")
    with pytest.raises(PointsError, match=r"\(\.\.\., 4\) was expected"):
        metric(model, some_points(2, k=3), batch="batch_1")
    with pytest.raises(ConditionError, match=r"did you mean 'batch_1'"):
        metric(model, some_points(2), batch="batch1")


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (lambda z: z.sum(), {}, "log means of shape"),
        (lambda z: (z, None), {}, "it gave tuple"),
        (lambda z: z, {"gene_likelihood": "nb"}, r"needs \['log theta'\]"),
        (lambda z: z, {"gene_likelihood": "zinb"}, r"needs \['zi logits', 'log theta'\]"),
        (lambda z: z, {"genes": ["a"]}, "1 names came for 2 genes"),
        (lambda z: z, {"gene_likelihood": "gamma"}, "gene_likelihood: 'gamma'"),
    ],
)
def test_functions_that_are_no_decoder(function, options, message):
    with pytest.raises(InputError, match=message):
        ParameterMap.of_function(function, 2, **options)


def test_derivatives_warn_of_nothing(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric(model, some_points(1), batch="batch_1")


def test_a_path_is_measured_in_its_own_conditions(full_model):
    z = full_model.get_latent_representation(make_adata())[:4]
    own = {"batch": "batch_2", "categorical": {"sex": "male"}, "library_size": 300.0}
    path = sd.Trajectory.from_points(z, **own)
    rest = {"continuous": {"age": 40.0, "pct": 0.1}, "max_conditions": 400}
    for measure in (lambda *a, **k: path_length(*a, **k).length, metric):
        np.testing.assert_allclose(measure(full_model, path, **rest), measure(full_model, z, **own, **rest))
        said = own | {"library_size": 1e4}
        np.testing.assert_allclose(
            measure(full_model, path, library_size=1e4, **rest), measure(full_model, z, **said, **rest)
        )
    constant = sd.Trajectory.from_points(z, batch=np.array(["batch_2"] * 4))
    assert (
        path_length(full_model, constant, **rest).length == path_length(full_model, z, batch="batch_2", **rest).length
    )


def test_paths_side_by_side_are_not_joined(model):
    z = model.reference_latents()
    with pytest.raises(PointsError, match=r"points of shape \(2, 3, 4\) came, which are several paths"):
        path_length(model, np.stack([z[:3], z[3:6]]))
