"""scvi-tools' arguments: translated, accepted at their defaults, refused otherwise."""

import copy
import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import scdecode as sd
from scdecode import arguments
from scdecode.arguments import device_name, train_options
from scdecode.describing import history_tables
from scdecode.errors import ConfigError, InputError

SCVI_DEFAULTS = {
    "plan_kwargs": {
        "optimizer": "Adam",
        "optimizer_creator": None,
        "lr": 1e-3,
        "weight_decay": 1e-6,
        "eps": 0.01,
        "n_steps_kl_warmup": None,
        "n_epochs_kl_warmup": 400,
        "reduce_lr_on_plateau": False,
        "lr_factor": 0.6,
        "lr_patience": 30,
        "lr_threshold": 0.0,
        "lr_scheduler_metric": "elbo_validation",
        "lr_min": 0,
        "max_kl_weight": 1.0,
        "min_kl_weight": 0.0,
        "compile": False,
        "on_step": False,
        "on_epoch": True,
    },
    "datasplitter_kwargs": {"pin_memory": False, "external_indexing": None, "drop_last": False, "num_workers": 0},
    "trainer_config": {
        "accelerator": None,
        "devices": None,
        "max_epochs": 400,
        "benchmark": True,
        "check_val_every_n_epoch": None,
        "early_stopping": False,
        "early_stopping_monitor": "elbo_validation",
        "early_stopping_min_delta": 0.0,
        "early_stopping_patience": 45,
        "early_stopping_warmup_epochs": 0,
        "early_stopping_mode": "min",
        "enable_progress_bar": True,
        "logger": None,
        "log_every_n_steps": 10,
    },
}


class Plan:
    """As scvi-tools' TrainingPlanConfig."""

    def to_kwargs(self):
        return {"lr": 0.5, "eps": 0.1}


def config_of(**given):
    options, _ = train_options(**given)
    return sd.TrainConfig(**options)


def test_defaults_change_nothing():
    assert config_of(**SCVI_DEFAULTS) == sd.TrainConfig()
    assert (
        config_of(train_size=None, validation_size=None, batch_size=128, load_sparse_tensor=False) == sd.TrainConfig()
    )


def test_what_is_translated():
    config = config_of(
        max_epochs=7,
        train_size=0.8,
        batch_size=64,
        early_stopping=True,
        early_stopping_patience=5,
        check_val_every_n_epoch=2,
        plan_kwargs={"lr": 0.01, "n_epochs_kl_warmup": None, "weight_decay": 0.0},
        datasplitter_kwargs={"validation_size": 0.1},
    )
    assert config == sd.TrainConfig(
        max_epochs=7,
        train_size=0.8,
        validation_size=0.1,
        batch_size=64,
        early_stopping=True,
        early_stopping_patience=5,
        check_val_every_n_epoch=2,
        lr=0.01,
        n_epochs_kl_warmup=None,
        weight_decay=0.0,
    )


def test_what_is_passed_by_itself_goes_first():
    assert config_of(plan_config=Plan(), plan_kwargs={"lr": 0.2}).lr == 0.2
    assert config_of(plan_config=Plan(), plan_kwargs={"lr": 0.2}).eps == 0.1
    assert config_of(plan_config={"lr": 0.5}, lr=0.3).lr == 0.3
    assert config_of(trainer_config={"early_stopping": True}, early_stopping=False).early_stopping, "the default"
    assert (
        config_of(trainer_config={"early_stopping_patience": 3}, early_stopping_patience=4).early_stopping_patience == 4
    )


