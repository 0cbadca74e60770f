"""``SCANVI`` with scvi-tools' weights: classes, predictions, every term of the loss, its gradient, training steps."""

import functools
import inspect

import numpy as np
import pytest
import scvi
import torch
from noise import the_same_noise
from pairs import N_CELLS, make_cells
from scvi.dataloaders import SemiSupervisedDataSplitter
from scvi.model._utils import get_max_epochs_heuristic
from scvi.train import SemiSupervisedTrainingPlan
from torch.distributions import Normal, kl_divergence

import scdecode as sd
from scdecode.classification import SemiSupervised
from scdecode.formats.scvi_names import CLASSIFICATION, to_ours, to_theirs
from scdecode.minibatches import gather, split_labelled
from scdecode.reference import make_reference

CPU = torch.device("cpu")
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False}
COVARIATES = {
    "categorical_covariate_keys": ["sex", "chem"],
    "continuous_covariate_keys": ["age", "pct"],
    "batch_key": "donor",
}
CASES = {
    "zinb, no conditions": ({}, {}),
    "nb, batch, learned library": ({"batch_key": "donor"}, {"gene_likelihood": "nb", "use_observed_lib_size": False}),
    "nb, covariates, two layers": (
        COVARIATES,
        {"gene_likelihood": "nb", "n_layers": 2, "encode_covariates": True, "deeply_inject_covariates": False},
    ),
    "poisson, linear classifier": ({"batch_key": "donor"}, {"gene_likelihood": "poisson", "linear_classifier": True}),
    "nb, size factor, gene-cell": (
        {"batch_key": "donor", "size_factor_key": "factor"},
        {"gene_likelihood": "nb", "dispersion": "gene-cell"},
    ),
    "zinb, gene-batch, layer norm, no batch norm": (
        {"batch_key": "donor"},
        {"dispersion": "gene-batch", "use_layer_norm": "both", "use_batch_norm": "none"},
    ),
    "nb, batch norm in the decoder, another classifier": (
        {"batch_key": "donor"},
        {
            "gene_likelihood": "nb",
            "use_batch_norm": "decoder",
            "classifier_parameters": {"n_layers": 2, "n_hidden": 7, "dropout_rate": 0.3},
        },
    ),
    "nb, ln, embedding": (
        {"batch_key": "donor"},
        {"gene_likelihood": "nb", "latent_distribution": "ln", "batch_representation": "embedding"},
    ),
    "nb, all labelled": ({"batch_key": "donor", "unlabeled_category": "none"}, {"gene_likelihood": "nb"}),
}


def make_labelled(case="zinb, no conditions"):
    """Cells of which a third has no label; what stands for none is the first in the order of names."""
    adata = make_cells()
    if "all labelled" not in case:
        hidden = np.random.default_rng(7).random(N_CELLS) < 1 / 3
        adata.obs["cell_type"] = np.where(hidden, "Astray", adata.obs["cell_type"])
    return adata, {"labels_key": "cell_type", "unlabeled_category": "Astray"} | CASES[case][0]


class Pair:
    """One model in both packages: scvi-tools' trained for some steps, ours with its weights."""

    def __init__(self, case):
        options = {"n_hidden": 16, "n_latent": 4} | CASES[case][1]
        self.adata, setup = make_labelled(case)
        scvi.settings.seed = 0
        scvi.model.SCANVI.setup_anndata(self.adata, **setup)
        self.theirs = scvi.model.SCANVI(self.adata, **options)
        self.theirs.train(max_epochs=3, batch_size=40, train_size=1.0, plan_kwargs={"lr": 0.02}, **QUIET)
        sd.SCANVI.setup_anndata(self.adata, **setup)
        self.ours = sd.SCANVI(self.adata, **options)
        self.load()
        self.ours._reference = make_reference(self.ours.vae, self.ours._cells, np.arange(N_CELLS), seed=0)
        self.ours._trained = True
        self.module = self.theirs.module.eval()
        labels = self.ours._cells.codes_nc[:, -1]
        self.labelled = np.flatnonzero(labels < self.ours.schema.n_classes)

    def state(self, theirs):
        """Their weights or gradients under the names of the network that we train."""
        ours, unused = to_ours(theirs, self.ours.config)
        assert all(name.startswith("l_encoder.") for name in unused)
        return {name if name.startswith(CLASSIFICATION) else f"vae.{name}": t for name, t in ours.items()}

    def load(self):
        self.network = SemiSupervised(self.ours.vae, self.ours.classification)
        self.network.load_state_dict(self.state(self.theirs.module.state_dict()))
        self.network.eval().requires_grad_(False)

    def tensors(self, rows):
        (tensors,) = self.theirs._make_data_loader(self.adata, indices=rows, batch_size=len(rows))
        return tensors

    def minibatch(self, rows):
        return gather(self.ours._cells, rows, CPU)

    def their_loss(self, rows, labelled, seed=None):
        tensors = self.tensors(rows), self.tensors(labelled)  # before the seed: a data loader draws too
        if seed is not None:
            torch.manual_seed(seed)
        options = {"labelled_tensors": tensors[1], "kl_weight": 0.3, "classification_ratio": 50}
        inference, _, loss = self.module(tensors[0], loss_kwargs=options)
        return inference, loss

    def our_loss(self, rows, labelled, seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        elbo = self.network.elbo(self.minibatch(rows))
        answers = self.network.answers(self.minibatch(labelled))
        return elbo, answers, elbo.loss(0.3) + 50 * answers.cross_entropy.mean()


trained = functools.cache(Pair)


@pytest.fixture(params=list(CASES))
def pair(request):
    """A pair of models, trained once for all tests, which leave it as it was."""
    return trained(request.param)


def close(what, ours, theirs, rtol=1e-5, atol=1e-6):
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    print(f"{what}: differs by at most {(ours - theirs).abs().max():.1e} of {theirs.abs().max():.1e}")
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, check_dtype=False)


