"""Files of scvi-tools that somebody edited: values of other kinds, huge ones, and what takes long or much memory."""

import pickle
import struct
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from golden_models import GOLDEN

import scdecode as sd
from scdecode.errors import (
    ConditionWarning,
    CorruptModelError,
    ForeignModelError,
    FormatError,
    ScdecodeError,
    ScdecodeWarning,
)
from scdecode.formats.pickles import read_only_pickle

SAVED = GOLDEN / "saved" / "scvi"


def edited(tmp_path, change):
    content = torch.load(SAVED / "model.pt", weights_only=False)  # our own file
    change(content)
    torch.save(content, tmp_path / "model.pt")
    return tmp_path


def options(content):
    return content["attr_dict"]["init_params_"]["non_kwargs"]


def registry(content):
    return content["attr_dict"]["registry_"]


@pytest.mark.parametrize("value", [np.array([1, 2]), [1], {"a": 1}, "16", 1e300, 10**400, -1, None, torch.ones(2)])
@pytest.mark.parametrize("name", ["n_hidden", "gene_likelihood", "dropout_rate", "dispersion", "use_batch_norm"])
def test_options_of_other_kinds(tmp_path, name, value):
    with pytest.raises(FormatError, match=r"model\.pt"):
        sd.load(edited(tmp_path, lambda content: options(content).update({name: value})))


@pytest.mark.parametrize("value", [np.array([1, 2]), 10**400, ["a", "b"], {"a": "b"}])
@pytest.mark.parametrize("name", ["scvi_version", "model_name", "is_trained_", "n_cells", "setup_args", "history_"])
def test_facts_of_other_kinds(tmp_path, name, value):
    def change(content):
        places = {
            "is_trained_": content["attr_dict"],
            "history_": content["attr_dict"],
            "n_cells": registry(content)["field_registries"]["X"]["summary_stats"],
        }
        places.get(name, registry(content))[name] = value

    try:
        model = sd.load(edited(tmp_path, change))
    except ScdecodeError:
        return
    repr(model)
    assert model.info()["n_cells"] is None or model.info()["n_cells"] < 2**53


def test_weights_whose_names_are_no_names(tmp_path):
    sd.load(edited(tmp_path, lambda content: content["model_state_dict"].update({5: torch.zeros(3)})))


@pytest.mark.parametrize("weight", [torch.full((2, 2), torch.nan), torch.zeros(3, 3)])
def test_weights_without_a_use_are_checked_too(tmp_path, weight):
    name = "l_encoder.encoder.fc_layers.Layer 0.0.weight"
    with pytest.raises(CorruptModelError, match=r"l_encoder.encoder.fc_layers.Layer 0.0.weight is float32"):
        sd.load(edited(tmp_path, lambda content: content["model_state_dict"].update({name: weight})))


def test_weights_of_the_library_that_nobody_has(tmp_path):
    half = torch.zeros(2_000_000, dtype=torch.float16)  # a hundred names for one memory

    def change(content):
        content["model_state_dict"].update({f"l_encoder.x{i}": half.view(-1) for i in range(100)})

    with pytest.raises(ForeignModelError, match=r"l_encoder\.x0"):
        sd.load(edited(tmp_path, change))


@pytest.mark.parametrize("where", ["history", "levels"])
def test_one_array_under_many_names(tmp_path, where):
    array = np.arange(200_000)

    def change(content):
        many = {f"k{i}": array for i in range(1000)}
        if where == "history":
            content["attr_dict"]["history_"] = many
        else:
            state = {"mappings": many, "field_keys": list(many)}
            registry(content)["field_registries"]["extra_categorical_covs"] = {"state_registry": state}

    with pytest.raises(CorruptModelError, match="too many copies of itself"):
        sd.load(edited(tmp_path, change))


def test_a_range_that_no_table_has(tmp_path):
    table = pd.DataFrame(index=pd.RangeIndex(10_000_000))
    model = sd.load(
        edited(tmp_path, lambda content: content["attr_dict"].update(history_={f"h{i}": table for i in range(2000)}))
    )
    assert model.history == {}


