"""Model directories of scvi-tools written by scdecode and read again: weights, names, options and history.

``tests/peer/test_peer_grid.py`` opens them with scvi-tools itself.
"""

import dataclasses
import pickletools
import warnings
import zipfile
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import torch
from saved_models import NAMES, content_of, read_saved
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.errors import ConditionWarning, OutputError, SupportWarning
from scdecode.formats import scvi_tools
from scdecode.formats.archives import read_archive
from scdecode.formats.reading import read_model
from scdecode.formats.stored import Origin

UNLABELED = {"labels_key": "cell_type", "unlabeled_category": "trunk", "batch_key": "batch"}


@pytest.fixture(params=NAMES)
def saved(request):
    return read_saved(request.param)


def write_and_read(stored, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scvi_tools.write(path, stored)
        return scvi_tools.read(path)


def assert_same_model(one, other):
    """Weights, options, names and history; not what scvi-tools has no place for."""
    assert one.class_name == other.class_name
    if one.config != other.config:  # how many numbers embed a batch is said where a batch is embedded
        assert one.config.batch_representation == "one-hot"
        assert dataclasses.replace(one.config, batch_embedding_dim=other.config.batch_embedding_dim) == other.config
    for name in ("genes", "columns", "batch", "labels", "categorical", "continuous", "n_cells"):
        assert getattr(one.schema, name) == getattr(other.schema, name), name
    assert_same_weights(one.vae.state_dict(), other.vae.state_dict())
    assert (one.classification is None) == (other.classification is None)
    if one.classification is not None:
        assert_same_weights(one.classification.state_dict(), other.classification.state_dict())
        assert one.classification.config.linear == other.classification.config.linear
        assert one.classification.config.dropout_rate == other.classification.config.dropout_rate
    assert set(one.summary["history"]) == set(other.summary["history"])
    for name, values in one.summary["history"].items():
        np.testing.assert_array_equal(values, other.summary["history"][name])  # NaN where not known, in both
    assert one.trained == other.trained


def assert_same_weights(one, other):
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


# -- models of scvi-tools ----------------------------------------------------------------------------------------------


def test_what_scvi_tools_saved_comes_back(saved, tmp_path):
    stored = scvi_tools.read(saved.path, prefix=saved.prefix)
    again = write_and_read(stored, tmp_path / "model")
    assert_same_model(stored, again)
    assert_same_weights(stored.kept, again.kept)
    assert again.origin == stored.origin == Origin("scvi-tools", "1.4.2")


def test_all_its_weights_come_back_under_their_names(saved, tmp_path):
    before = dict(content_of(saved.path.name)["model_state_dict"])
    before.pop("pyro_param_store")  # of other models, and no weight
    scvi_tools.write(tmp_path / "model", scvi_tools.read(saved.path, prefix=saved.prefix))
    after = read_archive(tmp_path / "model" / "model.pt")["model_state_dict"]
    assert_same_weights(before, dict(after))


def test_by_way_of_our_own_files(saved, tmp_path):
    saved.open().save(tmp_path / "ours")
    stored = read_model(tmp_path / "ours")
    assert_same_model(scvi_tools.read(saved.path, prefix=saved.prefix), write_and_read(stored, tmp_path / "theirs"))


def test_the_registry_is_that_of_scvi_tools(saved, tmp_path):
    """What scvi-tools itself looks at when it opens a model, entry by entry."""
    scvi_tools.write(tmp_path / "model", scvi_tools.read(saved.path, prefix=saved.prefix))
    ours = torch.load(tmp_path / "model" / "model.pt", weights_only=False)  # as scvi-tools would
    theirs = content_of(saved.path.name)
    assert list(ours["var_names"]) == list(theirs["var_names"])
    ours, theirs = ours["attr_dict"], theirs["attr_dict"]
    one, other = ours["registry_"], theirs["registry_"]
    assert {name: one[name] for name in ("model_name", "setup_method_name")} == {
        name: other[name] for name in ("model_name", "setup_method_name")
    }
    for name, field in other["field_registries"].items():
        found = one["field_registries"].get(name, {})
        if not field.get("state_registry"):
            assert not found.get("state_registry"), name
            continue
        for key, value in field["state_registry"].items():
            _assert_equal(found["state_registry"][key], value, f"{name}: {key}")
        _assert_equal(found["data_registry"], dict(field["data_registry"]), name)
    # use_minified is about models of few cells' latents, which are not offered
    said = {key: v for key, v in other["setup_args"].items() if v not in (None, []) and key != "use_minified"}
    assert {key: value for key, value in one["setup_args"].items() if value is not None} == said


def _assert_equal(ours, theirs, what):
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs), what
        for key in theirs:
            _assert_equal(ours[key], theirs[key], f"{what}: {key}")
    else:
        assert np.array_equal(np.asarray(ours), np.asarray(theirs)), what
        assert np.asarray(ours).dtype.kind == np.asarray(theirs).dtype.kind, what