def test_every_weight_has_its_place_and_goes_back(pair):
    theirs = pair.module.state_dict()
    ours, unused = to_ours(theirs, pair.ours.config)
    back = to_theirs(ours, unused, pair.ours.config)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_the_labels_have_the_same_codes(pair):
    mapping = pair.theirs.adata_manager.get_state_registry("labels").categorical_mapping
    assert pair.ours.schema.labels.names == tuple(mapping)
    assert pair.ours.schema.n_classes == pair.theirs.n_labels
    theirs = pair.tensors(np.arange(N_CELLS))["labels"][:, 0].numpy()
    np.testing.assert_array_equal(pair.ours._cells.codes_nc[:, -1], theirs)


def test_predictions(pair):
    soft, hard = pair.ours.predict(soft=True), pair.ours.predict()
    theirs = pair.theirs.predict(soft=True)
    close("probabilities", soft.to_numpy(), theirs.to_numpy())
    assert list(soft.columns) == list(theirs.columns)
    assert list(soft.index) == list(theirs.index)
    np.testing.assert_array_equal(hard, pair.theirs.predict())
    assert hard.dtype == pair.theirs.predict().dtype
    some = np.array([5, 3, 11])
    np.testing.assert_array_equal(pair.ours.predict(indices=some), pair.theirs.predict(indices=some))
    close("some", pair.ours.predict(indices=some, soft=True).to_numpy(), soft.to_numpy()[some])
    others = pair.adata[::-1].copy()
    close("cells in another order", pair.ours.predict(others, soft=True).to_numpy(), theirs.to_numpy()[::-1].copy())


def test_predictions_of_draws_on_average(pair):
    """The means of many draws differ by as much as their spread lets them, and no more."""
    theirs = np.stack([pair.theirs.predict(soft=True, use_posterior_mean=False) for _ in range(100)])
    ours = np.stack([pair.ours.predict(soft=True, use_posterior_mean=False, seed=i) for i in range(100)])
    expected = (ours.var(axis=0) + theirs.var(axis=0)) / 100
    found = (ours.mean(axis=0) - theirs.mean(axis=0)) ** 2
    assert 0.7 < found.mean() / expected.mean() < 1.5


def test_the_posterior(pair):
    mean, variance = pair.theirs.get_latent_representation(return_dist=True)
    posterior = pair.ours.posterior()
    close("mean", posterior.mean, mean)
    close("variance", posterior.variance, variance)


def test_decoding(pair):
    """Scale, rate, mean, dispersion and zero inflation of cells in their own conditions."""
    rows, vae = np.arange(40), pair.ours.vae
    tensors, minibatch = pair.tensors(rows), pair.minibatch(rows)
    with torch.inference_mode():
        inference, generative = pair.module(tensors, compute_loss=False)
        px, log_library = generative["px"], inference["library"]
        if pair.ours.config.use_size_factor:
            log_library = minibatch.library_n1.log()
        output = vae.decode(inference["z"], minibatch.codes_nc, minibatch.continuous_nd)
        ours = vae.likelihood(output, log_library, minibatch.codes_nc)
    likelihood = pair.ours.config.gene_likelihood
    close("scale", output.log_scale.exp(), px.get_normalized("scale"), atol=1e-7)
    close("rate", (log_library + output.log_scale).exp(), px.rate if likelihood == "poisson" else px.mu)
    close("mean", ours.mean, px.mean)
    if likelihood != "poisson":
        close("dispersion", ours.theta.expand_as(px.mean), px.theta.expand_as(px.mean))
    if likelihood == "zinb":
        close("zero inflation", ours.zi_logits, px.zi_logits)


