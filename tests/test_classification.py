"""The networks and the bound of scANVI: against computations by hand, cell by cell and class by class, in float64."""

import math

import pytest
import torch
from test_vae import LEVELS, LIBRARY_PRIOR, N_CELLS, N_CONTINUOUS, N_GENES, make_cells
from torch import nn
from torch.func import functional_call

from scdecode.classification import Classification, SemiSupervised
from scdecode.config import ClassifierConfig, ModelConfig
from scdecode.errors import ConfigError
from scdecode.vae import VAE

N_CLASSES = LEVELS[-1] - 1  # the last label is that of cells without one
OPTIONS = [
    {},
    {"gene_likelihood": "zinb", "n_layers": 2, "encode_covariates": True},
    {"use_observed_lib_size": False, "use_batch_norm": "none", "use_layer_norm": "both"},
    {"latent_distribution": "ln", "dispersion": "gene-cell"},
    {"use_size_factor": True, "batch_representation": "embedding"},
]


def make_network(classifier=None, n_classes=N_CLASSES, **options) -> SemiSupervised:
    """A network with random weights and, as after training, random statistics of batch normalisation."""
    torch.manual_seed(0)
    config = ModelConfig(**{"n_hidden": 4, "n_latent": 2, "gene_likelihood": "nb"} | options)
    vae = VAE(config, N_GENES, LEVELS, N_CONTINUOUS, LIBRARY_PRIOR if config.learns_library else None)
    network = SemiSupervised(vae, Classification(config, n_classes, classifier or ClassifierConfig())).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    nn.init.uniform_(network.classification.y_prior, 0.1, 1.0)
    return network.eval()


@pytest.fixture
def fixed_noise(monkeypatch):
    """Draws whose noise is a function of their latent dimensions alone, so that they are the same one by one."""

    def noise(like, generator):
        return torch.linspace(-1.0, 1.5, like.shape[-1]).double().expand(like.shape)

    monkeypatch.setattr("scdecode.draws.draw_standard", noise)


def normal_log_density(x, mean, variance):
    return sum(-0.5 * ((a - m) ** 2 / v + math.log(2 * math.pi * v)) for a, m, v in zip(x, mean, variance, strict=True))


def kl_of_normal(mean, variance):
    return sum(0.5 * (m * m + v - math.log(v) - 1) for m, v in zip(mean, variance, strict=True))


def by_hand(network, cells):
    """The terms that are scANVI's own, of one cell after the other and one class after the other."""
    ours, noise = network.classification, torch.linspace(-1.0, 1.5, 2).double()
    posterior = network.vae.encode(cells)
    prior = (ours.y_prior / ours.y_prior.sum())[0].tolist()
    terms = {"latent": [], "kl_z2": [], "kl_y": []}
    for i in range(len(cells)):
        mean, variance = posterior.mean[i], posterior.variance[i]
        z1 = network.vae.to_latent(mean + variance.sqrt() * noise)
        logits = ours.classifier(z1).tolist()
        total = sum(math.exp(logit) for logit in logits)
        q_y = [math.exp(logit) / total for logit in logits]
        latent = normal_log_density(z1.tolist(), mean.tolist(), variance.tolist())
        kl_z2 = 0.0
        for y, q in enumerate(q_y):
            m, v = ours.encoder_z2_z1(z1, torch.tensor([y]))
            z2 = m + v.sqrt() * noise
            hidden = ours.decoder_z1_z2.mlp(z2, torch.tensor([y]))
            spread = ours.decoder_z1_z2.log_variance(hidden).exp()
            latent -= q * normal_log_density(z1.tolist(), ours.decoder_z1_z2.mean(hidden).tolist(), spread.tolist())
            kl_z2 += q * kl_of_normal(m.tolist(), v.tolist())
        terms["latent"].append(latent)
        terms["kl_z2"].append(kl_z2)
        terms["kl_y"].append(sum(q * math.log(q / p) for q, p in zip(q_y, prior, strict=True)))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in terms.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_term_by_hand(options, fixed_noise):
    network, cells = make_network(**options), make_cells()
    with torch.no_grad():
        elbo = network.elbo(cells)
        for name, expected in by_hand(network, cells).items():
            torch.testing.assert_close(getattr(elbo, name), expected, rtol=1e-9, atol=1e-9)
        plain = network.vae.elbo(cells)  # what it shares with SCVI
    torch.testing.assert_close(elbo.reconstruction, plain.reconstruction, rtol=1e-12, atol=0)
    torch.testing.assert_close(elbo.kl_l, plain.kl_l, rtol=1e-12, atol=0)
    kl = elbo.kl_z2 + elbo.kl_y + elbo.kl_l
    loss = (elbo.reconstruction + elbo.latent + 0.3 * kl).mean()
    torch.testing.assert_close(elbo.loss(0.3), loss, rtol=1e-12, atol=0)
    assert elbo.sums().shape == (3,)
    torch.testing.assert_close(elbo.sums().sum() / N_CELLS, elbo.loss(1.0), rtol=1e-12, atol=0)