# -- models of scdecode ------------------------------------------------------------------------------------------------

OF_OURS = {
    "batch": (None, {}),
    "no batch": ({}, {"gene_likelihood": "zinb"}),
    "everything": (
        EVERYTHING,
        {
            "gene_likelihood": "zinb",
            "dispersion": "gene-label",
            "use_observed_lib_size": False,
            "latent_distribution": "ln",
            "encode_covariates": True,
            "deeply_inject_covariates": False,
            "n_layers": 2,
            "use_layer_norm": "both",
            "use_batch_norm": "none",
        },
    ),
    "size factor": ({"batch_key": "batch", "size_factor_key": "size_factor"}, {"dispersion": "gene-batch"}),
    "embedding": (None, {"batch_representation": "embedding", "batch_embedding_dim": 3, "gene_likelihood": "poisson"}),
    "gene-cell": (None, {"dispersion": "gene-cell", "dropout_rate": 0.2, "use_batch_norm": "decoder"}),
    "normal": (None, {"gene_likelihood": "normal", "use_layer_norm": "decoder"}),
}


@pytest.mark.parametrize("case", OF_OURS)
def test_what_scdecode_trained_comes_back(case, tmp_path):
    setup, options = OF_OURS[case]
    model = make_model(make_adata(), setup=setup, epochs=1, **options)
    stored = model.stored()
    again = write_and_read(stored, tmp_path / "model")
    assert_same_model(stored, again)
    assert again.origin == Origin("scdecode", version("scdecode"))
    # scvi-tools has an encoder of the library size in every model
    assert bool(again.kept) is not model.config.learns_library
    assert all(name.startswith("l_encoder.") for name in again.kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        warnings.simplefilter("ignore", SupportWarning)
        points, schema = model.reference_latents()[:5], model.schema
        given = {
            "library_size": 50.0,
            "batch": schema.batch.names[-1] if schema.batch else None,
            "categorical": {category.key: category.names[-1] for category in schema.categorical},
            "continuous": dict.fromkeys(schema.continuous, 1.0),
            "labels": schema.labels.names[-1] if schema.labels else None,
        }
        opened = sd.load(tmp_path / "model")
        np.testing.assert_array_equal(opened.decode(points, **given).X, model.decode(points, **given).X)
    np.testing.assert_array_equal(opened.posterior(model.adata).mean, model.posterior().mean)


@pytest.mark.parametrize("options", [{}, {"use_batch_norm": False, "bias": True, "use_observed_lib_size": True}])
def test_a_linear_model_comes_back(options, tmp_path):
    adata = make_adata()
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = sd.LinearSCVI(adata, n_hidden=16, n_latent=4, **options)
    model.train(1, device="cpu", progress=False)
    assert_same_model(model.stored(), write_and_read(model.stored(), tmp_path / "model"))
    opened = sd.load(tmp_path / "model")
    assert isinstance(opened, sd.LinearSCVI)
    pd.testing.assert_frame_equal(opened.get_loadings(), model.get_loadings())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"linear_classifier": True, "latent_distribution": "ln"},
        {"classifier_parameters": {"n_layers": 2, "n_hidden": 7, "dropout_rate": 0.3}, "n_layers": 2},
    ],
)
def test_a_model_with_classes_comes_back(options, tmp_path):
    adata = make_adata()
    unlabeled = str(adata.obs["cell_type"].cat.categories[0])
    sd.SCANVI.setup_anndata(adata, **UNLABELED | {"unlabeled_category": unlabeled})
    model = sd.SCANVI(adata, n_hidden=16, n_latent=4, **options)
    model.train(1, device="cpu", progress=False)
    again = write_and_read(model.stored(), tmp_path / "model")
    assert_same_model(model.stored(), again)
    opened = sd.load(tmp_path / "model")
    assert isinstance(opened, sd.SCANVI)
    pd.testing.assert_frame_equal(opened.predict(adata, soft=True), model.predict(soft=True))


