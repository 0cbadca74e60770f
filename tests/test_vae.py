"""The generative model: its quantities, its bound and that bound's gradient, on tiny networks in float64."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.func import functional_call

from scdecode.config import ModelConfig
from scdecode.minibatches import Minibatch
from scdecode.vae import VAE, Elbo

N_GENES, N_CELLS, N_CONTINUOUS = 6, 8, 2
LEVELS = (3, 2, 1, 4)  # batch, two covariates of which one has a single level, label
LIBRARY_PRIOR = (torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.5, 0.1, 2.0]))


def make_vae(*, levels=LEVELS, n_continuous=N_CONTINUOUS, **options) -> VAE:
    """A network with random weights and, as after training, random statistics of batch normalisation."""
    torch.manual_seed(0)
    config = ModelConfig(**{"n_hidden": 4, "n_latent": 2, "gene_likelihood": "nb"} | options)
    vae = VAE(config, N_GENES, levels, n_continuous, LIBRARY_PRIOR if config.learns_library else None).double()
    for module in vae.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return vae.eval()


def make_cells(*, levels=LEVELS, n_continuous=N_CONTINUOUS, n=N_CELLS) -> Minibatch:
    generator = torch.Generator().manual_seed(1)
    x_ng = torch.poisson(torch.rand(n, N_GENES, generator=generator) * 6, generator=generator).double()
    codes = [torch.arange(n) % levels[0], *(torch.randint(0, k, (n,), generator=generator) for k in levels[1:])]
    return Minibatch(
        x_ng=x_ng,
        codes_nc=torch.stack(codes, dim=1),
        continuous_nd=torch.randn(n, n_continuous, generator=generator).double(),
        library_n1=x_ng.sum(1, keepdim=True),
    )


def make_points(n=7, k=2):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(2)).double() * 1.5


def decode(vae, z, codes, continuous, **options):
    """Everything that the decoder says, as a mapping."""
    output = vae.decode(z, codes, continuous, **options)
    found = {"log_scale": output.log_scale, "zi_logits": output.zi_logits, "log_theta": output.log_theta}
    return {name: value for name, value in found.items() if value is not None}


EVERY_SHAPE = [
    {"gene_likelihood": "zinb", "dispersion": "gene-cell", "n_layers": 2},
    {"gene_likelihood": "zinb", "dispersion": "gene-cell", "n_layers": 2, "deeply_inject_covariates": False},
    {"gene_likelihood": "zinb", "dispersion": "gene-cell", "batch_representation": "embedding", "n_layers": 2},
    {"use_size_factor": True, "use_batch_norm": "none", "use_layer_norm": "both"},
]

# -- decode ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", EVERY_SHAPE, ids=str)
def test_one_row_of_conditions_serves_all_points(options):
    vae, z, cells = make_vae(**options), make_points(), make_cells()
    codes, continuous = cells.codes_nc[:1], cells.continuous_nd[:1]
    expected = decode(vae, z, codes.expand(len(z), -1), continuous.expand(len(z), -1))
    for few in (decode(vae, z, codes, continuous), decode(vae, z, codes[0], continuous[0])):
        assert few.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(few[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", EVERY_SHAPE, ids=str)
def test_leading_axes(options):
    vae, cells = make_vae(**options), make_cells()
    z_snk = make_points(3 * N_CELLS).reshape(3, N_CELLS, 2)
    output = decode(vae, z_snk, cells.codes_nc, cells.continuous_nd)
    for s, (name, value) in itertools.product(range(3), output.items()):
        assert value.shape == (3, N_CELLS, N_GENES)
        expected = decode(vae, z_snk[s], cells.codes_nc, cells.continuous_nd)[name]
        torch.testing.assert_close(value[s], expected, rtol=1e-12, atol=1e-12)
    one = decode(vae, z_snk[0, 0], cells.codes_nc[0], cells.continuous_nd[0])
    for name, value in one.items():
        torch.testing.assert_close(value, output[name][0, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", EVERY_SHAPE, ids=str)
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
def test_genes_are_the_columns_of_all(options, dispersion):
    vae, z, cells = make_vae(**options | {"dispersion": dispersion}), make_points(N_CELLS), make_cells()
    codes, log_library = cells.codes_nc, torch.tensor([[9.0]]).double()
    genes = torch.tensor([4, 0, 0])
    full = vae.decode(z, codes, cells.continuous_nd)
    some = vae.decode(z, codes, cells.continuous_nd, genes=genes)
    torch.testing.assert_close(some.log_scale, full.log_scale[:, genes], rtol=1e-13, atol=1e-13)
    px, px_some = vae.likelihood(full, log_library, codes), vae.likelihood(some, log_library, codes, genes)
    torch.testing.assert_close(px_some.mean, px.mean[:, genes], rtol=1e-12, atol=0)
    torch.testing.assert_close(px_some.variance, px.variance[:, genes], rtol=1e-12, atol=0)
    x = cells.x_ng
    torch.testing.assert_close(px_some.log_prob(x[:, genes]), px.log_prob(x)[:, genes], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("use_size_factor", [True, False])
def test_the_scale_alone_is_the_same_and_runs_no_other_head(use_size_factor):
    vae = make_vae(gene_likelihood="zinb", dispersion="gene-cell", use_size_factor=use_size_factor)
    z, cells = make_points(N_CELLS), make_cells()
    full = vae.decode(z, cells.codes_nc, cells.continuous_nd)
    ran = []
    for name in ("zi_logits", "log_theta", "scale"):
        getattr(vae.decoder, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    scale = vae.scale(z, cells.codes_nc, cells.continuous_nd)
    assert ran == ["scale"]
    torch.testing.assert_close(scale, full.log_scale.exp(), rtol=1e-6, atol=0)
    genes = torch.tensor([3, 0])
    assert torch.equal(vae.scale(z, cells.codes_nc, cells.continuous_nd, genes=genes), scale[:, genes])


@pytest.mark.parametrize("use_size_factor", [True, False])
def test_the_scale_sums_to_one_unless_there_is_a_size_factor(use_size_factor):
    vae, z, cells = make_vae(use_size_factor=use_size_factor), make_points(N_CELLS), make_cells()
    scale = vae.decode(z, cells.codes_nc, cells.continuous_nd).log_scale.exp()
    total = scale.sum(-1)
    assert (scale > 0).all()
    if use_size_factor:
        assert ((total - 1).abs() > 0.01).all()
    else:
        torch.testing.assert_close(total, torch.ones(N_CELLS).double(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("gene_likelihood", ["zinb", "nb", "poisson", "normal"])
def test_the_mean_is_the_library_times_the_scale(gene_likelihood):
    vae, z, cells = make_vae(gene_likelihood=gene_likelihood), make_points(N_CELLS), make_cells()
    output = vae.decode(z, cells.codes_nc, cells.continuous_nd)
    library = torch.linspace(10, 1e5, N_CELLS).double()[:, None]
    mean = vae.likelihood(output, library.log(), cells.codes_nc).mean
    rate = library * output.log_scale.exp()
    expected = rate * torch.sigmoid(-output.zi_logits) if gene_likelihood == "zinb" else rate
    torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)


# -- conditions --------------------------------------------------------------------------------------------------------


def condition_effects(vae):
    """Whether the scale and the likelihood change with each condition: batch, covariates, label, continuous ones."""
    z, log_library = make_points(), torch.tensor([[9.0]]).double()
    x = torch.arange(N_GENES).double()

    def of(codes, continuous):
        output = vae.decode(z, codes, continuous)
        return output.log_scale, vae.likelihood(output, log_library, codes).log_prob(x)

    codes, continuous = torch.zeros(1, len(LEVELS), dtype=torch.int64), torch.zeros(1, N_CONTINUOUS).double()
    before = of(codes, continuous)
    effects = []
    for j in range(len(LEVELS)):
        changed = codes.clone()
        changed[:, j] = LEVELS[j] - 1
        effects.append(of(changed, continuous))
    for j in range(N_CONTINUOUS):
        changed = continuous.clone()
        changed[:, j] = 1.0
        effects.append(of(codes, changed))
    return [tuple(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) for after in effects]


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-label", "gene-cell"])
@pytest.mark.parametrize("batch_representation", ["one-hot", "embedding"])
def test_the_label_enters_the_dispersion_alone(dispersion, batch_representation):
    vae = make_vae(dispersion=dispersion, batch_representation=batch_representation)
    both, neither = (True, True), (False, False)
    label = (False, True) if dispersion == "gene-label" else neither
    assert condition_effects(vae) == [both, both, neither, label, both, both]


@pytest.mark.parametrize("encode_covariates", [True, False])
@pytest.mark.parametrize("batch_representation", ["one-hot", "embedding"])
def test_the_encoder_sees_conditions_only_where_asked_and_never_the_label(encode_covariates, batch_representation):
    vae = make_vae(
        encode_covariates=encode_covariates, batch_representation=batch_representation, use_observed_lib_size=False
    )
    cells = make_cells()
    seen = []
    for j in range(len(LEVELS)):
        codes_nc = cells.codes_nc.clone()
        codes_nc[:, j] = (codes_nc[:, j] + 1) % LEVELS[j]
        other = dataclasses.replace(cells, codes_nc=codes_nc)
        same = torch.equal(vae.encode(cells).mean, vae.encode(other).mean)
        assert torch.equal(vae.encode_library(cells).mean, vae.encode_library(other).mean) == same
        seen.append(not same)
    other = dataclasses.replace(cells, continuous_nd=cells.continuous_nd + 1)
    seen.append(not torch.equal(vae.encode(cells).mean, vae.encode(other).mean))
    assert seen == ([True, True, False, False, True] if encode_covariates else [False] * 5)


def test_the_batch_embedding_stands_after_the_continuous_covariates():
    vae = make_vae(batch_representation="embedding", batch_embedding_dim=3, encode_covariates=True, n_layers=1)
    assert vae.batch_embedding.weight.shape == (3, 3)
    first = vae.decoder.mlp.layers[0].linear
    assert first.n_input == 2 + N_CONTINUOUS + 3
    assert first.n_levels == (2, 1)  # the batch is no one-hot here
    z, cells = make_points(N_CELLS), make_cells()
    inputs = torch.cat([z, cells.continuous_nd, vae.batch_embedding(cells.codes_nc[:, 0])], dim=1)
    expected = vae.decoder(inputs, cells.codes_nc[:, 1:-1], zero_inflated=False, cell_dispersion=False).log_scale
    assert torch.equal(vae.decode(z, cells.codes_nc, cells.continuous_nd).log_scale, expected)
    assert vae.z_encoder.mlp.layers[0].linear.n_input == N_GENES + N_CONTINUOUS + 3


def test_without_any_condition():
    """One batch, one label, no covariates: no column beside z, and the codes change nothing."""
    levels = (1, 1)
    vae, z = make_vae(levels=levels, n_continuous=0, n_layers=2), make_points()
    assert all(layer.linear.in_features == layer.linear.n_input for layer in vae.decoder.mlp.layers)
    assert vae.decoder.mlp.layers[0].linear.in_features == 2
    output = vae.decode(z, torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 0).double())
    assert output.log_scale.shape == (7, N_GENES)
    elbo = vae.elbo(make_cells(levels=levels, n_continuous=0))
    assert torch.isfinite(elbo.loss(1.0))


@pytest.mark.parametrize(("dispersion", "column"), [("gene-batch", 0), ("gene-label", -1)])
def test_each_batch_or_label_has_its_row_of_dispersions(dispersion, column):
    vae, z, cells = make_vae(dispersion=dispersion), make_points(N_CELLS), make_cells()
    assert vae.log_theta.shape == (LEVELS[column], N_GENES)
    output = vae.decode(z, cells.codes_nc, cells.continuous_nd)
    log_theta = vae.dispersion(output, cells.codes_nc)
    assert torch.equal(log_theta, vae.log_theta[cells.codes_nc[:, column]])
    row = vae.dispersion(output, cells.codes_nc[:1])
    assert torch.equal(row, vae.log_theta[cells.codes_nc[:1, column]])
    genes = torch.tensor([5, 1])
    assert torch.equal(vae.dispersion(output, cells.codes_nc, genes), log_theta[:, genes])
    vae.likelihood(output, torch.tensor(5.0), cells.codes_nc[:1]).log_prob(cells.x_ng).sum().backward()
    used = vae.log_theta.grad.abs().sum(1) > 0
    assert used.tolist() == [i == cells.codes_nc[0, column] for i in range(LEVELS[column])]


def test_the_dispersion_of_the_gene_or_of_the_cell():
    cells, z = make_cells(), make_points(N_CELLS)
    for dispersion in ("gene", "gene-cell"):
        vae = make_vae(dispersion=dispersion)
        output = vae.decode(z, cells.codes_nc, cells.continuous_nd)
        log_theta = vae.dispersion(output, cells.codes_nc)
        if dispersion == "gene":
            assert vae.log_theta.shape == (1, N_GENES) and torch.equal(log_theta, vae.log_theta[0])
            assert output.log_theta is None
        else:
            assert vae.log_theta is None and log_theta.shape == (N_CELLS, N_GENES)
            assert (log_theta.std(0) > 0).all()
        poisson = make_vae(dispersion=dispersion, gene_likelihood="poisson")
        assert poisson.dispersion(poisson.decode(z, cells.codes_nc, cells.continuous_nd), cells.codes_nc) is None


# -- encode ------------------------------------------------------------------------------------------------------------


def test_latents_of_a_logistic_normal_sum_to_one():
    z = torch.tensor([[0.0, 1.0, -2.0], [300.0, 0.0, -300.0]])
    latent = make_vae(latent_distribution="ln", n_latent=3).to_latent(z)
    torch.testing.assert_close(latent.sum(-1), torch.ones(2))
    torch.testing.assert_close(latent[1], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(latent[0], torch.exp(z[0]) / torch.exp(z[0]).sum())
    assert make_vae(latent_distribution="normal", n_latent=3).to_latent(z) is z


def test_the_encoder_takes_the_logarithm_of_counts():
    vae, cells = make_vae(), make_cells()
    mean, variance = vae.z_encoder(torch.log(cells.x_ng + 1), None)
    posterior = vae.encode(cells)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.variance, variance)
    assert (variance >= 1e-4).all()


def test_the_decoder_has_no_dropout():
    vae, cells, z = make_vae(dropout_rate=0.3, use_batch_norm="none").train(), make_cells(), make_points(N_CELLS)
    assert {m.p for m in vae.z_encoder.modules() if isinstance(m, nn.Dropout)} == {0.3}
    first, again = (decode(vae, z, cells.codes_nc, cells.continuous_nd)["log_scale"] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(vae.encode(cells).mean, vae.encode(cells).mean)


# -- the bound ---------------------------------------------------------------------------------------------------------


def kl_of_normals(mean, variance, prior_mean, prior_variance):
    """KL(N(mean, variance), N(prior_mean, prior_variance)) in closed form."""
    ratio = variance / prior_variance
    return 0.5 * (ratio + (mean - prior_mean) ** 2 / prior_variance - 1 - ratio.log())


@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
def test_the_kl_is_that_of_normals(latent_distribution):
    vae, cells = make_vae(latent_distribution=latent_distribution), make_cells()
    posterior = vae.encode(cells)
    elbo = vae.elbo(cells)
    expected = kl_of_normals(posterior.mean, posterior.variance, 0.0, 1.0).sum(1)
    torch.testing.assert_close(elbo.kl_z, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(elbo.kl_l, torch.zeros(N_CELLS).double())


def test_the_kl_of_a_learned_library_is_from_the_prior_of_its_batch():
    vae, cells = make_vae(use_observed_lib_size=False), make_cells()
    posterior = vae.encode_library(cells)
    assert posterior.mean.shape == (N_CELLS, 1)
    mean, variance = (prior.double()[cells.codes_nc[:, 0]] for prior in LIBRARY_PRIOR)
    expected = kl_of_normals(posterior.mean[:, 0], posterior.variance[:, 0], mean, variance)
    torch.testing.assert_close(vae.elbo(cells).kl_l, expected, rtol=1e-12, atol=1e-12)
    assert {"library_log_mean", "library_log_variance"} <= set(vae.state_dict())


def test_a_size_factor_goes_before_a_learned_library():
    vae = make_vae(use_observed_lib_size=False, use_size_factor=True)
    assert vae.library_encoder is None and not any("library" in name for name in vae.state_dict())
    assert torch.equal(vae.elbo(make_cells()).kl_l, torch.zeros(N_CELLS).double())


@pytest.mark.parametrize("gene_likelihood", ["zinb", "nb", "poisson", "normal"])
@pytest.mark.parametrize("latent_distribution", ["normal", "ln"])
@pytest.mark.parametrize("learned", [True, False])
def test_the_reconstruction_is_the_likelihood_at_a_draw(gene_likelihood, latent_distribution, learned):
    vae = make_vae(
        gene_likelihood=gene_likelihood, latent_distribution=latent_distribution, use_observed_lib_size=not learned
    )
    cells = make_cells()
    torch.manual_seed(5)
    elbo = vae.elbo(cells)
    torch.manual_seed(5)
    log_library = vae.encode_library(cells).rsample() if learned else cells.library_n1.log()
    z = vae.encode(cells).rsample()
    output = vae.decode(torch.softmax(z, -1) if latent_distribution == "ln" else z, cells.codes_nc, cells.continuous_nd)
    px = vae.likelihood(output, log_library, cells.codes_nc)
    assert elbo.reconstruction.shape == (N_CELLS,)
    torch.testing.assert_close(elbo.reconstruction, -px.log_prob(cells.x_ng).sum(1), rtol=1e-12, atol=0)


def test_the_loss_weighs_the_kl_of_z_alone():
    elbo = Elbo(reconstruction=torch.tensor([1.0, 3.0]), kl_z=torch.tensor([10.0, 30.0]), kl_l=torch.tensor([0.5, 0.7]))
    assert elbo.loss(0.0).item() == pytest.approx(2.6)
    assert elbo.loss(0.25).item() == pytest.approx(7.6)
    assert elbo.loss(1.0).item() == pytest.approx(22.6)


GRADIENT_CASES = [
    {"gene_likelihood": "zinb", "dispersion": "gene-cell", "n_layers": 2},
    {"gene_likelihood": "nb", "dispersion": "gene-batch", "encode_covariates": True, "latent_distribution": "ln"},
    {"gene_likelihood": "nb", "dispersion": "gene-label", "use_size_factor": True, "use_layer_norm": "both"},
    {
        "gene_likelihood": "zinb",
        "use_observed_lib_size": False,
        "batch_representation": "embedding",
        "encode_covariates": True,
        "use_batch_norm": "none",
    },
    {"gene_likelihood": "poisson", "deeply_inject_covariates": False, "n_layers": 2},
    {"gene_likelihood": "normal", "dispersion": "gene-label", "use_observed_lib_size": False},
]


@pytest.mark.parametrize("options", GRADIENT_CASES, ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_the_gradient_of_the_bound_is_a_finite_difference(options, training):
    """In a random direction of each parameter, the noise held fixed; in training, through the minibatch's moments."""
    vae, cells = make_vae(**options, dropout_rate=0.0).train(training), make_cells()
    names, parameters = zip(*vae.named_parameters(), strict=True)

    def loss(*values):
        torch.manual_seed(0)
        return functional_call(Loss(vae), {f"vae.{n}": v for n, v in zip(names, values, strict=True)}, (cells,))

    assert torch.autograd.gradcheck(loss, parameters, eps=1e-6, atol=1e-5, rtol=1e-5, fast_mode=True)
    torch.autograd.backward(loss(*parameters))
    config = vae.config
    unused = {"decoder.zi_logits"} if config.gene_likelihood != "zinb" else set()
    unused |= {"decoder.log_theta"} if config.dispersion != "gene-cell" else set()
    unused |= {"log_theta"} if config.gene_likelihood == "poisson" else set()
    for name, parameter in zip(names, parameters, strict=True):
        idle = name in unused or name.rpartition(".")[0] in unused
        assert (parameter.grad is None) == idle, name


