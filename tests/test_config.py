"""Options: defaults of scvi-tools, checks, and the way to JSON and back."""

import dataclasses
import json

import numpy as np
import pytest

from scdecode import ModelConfig, TrainConfig
from scdecode.config import ClassifierConfig, from_dict
from scdecode.errors import ConfigError


def test_the_defaults_are_those_of_scvi_tools():
    assert ModelConfig() == ModelConfig(
        n_hidden=128,
        n_latent=10,
        n_layers=1,
        dropout_rate=0.1,
        dispersion="gene",
        gene_likelihood="zinb",
        latent_distribution="normal",
        use_observed_lib_size=True,
        encode_covariates=False,
        deeply_inject_covariates=True,
        batch_representation="one-hot",
        use_batch_norm="both",
        use_layer_norm="none",
    )
    train = TrainConfig()
    assert (train.lr, train.eps, train.weight_decay, train.batch_size) == (1e-3, 0.01, 1e-6, 128)
    assert (train.train_size, train.validation_size, train.n_epochs_kl_warmup) == (0.9, None, 400)
    assert (train.early_stopping, train.early_stopping_patience, train.check_val_every_n_epoch) == (False, 45, 1)


@pytest.mark.parametrize(
    ("n_cells", "epochs"),
    [(2, 400), (19_999, 400), (20_000, 400), (20_026, 399), (20_024, 400), (40_000, 200), (10_000_000, 1), (10**9, 1)],
)
def test_the_default_number_of_epochs(n_cells, epochs):
    assert TrainConfig().epochs(n_cells) == epochs
    assert TrainConfig(max_epochs=7).epochs(n_cells) == 7


def test_the_kl_warmup():
    weights = [TrainConfig(n_epochs_kl_warmup=4).kl_weight(epoch) for epoch in range(6)]
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert TrainConfig().kl_weight(100) == 0.25
    assert TrainConfig(n_epochs_kl_warmup=None).kl_weight(0) == 1.0
    assert TrainConfig(n_epochs_kl_warmup=0).kl_weight(0) == 1.0


@pytest.mark.parametrize(
    "option",
    [
        {"n_latent": 0},
        {"n_latent": 2.5},
        {"n_hidden": "128"},
        {"n_layers": -1},
        {"batch_embedding_dim": 0},
        {"dropout_rate": 1.0},
        {"dropout_rate": -0.1},
        {"dropout_rate": float("nan")},
        {"dispersion": "batch"},
        {"gene_likelihood": "NB"},
        {"latent_distribution": None},
        {"batch_representation": "onehot"},
        {"use_batch_norm": True},
        {"use_layer_norm": "all"},
        {"encode_covariates": "False"},
        {"deeply_inject_covariates": 1},
        {"use_observed_lib_size": None},
        {"decoder": "deep"},
        {"linear_bias": 1},
        {"linear_bias": True},
    ],
)
def test_model_options_that_are_not_allowed(option):
    [(name, value)] = option.items()
    with pytest.raises(ConfigError, match=rf"^{name}: (got )?{value!r}"):
        ModelConfig(**option)


@pytest.mark.parametrize(
    "option",
    [
        {"max_epochs": 0},
        {"max_epochs": 1.5},
        {"train_size": 0.0},
        {"train_size": 1.01},
        {"train_size": float("nan")},
        {"validation_size": -0.1},
        {"train_size": 0.9, "validation_size": 0.2},
        {"batch_size": 1},
        {"lr": -1e-3},
        {"lr": float("nan")},
        {"lr": "1e-3"},
        {"eps": -0.01},
        {"weight_decay": -1e-6},
        {"n_epochs_kl_warmup": -1},
        {"early_stopping_patience": -1},
        {"early_stopping_min_delta": -1.0},
        {"early_stopping_warmup_epochs": -1},
        {"check_val_every_n_epoch": 0},
        {"classification_ratio": -1.0},
        {"n_samples_per_label": 0},
        {"seed": -1},
        {"seed": None},
        {"early_stopping": "yes"},
        {"shuffle_set_split": 0},
    ],
)
def test_training_options_that_are_not_allowed(option):
    name = next(iter(option))
    with pytest.raises(ConfigError, match=rf"^{name}.* (came|expected)"):
        TrainConfig(**option)


def test_a_whole_split_is_allowed_whatever_its_sum_in_binary():
    TrainConfig(train_size=0.7, validation_size=0.3)
    TrainConfig(train_size=0.9, validation_size=0.1)
    TrainConfig(train_size=1.0, validation_size=0)


def test_the_numbers_of_numpy_become_those_of_python():
    config = ModelConfig(n_latent=np.int64(3), dropout_rate=np.float32(0.5), encode_covariates=np.bool_(True))
    assert config == ModelConfig(n_latent=3, dropout_rate=0.5, encode_covariates=True)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["n_latent"] == 3
    assert type(TrainConfig(seed=np.uint8(7)).seed) is int
    with pytest.raises(ConfigError, match="n_latent: 0 came"):
        ModelConfig(n_latent=np.int64(0))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(n_latent=3, dispersion="gene-cell", gene_likelihood="poisson", encode_covariates=True),
        ModelConfig(decoder="linear", linear_bias=True, gene_likelihood="nb"),
        ClassifierConfig(n_layers=2, dropout_rate=0.0),
        TrainConfig(max_epochs=5, lr=1e-4, early_stopping=True, n_epochs_kl_warmup=None, validation_size=0.05),
        TrainConfig(classification_ratio=10.0, n_samples_per_label=100),
    ],
)
def test_to_json_and_back(config):
    assert from_dict(type(config), json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_an_option_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"TrainConfig: there is no option 'learning_rat'"):
        from_dict(TrainConfig, {"learning_rat": 1})
    with pytest.raises(ConfigError, match=r"ModelConfig: there is no option 'n_latents'; did you mean 'n_latent'\?"):
        from_dict(ModelConfig, {"n_latents": 10})


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().n_latent = 3


def test_what_follows_from_the_options():
    assert not ModelConfig().learns_library
    assert ModelConfig(use_observed_lib_size=False).learns_library
    assert not ModelConfig(use_observed_lib_size=False, use_size_factor=True).learns_library
    assert ModelConfig(gene_likelihood="poisson").has_counts
    assert not ModelConfig(gene_likelihood="normal").has_counts