@pytest.mark.parametrize(("given", "shown"), [({}, True), ({"enable_progress_bar": False}, False)])
def test_the_progress_bar(given, shown):
    assert train_options(**given)[1] is shown
    assert train_options(trainer_config=given)[1] is shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"plan_kwargs": {"optimizer": "AdamW"}}, r"train: optimizer='AdamW' came, .*'Adam' was expected: .*lr"),
        ({"plan_kwargs": {"n_steps_kl_warmup": 100}}, "n_steps_kl_warmup=100 came.*n_epochs_kl_warmup="),
        ({"plan_kwargs": {"reduce_lr_on_plateau": True}}, "reduce_lr_on_plateau=True came.*set lr"),
        ({"plan_kwargs": {"max_kl_weight": 2}}, "max_kl_weight=2 came.*n_epochs_kl_warmup"),
        ({"plan_kwargs": {"pan": 1}}, "train: there is no option 'pan'"),
        ({"plan_kwargs": 3}, "plan_kwargs=3 came, a mapping"),
        ({"early_stopping_monitor": "kl_local_validation"}, "early_stopping_monitor='kl_local_validation' came"),
        ({"early_stopping_mode": "max"}, "early_stopping_mode='max' came"),
        ({"load_sparse_tensor": True}, "load_sparse_tensor=True came"),
        ({"datasplitter_kwargs": {"external_indexing": [np.arange(3)]}}, "external_indexing=.* came.*train_size"),
        ({"datasplitter_kwargs": {"external_indexing": torch.arange(3)}}, "external_indexing=.* came"),
        ({"datasplitter_kwargs": {"drop_last": 0}}, "drop_last=0 came.*False was expected"),
        ({"trainer_config": {"gradient_clip_val": 1.0}}, "gradient_clip_val=1.0 came.*lower lr"),
        ({"callbacks": [print]}, "callbacks=.* came.*on_epoch"),
        ({"strategy": "ddp"}, "strategy='ddp' came.*one device"),
        ({"datamodule": object()}, r"datamodule came.*SCVI\(adata\)"),
        ({"ealry_stopping": True}, "there is no option 'ealry_stopping'; did you mean 'early_stopping'"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        train_options(**given)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({}, "auto"),
        ({"accelerator": "cpu"}, "cpu"),
        ({"accelerator": "cpu", "devices": 1}, "cpu"),
        ({"accelerator": "gpu"}, "cuda"),
        ({"accelerator": "cuda", "devices": "auto"}, "cuda"),
        ({"accelerator": "gpu", "devices": -1}, "cuda"),
        ({"accelerator": "gpu", "devices": [2]}, "cuda:2"),
        ({"accelerator": "gpu", "devices": "2,"}, "cuda:2"),
        ({"accelerator": "gpu", "devices": np.array([2])}, "cuda:2"),
        ({"devices": [1]}, "cuda:1"),
        ({"devices": "1"}, "auto"),
        ({"accelerator": "mps"}, "mps"),
        ({"device": "cpu"}, "cpu"),
    ],
)
def test_devices(words, name):
    assert device_name(**words) == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"accelerator": "tpu"}, r"accelerator: 'tpu' came, one of \['auto', 'cpu', 'gpu', 'cuda', 'mps'\]"),
        ({"devices": 2}, "devices: 2 came, and a model is trained on one device"),
        ({"devices": "0,1"}, "devices: .* came, and a model is trained on one device"),
        ({"devices": [0, 1]}, r"devices: \[0, 1\] came"),
        ({"devices": "many"}, "devices: 'many' came"),
        ({"accelerator": "cpu", "devices": [1]}, r"devices: \[1\] came, but accelerator='cpu' is one device"),
        ({"accelerator": ["cpu"]}, "accelerator: .* came, one of"),
        ({"accelerator": "cpu", "device": "cpu"}, "device: 'cpu' came beside accelerator='cpu'"),
    ],
)
def test_devices_that_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        device_name(**words)


def test_training_by_the_words_of_scvi_tools(adata):
    """The weights are those of the same training in our own words."""
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    ours, theirs = (sd.SCVI(adata, n_hidden=8, n_latent=2) for _ in range(2))
    ours.train(2, device="cpu", lr=0.01, train_size=0.8, batch_size=64, progress=False)
    theirs.train(
        2, "cpu", 1, 0.8, None, True, False, 64, plan_kwargs={"lr": 0.01}, enable_progress_bar=False, logger=False
    )
    for name, value in ours.vae.state_dict().items():
        assert torch.equal(value, theirs.vae.state_dict()[name]), name
    assert ours.train_config == theirs.train_config


def test_options_of_the_model(adata):
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    options = {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 3}}
    model = sd.SCVI(adata, n_hidden=8, **options, log_variational=True, registry=None, extra_encoder_kwargs={})
    assert model.config.batch_embedding_dim == 3
    assert model.vae.batch_embedding.embedding_dim == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"registry": {"a": 1}}, r"SCVI: registry=.* came.*SCVI\(adata\).*scdecode.load"),
        ({"log_variational": False}, r"log_variational=False came.*log\(1 \+ counts\)"),
        ({"var_activation": torch.exp}, "var_activation=.* came"),
        ({"extra_decoder_kwargs": {"use_activation": False}}, "extra_decoder_kwargs=.* came"),
        ({"batch_embedding_kwargs": {"max_norm": 1}}, r"batch_embedding_kwargs has \['max_norm'\]"),
        ({"use_size_factor_key": True}, r"setup_anndata\(size_factor_key=...\)"),
        ({"n_laten": 3}, "SCVI: there is no option 'n_laten'; did you mean 'n_latent'"),
    ],
)
def test_options_of_the_model_that_are_refused(adata, given, message):
    sd.SCVI.setup_anndata(adata)
    with pytest.raises(InputError, match=message):
        sd.SCVI(adata, **given)


def test_setup_refuses_other_arguments(adata):
    with pytest.raises(InputError, match=r"SCVI.setup_anndata: there is no argument 'batch'"):
        sd.SCVI.setup_anndata(adata, batch="batch")


