"""The layer ``std_counts``: how far the counts of one cell scatter around what a path decodes to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from small_models import make_adata, make_model

import scdecode as sd
from scdecode.draws import even_normals
from scdecode.errors import InputError

K, N = 3, 5
MODELS = [
    ("nb", "gene"),
    ("nb", "gene-batch"),
    ("nb", "gene-label"),
    ("nb", "gene-cell"),
    ("zinb", "gene"),
    ("zinb", "gene-cell"),
    ("poisson", "gene"),
    ("normal", "gene"),
    ("normal", "gene-batch"),
]
pytestmark = pytest.mark.filterwarnings("ignore:points")  # of support: the path goes where no cell is, at will


def train(likelihood, dispersion):
    labels = {"labels_key": "cell_type"} if dispersion == "gene-label" else {}
    model = make_model(
        make_adata(120, 12),
        setup={"batch_key": "batch", **labels},
        epochs=1,
        n_latent=K,
        n_hidden=8,
        gene_likelihood=likelihood,
        dispersion=dispersion,
    )
    table = model.vae.log_theta
    if table is not None:  # after one epoch all are near where they began; they must differ to be told apart
        table.data.copy_(torch.linspace(-1.5, 2.0, table.numel()).reshape(table.shape))
    return model


@pytest.fixture(scope="module", params=MODELS, ids=" ".join)
def any_model(request):
    return train(*request.param)


@pytest.fixture(scope="module")
def nb_model():
    return train("nb", "gene-batch")


def tube(spread=True):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(N, K, K)) * 0.4
    points = np.linspace(-1, 1, N)[:, None] * np.array([1.0, -0.5, 0.3])
    return sd.Trajectory.from_points(points, spread=root @ root.swapaxes(1, 2) if spread else None)


def draws_by_hand(path, n_samples, seed=0):
    """The draws around each point, ``(draws, n, k)``: a symmetric root of each covariance times the same noise."""
    if path.spread is None:
        return path.points[None]
    noise_sk = even_normals(n_samples, K, seed).numpy()
    root_nkk = np.stack([np.real(sqrtm(covariance.astype(np.float64))) for covariance in path.spread])
    return (path.points + np.einsum("nij,sj->sni", root_nkk, noise_sk)).astype(np.float32)


def moments_by_hand(model, path, n_samples, quantity, said, seed=0):
    """Mean and variance of counts at each draw in one condition, by the model's likelihood, ``(draws, n, genes)``."""
    z = draws_by_hand(path, n_samples, seed)
    found = model.distribution(torch.from_numpy(z.reshape(-1, K)), **said)
    mean, variance = found.mean, found.variance
    if model.config.gene_likelihood == "zinb" and quantity == "rate":  # before zero inflation
        mean, variance = found.mu, found.mu + found.mu**2 / found.theta
    return (x.detach().double().numpy().reshape(*z.shape[:2], -1) for x in (mean, variance))


def variance_by_hand(model, path, n_samples, quantity, said, seed=0):
    """E[Var(x | z)] in one condition, ``(n, genes)``."""
    _, variance = moments_by_hand(model, path, n_samples, quantity, said, seed)
    return variance.mean(axis=0)


def mixed_variance(model, path, n_samples, quantity, weights, said):
    """E[Var(x | z)] of a cell that is of any of several batches, ``(n, genes)``."""
    means, variances = zip(
        *(moments_by_hand(model, path, n_samples, quantity, {"batch": name, **said}) for name in weights), strict=True
    )
    weight = np.array(list(weights.values()))[:, None, None, None]
    mean = (weight * means).sum(axis=0)
    return (weight * (variances + (means - mean) ** 2)).sum(axis=0).mean(axis=0)


@pytest.mark.parametrize("quantity", ["rate", "mean"])
@pytest.mark.parametrize("spread", [True, False], ids=["tube", "line"])
def test_it_is_the_mean_variance_of_the_likelihood(any_model, quantity, spread):
    path, drawn = tube(spread), {"n_samples": 16, "seed": 3} if spread else {}
    label = {"labels": "trunk"} if any_model.config.dispersion == "gene-label" else {}
    said = {"batch": "batch_2", "library_size": 900.0, **label}
    expression = any_model.decode(path, quantity=quantity, **said, **drawn)
    expected = np.sqrt(variance_by_hand(any_model, path, 16, quantity, said, 3))
    np.testing.assert_allclose(expression.layers["std_counts"], expected, rtol=2e-4)
    assert expression.layers["std_counts"].dtype == np.float32
    assert ("std" in expression.layers) == spread


@pytest.mark.parametrize("quantity", ["rate", "mean"])
@pytest.mark.parametrize("spread", [True, False], ids=["tube", "line"])
def test_averaged_over_batches_a_cell_is_of_any_of_them(any_model, quantity, spread):
    """The variance within a batch, on average, and how far the means of the batches are apart."""
    path, drawn = tube(spread), {"n_samples": 16} if spread else {}
    label = {"labels": "trunk"} if any_model.config.dispersion == "gene-label" else {}
    weights, said = {"batch_1": 0.25, "batch_3": 0.75}, {"library_size": 900.0, **label}
    expression = any_model.decode(path, quantity=quantity, batch=weights, **said, **drawn)
    expected = mixed_variance(any_model, path, 16, quantity, weights, said)
    np.testing.assert_allclose(expression.layers["std_counts"], np.sqrt(expected), rtol=5e-4)
    within = sum(
        weight * variance_by_hand(any_model, path, 16, quantity, {"batch": name, **said})
        for name, weight in weights.items()
    )
    assert (expected > within).all()