def test_every_term_of_the_loss(pair):
    """Their sums, and the parts that scvi-tools does not give, from its networks one by one."""
    rows, labelled = np.arange(0, 200, 3), pair.labelled[:40]
    with torch.no_grad(), the_same_noise():
        inference, theirs = pair.their_loss(rows, labelled)
        elbo, answers, loss = pair.our_loss(rows, labelled)
        reconstruction, kl = elbo.reconstruction + elbo.latent, elbo.kl_z2 + elbo.kl_y + elbo.kl_l
        close("reconstruction", reconstruction, theirs.reconstruction_loss["reconstruction_loss"], rtol=1e-5)
        close("KL", kl, theirs.kl_local["kl_local"], rtol=1e-5, atol=1e-5)
        close("cross-entropy", answers.cross_entropy.mean(), theirs.classification_loss)
        assert torch.equal(answers.right, theirs.logits.argmax(-1) == theirs.true_labels[:, 0])
        close("loss", loss, theirs.loss)
        close("sums", elbo.sums(), torch.stack([reconstruction.sum(), (kl - elbo.kl_l).sum(), elbo.kl_l.sum()]))

        module, z1 = pair.module, inference["z"]
        n, n_classes = len(rows), module.n_labels
        q_y = torch.softmax(module.classifier(z1), dim=-1)
        classes = torch.arange(n_classes)[:, None].expand(n_classes, n).reshape(-1, 1)
        repeated = z1.repeat(n_classes, 1)
        q_z2, z2 = module.encoder_z2_z1(repeated, classes)
        mean, variance = module.decoder_z1_z2(z2, classes)
        log_p = Normal(mean, variance.sqrt()).log_prob(repeated).sum(-1).reshape(n_classes, n).t()
        close("latent", elbo.latent, inference["qz"].log_prob(z1).sum(-1) - (q_y * log_p).sum(-1), atol=1e-5)
        kl_z2 = kl_divergence(q_z2, Normal(torch.zeros_like(mean), 1.0)).sum(-1).reshape(n_classes, n).t()
        close("KL of z2", elbo.kl_z2, (q_y * kl_z2).sum(-1))
        prior = torch.full_like(q_y, 1 / n_classes)
        close("KL of y", elbo.kl_y, (q_y * (q_y / prior).log()).nan_to_num().sum(-1), atol=1e-5)


def test_the_gradient(pair):
    rows, labelled = np.arange(0, 200, 3), pair.labelled[:40]
    pair.network.requires_grad_(True)
    try:
        with the_same_noise():
            pair.module.zero_grad(set_to_none=True)
            pair.their_loss(rows, labelled)[1].loss.backward()
            expected = pair.state({name: p.grad for name, p in pair.module.named_parameters() if p.grad is not None})
            pair.network.zero_grad(set_to_none=True)
            pair.our_loss(rows, labelled)[2].backward()
        found = {name: p.grad for name, p in pair.network.named_parameters() if p.grad is not None}
    finally:
        pair.module.zero_grad(set_to_none=True)
        pair.network.zero_grad(set_to_none=True)
        pair.network.requires_grad_(False)
    assert set(found) == set(expected)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        close(name, found[name], gradient, rtol=1e-3, atol=1e-5 * largest)


def test_ten_steps_give_the_same_weights(pair):
    """With scvi-tools' own loss and optimiser, and the same dropout and draws."""
    rng = np.random.default_rng(3)
    defaults = sd.TrainConfig()
    steps = [(rng.choice(N_CELLS, 64, replace=False), rng.choice(pair.labelled, 32, replace=False)) for _ in range(10)]
    start = {name: value.clone() for name, value in pair.module.state_dict().items()}
    before = {name: value.clone() for name, value in pair.network.state_dict().items()}
    try:
        with the_same_noise():
            pair.module.train()
            plan = SemiSupervisedTrainingPlan(pair.module, pair.theirs.n_labels)
            assert plan.loss_kwargs["classification_ratio"] == defaults.classification_ratio == 50
            optimizer = plan.configure_optimizers()["optimizer"]
            for step, (rows, labelled) in enumerate(steps):
                optimizer.zero_grad()
                pair.their_loss(rows, labelled, seed=step)[1].loss.backward()
                optimizer.step()
            expected = pair.state({name: value.clone() for name, value in pair.module.state_dict().items()})
            pair.network.train().requires_grad_(True)
            optimizer = torch.optim.Adam(
                pair.network.parameters(), lr=defaults.lr, eps=defaults.eps, weight_decay=defaults.weight_decay
            )
            for step, (rows, labelled) in enumerate(steps):
                optimizer.zero_grad()
                pair.our_loss(rows, labelled, seed=step)[2].backward()
                optimizer.step()
            found = {name: value.clone() for name, value in pair.network.state_dict().items()}
    finally:
        pair.module.load_state_dict(start)
        pair.module.eval()
        pair.network.load_state_dict(before)
        pair.network.eval().requires_grad_(False)
    for part in ("vae.decoder.scale.weight", "classification.classifier.logits.weight"):
        assert (found[part] - before[part]).abs().max() > 1e-3, "training moves the weights"
    for name, value in expected.items():
        close(name, found[name], value, rtol=1e-3, atol=5e-5)