def test_long_values_are_short_in_messages(tmp_path):
    with pytest.raises(ForeignModelError, match="it was made with foo=") as caught:
        sd.load(edited(tmp_path, lambda content: options(content).update(foo=["x" * 1_000_000] * 1000)))
    assert len(str(caught.value)) < 1000


def test_keys_that_collide_are_counted():
    """Tuples of whole numbers hash alike wherever somebody wants them to; an honest file has none as keys."""
    pairs = b"".join(
        b"\x8a\x08" + struct.pack("<q", i) + b"\x8a\x08" + struct.pack("<q", -i) + b"\x86N" for i in range(6000)
    )
    with pytest.raises(CorruptModelError, match="more than 5,000 tuples are keys"):
        read_only_pickle(b"\x80\x04}(" + pairs + b"u.", "place")
    few = {(1, "a"): 2, (3, 4): 5}
    assert read_only_pickle(pickle.dumps(few, 4), "place") == few


def test_many_small_things_are_counted():
    with pytest.raises(CorruptModelError, match="more than 2,000,000 opcodes"):
        read_only_pickle(b"\x80\x04](" + b"\x8f" * 2_500_000 + b"e.", "place")


def test_an_activation_is_named(tmp_path):
    extra = {"extra_encoder_kwargs": {"activation_fn": torch.nn.Tanh}}

    def change(content):
        content["attr_dict"]["init_params_"]["kwargs"] = {"kwargs": extra}

    with pytest.raises(ForeignModelError, match=r"it was made with extra_encoder_kwargs=.*Tanh"):
        sd.load(edited(tmp_path, change))


def test_trained_further_by_scvi_tools(tmp_path):
    """What we write has no indices of the training cells; where there are some, scvi-tools trained it again."""

    def change(content):
        content["attr_dict"]["trained_by_"] = "scdecode 0.1.0"
        content["attr_dict"]["train_indices_"] = np.arange(10)

    assert sd.load(edited(tmp_path, change)).info()["trained_by"].startswith("scdecode 0.1.0, then scvi-tools 1.")


def test_labels_without_names_are_numbered(tmp_path):
    def change(content):
        del content["attr_dict"]["registry_"]["field_registries"]["labels"]

    source = GOLDEN / "saved" / "scvi_everything" / "model.pt"
    content = torch.load(source, weights_only=False)  # our own file, with dispersion gene-label
    change(content)
    torch.save(content, tmp_path / "model.pt")
    with pytest.warns(ConditionWarning, match=r"does not name the \d levels of 'labels'; they are called '0' to"):
        model = sd.load(tmp_path)
    named = sd.load(source.parent)
    assert model.schema.labels.names == tuple(str(i) for i in range(named.schema.n_labels))
    assert torch.equal(model.vae.log_theta, named.vae.log_theta)


def text_changed(data, rng):
    """The pickle of an archive with some bytes changed; the checksums fit."""
    data = bytearray(data)
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
        data[at] = rng.integers(0, 256) if rng.random() < 0.5 else ord(rng.choice(list("0123456789aznTrue.")))
    return bytes(data)


@pytest.mark.parametrize("name", ["scvi", "scvi_everything", "scanvi", "linear_scvi"])
def test_whole_models_whose_pickles_are_mutated(tmp_path, name):
    """Whatever stands where an option, a name, a level, a shape or a history was: an error of ours, or a model."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(GOLDEN / "saved" / name / "model.pt") as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    outcomes = []
    for _ in range(500):
        with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
            for entry, data in entries.items():
                archive.writestr(entry, text_changed(data, rng) if entry.endswith("data.pkl") else data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScdecodeWarning)
                repr(sd.load(tmp_path).info())
            outcomes.append("opened")
        except ScdecodeError as error:
            outcomes.append(type(error).__name__)
    assert {"opened", "CorruptModelError"} <= set(outcomes)
