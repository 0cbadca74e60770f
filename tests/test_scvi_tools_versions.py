"""Model directories that scvi-tools 0.8 to 1.3 itself saved: every name and every number (1.4: test_scvi_tools.py)."""

import contextlib
import dataclasses
import pickletools
import warnings
import zipfile

import numpy as np
import pytest
import torch
from saved_models import OTHER_VERSIONS, read_saved

import scdecode as sd
from scdecode.errors import ConditionWarning, SupportWarning
from scdecode.formats import scvi_tools
from scdecode.formats.stored import Origin

NAMES = sorted(path.name for path in OTHER_VERSIONS.iterdir()) if OTHER_VERSIONS.is_dir() else []
# until 0.14 the prior of a learned library stood with the cells, and so not in the files
LOST_LIBRARY = [
    name
    for name in NAMES
    if name.endswith(("-linear", "-learned")) and tuple(map(int, name.split("-")[0].split(".")[:2])) < (0, 14)
]
COLUMNS = ("layer", "batch_key", "labels_key", "size_factor_key", "unlabeled_category")


@pytest.fixture(params=NAMES)
def saved(request):
    return read_saved(request.param, OTHER_VERSIONS)


def read(name):
    return read_saved(name, OTHER_VERSIONS)


def open_(saved):
    """It opens without a word, but for what is known to be lost."""
    lost = saved.path.name in LOST_LIBRARY
    with pytest.warns(ConditionWarning, match="did not keep the prior") if lost else contextlib.nullcontext():
        return saved.open()


def close(what, ours, theirs, rtol=1e-5, atol=1e-7):
    ours, theirs = torch.as_tensor(np.asarray(ours)), torch.as_tensor(theirs)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, check_dtype=False, msg=lambda m: f"{what}: {m}")


def categories(schema):
    return [schema.batch, *schema.categorical, schema.labels]


def test_there_is_one_of_every_layout():
    saved = [read(name) for name in NAMES]
    assert {s.said["class"] for s in saved} == {"SCVI", "LinearSCVI", "SCANVI"}
    versions = {tuple(int(part) for part in s.said["scvi_version"].split(".")[:2]) for s in saved}
    assert len(versions) == 14 and min(versions) == (0, 8) and max(versions) == (1, 3)
    for s in saved:
        files = {path.name for path in s.path.iterdir()} - {"expected.safetensors"}
        in_three = tuple(int(part) for part in s.said["scvi_version"].split(".")[:2]) < (0, 15)
        assert files == ({"model_params.pt", "attr.pkl", "var_names.csv"} if in_three else {"model.pt"})


def test_one_is_serialised_as_torch_did_before_1_6():
    """No zip file, but pickles one behind the other."""
    by_name = {name: read(name).path / "model_params.pt" for name in NAMES}
    old = [name for name, path in by_name.items() if path.is_file() and not zipfile.is_zipfile(path)]
    assert old == ["0.8.1-scanvi"]
    with by_name[old[0]].open("rb") as file:
        assert next(pickletools.genops(file))[0].name == "PROTO"