def test_a_model_that_began_as_another_comes_back(tmp_path):
    adata = make_adata()
    base = make_model(adata, setup={"batch_key": "batch", "labels_key": "cell_type"}, epochs=1)
    unlabeled = str(adata.obs["cell_type"].cat.categories[0])
    model = sd.SCANVI.from_scvi_model(base, unlabeled, linear_classifier=True)
    model.train(1, device="cpu", progress=False)
    assert_same_model(model.stored(), write_and_read(model.stored(), tmp_path / "model"))


def test_levels_of_every_kind_come_back(tmp_path):
    adata = make_adata()
    adata.obs["batch"] = adata.obs["batch"].cat.codes.to_numpy() * 5
    adata.obs["sex"] = adata.obs["sex"] == "male"
    adata.obs["chem"] = adata.obs["chem"].cat.codes.to_numpy() / 2
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["sex", "chem"]}
    model = make_model(adata, setup=setup, epochs=1)
    schema = write_and_read(model.stored(), tmp_path / "model").schema
    assert schema.batch == model.schema.batch and schema.batch.kind == "int"
    assert [category.kind for category in schema.categorical] == ["bool", "float"]
    assert schema.categorical == model.schema.categorical
    registry = torch.load(tmp_path / "model" / "model.pt", weights_only=False)["attr_dict"]["registry_"]
    mapping = registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"]
    assert mapping.tolist() == [0, 5, 10]  # numbers, with which scvi-tools compares the column


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_directory_that_is_there_is_not_replaced_unasked(tmp_path):
    stored = scvi_tools.read(read_saved("scvi").path)
    scvi_tools.write(tmp_path / "model", stored)
    with pytest.raises(OutputError):
        scvi_tools.write(tmp_path / "model", stored)
    scvi_tools.write(tmp_path / "model", stored, overwrite=True)
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["model.pt"]


def test_two_writings_give_the_same_bytes(tmp_path):
    model = make_model(make_adata(), epochs=1)
    before = torch.get_rng_state()
    for name in ("one", "two"):
        scvi_tools.write(tmp_path / name, model.stored())
    one, two = ((tmp_path / name / "model.pt").read_bytes() for name in ("one", "two"))
    assert one == two
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_written_names_nothing_of_ours(tmp_path):
    """scvi-tools opens it where there is no scdecode."""
    scvi_tools.write(tmp_path / "model", make_model(make_adata(), epochs=1).stored())
    with zipfile.ZipFile(tmp_path / "model" / "model.pt") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        operations = list(pickletools.genops(archive.read(name)))
    named = {str(value) for operation, value, _ in operations if operation.name in ("GLOBAL", "SHORT_BINUNICODE")}
    assert any("torch" in value for value in named)
    assert not any("scdecode" in value for value in named)
