"""``LinearSCVI`` with scvi-tools' weights: encoding, decoding, loadings, the bound and its gradient, training steps."""

import functools

import numpy as np
import pytest
import scvi
import torch
from noise import the_same_noise
from pairs import N_CELLS, N_GENES, make_cells
from scvi.train import TrainingPlan

import scdecode as sd
from scdecode.formats.scvi_names import to_ours
from scdecode.minibatches import gather
from scdecode.reference import make_reference

CPU = torch.device("cpu")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
CASES = {
    "nb, learned library, no batch": ({}, {}),
    "nb, batch": ({"batch_key": "donor"}, {"use_observed_lib_size": True}),
    "zinb, batch, bias, no batch norm": (
        {"batch_key": "donor"},
        {"gene_likelihood": "zinb", "use_batch_norm": False, "bias": True},
    ),
    "zinb, gene-batch": (
        {"batch_key": "donor", "labels_key": "cell_type"},
        {"gene_likelihood": "zinb", "dispersion": "gene-batch"},
    ),
    "poisson, ln, two layers": (
        {"batch_key": "donor"},
        {"gene_likelihood": "poisson", "latent_distribution": "ln", "n_layers": 2},
    ),
}


class Pair:
    """One model in both packages: scvi-tools' trained for some steps, ours with its weights."""

    def __init__(self, case):
        setup, options = CASES[case]
        self.options = {"n_hidden": 16, "n_latent": 4} | options
        self.adata = make_cells()
        scvi.settings.seed = 0
        scvi.model.LinearSCVI.setup_anndata(self.adata, **setup)
        theirs_options = dict(self.options)
        self.theirs = scvi.model.LinearSCVI(self.adata, **theirs_options)
        self.theirs.train(max_epochs=3, batch_size=25, train_size=1.0, plan_kwargs={"lr": 0.02}, **QUIET)
        sd.LinearSCVI.setup_anndata(self.adata, **setup)
        self.ours = sd.LinearSCVI(self.adata, **self.options)
        state, self.unused = to_ours(self.theirs.module.state_dict(), self.ours.config)
        self.ours.vae.load_state_dict(state)
        self.ours._reference = make_reference(self.ours.vae, self.ours._cells, np.arange(N_CELLS), seed=0)
        self.ours._trained = True
        self.module = self.theirs.module.eval()

    def tensors(self, rows):
        (tensors,) = self.theirs._make_data_loader(self.adata, indices=rows, batch_size=len(rows))
        return tensors


trained = functools.cache(Pair)


@pytest.fixture(params=list(CASES))
def pair(request):
    """A pair of models, trained once for all tests, which leave it as it was."""
    return trained(request.param)


def close(what, ours, theirs, rtol=1e-5, atol=1e-6):
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    print(f"{what}: differs by at most {(ours - theirs).abs().max():.1e} of {theirs.abs().max():.1e}")
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, check_dtype=False)


def test_every_weight_has_its_place(pair):
    """Both heads are there whatever the likelihood; only the encoder of an observed library size is not."""
    learned = pair.ours.config.learns_library
    assert all(name.startswith("l_encoder.") for name in pair.unused)
    assert bool(pair.unused) is not learned


def test_the_loadings(pair):
    theirs = pair.theirs.get_loadings()
    ours = pair.ours.get_loadings()
    assert ours.shape == (N_GENES, 4)
    assert list(ours.columns) == list(theirs.columns)
    assert list(ours.index) == list(theirs.index)
    close("loadings", ours.to_numpy(), theirs.to_numpy())


def test_the_posterior(pair):
    mean, variance = pair.theirs.get_latent_representation(return_dist=True)
    posterior = pair.ours.posterior()
    close("mean", posterior.mean, mean)
    close("variance", posterior.variance, variance)


@pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")
def test_decoding(pair):
    rng = np.random.default_rng(1)
    z = rng.normal(0, 1.5, (40, 4)).astype(np.float32)
    if pair.ours.config.latent_distribution == "ln":
        z = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    library = rng.uniform(500, 20_000, 40)
    batch = pair.ours.schema.batch
    code = rng.integers(0, pair.ours.schema.n_batches, 40)
    conditions = {} if batch is None else {"batch": np.array(batch.names)[code]}
    log_library = torch.from_numpy(library.astype(np.float32)).log()[:, None]
    with torch.inference_mode():
        zeros = torch.zeros(40, 1, dtype=torch.int64)
        given = {"batch_index": torch.from_numpy(code)[:, None], "y": zeros}
        px = pair.module.generative(z=torch.from_numpy(z), library=log_library, **given)["px"]
    likelihood = pair.ours.config.gene_likelihood
    rate = px.rate if likelihood == "poisson" else px.mu
    for quantity, theirs in {"scale": px.get_normalized("scale"), "rate": rate, "mean": px.mean}.items():
        close(quantity, pair.ours.decode(z, quantity=quantity, library_size=library, **conditions).X, theirs, atol=1e-7)
    ours = pair.ours.distribution(torch.from_numpy(z), library_size=library, **conditions)
    if likelihood == "zinb":
        close("zero inflation", ours.zi_logits, px.zi_logits)
    if likelihood != "poisson":
        close("dispersion", ours.theta.expand(40, N_GENES), px.theta.expand(40, N_GENES))
    some = pair.ours.decode(z, library_size=library, genes=["gene_17", "gene_3"], **conditions)
    close("some genes", some.X, rate[:, [17, 3]])