def test_every_refusal_says_what_to_do():
    tables = [value for name, value in vars(arguments).items() if name in ("_MODEL", "_PLAN", "_SPLITTER", "_TRAINER")]
    assert len(tables) == 4
    fields = {field.name for field in dataclasses.fields(sd.TrainConfig)}
    for table in tables:
        assert all(neutral and remedy for neutral, remedy in table.values())
        assert not fields & set(table), "what is an option of ours is not refused"


class TestHistory:
    def test_one_table_a_quantity(self, adata):
        sd.SCVI.setup_anndata(adata)
        model = sd.SCVI(adata, n_hidden=8, n_latent=2)
        assert model.history == {}
        model.train(4, device="cpu", check_val_every_n_epoch=2, n_epochs_kl_warmup=4, progress=False)
        history, table = model.history, model.history_table
        assert type(history) is dict
        losses = ("elbo", "reconstruction_loss", "kl_local", "kl_global")
        names = {f"{loss}_{of}" for loss in losses for of in ("train", "validation")}
        assert set(history) == names | {"train_loss", "validation_loss", "kl_weight"}
        for name, frame in history.items():
            assert list(frame.columns) == [name]
            assert frame.index.name == "epoch"
            assert frame.dtypes[name] == np.float64
            assert frame.index.tolist() == ([1, 3] if "validation" in name else [0, 1, 2, 3])
        assert history["elbo_train"]["elbo_train"].equals(table["elbo_train"])
        assert history["elbo_validation"]["elbo_validation"].tolist() == table["elbo_validation"].dropna().tolist()
        expected = table["reconstruction_loss_train"] + [0.0, 0.25, 0.5, 0.75] * table["kl_local_train"]
        np.testing.assert_allclose(history["train_loss"]["train_loss"], expected)
        assert (history["kl_global_train"] == 0).all(axis=None)

    def test_quantities_that_are_never_known(self):
        table = pd.DataFrame({"elbo_train": [3.0], "elbo_validation": [np.nan], "seconds": [0.1]})
        assert list(history_tables(table)) == ["elbo_train", "kl_global_train"]

    def test_the_model_keeps_its_cells(self, adata):
        sd.SCVI.setup_anndata(adata)
        assert sd.SCVI(adata, n_hidden=8).adata is adata


def test_what_a_model_has_not_says_what_to_do(model):
    with pytest.raises(AttributeError, match=r"'SCVI' object has no attribute 'module'; model.vae is the network"):
        _ = model.module
    with pytest.raises(AttributeError, match=r"differential_expression'; scdecode.convert\(..., to='scvi-tools'\)"):
        model.differential_expression(groupby="cell_type")
    with pytest.raises(AttributeError, match=r"'SCVI' object has no attribute 'nothing'$"):
        _ = model.nothing
    assert not hasattr(model, "module")
    assert pickle.loads(pickle.dumps(model.config)) == model.config
    assert copy.copy(model).schema is model.schema  # which asks a model without attributes for __setstate__


def test_what_is_passed_by_itself_goes_first_at_its_default_too():
    options, _ = train_options(plan_kwargs={"lr": 5e-3, "eps": 0.02}, lr=1e-3)
    assert (options["lr"], options["eps"]) == (1e-3, 0.02)


@pytest.mark.parametrize(("name", "value"), [("max_epochs", 7), ("accelerator", "gpu"), ("devices", 4)])
def test_what_belongs_to_train_itself(name, value):
    with pytest.raises(InputError, match=f"{name}={value!r} came in trainer_config; pass it to train itself"):
        train_options(trainer_config={name: value})


def test_an_argument_of_earlier_versions():
    with pytest.raises(ConfigError, match="no option 'use_gpu'; pass accelerator='gpu' or 'cpu'"):
        train_options(use_gpu=True)


def test_the_class_is_named(adata):
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(ConfigError, match="LinearSCVI: there is no option 'n_hiden'"):
        sd.LinearSCVI(adata, n_hiden=3)
    with pytest.raises(ConfigError, match="batch_embedding_dim: 4 came, but a linear decoder"):
        sd.LinearSCVI(adata, batch_embedding_kwargs={"embedding_dim": 4})


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ({"transform_batch": "batch_1"}, "did you mean batch="),
        ({"gene_list": ["gene_1"]}, "did you mean genes="),
        ({"lib_size": 3}, r"\?|$"),
        ({"librarysize": 3}, "did you mean 'library_size'"),
    ],
)
def test_words_of_scvi_tools_in_decode(model, argument, meant):
    z = model.get_latent_representation()[:2]
    with pytest.raises(InputError, match=rf"decode: there is no argument '{next(iter(argument))}'.*{meant}"):
        model.decode(z, **argument)
    with pytest.raises(InputError, match="'latent' is for get_normalized_expression"):
        model.decode(z, library_size="latent")
