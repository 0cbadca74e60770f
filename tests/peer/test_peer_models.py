"""A model that scvi-tools trained and its weights in ours: decoding, encoding, the bound, training steps."""

import functools

import numpy as np
import pytest
import torch
from pairs import CASES, N_GENES, make_pair
from scvi.train import TrainingPlan

import scdecode as sd
from scdecode.formats.scvi_names import to_ours
from scdecode.minibatches import gather

N_POINTS = 40
CPU = torch.device("cpu")


trained = functools.cache(make_pair)


@pytest.fixture
def pair(request):
    """A pair of models, trained once for all tests, which leave it as it was."""
    return trained(request.param)


def each(*, without=(), only=("",)):
    """A test of every case of which one part, as ``ln``, is among ``only`` and none is among ``without``."""
    names = [case for case in CASES if any(part in case for part in only) and not any(part in case for part in without)]
    return pytest.mark.parametrize("pair", names, indirect=True)


LEARNED = "learned library"  # there z and the library are drawn in another order


def close(what, ours, theirs, rtol=1e-5, atol=1e-7):
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    print(f"{what}: differs by at most {(ours - theirs).abs().max():.1e} of {theirs.abs().max():.1e}")
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, check_dtype=False)


def points_of(pair, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, (N_POINTS, pair.ours.config.n_latent)).astype(np.float32)
    if pair.ours.config.latent_distribution == "ln":
        z = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return z, rng


def conditions_of(pair, rng):
    """Names and values, one per point, as our decode takes them, and scvi-tools' codes of them."""
    schema = pair.ours.schema
    zeros_n1 = torch.zeros(N_POINTS, 1, dtype=torch.int64)
    ours, codes = {}, {"batch_index": zeros_n1, "y": zeros_n1}
    if schema.batch is not None:
        ours["batch"] = rng.choice(schema.batch.names, N_POINTS)
        codes["batch_index"] = pair.their_codes(ours["batch"], "donor")
    if schema.labels is not None and pair.ours.config.dispersion == "gene-label":
        ours["labels"] = rng.choice(schema.labels.names, N_POINTS)
        codes["y"] = pair.their_codes(ours["labels"], "cell_type")
    if schema.categorical:
        ours["categorical"] = {c.key: rng.choice(c.names, N_POINTS) for c in schema.categorical}
        columns = [pair.their_codes(names, key) for key, names in ours["categorical"].items()]
        codes["cat_covs"] = torch.cat(columns, dim=1)
    if schema.continuous:
        ours["continuous"] = {key: rng.normal(size=N_POINTS).astype(np.float32) for key in schema.continuous}
        codes["cont_covs"] = torch.tensor(np.stack(list(ours["continuous"].values()), axis=1))
    return ours, codes


@torch.inference_mode()
def generative(pair, z, library, codes):
    log_library = torch.from_numpy(np.asarray(library, np.float32)).log()[:, None]
    size_factor = {"size_factor": log_library} if pair.ours.config.use_size_factor else {}
    return pair.module.generative(z=torch.from_numpy(z), library=log_library, **size_factor, **codes)["px"]


def rate_of(pair, px):
    """px_rate, whatever scvi-tools' distribution calls it."""
    return getattr(px, {"poisson": "rate", "normal": "loc"}.get(pair.ours.config.gene_likelihood, "mu"))


@pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning", "ignore::scdecode.errors.ConditionWarning")
class TestDecoding:
    @each()
    def test_every_quantity_by_name(self, pair):
        z, rng = points_of(pair)
        conditions, codes = conditions_of(pair, rng)
        library = rng.uniform(500, 20_000, N_POINTS)
        px = generative(pair, z, library, codes)
        expected = {"scale": px.get_normalized("scale"), "rate": rate_of(pair, px), "mean": px.mean}
        for quantity, theirs in expected.items():
            ours = pair.ours.decode(z, quantity=quantity, library_size=library, **conditions)
            assert list(ours.var_names) == list(pair.adata.var_names)
            close(quantity, ours.X, theirs)

    @each()
    def test_some_genes_in_another_order(self, pair):
        z, rng = points_of(pair)
        conditions, codes = conditions_of(pair, rng)
        chosen = ["gene_17", "gene_3", "gene_29"]
        theirs = rate_of(pair, generative(pair, z, np.full(N_POINTS, 1e3), codes))[:, [17, 3, 29]]
        close("rate", pair.ours.decode(z, library_size=1e3, genes=chosen, **conditions).X, theirs)

    @each()
    def test_the_distribution(self, pair):
        z, rng = points_of(pair)
        conditions, codes = conditions_of(pair, rng)
        library = rng.uniform(50, 2_000, N_POINTS)
        px = generative(pair, z, library, codes)
        ours = pair.ours.distribution(torch.from_numpy(z), library_size=library, **conditions)
        counts = torch.from_numpy(rng.poisson(rng.gamma(1, 5, (N_POINTS, N_GENES)))).float()
        close("log_prob", ours.log_prob(counts), px.log_prob(counts), rtol=1e-4, atol=1e-4)
        close("mean", ours.mean, px.mean)
        if pair.ours.config.gene_likelihood == "zinb":
            close("zero inflation", ours.zi_logits, px.zi_logits, atol=1e-6)
        if pair.ours.config.gene_likelihood in ("nb", "zinb"):
            close("dispersion", ours.theta.expand(N_POINTS, N_GENES), px.theta.expand(N_POINTS, N_GENES))
        if pair.ours.config.gene_likelihood == "normal":
            close("standard deviation", ours.scale, px.scale.expand(N_POINTS, N_GENES))

    @each(without=["covariates", "size factor", "embedding"])  # continuous ones are averaged by groups
    def test_nothing_said_is_the_average_of_the_training_cells(self, pair):
        """The mean over the conditions of all cells, one by one."""
        z, _ = points_of(pair)
        tensors = pair.tensors(np.arange(pair.adata.n_obs))
        total = 0.0
        for row in range(pair.adata.n_obs):
            given = {"batch_index": tensors["batch"][row], "y": tensors["labels"][row]}
            if pair.ours.schema.categorical:
                given["cat_covs"] = tensors["extra_categorical_covs"][row]
            codes = {key: value.expand(N_POINTS, -1) for key, value in given.items()}
            total = total + rate_of(pair, generative(pair, z, np.full(N_POINTS, 1e4), codes))
        ours = pair.ours.decode(z, library_size=1e4, max_conditions=1000).X
        close("rate", ours, total / pair.adata.n_obs, rtol=1e-4)


class TestEncoding:
    @each()
    def test_the_posterior(self, pair):
        theirs_mean, theirs_variance = pair.theirs.get_latent_representation(return_dist=True)
        posterior = pair.ours.posterior()
        close("mean", posterior.mean, theirs_mean, atol=1e-6)
        close("variance", posterior.variance, theirs_variance)

    @each(without=["ln"])  # its mean has no closed form
    def test_the_latent_of_cells_with_genes_in_another_order(self, pair):
        shuffled = pair.adata[::-1, np.random.default_rng(2).permutation(N_GENES)].copy()
        theirs = pair.theirs.get_latent_representation()[::-1]
        close("latent", pair.ours.get_latent_representation(shuffled), theirs.copy(), atol=1e-6)

    @each(only=[LEARNED])
    def test_the_library(self, pair):
        rows = np.arange(50)
        tensors = pair.tensors(rows)
        with torch.inference_mode():
            theirs = pair.module.inference(tensors["X"], batch_index=tensors["batch"])["ql"]
            ours = pair.ours.vae.encode_library(gather(pair.ours._cells, rows, CPU))
        close("mean", ours.mean, theirs.mean)
        close("variance", ours.variance, theirs.variance)


