"""``LinearSCVI``: the decoder by hand, the loadings, what it refuses, and that it does all that ``SCVI`` does."""

import numpy as np
import pytest
import torch
from small_models import make_adata

import scdecode as sd
from scdecode.errors import ConfigError, InputError, NotTrainedError
from scdecode.networks import Decoder, LinearDecoder

pytestmark = pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")


def make_linear(adata=None, *, epochs=3, setup=None, train=None, **options):
    adata = make_adata() if adata is None else adata
    sd.LinearSCVI.setup_anndata(adata, **({"batch_key": "batch"} if setup is None else setup))
    model = sd.LinearSCVI(adata, **{"n_latent": 4, "n_hidden": 16} | options)
    if epochs:
        model.train(epochs, device="cpu", progress=False, **(train or {}))
    return model


@pytest.fixture(scope="module")
def linear():
    """Trained; read only."""
    return make_linear()


GRID = [
    {},
    {"setup": {}, "use_observed_lib_size": True},
    {"gene_likelihood": "zinb", "dispersion": "gene-batch", "bias": True},
    {"gene_likelihood": "poisson", "use_batch_norm": False, "n_layers": 2},
    {"latent_distribution": "ln", "gene_likelihood": "zinb", "use_batch_norm": False, "bias": True},
    {"setup": {"labels_key": "cell_type"}},
]


@pytest.mark.parametrize("options", GRID, ids=str)
def test_every_option_trains_saves_loads_and_decodes(options, tmp_path):
    adata = make_adata(120)
    model = make_linear(adata, epochs=2, train={"batch_size": 40}, **options)
    assert isinstance(model.vae.decoder, LinearDecoder)
    assert np.isfinite(model.history_table.to_numpy()).all()
    model.save(tmp_path / "model")
    loaded = sd.load(tmp_path / "model")
    assert type(loaded) is sd.LinearSCVI
    z_nk = model.get_latent_representation(adata, mc_samples=10)
    np.testing.assert_array_equal(loaded.get_latent_representation(adata, mc_samples=10), z_nk)
    for request in ({}, {"quantity": "mean"}, {"quantity": "scale"}, {"quantity": "counts", "seed": 1}):
        decoded, again = (np.asarray(one.decode(z_nk[:5], **request).to_df()) for one in (model, loaded))
        assert decoded.shape == (5, 40)
        np.testing.assert_array_equal(decoded, again)
    assert loaded.get_loadings().equals(model.get_loadings())
    assert len(model.support(z_nk[:5])) == 5


def test_the_defaults_are_those_of_scvi_tools(linear):
    config = linear.config
    assert (config.gene_likelihood, config.use_observed_lib_size, config.linear_bias) == ("nb", False, False)
    assert (config.decoder, config.use_batch_norm) == ("linear", "both")
    assert linear.vae.library_encoder is not None


