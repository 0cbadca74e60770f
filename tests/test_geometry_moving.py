"""Steps that change chosen genes: known smallest steps, targets met, the edge of the support, bad input."""

import numpy as np
import pytest
import torch
from small_models import make_adata, make_model

from scdecode.errors import ConfigError, ConvergenceWarning, InputError, PointsError, SupportWarning
from scdecode.geometry import ParameterMap, metric, move, path_length


@pytest.fixture(scope="module")
def start(model):
    z = model.get_latent_representation(make_adata())
    return z[np.argmin(model.support(z))]


def linear(weights_gk, **options):
    """Log means that are linear in z, of Poisson counts."""
    weights = torch.tensor(weights_gk, dtype=torch.float64)
    return ParameterMap.of_function(
        lambda z: z @ weights.t(), weights.shape[1], gene_likelihood="poisson", genes=["A", "B", "C"], **options
    )


def test_the_first_step_is_the_natural_gradient():
    """Log means linear: J is the weights; the direction of the way is G^-1 J^T, which no other step beats."""
    weights = [[1.0, 0.2], [0.3, 1.5], [-0.7, 0.6]]
    decoder = linear(weights)
    found = move(decoder, [0.3, -0.2], {"A": 0.01}, n_steps=1, prior=0.0)
    g = metric(decoder, [0.3, -0.2])[0]
    towards = np.linalg.solve(g, weights[0])
    expected = towards / (np.array(weights[0]) @ towards) * 0.01 * np.log(2)
    np.testing.assert_allclose(found.end - np.array([0.3, -0.2]), expected, atol=2e-6)
    assert found.length == pytest.approx(np.sqrt(expected @ g @ expected), rel=1e-2)


def test_the_prior_counts_beside_the_metric():
    """The third dimension does nothing but to help A: alone the metric would use it; the prior makes it dear."""
    weights = [[1.0, 0.0, 0.01], [1.0, 0.0, 0.0], [1.0, 0.3, 0.0]]
    free = move(linear(weights), [0.0, 0.0, 0.0], {"A": 0.1}, prior=0.0)
    held = move(linear(weights), [0.0, 0.0, 0.0], {"A": 0.1}, prior=1.0)
    assert free.targets.reached["A"] == pytest.approx(0.1, abs=1e-3)
    assert held.targets.reached["A"] == pytest.approx(0.1, abs=1e-3)
    assert np.linalg.norm(held.end) < 0.5 < 2 < np.linalg.norm(free.end)
    assert free.length < held.length


def test_targets_are_met(model, start):
    genes = model.schema.genes
    found = move(model, start, {genes[3]: 0.2, genes[8]: -0.1, genes[9]: 0}, batch="batch_1", max_support=None)
    assert found.complete and found.stopped == "" and found.time[-1] == 1
    np.testing.assert_allclose(found.targets.reached, [0.2, -0.1, 0], atol=2e-3)
    decode = model.decoder(quantity="scale", batch="batch_1")
    fold = np.log2(decode(found.end) / decode(start))
    np.testing.assert_allclose(fold[[3, 8, 9]], [0.2, -0.1, 0], atol=2e-3)
    assert (np.diff(found.time) > 0).all() and found.time[0] == 0
    np.testing.assert_array_equal(found.points[0], start)
    assert found.points.dtype == np.float32 and len(found) == len(found.time) == len(found.support)
    assert found.length == pytest.approx(path_length(model, found.points, batch="batch_1").length)


def test_what_else_changed(model, start):
    genes = model.schema.genes
    found = move(model, start, [(genes[3], 0.3)], batch="batch_1", n_others=5, max_support=None, library_size=500)
    assert list(found.others.columns) == ["log2_fold_change", "before", "after", "distance"] and len(found.others) == 5
    assert genes[3] not in found.others.index and found.others.distance.is_monotonic_decreasing
    decode = model.decoder(batch="batch_1", library_size=500)
    at = [genes.index(gene) for gene in found.others.index]
    np.testing.assert_allclose(found.others.before, decode(start)[at], rtol=1e-4)
    np.testing.assert_allclose(found.others.after, decode(found.end)[at], rtol=1e-4)
    np.testing.assert_allclose(found.others.log2_fold_change, np.log2(found.others.after / found.others.before))
    assert len(move(model, start, {genes[3]: 0.1}, batch="batch_1", n_others=0, max_support=None).others) == 0


def test_signs_are_a_doubling_and_a_halving():
    decoder = linear(np.eye(3).tolist())
    found = move(decoder, [0.0, 0.0, 0.0], {"A": "+", "B": "-"})
    np.testing.assert_allclose(found.targets.asked, [1, -1])
    np.testing.assert_allclose(found.end, [np.log(2), -np.log(2), 0], atol=1e-3)
    assert repr(found).startswith("Move: A +1.00 of +1.00, B -1.00 of -1.00 (log2); metric length ")
    assert found.spread is None


