"""A continuous covariate outside of its range in training is a warning, wherever one is given."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode._utils.ranges import ranges_of, warn_outside
from scdecode.errors import ConditionWarning
from scdecode.formats import native

RANGE = r"got .*500.*, outside of the range of the training cells, 20 to 80"
REST = {"batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}}
PCT = {"pct": 0.06}


@pytest.fixture(scope="module")
def model():
    adata = make_adata(120, 12)
    adata.obs.loc[adata.obs_names[:2], "age"] = [20.0, 80.0]
    return make_model(adata, setup=EVERYTHING, epochs=1)


def test_the_range_is_that_of_the_training_cells(model):
    age, pct = model.schema.continuous_range
    assert age == (20.0, 80.0)
    np.testing.assert_allclose(pct, (model.adata.obs["pct"].min(), model.adata.obs["pct"].max()), rtol=1e-6)
    assert ranges_of(np.zeros((3, 0))) == ()


@pytest.mark.parametrize("wrong", [500, 500.0, [30, 500], {30: 1, 500: 2}, "per point"])
def test_everywhere_that_a_covariate_is_given(model, wrong):
    z = model.reference_latents()[:4]
    path = sd.Trajectory.from_points(z, spread=0.1)
    per_point = isinstance(wrong, str)
    value = np.array([30.0, 500.0, 40.0, -500.0]) if per_point else wrong
    continuous = {"age": value, **PCT}
    calls = [
        lambda: model.decode(z, **REST, continuous=continuous),
        lambda: model.decode(pd.DataFrame(z), **REST, continuous=continuous),
        lambda: model.decode(path, n_samples=2, **REST, continuous=continuous),
        lambda: model.distribution(torch.from_numpy(z), **REST, continuous=continuous),
        lambda: model.generate(4, decode_as={"continuous": {"age": value}}),
        lambda: sd.counterfactual(
            model, z, {"a": {"continuous": continuous}, "b": {"continuous": PCT | {"age": 30}}}, **REST
        ),
    ]
    if not per_point:
        calls += [
            lambda: model.decoder(**REST, continuous=continuous),
            lambda: sd.geometry.metric(model, z, **REST, continuous=continuous),
            lambda: sd.geometry.sensitivity(model, z, **REST, continuous=continuous),
        ]
    if isinstance(wrong, int | float | str):
        kept = sd.Trajectory.from_points(z, spread=0.1, continuous=continuous)
        calls.append(lambda: model.decode(kept, n_samples=2, **REST))
    for call in calls:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "conditions:|over:|batch: the list|continuous.* the list")
            with pytest.warns(ConditionWarning, match=rf"continuous\['age'\]: {RANGE}"):
                call()


def test_values_within_and_near_the_range_pass(model):
    z = model.reference_latents()[:3]
    for age in (20, 80, 50, 85.9, 14.1, [20, 80], np.array([20.0, 80.0, 85.0]), {30: 1, 500: 0}):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "conditions:")
            model.decode(z, **REST, continuous={"age": age, **PCT})
    with pytest.warns(ConditionWarning, match=r"got 86.1, outside of the range"):
        model.decode(z, **REST, continuous={"age": 86.1, **PCT})


def test_cells_outside_of_the_range(model):
    strange = make_adata(30, 12, seed=5)
    strange.obs.loc[strange.obs_names[3], "age"] = 500.0
    for call in (model.get_normalized_expression, model.get_likelihood_parameters, model.get_elbo):
        with pytest.warns(ConditionWarning, match=rf"adata.obs\['age'\]: {RANGE}"):
            call(strange)
    model.get_latent_representation(strange)  # the encoder does not look at them
    model.get_normalized_expression()


def test_the_margin():
    def warned(value, low, high):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warn_outside("x", np.atleast_1d(np.asarray(value, dtype=float)), (low, high))
        return len(found) == 1

    assert warned(5, -0.1, 0.1)
    assert not warned(0.119, -0.1, 0.1)
    assert warned([0, np.nan, -0.121], -0.1, 0.1)
    assert not warned(np.nan, 0, 1)
    same = float(np.float32(0.3))  # one value in all cells, rounded
    assert not warned(0.3, same, same)
    assert warned(0.31, same, same)
    assert warned(1, 0, 0)


def test_the_range_is_kept_and_older_files_have_that_of_the_reference(model, tmp_path):
    model.save(tmp_path / "model")
    assert sd.load(tmp_path / "model").schema.continuous_range == model.schema.continuous_range

    file = tmp_path / "model" / "model.json"
    manifest = json.loads(file.read_text())
    del manifest["schema"]["continuous_range"]
    manifest["sha256"]["model.json"] = native._digest_of(manifest)
    file.write_text(json.dumps(manifest))
    age, _ = sd.load(tmp_path / "model").schema.continuous_range
    reference = model.reference().continuous_rd[:, 0]
    assert age == (reference.min(), reference.max())


def test_a_model_without_training_cells_knows_no_range(model, tmp_path):
    model.save(tmp_path / "model")
    sd.convert(tmp_path / "model", tmp_path / "theirs", to="scvi-tools")
    theirs = sd.load(tmp_path / "theirs")
    z = model.reference_latents()[:3]
    assert theirs.schema.continuous_range is None
    theirs.decode(z, **REST, continuous={"age": 500, **PCT})
    theirs.attach_reference(model.adata)
    assert theirs.schema.continuous_range == model.schema.continuous_range
    with pytest.warns(ConditionWarning, match=RANGE):
        theirs.decode(z, **REST, continuous={"age": 500, **PCT})
    theirs.attach_reference(z)
    assert theirs.schema.continuous_range is None