# -- around training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_size", [0.9, 0.5])
@pytest.mark.parametrize("validation_size", [None, 0.1])
def test_an_unshuffled_split_takes_the_same_cells(train_size, validation_size):
    pair = trained("zinb, no conditions")
    options = {"train_size": train_size, "validation_size": validation_size, "shuffle_set_split": False}
    splitter = SemiSupervisedDataSplitter(pair.theirs.adata_manager, **options)
    splitter.setup()
    is_labelled = pair.ours._cells.codes_nc[:, -1] < pair.ours.schema.n_classes
    split = split_labelled(is_labelled, sd.TrainConfig(**options))
    np.testing.assert_array_equal(split.train, splitter.train_idx)
    np.testing.assert_array_equal(split.validation, splitter.val_idx)
    np.testing.assert_array_equal(split.test, splitter.test_idx)


def test_a_model_that_begins_with_an_scvi(monkeypatch):
    """Weights, labels and the number of epochs."""
    adata, setup = make_labelled()
    unlabeled = setup.pop("unlabeled_category")
    sd.SCVI.setup_anndata(adata, batch_key="donor", **setup)
    base = sd.SCVI(adata, n_hidden=16, n_latent=4)
    base.train(1, device="cpu", progress=False)
    ours = sd.SCANVI.from_scvi_model(base, unlabeled)
    assert all(torch.equal(value, ours.vae.state_dict()[name]) for name, value in base.vae.state_dict().items())

    scvi.model.SCVI.setup_anndata(adata, batch_key="donor", **setup)
    their_base = scvi.model.SCVI(adata, n_hidden=16, n_latent=4)
    their_base.train(1, train_size=1.0, **QUIET)
    theirs = scvi.model.SCANVI.from_scvi_model(their_base, unlabeled)
    assert ours.schema.labels.names == tuple(theirs.adata_manager.get_state_registry("labels").categorical_mapping)
    told = {}

    def runner(*args, max_epochs, **kwargs):
        told["theirs"] = max_epochs
        return lambda: None

    monkeypatch.setattr(type(theirs), "_train_runner_cls", staticmethod(runner))
    theirs.train()
    ours.train(progress=False, device="cpu")
    assert len(ours.history_table) == told["theirs"] == 10


@pytest.mark.parametrize("n_cells", [10, 20_000, 400_000, 1_000_000, 5_000_000])
def test_the_number_of_epochs_after_an_scvi(n_cells):
    theirs = int(np.min([10, np.max([2, round(get_max_epochs_heuristic(n_cells) / 3.0)])]))
    assert min(10, max(2, round(sd.TrainConfig().epochs(n_cells) / 3))) == theirs


def test_arguments_and_defaults():
    def of(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}

    theirs = {
        name: value for name, value in of(scvi.model.SCANVI.__init__).items() if name not in ("registry", "datamodule")
    }
    theirs["adata"] = inspect.Parameter.empty  # it cannot be left out
    assert list(of(sd.SCANVI.__init__).items()) == list(theirs.items())
    theirs = {name: value for name, value in of(scvi.model.SCANVI.setup_anndata).items() if name != "use_minified"}
    assert list(of(sd.SCANVI.setup_anndata).items()) == list(theirs.items())
    assert list(of(sd.SCANVI.from_scvi_model)) == [n for n in of(scvi.model.SCANVI.from_scvi_model) if n != "registry"]
    ours, theirs = of(sd.SCANVI.train), of(scvi.model.SCANVI.train)
    assert list(ours.items()) == list(theirs.items())[: len(ours)]
    ours, theirs = of(sd.SCANVI.predict), of(scvi.model.SCANVI.predict)
    assert list(ours.items()) == list(theirs.items())[: len(ours)]