def test_it_stops_at_the_edge_of_the_support():
    cells = np.random.default_rng(0).normal(size=(1000, 3))
    decoder = linear(np.eye(3).tolist(), reference=cells)
    with pytest.warns(SupportWarning, match=r"^move: the edge of the support \(99 %\) is reached, at ..% of the"):
        found = move(decoder, [0.0, 0.0, 0.0], {"A": 10.0})
    assert not found.complete and 0 < found.time[-1] < 1
    assert found.support.max() <= 99 and found.support[-1] > 97
    assert found.targets.reached["A"] == pytest.approx(found.time[-1] * 10, abs=0.01)
    assert found.end[0] > 1.5
    far = move(decoder, [0.0, 0.0, 0.0], {"A": 10.0}, max_support=None)
    assert far.complete and far.support.max() == 100
    with pytest.raises(PointsError, match=r"^z: the start has a support of 100.0 %, beyond max_support=99"):
        move(decoder, [9.0, 0.0, 0.0], {"A": 1.0})


def test_what_cannot_be_is_said():
    same = linear([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])  # A and B are one gene
    with pytest.warns(ConvergenceWarning, match=r"^move: no step nearby changes the genes any further as asked, at 0%"):
        found = move(same, [0.0, 0.0, 0.0], {"A": "+", "B": "-"})
    assert not found.complete and len(found) == 1 and found.length == 0

    def bounded(z):
        return torch.cat([z[:, :1].tanh(), z[:, 1:]], dim=1)

    decoder = ParameterMap.of_function(bounded, 2, gene_likelihood="poisson", genes=["A", "B"])
    with pytest.warns(ConvergenceWarning, match=r"no step nearby"):
        found = move(decoder, [0.0, 0.0], {"A": 2.0})  # at most 1 / log(2)
    assert 1.3 < found.targets.reached["A"] < 1 / np.log(2)


def test_points_of_a_simplex_stay_there():
    simplex = make_model(make_adata(), epochs=1, latent_distribution="ln")
    found = move(simplex, [0.25, 0.25, 0.25, 0.25], {simplex.schema.genes[0]: 0.01}, batch="batch_1", max_support=None)
    assert found.complete and (found.points >= 0).all()
    np.testing.assert_allclose(found.points.sum(1), 1, atol=1e-5)


def test_every_likelihood(full_model):
    z = full_model.get_latent_representation(make_adata())[0]
    gene = full_model.schema.genes[1]
    found = move(full_model, z, {gene: 0.05}, max_support=None, max_conditions=400, n_steps=3)
    assert found.targets.reached[gene] == pytest.approx(0.05, abs=2e-3)
    assert found.conditions == {} and found.measured["batch"] == "average"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"Gene_A": "+"}, "'Gene_A' is not one of"),
        ([("A", "+"), ("A", -1.0)], "names a gene twice"),
        ({"A": 1, "B": 1, "C": 1}, "3 genes came, but the latent space has 2 dimensions"),
        ({"A": 0, "B": 0.0}, "no gene of .* is to change"),
        ({"A": "up"}, r"^targets\['A'\]: 'up' came"),
        ({"A": np.nan}, r"^targets\['A'\]: nan came"),
        ({"A": True}, r"^targets\['A'\]: True came"),
        ({}, "one at least"),
        ("A", "^targets: 'A' came"),
        (["A"], "pairs of a gene and a change"),
        (3, "^targets: 3 came"),
    ],
)
def test_targets_that_make_no_sense(targets, message):
    decoder = linear([[1.0, 0.2], [0.3, 1.5], [-0.7, 0.6]])
    with pytest.raises(InputError, match=message):
        move(decoder, [0.0, 0.0], targets)


def test_numbers_out_of_range():
    decoder = linear([[1.0, 0.2], [0.3, 1.5], [-0.7, 0.6]])
    for name, value in {"n_steps": 0, "prior": -1, "n_others": -1, "max_support": 0}.items():
        with pytest.raises(ConfigError, match=f"^{name}: {value} came"):
            move(decoder, [0.0, 0.0], {"A": 1}, **{name: value})


@pytest.mark.parametrize("batch", [None, ["batch_1", "batch_2"], {"batch_1": 1.0, "batch_3": 3.0}, "batch_2"])
def test_what_averages_over_conditions_is_decoded_in_them(model, start, batch):
    found = move(model, start, {"gene_02": 0.05}, batch=batch, library_size=1e5, n_steps=2)
    expected = model.decode(found.points, batch=batch)
    np.testing.assert_allclose(model.decode(found, count_noise=False).X, expected.X, rtol=1e-6)
    assert "library_size" not in found.conditions and found.measured["library_size"] == 1e5