class TestBound:
    @each(without=[LEARNED])
    def test_the_elbo_of_the_same_draws(self, pair):
        """Both draw z with one call of the same generator, so from one seed they draw the same."""
        rows = np.arange(0, 200, 3)
        tensors = pair.tensors(rows)  # before the seed: a data loader draws too
        torch.manual_seed(5)
        with torch.inference_mode():
            inference, _, loss = pair.module(tensors)
        torch.manual_seed(5)
        with torch.inference_mode():
            ours = pair.ours.vae.elbo(gather(pair.ours._cells, rows, CPU))
        close("reconstruction", ours.reconstruction, loss.reconstruction_loss["reconstruction_loss"], rtol=1e-4)
        close("KL", ours.kl_z, loss.kl_local["kl_divergence_z"])
        assert inference["qz"].mean.shape == (len(rows), 4)

    @each()
    def test_the_elbo_on_average(self, pair):
        """Over draws, with scvi-tools' own ``get_elbo``."""
        theirs = [-float(pair.theirs.get_elbo()) for _ in range(30)]
        torch.manual_seed(0)
        cells = gather(pair.ours._cells, slice(None), CPU)
        with torch.inference_mode():
            ours = [float(pair.ours.vae.elbo(cells).loss(1.0)) for _ in range(30)]
        error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(30)
        difference = np.mean(ours) - np.mean(theirs)
        print(f"elbo: {np.mean(ours):.3f} and {np.mean(theirs):.3f}, {difference / error:.1f} standard errors apart")
        assert abs(difference) < 4 * error + 1e-5 * abs(np.mean(theirs))


class TestTraining:
    @each(without=[LEARNED])
    def test_ten_steps_give_the_same_weights(self, pair):
        """With scvi-tools' own loss and optimiser; dropout and draws come from one seed, in one order."""
        rng = np.random.default_rng(3)
        config, defaults = pair.ours.config, sd.TrainConfig()
        minibatches = [rng.choice(pair.adata.n_obs, 32, replace=False) for _ in range(10)]
        start = {name: value.clone() for name, value in pair.theirs.module.state_dict().items()}
        try:
            module = pair.theirs.module.train()
            optimizer = TrainingPlan(module).configure_optimizers()["optimizer"]
            for step, rows in enumerate(minibatches):
                tensors = pair.tensors(rows)  # before the seed: a data loader draws too
                torch.manual_seed(step)
                optimizer.zero_grad()
                module(tensors, loss_kwargs={"kl_weight": 0.3})[2].loss.backward()
                optimizer.step()
            expected, _ = to_ours({name: value.clone() for name, value in module.state_dict().items()}, config)
        finally:
            pair.theirs.module.load_state_dict(start)
            pair.theirs.module.eval()

        vae = pair.ours.vae.train().requires_grad_(True)
        before = {name: value.clone() for name, value in vae.state_dict().items()}
        try:
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
            vae.load_state_dict(before)
            vae.eval().requires_grad_(False)
        moved = (found["decoder.scale.weight"] - before["decoder.scale.weight"]).abs().max()
        assert moved > 1e-3, "training moves the weights"
        for name, value in expected.items():
            close(name, found[name], value, rtol=1e-3, atol=2e-5)


@each(only=[LEARNED])
def test_the_prior_of_a_learned_library(pair):
    """A model of ours that is made anew has the prior that scvi-tools computed."""
    fresh = sd.SCVI(pair.adata, gene_likelihood="nb", use_observed_lib_size=False)
    close("mean", fresh.vae.library_log_mean, pair.module.library_log_means[0])
    close("variance", fresh.vae.library_log_variance, pair.module.library_log_vars[0])


@each(only=["ln"])
def test_the_mean_of_a_logistic_normal(pair):
    """Both average random draws."""
    ours = pair.ours.get_latent_representation(mc_samples=4000)
    theirs = pair.theirs.get_latent_representation(mc_samples=4000)
    assert float(np.abs(ours - theirs).max()) < 0.02
