"""Random numbers: nobody's global state is touched, and what is drawn depends on its seed alone."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch._dynamo  # optimisers import it; before the patches below, which confuse it
from scipy import sparse
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.draws import draw_kept, draw_normal, drawing_from, make_generator
from scdecode.likelihoods import draw_counts, make_likelihood
from scdecode.training import digest_of


@pytest.fixture(scope="module")
def adata():
    return make_adata(120, 20)


@pytest.fixture(scope="module")
def model(adata):
    return make_model(adata, setup=EVERYTHING, epochs=1, gene_likelihood="zinb", use_observed_lib_size=False)


@pytest.fixture(scope="module")
def scanvi(adata):
    sd.SCANVI.setup_anndata(adata, labels_key="cell_type", unlabeled_category="none", batch_key="batch")
    model = sd.SCANVI(adata, n_latent=4, n_hidden=16)
    model.train(1, progress=False)
    return model


def values_of(result):
    """Whatever a call returned, as one array."""
    if isinstance(result, dict):
        return np.concatenate([values_of(value).reshape(-1) for value in result.values()])
    result = getattr(result, "X", result)
    for method in ("todense", "to_numpy"):
        if hasattr(result, method) and (sparse.issparse(result) or not isinstance(result, np.ndarray)):
            result = getattr(result, method)()
            break
    return np.asarray(result)


def near(model):
    """Points that are supported."""
    return model.reference_latents()[:9]


DRAWING = {
    "decode counts": lambda m, s: m.decode(m.posterior(), quantity="counts", n_samples=3, seed=s),
    "decode counts of averages": lambda m, s: m.decode(near(m), quantity="counts", n_samples=9, seed=s),
    "decode a spread": lambda m, s: m.decode(near(m), spread=0.5, n_samples=16, seed=s),
    "generate": lambda m, s: m.generate(40, seed=s),
    "get_latent_representation": lambda m, s: m.get_latent_representation(give_mean=False, seed=s),
    "get_latent_library_size": lambda m, s: m.get_latent_library_size(give_mean=False, seed=s),
    "get_normalized_expression": lambda m, s: m.get_normalized_expression(n_samples=3, seed=s),
    "get_likelihood_parameters": lambda m, s: m.get_likelihood_parameters(n_samples=2, seed=s),
    "posterior_predictive_sample": lambda m, s: m.posterior_predictive_sample(n_samples=2, seed=s),
    "get_feature_correlation_matrix": lambda m, s: m.get_feature_correlation_matrix(n_samples=2, seed=s),
    "get_elbo": lambda m, s: m.get_elbo(return_mean=False, seed=s),
    "get_reconstruction_error": lambda m, s: m.get_reconstruction_error(return_mean=False, seed=s),
    "get_marginal_ll": lambda m, s: m.get_marginal_ll(n_mc_samples=5, return_mean=False, seed=s),
}
"""Whatever draws, of a model and a seed."""

OF_CLASSES = {
    "predict": lambda m, s: m.predict(use_posterior_mean=False, soft=True, seed=s),
    "get_elbo": DRAWING["get_elbo"],
}


@pytest.fixture
def untouchable(monkeypatch):
    """Global generators that fail when something draws from them, seeds them or reads them."""
    numpy_state, python_state = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    torch_state = torch.get_rng_state()

    def fail(*args, **kwargs):
        raise AssertionError("torch's global generator was touched")

    for owner, name in (
        (torch, "manual_seed"),
        (torch, "set_rng_state"),
        (torch, "seed"),
        (torch.random, "set_rng_state"),
        (torch.random, "fork_rng"),
    ):
        monkeypatch.setattr(owner, name, fail)
    yield
    monkeypatch.undo()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002
    assert random.getstate() == python_state


@pytest.mark.parametrize("name", DRAWING)
def test_draws_in_many_threads_are_those_of_one(model, untouchable, name):
    draw, seeds = DRAWING[name], [0, 1, 2, 0, 1, 2, 0, 1, 2]
    alone = [values_of(draw(model, seed)) for seed in range(3)]
    assert not np.array_equal(alone[0], alone[1])
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(lambda seed: values_of(draw(model, seed)), seeds))
    for seed, values in zip(seeds, found, strict=True):
        np.testing.assert_array_equal(values, alone[seed])


@pytest.mark.parametrize("name", OF_CLASSES)
def test_so_are_those_of_a_model_with_classes(scanvi, untouchable, name):
    draw = OF_CLASSES[name]
    alone = [values_of(draw(scanvi, seed)) for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: values_of(draw(scanvi, seed)), [0, 1] * 4))
    for i, values in enumerate(found):
        np.testing.assert_array_equal(values, alone[i % 2])


@pytest.mark.parametrize("name", ["decode counts", "generate", "get_elbo"])
def test_draws_do_not_depend_on_the_global_generator(model, name):
    torch.manual_seed(1)
    first = values_of(DRAWING[name](model, 7))
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, values_of(DRAWING[name](model, 7)))


def test_a_network_in_training_mode_is_used_in_evaluation_mode_and_left_as_it_is(adata, model):
    expected = {name: values_of(draw(model, 1)) for name, draw in DRAWING.items()}
    distribution = model.distribution(torch.zeros(2, 4)).mean
    model.vae.train()
    try:
        for name, draw in DRAWING.items():
            np.testing.assert_array_equal(values_of(draw(model, 1)), expected[name], err_msg=name)
        assert torch.equal(model.distribution(torch.zeros(2, 4)).mean, distribution)
        assert all(part.training for part in model.vae.modules())
    finally:
        model.vae.eval()


OPTIONS = {
    "kernels": {"gene_likelihood": "nb"},
    "autograd": {"gene_likelihood": "zinb", "encode_covariates": True, "use_observed_lib_size": False},
    "two layers": {"n_layers": 2, "dropout_rate": 0.3, "latent_distribution": "ln"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_training_touches_no_global_generator(adata, untouchable, options):
    digests = set()
    for _ in range(2):
        trained = make_model(adata, setup=EVERYTHING, epochs=2, **options)
        digests.add(digest_of(trained.vae))
        torch.rand(3, generator=make_generator(0))
    assert len(digests) == 1


def test_draws_are_those_of_torch():
    """In the same state, a generator of our own gives what torch's own functions draw."""
    like = torch.zeros(5, 3)
    normal = torch.distributions.Normal(like + 2.0, like + 0.5)
    torch.manual_seed(4)
    expected = [normal.rsample(), torch.nn.functional.dropout(like + 1, 0.25), torch.nn.Linear(4, 2).weight]
    generator = make_generator(4)
    found = [draw_normal(normal, generator), draw_kept(like, 0.25, generator)]
    with drawing_from(generator):
        found.append(torch.nn.Linear(4, 2).weight)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_drawing_from_is_of_its_own_thread(untouchable):
    """While one thread makes a network, the random numbers of another are its own."""
    inside, go_on, found = threading.Event(), threading.Event(), []

    def other():
        with drawing_from(make_generator(1)):
            inside.set()
            go_on.wait(10)
            found.append(torch.nn.Linear(3, 3).weight.detach())

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    mine = make_generator(1)
    numbers = torch.rand(1000, generator=mine)
    go_on.set()
    thread.join()
    with drawing_from(make_generator(1)):
        expected = torch.nn.Linear(3, 3).weight
    assert torch.equal(found[0], expected)
    assert torch.equal(numbers, torch.rand(1000, generator=make_generator(1)))


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb", "normal"])
def test_moments_of_counts_drawn_from_a_generator(kind):
    n = 60_000
    log_mu, log_theta, zi = (torch.full((n, 1), value) for value in (1.2, 0.4, -0.7))
    likelihood = make_likelihood(kind, log_mu, log_theta, zi)
    drawn = draw_counts(likelihood, make_generator(11))
    assert drawn.shape == (n, 1)
    mean, variance = float(likelihood.mean[0, 0]), float(likelihood.variance.expand(n, 1)[0, 0])
    assert abs(float(drawn.mean()) - mean) < 5 * (variance / n) ** 0.5
    assert abs(float(drawn.var()) / variance - 1) < 0.08
    assert torch.equal(drawn, draw_counts(likelihood, make_generator(11)))
