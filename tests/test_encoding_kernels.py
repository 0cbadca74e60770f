"""Cells encoded and evaluated by compiled loops over sparse counts equal plain torch, down to what is drawn."""

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import encoding

OPTIONS = {
    "nb": {},
    "zinb, two layers": {"gene_likelihood": "zinb", "n_layers": 2},
    "poisson, layer norm": {"gene_likelihood": "poisson", "use_layer_norm": "both"},
    "no norm": {"use_batch_norm": "none"},
    "learned library": {"use_observed_lib_size": False},
    "ln": {"latent_distribution": "ln"},
    "by cell": {"dispersion": "gene-cell"},
    "by label": {"dispersion": "gene-label"},
}


@pytest.fixture(scope="module", params=OPTIONS)
def any_model(request):
    return make_model(make_adata(150, 25), setup=EVERYTHING, epochs=1, **OPTIONS[request.param])


@pytest.fixture
def both(monkeypatch):
    """What a call gives in plain torch, and by the loops."""
    taken = []
    sparse = encoding.stays_sparse

    def noted(*arguments):
        taken.append(sparse(*arguments))
        return taken[-1]

    for module in ("encoding", "asked", "evidence"):
        monkeypatch.setattr(f"scdecode.{module}.stays_sparse", noted)

    def run(call):
        taken.clear()
        monkeypatch.setattr(encoding, "LARGE", 2**60)
        plain = call()
        assert taken and not any(taken)
        taken.clear()
        monkeypatch.setattr(encoding, "LARGE", 1)
        fast = call()
        assert taken and all(taken)
        return plain, fast

    return run


def agree(both_of_them, rtol=1e-5, atol=1e-5):
    plain, fast = (np.asarray(one) for one in both_of_them)
    assert plain.shape == fast.shape and plain.dtype == fast.dtype
    np.testing.assert_allclose(fast, plain, rtol=rtol, atol=atol)


@pytest.mark.parametrize("batch_size", [256, 7])
@pytest.mark.parametrize("indices", [None, [70, 3, 3, 9], [5]])
def test_posterior(any_model, both, batch_size, indices):
    def posterior():
        found = any_model.posterior(batch_size=batch_size, indices=indices)
        return torch.stack([found.loc, found.scale])

    agree(both(posterior))


def test_draws_are_the_same(any_model, both):
    agree(both(lambda: any_model.get_latent_representation(give_mean=False, seed=3)))
    agree(both(lambda: any_model.get_normalized_expression(n_samples=2, seed=3, return_numpy=True)))


@pytest.mark.parametrize("batch_size", [None, 64])
def test_evidence(any_model, both, batch_size):
    asked = {"return_mean": False, "seed": 1, "batch_size": batch_size}
    agree(both(lambda: any_model.get_elbo(**asked)))
    agree(both(lambda: any_model.get_reconstruction_error(**asked)["reconstruction_loss"]))
    agree(both(lambda: any_model.get_marginal_ll(n_mc_samples=7, n_mc_samples_per_pass=3, **asked)))


def test_threads(any_model, both):
    torch.set_num_threads(2)
    try:
        agree(both(lambda: any_model.get_latent_representation(batch_size=16)))
        agree(both(lambda: any_model.get_elbo(return_mean=False)))
    finally:
        torch.set_num_threads(1)


def test_an_error_leaves_torch_as_it_was(any_model, monkeypatch):
    def broken(*_):
        raise ValueError("broken")

    monkeypatch.setattr(encoding, "LARGE", 1)
    monkeypatch.setattr(type(any_model.vae), "elbo", broken)
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="broken"):
            any_model.get_elbo()
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_covariates_for_the_encoder_stay_dense(monkeypatch):
    model = make_model(make_adata(150, 15), epochs=1, encode_covariates=True)
    monkeypatch.setattr(encoding, "LARGE", 1)
    monkeypatch.setattr(encoding, "encode_sparse", None)
    assert np.isfinite(model.get_latent_representation()).all()


def test_scanvi(both):
    adata = make_adata(150, 25)
    sd.SCANVI.setup_anndata(adata, labels_key="cell_type", unlabeled_category="unknown", batch_key="batch")
    model = sd.SCANVI(adata, n_latent=4, n_hidden=16)
    model.train(1, device="cpu", progress=False)
    agree(both(lambda: model.get_elbo(return_mean=False)))
    agree(both(lambda: model.get_marginal_ll(n_mc_samples=5, return_mean=False)))
