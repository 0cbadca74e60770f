"""Model directories of scvi-tools, opened without it: every name and every number, and what such files do not know."""

import dataclasses
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from saved_models import NAMES, read_saved

import scdecode as sd
from scdecode.errors import ConditionError, ConditionWarning, InputError, SupportWarning
from scdecode.formats import scvi_tools
from scdecode.formats.reading import read_model
from scdecode.formats.stored import Origin

QUANTITIES = ("scale", "rate", "mean")
COLUMNS = ("layer", "batch_key", "labels_key", "size_factor_key", "unlabeled_category")


@pytest.fixture(params=NAMES)
def saved(request):
    return read_saved(request.param)


@pytest.fixture
def everything():
    return read_saved("scvi_everything")


def close(what, ours, theirs, rtol=1e-5, atol=1e-7):
    ours, theirs = torch.as_tensor(np.asarray(ours)), torch.as_tensor(theirs)
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, check_dtype=False, msg=lambda m: f"{what}: {m}")


def test_there_is_a_directory_of_every_kind():
    saved = [read_saved(name) for name in NAMES]
    assert len(saved) == 10
    assert {s.said["class"] for s in saved} == {"SCVI", "LinearSCVI", "SCANVI"}
    assert sum(s.prefix is not None for s in saved) == 1
    kinds = {category.kind for s in saved for category in _categories(s.open().schema)}
    assert kinds == {"str", "int", "bool"}


def _categories(schema):
    return [category for category in (schema.batch, *schema.categorical, schema.labels) if category is not None]


# -- names -------------------------------------------------------------------------------------------------------------


def test_what_it_is(saved):
    stored = scvi_tools.read(saved.path, prefix=saved.prefix)
    said, setup, schema = saved.said, saved.said["setup"], stored.schema
    assert stored.class_name == said["class"]
    assert stored.origin == Origin("scvi-tools", "1.4.2")
    assert stored.trained and stored.reference is None
    assert schema.genes == tuple(said["genes"])
    assert schema.n_cells == said["n_cells"] == 60
    assert schema.conditions is None and schema.median_library is None and schema.median_size_factor is None
    for name in COLUMNS:
        assert getattr(schema.columns, name) == setup.get(name), name
    assert schema.columns.categorical_covariate_keys == tuple(setup.get("categorical_covariate_keys", ()))
    assert schema.continuous == tuple(setup.get("continuous_covariate_keys", ()))
    expected = [said["batch"], *said["categorical"].values(), said["labels"]]
    found = [schema.batch, *schema.categorical, schema.labels]
    for values, category in zip(expected, found, strict=True):
        assert (category is None) == (values is None)
        if values is not None:
            assert category.names == tuple(str(value) for value in values)
            assert category.values.tolist() == values  # 1, not "1", where the column of obs has numbers
            assert [type(value) for value in category.values.tolist()] == [type(value) for value in values]


def test_the_options(saved):
    options = dict(saved.said["options"])
    embedding = options.pop("batch_embedding_kwargs", {"embedding_dim": 5})
    config = saved.open().config
    defaults = {"gene_likelihood": "nb", "use_observed_lib_size": False} if saved.said["class"] == "LinearSCVI" else {}
    expected = {"batch_embedding_dim": embedding["embedding_dim"]} | defaults | options
    others = dataclasses.asdict(sd.ModelConfig()) | {
        "use_size_factor": "size_factor_key" in saved.said["setup"],
        "decoder": "linear" if saved.said["class"] == "LinearSCVI" else "nonlinear",
    }
    assert dataclasses.asdict(config) == others | expected


def test_the_history(saved):
    table = saved.open().history_table
    expected = saved.said["history"]
    assert set(table.columns) == set(expected) and {"train_loss", "elbo_train"} <= set(expected)
    for name, pairs in expected.items():
        known = table[name].dropna()
        assert known.index.tolist() == [epoch for epoch, _ in pairs], name
        np.testing.assert_array_equal(known, [value for _, value in pairs])


def test_epochs_without_a_validation_are_missing():
    column = read_saved("scvi").open().history_table["elbo_validation"]
    assert [math.isnan(value) for value in column] == [True, False, True, False]


def test_every_way_of_opening_gives_the_same(saved):
    by_class = getattr(sd, saved.said["class"])
    one, other = saved.open(), by_class.load(saved.path, prefix=saved.prefix)
    stored = read_model(saved.path, prefix=saved.prefix)
    assert type(one) is type(other) is by_class
    weights = one.vae.state_dict()
    for vae in (other.vae, stored.vae):
        assert all(torch.equal(value, weights[name]) for name, value in vae.state_dict().items())
    assert one.is_trained and "by scvi-tools 1.4.2" in repr(one)
    assert one.info()["trained_by"] == "scvi-tools 1.4.2" and one.info()["n_reference"] == 0


