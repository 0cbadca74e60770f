"""The bound, the reconstruction error and the marginal likelihood of cells, against sums by hand."""

import math

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model
from torch.distributions import Normal

from scdecode.errors import InputError
from scdecode.minibatches import gather

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def learned():
    """A model that learns the library size. Read only."""
    return make_model(make_adata(), use_observed_lib_size=False, gene_likelihood="zinb")


@pytest.fixture
def at_the_mean(monkeypatch):
    """Draws are the means."""

    monkeypatch.setattr("scdecode.draws.draw_standard", lambda like, generator: torch.zeros_like(like))


def by_hand(model):
    """Log p(x | z, l), log p(z) + log p(l) and log q at the means of the posteriors, ``(n,)`` each, and the KLs."""
    vae, cells = model.vae, gather(model._cells, slice(None), CPU)
    q, prior = vae.encode(cells), Normal(0.0, 1.0)
    log_library = cells.library_n1.log()
    log_p, log_q = prior.log_prob(q.loc).sum(1), q.log_prob(q.loc).sum(1)
    kl = (0.5 * (q.loc**2 + q.variance - 1) - q.scale.log()).sum(1)
    if model.config.learns_library:
        ql, batch = vae.encode_library(cells), cells.codes_nc[:, :1]
        mean, variance = vae.library_log_mean[batch], vae.library_log_variance[batch]
        log_library = ql.loc
        log_p = log_p + Normal(mean, variance.sqrt()).log_prob(log_library)[:, 0]
        log_q = log_q + ql.log_prob(log_library)[:, 0]
        ratio = ql.variance / variance
        kl = kl + 0.5 * (ratio + (ql.loc - mean) ** 2 / variance - 1 - ratio.log())[:, 0]
    output = vae.decode(q.loc, cells.codes_nc, cells.continuous_nd)
    log_likelihood = vae.likelihood(output, log_library, cells.codes_nc).log_prob(cells.x_ng).sum(1)
    return log_likelihood, log_p, log_q, kl


@pytest.mark.parametrize("which", ["model", "full_model", "learned"])
def test_values_by_hand(request, which, at_the_mean):
    model = request.getfixturevalue(which)
    log_likelihood, log_p, log_q, kl = by_hand(model)
    error = model.get_reconstruction_error(return_mean=False)
    assert list(error) == ["reconstruction_loss"]
    torch.testing.assert_close(error["reconstruction_loss"], -log_likelihood, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model.get_elbo(return_mean=False), log_likelihood - kl, rtol=1e-4, atol=1e-3)
    marginal = model.get_marginal_ll(n_mc_samples=3, return_mean=False)
    torch.testing.assert_close(marginal, log_likelihood + log_p - log_q, rtol=1e-4, atol=1e-3)


def test_means_over_cells(model):
    elbo, error = model.get_elbo(), model.get_reconstruction_error()["reconstruction_loss"]
    for value in (elbo, error):
        assert isinstance(value, torch.Tensor)
        assert value.shape == ()
        assert value.dtype == torch.float32
    assert float(elbo) == pytest.approx(float(model.get_elbo(return_mean=False).mean()), rel=1e-5)
    assert elbo < -error, "the KL is positive"
    marginal = model.get_marginal_ll(n_mc_samples=5)
    assert isinstance(marginal, np.float64)
    assert marginal == pytest.approx(float(model.get_marginal_ll(n_mc_samples=5, return_mean=False).mean()), rel=1e-6)


def test_the_bound_is_that_of_the_history(adata):
    """Of the validation cells after the last epoch, at full weight and with other draws."""
    model = make_model(adata, epochs=4)
    config = model.train_config
    rows = np.random.default_rng([config.seed, 0]).permutation(300)[:30]
    last = model.history["elbo_validation"].iloc[-1, 0]
    assert -float(model.get_elbo(indices=rows)) == pytest.approx(last, rel=0.02)


def test_the_marginal_likelihood_is_above_the_bound(model):
    few = model.get_marginal_ll(n_mc_samples=2)
    many = model.get_marginal_ll(n_mc_samples=300)
    bound = np.mean([float(model.get_elbo(seed=seed)) for seed in range(20)])
    assert bound < few < many


@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
def test_the_marginal_likelihood_of_a_known_model(adata, latent_distribution, monkeypatch):
    """Where x does not depend on z, the mean of p(z) / q(z | x) is one."""
    model = make_model(adata, latent_distribution=latent_distribution)
    flat = torch.full((1,), math.log(0.25))

    class Constant:
        def log_prob(self, value):
            return (flat / value.shape[-1]).expand(value.shape)

    monkeypatch.setattr(type(model.vae), "likelihood", lambda *_: Constant())
    found = model.get_marginal_ll(n_mc_samples=4000, indices=range(20), return_mean=False)
    assert np.abs(found.numpy() - math.log(0.25)).mean() < 0.3


def test_passes_change_nothing_but_the_draws(model, at_the_mean):
    one = model.get_marginal_ll(n_mc_samples=7, return_mean=False)
    for at_once in (1, 3, 100):
        other = model.get_marginal_ll(n_mc_samples=7, n_mc_samples_per_pass=at_once, return_mean=False)
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, model.get_marginal_ll(n_mc_samples=7, batch_size=13, return_mean=False))


def test_seeds(model):
    before = torch.get_rng_state()
    for name, options in (("get_elbo", {}), ("get_marginal_ll", {"n_mc_samples": 3})):
        method = getattr(model, name)
        one = method(return_mean=False, **options)
        assert torch.equal(one, method(return_mean=False, **options))
        assert not torch.equal(one, method(return_mean=False, seed=1, **options))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_logistic_normal():
    model = make_model(make_adata(), latent_distribution="ln")
    assert torch.isfinite(model.get_elbo(return_mean=False)).all()
    assert np.isfinite(model.get_marginal_ll(n_mc_samples=4))


def test_other_cells(full_model):
    adata = make_adata()
    assert set(EVERYTHING) >= {"batch_key", "labels_key"}
    some = full_model.get_elbo(adata, indices=[4, 2], return_mean=False)
    assert some.shape == (2,)
    assert full_model.get_marginal_ll(adata, np.arange(300) < 3, 2, return_mean=False).shape == (3,)


@pytest.mark.parametrize("method", ["get_elbo", "get_reconstruction_error", "get_marginal_ll"])
def test_what_is_refused(model, method):
    call = getattr(model, method)
    with pytest.raises(InputError, match=rf"{method}: dataloader=\[\] came"):
        call(dataloader=[])
    with pytest.raises(InputError, match=rf"{method}: there is no argument 'loss_kwargs'"):
        call(loss_kwargs={})
    with pytest.raises(InputError, match="no mean over none"):
        call(indices=[])
    with pytest.raises(InputError, match="batch_size: 0 came"):
        call(batch_size=0)