def test_one_class_is_certain(fixed_noise):
    network, cells = make_network(n_classes=1), make_cells()
    with torch.no_grad():
        elbo = network.elbo(cells)
        for name, expected in by_hand(network, cells).items():
            torch.testing.assert_close(getattr(elbo, name), expected, rtol=1e-9, atol=1e-9)
    assert elbo.kl_y.abs().max() < 1e-12


def test_a_class_that_is_all_but_impossible_leaves_the_bound_finite(fixed_noise):
    network, cells = make_network(), make_cells()
    with torch.no_grad():
        network.classification.classifier.logits.bias[0] = -1e4
        elbo = network.elbo(cells)
    assert torch.isfinite(elbo.loss(1.0))


def test_the_answers_are_those_at_the_mean():
    network = make_network()
    cells = make_cells()
    cells.codes_nc[:, -1] %= N_CLASSES
    with torch.no_grad():
        answers = network.answers(cells)
        logits = network.classification.classifier(network.vae.encode(cells).mean)
        probabilities = network.classification.probabilities(network.vae.encode(cells).mean)
    assert not torch.equal(answers.right, torch.ones(N_CELLS, dtype=torch.bool))
    for i in range(N_CELLS):
        label = int(cells.codes_nc[i, -1])
        expected = math.log(sum(math.exp(x) for x in logits[i].tolist())) - float(logits[i, label])
        assert float(answers.cross_entropy[i]) == pytest.approx(expected, rel=1e-12)
        assert float(probabilities[i, label]) == pytest.approx(math.exp(-expected), rel=1e-12)
        assert bool(answers.right[i]) == (int(logits[i].argmax()) == label)
    assert answers.sums().tolist() == pytest.approx([float(answers.cross_entropy.sum()), int(answers.right.sum())])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_gradient_is_that_of_finite_differences(options, fixed_noise):
    network, cells = make_network(**options), make_cells()
    labelled = make_cells()
    labelled.codes_nc[:, -1] %= N_CLASSES
    parameters = {name: value.detach().clone() for name, value in network.named_parameters()}

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self):
            return self.network.elbo(cells).loss(0.7) + 50 * self.network.answers(labelled).cross_entropy.mean()

    module = Loss()

    def loss(values):
        return functional_call(module, {f"network.{name}": value for name, value in values.items()}, ())

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()), allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        if gradient is None:
            assert "zi_logits" in name or "log_theta" in name, name  # heads that this likelihood does not use
            continue
        direction = torch.randn(value.shape, generator=generator).double()
        step = 1e-6
        with torch.no_grad():
            ahead, behind = (loss({**parameters, name: value + sign * step * direction}) for sign in (1, -1))
        expected = float((ahead - behind) / (2 * step))
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5), name


def test_the_prior_of_the_classes_is_kept_and_not_trained():
    classification = Classification(ModelConfig(), 4, ClassifierConfig())
    assert classification.y_prior.tolist() == [[0.25] * 4]
    assert "y_prior" in classification.state_dict()
    assert "y_prior" not in dict(classification.named_parameters())


# -- options of the classifier -----------------------------------------------------------------------------------------


def test_the_classifier_has_the_layers_of_the_model_or_its_own():
    model = ModelConfig(n_hidden=9, n_layers=2, dropout_rate=0.2)

    def layers(**options):
        classifier = Classification(model, 3, ClassifierConfig(**options)).classifier
        assert classifier.logits.out_features == 3
        found = [] if classifier.mlp is None else list(classifier.mlp.layers)
        return [(one.linear.in_features, one.linear.out_features, one.dropout and one.dropout.p) for one in found]

    assert layers() == [(10, 9, 0.2), (9, 9, 0.2)]
    assert layers(n_layers=1, n_hidden=5, dropout_rate=0.0) == [(10, 5, None)]
    assert layers(linear=True) == []
    linear = Classification(model, 3, ClassifierConfig(linear=True)).classifier
    assert linear.logits.in_features == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 0}, "n_layers: 0 came"),
        ({"n_hidden": 2.5}, "n_hidden: got 2.5 .float., expected a whole number"),
        ({"dropout_rate": 1.0}, "drops every unit"),
        ({"linear": 1}, "linear: got 1 .int., expected True or False"),
        ({"linear": True, "n_hidden": 5}, "a linear classifier has no hidden layer"),
    ],
)
def test_options_that_are_wrong(options, message):
    with pytest.raises(ConfigError, match=message):
        ClassifierConfig(**options)
