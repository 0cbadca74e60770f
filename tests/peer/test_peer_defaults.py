"""Names, defaults and rules of thumb that are meant to be scvi-tools' own, read from its signatures."""

import dataclasses
import inspect

import numpy as np
import pytest
import scvi
from scvi.dataloaders import DataSplitter
from scvi.dataloaders._data_splitting import validate_data_split
from scvi.model._utils import get_max_epochs_heuristic
from scvi.module import LDVAE, VAE
from scvi.module.base import EmbeddingModuleMixin
from scvi.train import SemiSupervisedTrainingPlan, Trainer, TrainingPlan
from scvi.train._trainingplans import _compute_kl_weight

import scdecode as sd
from scdecode.minibatches import split_cells


def defaults(function):
    """The default of each argument that has one."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def fields(config):
    return {field.name: field.default for field in dataclasses.fields(config)}


def test_options_of_the_model():
    theirs = defaults(VAE.__init__) | defaults(scvi.model.SCVI.__init__)
    theirs["use_size_factor"] = theirs["use_size_factor_key"]
    theirs["batch_embedding_dim"] = defaults(EmbeddingModuleMixin.init_embedding)["embedding_dim"]
    theirs["linear_bias"] = defaults(LDVAE.__init__)["bias"]
    theirs["decoder"] = "nonlinear"  # there a class of its own
    assert fields(sd.ModelConfig) == {name: theirs[name] for name in fields(sd.ModelConfig)}


def test_options_of_our_constructor_are_those_of_the_config():
    elsewhere = ("use_size_factor", "decoder", "linear_bias")  # of the setup; of LinearSCVI
    ours = {name: value for name, value in defaults(sd.SCVI.__init__).items() if name != "seed"}
    assert ours == {name: value for name, value in fields(sd.ModelConfig).items() if name not in elsewhere}


def test_the_constructor_takes_its_arguments_in_the_same_order():
    def names(function, *without):
        parameters = inspect.signature(function).parameters.values()
        return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in without]

    assert names(sd.SCVI.__init__) == names(scvi.model.SCVI.__init__, "registry")


def test_setup_anndata_takes_the_same_arguments():
    def names(function):
        return [name for name in inspect.signature(function).parameters if name != "kwargs"]

    ours = names(sd.SCVI.setup_anndata)
    own = ["use_raw", "allow_fractional_counts"]  # by name alone, after those of scvi-tools
    assert sorted(ours[-2:]) == sorted(own)
    assert ours[:-2] == names(scvi.model.SCVI.setup_anndata)


def test_options_of_training():
    theirs = defaults(Trainer.__init__) | defaults(TrainingPlan.__init__) | defaults(scvi.model.SCVI.train)
    theirs["classification_ratio"] = defaults(SemiSupervisedTrainingPlan.__init__)["classification_ratio"]
    theirs["n_samples_per_label"] = defaults(scvi.model.SCANVI.train)["n_samples_per_label"]
    ours = fields(sd.TrainConfig)
    # what differs, and why
    assert theirs["train_size"] is None, "practically 0.9, see test_the_default_split"
    assert theirs["check_val_every_n_epoch"] is None, "it validates only for early stopping; we always do"
    different = {"train_size": 0.9, "check_val_every_n_epoch": 1, "seed": 0, "precision": "fp32"}
    assert {name: ours[name] for name in different} == different
    assert {name: ours[name] for name in ours if name not in different} == {
        name: theirs[name] for name in ours if name not in different
    }
    assert theirs["optimizer"] == "Adam"
    assert (theirs["min_kl_weight"], theirs["max_kl_weight"]) == (0.0, 1.0)
    assert theirs["early_stopping_monitor"] == "elbo_validation"


@pytest.mark.parametrize("warmup", [None, 1, 20, 400])
def test_weight_of_the_kl(warmup):
    config = sd.TrainConfig(n_epochs_kl_warmup=warmup)
    epochs = range(500)
    assert [config.kl_weight(e) for e in epochs] == [_compute_kl_weight(e, 0, warmup, None) for e in epochs]


def test_number_of_epochs():
    cells = [2, 700, 19_999, 20_000, 20_001, 20_025, 30_000, 53_333, 1_000_000, 5_000_000]
    assert [sd.TrainConfig().epochs(n) for n in cells] == [get_max_epochs_heuristic(n) for n in cells]


@pytest.mark.parametrize("train_size", [0.95, 0.9, 0.8, 0.5, 1 / 3])
@pytest.mark.parametrize("validation_size", [None, 0.0, 0.05])
def test_sizes_of_the_split(train_size, validation_size):
    config = sd.TrainConfig(train_size=train_size, validation_size=validation_size)
    for n in range(10, 600):
        split = split_cells(n, config)
        theirs = validate_data_split(n, train_size, validation_size)
        assert (len(split.train), len(split.validation)) == theirs, n


def test_the_default_split():
    """Left to itself, scvi-tools validates on the last one or two cells, where a minibatch would have so few."""
    for n in range(10, 2000):
        n_train, n_validation = validate_data_split(n, 0.9, None, 128, train_size_is_none=True)
        split = split_cells(n, sd.TrainConfig())
        few = len(split.train) % 128
        moved = few if few in (1, 2) else 0
        assert (n_train, n_validation) == (len(split.train) - moved, len(split.validation) + moved), n


def test_an_unshuffled_split_takes_the_same_cells():
    cells = scvi.data.synthetic_iid(batch_size=51)
    scvi.model.SCVI.setup_anndata(cells)
    manager = scvi.model.SCVI(cells).adata_manager
    splitter = DataSplitter(manager, train_size=0.7, validation_size=0.2, shuffle_set_split=False)
    splitter.setup()
    split = split_cells(cells.n_obs, sd.TrainConfig(train_size=0.7, validation_size=0.2, shuffle_set_split=False))
    np.testing.assert_array_equal(split.train, splitter.train_idx)
    np.testing.assert_array_equal(split.validation, splitter.val_idx)
    np.testing.assert_array_equal(split.test, splitter.test_idx)