def test_opening_draws_no_random_numbers(saved):
    """And every weight is of the file: none is left as the memory happened to be."""
    before = torch.get_rng_state()
    model = saved.open()
    assert torch.equal(torch.get_rng_state(), before)
    again = saved.open()
    assert all(torch.equal(t, again.vae.state_dict()[name]) for name, t in model.vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.vae.parameters())


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_decode_in_every_condition(saved, quantity):
    model, conditions = saved.open(), saved.conditions()
    assert len(conditions) == len(saved[quantity]) >= 1
    for arguments, expected in zip(conditions, saved[quantity], strict=True):
        decoded = model.decode(saved["z"], quantity=quantity, library_size=saved["z_library"].numpy(), **arguments)
        close(f"{quantity} in {arguments}", decoded.X, expected)
        assert list(decoded.var_names) == saved.said["genes"]


def test_the_parameters_in_every_condition(saved):
    model = saved.open()
    for i, arguments in enumerate(saved.conditions()):
        px = model.distribution(saved["z"], library_size=saved["z_library"].numpy(), **arguments)
        close("mean", px.mean, saved["mean"][i])
        if "pi" in saved:
            close("pi", torch.sigmoid(px.zi_logits), saved["pi"][i])
        if "theta" in saved:
            theta = px.scale if model.config.gene_likelihood == "normal" else px.theta
            close("theta", theta.expand(saved["theta"][i].shape), saved["theta"][i])
    assert ("theta" in saved) == (model.config.gene_likelihood != "poisson")
    assert ("pi" in saved) == (model.config.gene_likelihood == "zinb")


def test_encode(saved):
    model, cells = saved.open(), saved.cells()
    posterior = model.posterior(cells)
    close("mean", posterior.mean, saved["qz_mean"], atol=1e-6)
    close("variance", posterior.variance, saved["qz_var"])
    shuffled = cells[:, ::-1].copy()
    close("genes in another order", model.posterior(shuffled).mean, saved["qz_mean"], atol=1e-6)


@pytest.mark.parametrize("name", ["scvi_everything", "linear_scvi"])
def test_encode_the_library(name):
    saved = read_saved(name)
    library = saved.open().get_latent_library_size(saved.cells(), give_mean=True)
    assert "ql_mean" in saved
    # of a log-normal number, from q(l | x) of scvi-tools
    mean, variance = saved["ql_mean"].reshape(-1), saved["ql_var"].reshape(-1)
    close("library", np.asarray(library).reshape(-1), (mean + variance / 2).exp())


@pytest.mark.parametrize("name", ["scanvi", "scanvi_from_scvi"])
def test_predict(name):
    saved = read_saved(name)
    soft = saved.open().predict(saved.cells(), soft=True)
    assert list(soft.columns) == [value for value in saved.said["labels"] if value != "Astray"]
    close("probabilities", soft.to_numpy(), saved["probabilities"])


def test_loadings():
    saved = read_saved("linear_scvi")
    close("loadings", saved.open().get_loadings().to_numpy(), saved["loadings"])


def test_the_cells_beside_a_model():
    saved = read_saved("scvi_prefix_and_cells")
    model = sd.SCVI.load(saved.path, prefix=saved.prefix)
    assert model.adata is not None and model.adata.n_obs == 60
    rows = saved["rows"].numpy()
    close("mean", model.posterior().mean[rows], saved["qz_mean"], atol=1e-6)
    assert np.isfinite(model.support(saved["z"])).all()
    assert sd.load(saved.path, prefix=saved.prefix).adata is None  # that one opens no cells


# -- what the files do not know ----------------------------------------------------------------------------------------


def test_averages_are_plain_and_say_so(everything):
    model = everything.open()
    numbers = {"pct": 0.5, "age": 50.0}
    with pytest.warns(ConditionWarning, match="plain average"):
        averaged = model.decode(everything["z"], continuous=numbers)
    assert averaged.uns["scdecode"]["averaged_by"] == "levels, equally"
    assert averaged.uns["scdecode"]["conditions_covered"] == 1.0
    single = []
    for batch in model.schema.batch.names:
        for chem in ("1", "2", "3"):
            for sex in ("female", "male"):
                for label in model.schema.labels.names:
                    categorical = {"chem": chem, "sex": sex}
                    given = {"batch": batch, "categorical": categorical, "labels": label, "continuous": numbers}
                    single.append(model.decode(everything["z"], **given).X)
    assert len(single) == 54
    close("average", averaged.X, np.mean(single, axis=0))