class Loss(nn.Module):
    """The loss as a module of which every parameter can be given."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, cells):
        return self.vae.elbo(cells).loss(0.7)


def test_the_bound_is_finite_for_cells_of_very_different_size():
    vae, cells = make_vae(gene_likelihood="zinb").float(), make_cells()
    x_ng = cells.x_ng.float() * torch.tensor([1.0, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6])[:, None]
    x_ng[0] = 0
    x_ng[0, 2] = 1
    cells = Minibatch(x_ng, cells.codes_nc, cells.continuous_nd.float(), x_ng.sum(1, keepdim=True))
    elbo = vae.elbo(cells)
    elbo.loss(1.0).backward()
    assert torch.isfinite(elbo.reconstruction).all() and (elbo.reconstruction > 0).all()
    assert all(torch.isfinite(p.grad).all() for p in vae.parameters() if p.grad is not None)


def test_the_bound_lies_below_the_likelihood():
    """With many draws the importance-weighted bound exceeds the bound itself: the parts have the right signs."""
    vae, cells = make_vae(), make_cells()
    torch.manual_seed(0)
    bounds, weights = [], []
    posterior, prior = vae.encode(cells), Normal(torch.zeros(N_CELLS, 2).double(), 1.0)
    for _ in range(400):
        z = posterior.rsample()
        px = vae.likelihood(vae.decode(z, cells.codes_nc, cells.continuous_nd), cells.library_n1.log(), cells.codes_nc)
        joint = px.log_prob(cells.x_ng).sum(1) + prior.log_prob(z).sum(1)
        weights.append((joint - posterior.log_prob(z).sum(1)).detach())
        elbo = vae.elbo(cells)
        bounds.append(-(elbo.reconstruction + elbo.kl_z).detach())
    bound, weights = torch.stack(bounds), torch.stack(weights)
    likelihood = torch.logsumexp(weights, 0) - math.log(400)
    error = torch.stack([bound.std(0), weights.std(0)]).norm(dim=0) / math.sqrt(400)
    assert (bound.mean(0) < likelihood + 4 * error).all() and (bound.mean(0) < likelihood).any()
    assert ((bound.mean(0) - weights.mean(0)).abs() < 4.5 * error).all()  # both are estimates of the same bound