@pytest.mark.parametrize("use_batch_norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_decoder_by_hand(use_batch_norm, bias):
    """The loadings, the shift of the batch and the bias, through a softmax."""
    model = make_linear(use_batch_norm=use_batch_norm, bias=bias, gene_likelihood="zinb", epochs=2)
    z_nk = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    state = {name: value.double().numpy() for name, value in model.vae.decoder.state_dict().items()}

    def logits(head, code):
        weight = state[f"{head}.linear.weight"]
        assert weight.shape == (40, 4 + 3)
        found = z_nk @ weight[:, :4].T + weight[:, 4 + code]
        found = found + state[f"{head}.linear.bias"] if bias else found
        if not use_batch_norm:
            return found
        mean, variance = (state[f"{head}.batch_norm.running_{name}"] for name in ("mean", "var"))
        scale = state[f"{head}.batch_norm.weight"]
        return (found - mean) / np.sqrt(variance + 1e-3) * scale + state[f"{head}.batch_norm.bias"]

    for code, batch in enumerate(model.schema.batch.names):
        expected = np.exp(logits("scale", code))
        expected /= expected.sum(1, keepdims=True)
        scale = model.decode(z_nk, quantity="scale", batch=batch).X
        np.testing.assert_allclose(scale, expected, rtol=2e-5)
        kept = 1 / (1 + np.exp(logits("zi_logits", code)))
        mean = model.decode(z_nk, quantity="mean", batch=batch, library_size=1e3).X
        np.testing.assert_allclose(mean, 1e3 * expected * kept, rtol=2e-5)
        genes = ["gene_07", "gene_01"] if "gene_07" in model.schema.genes else list(model.schema.genes[:2])
        positions = [model.schema.gene_codes[gene] for gene in genes]
        some = model.decode(z_nk, quantity="mean", batch=batch, library_size=1e3, genes=genes).X
        np.testing.assert_allclose(some, mean[:, positions], rtol=1e-6)


@pytest.mark.parametrize("use_batch_norm", [True, False])
def test_the_loadings_are_the_change_of_the_logits(use_batch_norm):
    """A step along a latent dimension changes the log scale by the loadings, up to what all genes have in common."""
    model = make_linear(use_batch_norm=use_batch_norm)
    loadings = model.get_loadings()
    assert loadings.shape == (40, 4)
    assert list(loadings.columns) == ["Z_0", "Z_1", "Z_2", "Z_3"]
    assert tuple(loadings.index) == model.schema.genes
    z_nk = np.zeros((5, 4), np.float32)
    z_nk[1:] += np.eye(4, dtype=np.float32)
    log_scale = np.log(np.asarray(model.decode(z_nk, quantity="scale", batch="batch_2").X, dtype=np.float64))
    change = (log_scale[1:] - log_scale[0]).T
    centred = loadings.to_numpy() - loadings.to_numpy().mean(0)
    np.testing.assert_allclose(change - change.mean(0), centred, atol=2e-5)
    loadings.iloc[:] = 0.0  # a copy
    assert model.get_loadings().to_numpy().any()


def test_loadings_of_an_untrained_model(adata):
    with pytest.raises(NotTrainedError, match=r"call model.train\(\) first"):
        make_linear(adata, epochs=0).get_loadings()


def test_the_weights_learn(adata):
    model = make_linear(adata, epochs=30, train={"lr": 5e-3}, use_observed_lib_size=True)
    loss = model.history_table["elbo_train"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0]


def test_the_genes_of_the_zero_inflation_are_not_run_where_they_are_not_needed(linear):
    ran = []
    handle = linear.vae.decoder.zi_logits.register_forward_hook(lambda *_: ran.append(1))
    linear.decode(np.zeros((2, 4)), quantity="mean")
    handle.remove()
    assert not ran


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dispersion": "gene-cell"},
            "dispersion: 'gene-cell' came, but a linear decoder takes 'gene' or 'gene-batch'",
        ),
        ({"dispersion": "gene-label"}, "dispersion: 'gene-label' came"),
        ({"gene_likelihood": "normal"}, "gene_likelihood: 'normal' came"),
        ({"use_batch_norm": "both"}, "use_batch_norm: got 'both' .*, expected True or False"),
        ({"encode_covariates": True}, "encode_covariates: True came, but a linear decoder takes False alone"),
        ({"batch_representation": "embedding"}, "batch_representation: 'embedding' came"),
        ({"use_layer_norm": "both"}, "use_layer_norm: 'both' came"),
        ({"n_layer": 2}, "there is no option 'n_layer'; did you mean 'n_layers'"),
    ],
)
def test_what_a_linear_decoder_has_no_place_for(adata, options, message):
    with pytest.raises(ConfigError, match=message):
        make_linear(adata, epochs=0, **options)


@pytest.mark.parametrize(
    ("setup", "name"),
    [
        ({"size_factor_key": "size_factor"}, "size_factor_key"),
        ({"categorical_covariate_keys": ["sex"]}, "categorical_covariate_keys"),
        ({"continuous_covariate_keys": ["age"]}, "continuous_covariate_keys"),
    ],
)
def test_conditions_that_it_does_not_know(adata, setup, name):
    sd.SCVI.setup_anndata(adata, **setup)
    with pytest.raises(
        ConfigError, match=f"{name}: the AnnData was set up with .* but LinearSCVI knows the batch alone"
    ):
        sd.LinearSCVI(adata)
    with pytest.raises(InputError, match=f"LinearSCVI.setup_anndata: there is no argument '{name}'"):
        sd.LinearSCVI.setup_anndata(adata, **setup)


def test_a_bias_without_a_linear_decoder():
    with pytest.raises(ConfigError, match="linear_bias: True came, but only decoder='linear' has such a bias"):
        sd.ModelConfig(linear_bias=True)
    with pytest.raises(ConfigError, match="decoder: 'lin' is not one of"):
        sd.ModelConfig(decoder="lin")


def test_leading_axes_and_one_row_of_codes():
    torch.manual_seed(0)
    decoder = LinearDecoder(3, 5, (2, 1, 3), batch_norm=True, bias=True).double().eval()
    x, codes = torch.randn(2, 4, 3).double(), torch.tensor([[1, 0, 2]])
    options = {"zero_inflated": True, "cell_dispersion": False}
    output = decoder(x, codes, **options)
    assert output.log_scale.shape == output.zi_logits.shape == (2, 4, 5)
    assert output.log_theta is None
    flat = decoder(x.reshape(8, 3), codes.expand(8, 3), **options)
    torch.testing.assert_close(output.log_scale.reshape(8, 5), flat.log_scale, rtol=1e-12, atol=1e-12)
    genes = torch.tensor([4, 0])
    some = decoder(x, codes, genes=genes, **options)
    assert torch.equal(some.log_scale, output.log_scale[..., genes])
    assert torch.equal(some.zi_logits, output.zi_logits[..., genes])
    torch.testing.assert_close(decoder.scale_of(x, codes, genes=genes), some.log_scale.exp(), rtol=1e-12, atol=0)
    assert not isinstance(decoder, Decoder)