def test_the_bound_and_its_gradient(pair):
    rows = np.arange(0, 200, 3)
    tensors = pair.tensors(rows)
    with the_same_noise():
        _, _, loss = pair.module(tensors, loss_kwargs={"kl_weight": 0.3})
        pair.module.zero_grad(set_to_none=True)
        loss.loss.backward()
        gradients = {name: p.grad for name, p in pair.module.named_parameters() if p.grad is not None}
        vae = pair.ours.vae.requires_grad_(True)
        elbo = vae.elbo(gather(pair.ours._cells, rows, CPU))
        vae.zero_grad(set_to_none=True)
        elbo.loss(0.3).backward()
    found = {name: p.grad for name, p in vae.named_parameters()}
    vae.zero_grad(set_to_none=True)
    vae.requires_grad_(False)
    pair.module.zero_grad(set_to_none=True)
    close("reconstruction", elbo.reconstruction.detach(), loss.reconstruction_loss["reconstruction_loss"].detach())
    close("KL of z", elbo.kl_z.detach(), loss.kl_local["kl_divergence_z"].detach())
    close("KL of l", elbo.kl_l.detach(), loss.kl_local["kl_divergence_l"].detach())
    expected, _ = to_ours(gradients, pair.ours.config)
    assert {name for name, gradient in found.items() if gradient is not None} == set(expected)
    for name, gradient in expected.items():
        close(name, found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-7)


def test_ten_steps_give_the_same_weights(pair):
    """With scvi-tools' own loss and optimiser, and the same dropout and draws."""
    rng = np.random.default_rng(3)
    config, defaults = pair.ours.config, sd.TrainConfig()
    minibatches = [rng.choice(N_CELLS, 32, replace=False) for _ in range(10)]
    start = {name: value.clone() for name, value in pair.module.state_dict().items()}
    before = {name: value.clone() for name, value in pair.ours.vae.state_dict().items()}
    vae = pair.ours.vae.train().requires_grad_(True)
    try:
        with the_same_noise():
            module = pair.module.train()
            optimizer = TrainingPlan(module).configure_optimizers()["optimizer"]
            for step, rows in enumerate(minibatches):
                tensors = pair.tensors(rows)  # before the seed: a data loader draws too
                torch.manual_seed(step)
                optimizer.zero_grad()
                module(tensors, loss_kwargs={"kl_weight": 0.3})[2].loss.backward()
                optimizer.step()
            expected, _ = to_ours({name: value.clone() for name, value in module.state_dict().items()}, config)
            optimizer = torch.optim.Adam(
                vae.parameters(), lr=defaults.lr, eps=defaults.eps, weight_decay=defaults.weight_decay
            )
            for step, rows in enumerate(minibatches):
                torch.manual_seed(step)
                optimizer.zero_grad()
                vae.elbo(gather(pair.ours._cells, rows, CPU)).loss(0.3).backward()
                optimizer.step()
            found = {name: value.clone() for name, value in vae.state_dict().items()}
    finally:
        pair.module.load_state_dict(start)
        pair.module.eval()
        vae.load_state_dict(before)
        vae.eval().requires_grad_(False)
    assert (found["decoder.scale.linear.weight"] - before["decoder.scale.linear.weight"]).abs().max() > 1e-3
    for name, value in expected.items():
        if name.startswith("decoder.zi_logits.batch_norm.") and config.gene_likelihood != "zinb":
            continue  # scvi-tools runs this head without using it, and its batch normalisation looks on
        close(name, found[name], value, rtol=1e-3, atol=2e-5)


def test_the_prior_of_a_learned_library():
    pair = trained("nb, learned library, no batch")
    fresh = sd.LinearSCVI(pair.adata)
    close("mean", fresh.vae.library_log_mean, pair.module.library_log_means[0])
    close("variance", fresh.vae.library_log_variance, pair.module.library_log_vars[0])


def test_what_scvi_tools_cannot_do():
    """The options that are an error here fail there, too, at the latest in training."""
    adata = make_cells()
    scvi.model.LinearSCVI.setup_anndata(adata, labels_key="cell_type")
    for options in ({"dispersion": "gene-cell"}, {"dispersion": "gene-label"}, {"batch_representation": "embedding"}):
        with pytest.raises(Exception):  # noqa: B017, PT011  (of many kinds)
            scvi.model.LinearSCVI(adata, **options).train(1, **QUIET)