def test_what_it_is(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        stored = scvi_tools.read(saved.path)
    said, setup, schema = saved.said, saved.said["setup"], stored.schema
    assert stored.class_name == said["class"]
    assert stored.origin == Origin("scvi-tools", said["scvi_version"])
    assert stored.trained and stored.reference is None
    assert schema.genes == tuple(said["genes"]) and schema.n_cells == said["n_cells"]
    for name in COLUMNS:
        assert getattr(schema.columns, name) == setup.get(name), name
    assert schema.columns.categorical_covariate_keys == tuple(setup.get("categorical_covariate_keys", ()))
    assert schema.continuous == tuple(setup.get("continuous_covariate_keys", ()))
    expected = [said["batch"], *said["categorical"].values(), said["labels"]]
    for values, category in zip(expected, categories(schema), strict=True):
        assert (None if category is None else category.values.tolist()) == values


def test_the_options(saved):
    options, kind = dict(saved.said["options"]), saved.said["class"]
    model = open_(saved)
    if kind == "SCANVI":
        assert model.classification.config.linear == options.pop("linear_classifier", False)
    linear = {"decoder": "linear", "gene_likelihood": "nb", "use_observed_lib_size": False}
    defaults = linear if kind == "LinearSCVI" else {}
    if saved.path.name in LOST_LIBRARY:
        options["use_observed_lib_size"] = True
    expected = dataclasses.asdict(sd.ModelConfig()) | {"use_size_factor": "size_factor" in saved} | defaults | options
    assert dataclasses.asdict(model.config) == expected


def test_it_keeps_its_history(saved):
    table = open_(saved).history_table
    if saved.path.name == "0.8.1-scanvi":  # which wrote two histories instead, one of each half of its training
        assert table.empty
    else:
        losses = [name for name in table.columns if name in ("elbo_train", "elbo_train_set", "train_loss_epoch")]
        assert losses and np.isfinite(table[losses[0]].dropna()).all() and len(table) >= 4


@pytest.mark.parametrize("quantity", ["scale", "rate", "mean"])
def test_decode_in_every_condition(saved, quantity):
    model, conditions = open_(saved), saved.conditions()
    assert len(conditions) == len(saved[quantity]) >= 1
    for arguments, expected in zip(conditions, saved[quantity], strict=True):
        decoded = model.decode(saved["z"], quantity=quantity, library_size=saved["z_library"].numpy(), **arguments)
        close(f"{quantity} in {arguments}", decoded.X, expected)


def test_the_parameters_in_every_condition(saved):
    model = open_(saved)
    for i, arguments in enumerate(saved.conditions()):
        px = model.distribution(saved["z"], library_size=saved["z_library"].numpy(), **arguments)
        if "pi" in saved:
            close("pi", torch.sigmoid(px.zi_logits), saved["pi"][i])
        if "theta" in saved:
            close("theta", px.theta.expand(saved["theta"][i].shape), saved["theta"][i])


def test_encode(saved):
    posterior = open_(saved).posterior(saved.cells())
    close("mean", posterior.mean, saved["qz_mean"], atol=1e-6)
    close("variance", posterior.variance, saved["qz_var"])


@pytest.mark.parametrize("name", [name for name in NAMES if "learned" in name and name not in LOST_LIBRARY])
def test_encode_the_library(name):
    saved = read(name)
    library = saved.open().get_latent_library_size(saved.cells(), give_mean=True)
    close("library", np.asarray(library), (saved["ql_mean"] + saved["ql_var"] / 2).exp())


@pytest.mark.parametrize("name", [name for name in NAMES if "scanvi" in name])
def test_predict(name):
    saved = read(name)
    soft = saved.open().predict(saved.cells(), soft=True)
    unlabeled = saved.said["setup"].get("unlabeled_category")
    assert list(soft.columns) == [value for value in saved.said["labels"] if value != unlabeled]
    close("probabilities", soft.to_numpy(), saved["probabilities"])


@pytest.mark.parametrize("name", [name for name in NAMES if "linear" in name and "scanvi" not in name])
def test_loadings(name):
    saved = read(name)
    close("loadings", open_(saved).get_loadings().to_numpy(), saved["loadings"])


def test_a_label_that_was_an_argument_is_the_unlabelled_one():
    """Until 0.14 the unlabelled category was an argument of SCANVI: no registry names it, and it is the last label."""
    for name in ("0.8.1-scanvi", "0.14.6-scanvi"):
        schema = read(name).open().schema
        assert schema.columns.unlabeled_category == "Astray" and schema.labels.names == ("T", "NK", "Astray")
    schema = read("0.9.1-scanvi_all_labelled").open().schema  # no cell had it, and so it is no label
    assert schema.columns.unlabeled_category is None and schema.labels.names == ("Astray", "NK", "T")


def test_covariates_that_0_8_registered_and_did_not_use():
    schema = read("0.8.1-covariates").open().schema
    assert schema.categorical == () and schema.batch is not None


def test_batches_of_a_query_stand_behind_those_of_its_reference():
    for name in ("0.14.6-query", "1.1.6.post2-query"):
        assert read(name).open().schema.batch.names == ("d10", "d2", "d7")


def test_a_reference_and_our_own_files(saved, tmp_path):
    model = open_(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)  # six cells have not every combination
        warnings.simplefilter("ignore", SupportWarning)
        model.attach_reference(saved.cells())
    model.save(tmp_path / "model")
    again = sd.load(tmp_path / "model")
    assert again.schema.columns == model.schema.columns and again.config == model.config
    weights = again.vae.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.vae.state_dict().items())


def test_there_and_back(saved, tmp_path):
    """Written as 1.4 writes it, it is the same model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        stored = scvi_tools.read(saved.path)
    scvi_tools.write(tmp_path / "model", stored)
    again = scvi_tools.read(tmp_path / "model")
    assert again.config == stored.config and again.schema.columns == stored.schema.columns
    assert categories(again.schema) == categories(stored.schema)
    one, other = stored.vae.state_dict() | stored.kept, again.vae.state_dict() | again.kept
    assert set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    if stored.classification is not None:
        one, other = stored.classification.state_dict(), again.classification.state_dict()
        assert set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