def test_no_warning_where_all_is_said(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved.open().decode(saved["z"], library_size=100.0, **saved.conditions()[0])


def test_a_number_that_nobody_can_average(everything):
    with pytest.raises(ConditionError, match=r"attach_reference"):
        everything.open().decode(everything["z"], continuous={"pct": 0.5})
    with pytest.raises(ConditionError, match=r"'pct'.*'age'"):
        everything.open().decode(everything["z"])


def test_the_library_of_the_cells_is_not_known(saved):
    model, given = saved.open(), saved.conditions()[0]
    with pytest.raises(ConditionError, match="median of the training cells"):
        model.decode(saved["z"], library_size="observed", **given)
    cells = saved.cells()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)  # the six cells have not every combination
        model.attach_reference(cells)
        warnings.simplefilter("ignore", SupportWarning)
        decoded = model.decode(saved["z"], library_size="observed", **given)
    key = "size_factor" if "size_factor" in saved else "x"
    assert decoded.obs["library_size"].iloc[0] == pytest.approx(float(np.median(saved[key].sum(1))))


def test_support_is_unknown_and_says_so(saved):
    model = saved.open()
    with pytest.raises(InputError, match="attach_reference"):
        model.support(saved["z"])
    with pytest.raises(InputError, match="attach_reference"):
        model.reference_latents()
    decoded = model.decode(saved["z"], library_size=100.0, **saved.conditions()[0])
    assert decoded.obs["support"].isna().all() and decoded.obs["supported"].isna().all()
    assert decoded.uns["scdecode"]["support"].startswith("unknown")


@pytest.mark.parametrize("kind", ["cells", "latents", "frame"])
def test_a_reference_mends_it(saved, kind):
    model, cells = saved.open(), saved.cells()
    latent = model.get_latent_representation(cells)
    given = {"cells": cells, "latents": latent, "frame": pd.DataFrame(latent)}[kind]
    model.attach_reference(given)
    close("reference", model.reference_latents(), latent, atol=1e-6)
    support = model.support(latent)
    assert ((support >= 0) & (support <= 100)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConditionWarning)
        warnings.simplefilter("ignore", SupportWarning)
        decoded = model.decode(latent, library_size=100.0, **saved.conditions()[0])
    assert decoded.obs["supported"].notna().all()
    by_cells = decoded.uns["scdecode"]["averaged_by"] == "training cells"
    assert by_cells == (kind == "cells")
    if kind == "cells":
        assert model.schema.n_cells == 6 and model.schema.conditions.n_cells_m.sum() == 6


def test_attached_cells_weigh_the_averages():
    """Six cells of batch d2 alone: the average is then over that batch alone."""
    saved = read_saved("scvi")
    model, cells = saved.open(), saved.cells()
    cells.obs["donor"] = "d2"
    model.attach_reference(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SupportWarning)
        averaged, single = model.decode(saved["z"]), model.decode(saved["z"], batch="d2")
    np.testing.assert_array_equal(averaged.X, single.X)


# -- on, in our own files ----------------------------------------------------------------------------------------------


def test_saved_natively_it_stays_the_same(saved, tmp_path):
    model = saved.open()
    model.save(tmp_path / "model")
    again = sd.load(tmp_path / "model")
    assert type(again) is type(model)
    before, after = model.stored(), again.stored()
    for name in ("config", "class_name", "origin", "trained", "train_config"):
        assert getattr(before, name) == getattr(after, name), name
    assert dataclasses.asdict(before.schema) == dataclasses.asdict(after.schema)
    assert set(before.kept) == set(after.kept)
    assert bool(before.kept) is not model.config.learns_library  # the encoder of the library, which nobody uses here
    weights = [(before.vae.state_dict(), after.vae.state_dict()), (before.kept, after.kept)]
    if before.classification is not None:
        assert before.classification.config == after.classification.config
        weights.append((before.classification.state_dict(), after.classification.state_dict()))
    for ours, theirs in weights:
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pd.testing.assert_frame_equal(model.history_table, again.history_table)


def test_an_attached_reference_is_saved(tmp_path):
    saved = read_saved("scvi")
    model = saved.open()
    model.attach_reference(saved.cells())
    model.save(tmp_path / "cells")
    again = sd.load(tmp_path / "cells")
    np.testing.assert_array_equal(again.reference_latents(), model.reference_latents())
    np.testing.assert_array_equal(again.support(saved["z"]), model.support(saved["z"]))
    assert again.schema.conditions is not None

    model = saved.open()
    model.attach_reference(saved["z"])
    model.save(tmp_path / "latents")
    again = sd.load(tmp_path / "latents")
    np.testing.assert_array_equal(again.reference_latents(), saved["z"].numpy())
    assert again.schema.conditions is None