def test_of_some_genes(any_model):
    path, genes = tube(), ["gene_07", "gene_02"]
    for batch in ("batch_1", ["batch_1", "batch_2"]):
        whole = any_model.decode(path, batch=batch, n_samples=8)
        some = any_model.decode(path, batch=batch, n_samples=8, genes=genes)
        np.testing.assert_allclose(some.layers["std_counts"], whole[:, genes].layers["std_counts"], rtol=1e-5)


def test_tiles_do_not_matter(any_model):
    for batch in ("batch_1", ["batch_1", "batch_2"]):
        for path in (tube(), tube(spread=False)):
            whole = any_model.decode(path, batch=batch)
            tiled = any_model.decode(path, batch=batch, chunk_size=2)
            np.testing.assert_allclose(tiled.layers["std_counts"], whole.layers["std_counts"], rtol=1e-4)


def test_each_point_has_its_own_batch_and_library(nb_model):
    path = tube()
    batch = np.array(["batch_1", "batch_2", "batch_3", "batch_1", "batch_2"])
    library = np.array([500.0, 1000, 2000, 4000, 8000])
    expression = nb_model.decode(path, batch=batch, library_size=library, n_samples=8)
    for i in range(N):
        alone = nb_model.decode(path, batch=batch[i], library_size=library[i], n_samples=8)
        np.testing.assert_allclose(expression.layers["std_counts"][i], alone.layers["std_counts"][i], rtol=1e-5)


def test_many_conditions_are_looked_at_with_fewer_draws(nb_model):
    """With many combinations of conditions some draws do: they are even from the first on, so little is lost."""
    path, weights = tube(), dict.fromkeys(("batch_1", "batch_2", "batch_3"), 1 / 3)
    expression = nb_model.decode(path, batch=list(weights), n_samples=1024)
    expected = mixed_variance(nb_model, path, 1024, "rate", weights, {"library_size": 1e4})
    np.testing.assert_allclose(expression.layers["std_counts"], np.sqrt(expected), rtol=0.03)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_with_the_spread_it_is_the_variance_of_drawn_counts(likelihood):
    """The law of total variance: counts of cells scatter by their means and around them."""
    model, path, n = train(likelihood, "gene"), tube(), 20_000
    model.vae.log_theta.data.fill_(5.0)  # little noise beyond Poisson's, so that both parts can be seen
    said = {"batch": "batch_1", "library_size": 2000}
    expression = model.decode(path, quantity="mean", n_samples=1024, **said)
    expected = expression.layers["std"] ** 2 + expression.layers["std_counts"] ** 2
    counts = model.decode(path, quantity="counts", n_samples=n, seed=1, **said).X.toarray().reshape(N, n, -1)
    apart = (counts - counts.mean(axis=1, keepdims=True)) ** 2
    found, error = apart.mean(axis=1), apart.std(axis=1) / np.sqrt(n)
    assert (np.abs(found - expected) < 5 * error + 0.02 * expected).all()
    # and neither part alone would do
    for part in ("std", "std_counts"):
        assert (np.abs(found - expression.layers[part] ** 2) > 5 * error).any()


def test_when_it_is_there(nb_model):
    path = tube()
    line, points = tube(spread=False), path.points
    assert set(nb_model.decode(path).layers) == {"std", "q05", "q95", "std_counts"}
    assert set(nb_model.decode(line).layers) == {"std_counts"}
    assert not nb_model.decode(points).layers
    assert not nb_model.decode(line, count_noise=False).layers
    assert set(nb_model.decode(path, count_noise=False).layers) == {"std", "q05", "q95"}
    asked = nb_model.decode(points, count_noise=True)
    np.testing.assert_array_equal(asked.layers["std_counts"], nb_model.decode(line).layers["std_counts"])
    assert set(nb_model.decode(path, quantity="scale").layers) == {"std", "q05", "q95"}
    assert not nb_model.decode(path, quantity="counts").layers
    for quantity in ("scale", "counts"):
        with pytest.raises(InputError, match=f"count_noise: True came with quantity '{quantity}'"):
            nb_model.decode(path, quantity=quantity, count_noise=True)


@pytest.mark.parametrize("spread", [True, False], ids=["tube", "line"])
def test_it_is_made_again_and_written(nb_model, tmp_path, spread):
    first = nb_model.decode(tube(spread), batch=["batch_1", "batch_2"])
    again = nb_model.decode(**sd.decode_arguments(first))
    streamed = {
        name: nb_model.decode(tube(spread), batch=["batch_1", "batch_2"], out=tmp_path / name, chunk_size=2)
        for name in ("x.h5ad", "x.zarr")
    }
    assert set(again.layers) == set(first.layers)
    for layer in first.layers:
        np.testing.assert_array_equal(again.layers[layer], first.layers[layer])
        for read in streamed.values():
            np.testing.assert_allclose(read.to_memory().layers[layer], first.layers[layer], rtol=1e-5)


def test_the_network_is_left_as_it_was(nb_model):
    nb_model.vae.train()
    try:
        state = torch.random.get_rng_state()
        nb_model.decode(tube(), batch=["batch_1", "batch_2"])
        assert nb_model.vae.training
        assert (torch.random.get_rng_state() == state).all()
    finally:
        nb_model.vae.eval()
