"""Names of cells: what carries them, and that values beside them are the right ones or an error."""

import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model
from torch.distributions import Independent, Normal, kl_divergence

import scdecode as sd
from scdecode._utils.names import NamedNormal, as_mask, check_names, names_of
from scdecode.errors import ConditionError, InputError, PointsError

NAMES = pd.Index(["c", "a", "b"])
ORDER = np.random.default_rng(0).permutation(80)


def named(values, names=NAMES):
    return pd.Series(values, index=names)


@pytest.fixture(scope="module")
def adata():
    adata = make_adata(80, 12)
    adata.obs_names = [f"cell_{i}" for i in np.random.default_rng(1).permutation(80)]
    return adata


@pytest.fixture(scope="module")
def model(adata):
    return make_model(adata, setup=EVERYTHING, epochs=1)


# -- the posterior


def test_a_posterior_knows_its_cells_and_is_a_normal(model, adata):
    posterior = model.posterior(adata)
    assert isinstance(posterior, Normal)
    pd.testing.assert_index_equal(posterior.names, adata.obs_names)
    pd.testing.assert_index_equal(model.posterior().names, adata.obs_names)
    mask = adata.obs["batch"] == "batch_1"
    pd.testing.assert_index_equal(model.posterior(indices=mask).names, adata.obs_names[mask])
    pd.testing.assert_index_equal(model.posterior(adata, indices=[5, 3]).names, adata.obs_names[[5, 3]])
    plain = Normal(posterior.loc, posterior.scale)
    assert torch.equal(kl_divergence(posterior, plain), torch.zeros(80, 4))
    assert torch.equal(posterior.log_prob(plain.mean), plain.log_prob(plain.mean))
    assert posterior.sample((2,)).shape == (2, 80, 4)
    assert list(copy.deepcopy(posterior).names) == list(posterior.names)


def test_what_has_lost_its_names_carries_no_wrong_ones(model, adata):
    posterior = model.posterior(adata)
    assert type(posterior.expand((2, 80, 4))) is Normal
    assert names_of(posterior.expand((80, 80, 4))) is None
    assert names_of(Normal(posterior.loc[:5], posterior.scale[:5])) is None
    pd.testing.assert_index_equal(names_of(Independent(posterior, 1)), adata.obs_names)
    cut = NamedNormal(posterior.loc, posterior.scale, posterior.names)
    cut.loc, cut.scale, cut._batch_shape = cut.loc[:5], cut.scale[:5], torch.Size((5, 4))
    assert names_of(cut) is None
    assert list(model.decode(cut, n_samples=2).obs_names) == ["0", "1", "2", "3", "4"]
    assert list(model.decode(posterior, n_samples=2).obs_names) == list(adata.obs_names)


# -- the check


@pytest.mark.parametrize("make", [pd.Series, lambda values, index: pd.DataFrame({"a": values, "b": values}, index)])
def test_names_agree_or_are_refused(make):
    def check(index, names=NAMES):
        check_names("x", make(range(len(index)), index=index), names)

    check(NAMES)
    check(NAMES.astype("string"))
    check(pd.RangeIndex(3))  # no names: by position
    check(NAMES, None)
    check(NAMES, pd.RangeIndex(3))  # the points have none
    check(pd.Index(["a", "a", "b"]), pd.Index(["a", "a", "b"]))  # in one order, whichever is whose
    check(pd.Index(["a", "b"]))  # too few: who reads them says so
    check(pd.Index([0, 1, 2]), pd.Index(["0", "1", "2"]))
    check(pd.MultiIndex.from_tuples([("c", 1), ("a", 2)]), pd.Index(["c-1", "a-2"]))
    for index, names in (
        (["a", "b", "c"], NAMES),
        (["a", "c", "a"], pd.Index(["c", "a", "a"])),
        ([2, 0, 1], pd.RangeIndex(3)),
        ([0, 1, 2], pd.Index(["2", "0", "1"])),
    ):
        with pytest.raises(ConditionError, match=r"x: a .* that names the points in another order"):
            check(pd.Index(index), names)
    for index, names in (
        (["c", "a", "d"], NAMES),
        (["c", "c", "a"], NAMES),
        ([5, 6, 7], pd.Index(["0", "1", "2"])),
        ([5, 6, 7], NAMES),
    ):
        with pytest.raises(ConditionError, match=r"x: (got .* with other names|a .* another order)"):
            check(pd.Index(index), names)


def test_masks_of_any_kind():
    expected = [True, False, True]
    for mask in (
        expected,
        np.array(expected),
        torch.tensor(expected),
        pd.Series(expected),
        pd.array(expected, dtype="boolean"),
        np.ma.masked_array(expected, mask=False),
        pd.Index(expected),
    ):
        assert as_mask(mask).tolist() == expected
    assert as_mask([1, 0, 1]) is None
    for mask in (pd.array([True, None, True], dtype="boolean"), np.ma.masked_array(expected, mask=[0, 1, 0])):
        with pytest.raises(ValueError, match="1 of its values"):
            as_mask(mask)


# -- everything that takes one value a cell


def test_every_value_of_each_cell_is_the_right_one_or_an_error(model, adata):
    """Each function is called with values in the order of the cells, shuffled ones, and those of other cells."""
    posterior, obs = model.posterior(adata), adata.obs
    draws = {"n_samples": 2, "batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}}
    decode = model.decode
    points = pd.DataFrame(posterior.loc.numpy(), index=adata.obs_names)
    encoded = adata.copy()
    encoded.obsm["X_scVI"] = points.to_numpy()
    along = sd.Trajectory.along_pseudotime
    order = np.argsort(obs["pseudotime"].to_numpy(), kind="stable")
    in_time, path_points = obs["pseudotime"].iloc[order], points.iloc[order]
    path = along(posterior, obs["pseudotime"], n_points=5)
    deviations = pd.DataFrame(posterior.scale.numpy(), index=adata.obs_names)
    size, pseudotime = obs["size_factor"] * 1e4, obs["pseudotime"]
    expression = decode(path, **draws)
    conditions = sd.Trajectory.from_points
    calls = {
        "decode batch": (lambda s: decode(posterior, **{**draws, "batch": s}).X, obs["batch"]),
        "decode DataFrame": (lambda s: decode(points, batch=s).X, obs["batch"]),
        "decode AnnData": (lambda s: decode(encoded, batch=s).X, obs["batch"]),
        "decode Independent": (lambda s: decode(Independent(posterior, 1), n_samples=2, batch=s).X, obs["batch"]),
        "decode categorical": (lambda s: decode(points, categorical={"sex": s}).X, obs["sex"]),
        "decode categorical table": (lambda s: decode(points, categorical=s).X, obs[["sex", "chem"]]),
        "decode continuous": (lambda s: decode(points, continuous={"age": s}).X, obs["age"]),
        "decode library": (lambda s: decode(points, library_size=s, **draws | {"n_samples": None}).X, size),
        "decode spread": (lambda s: decode(points, spread=s, **draws).X, deviations),
        "along pseudotime": (lambda s: along(posterior, s, n_points=5).points, pseudotime),
        "along table": (lambda s: along(posterior, s, n_points=5).points, pd.DataFrame({"x": pseudotime})),
        "along weights": (lambda s: along(posterior, pseudotime, s, n_points=5).points, size),
        "along mapping": (lambda s: along(posterior, pseudotime, {"a": s}, n_points=5).points, size),
        "points time": (lambda s: conditions(path_points, s).time, in_time),
        "points spread": (lambda s: conditions(path_points, spread=s).spread, deviations.iloc[order]),
        "points batch": (lambda s: conditions(path_points, batch=s).conditions["batch"], obs["batch"].iloc[order]),
        "points age": (
            lambda s: conditions(path_points, continuous={"age": s}).conditions["continuous"]["age"],
            obs["age"].iloc[order],
        ),
        "refit": (lambda s: sd.refit(model, path, adata, pseudotime=s, n_bins=4).X, pseudotime),
        "refit mapping": (lambda s: sd.refit(model, path, adata, pseudotime={"x": s}, n_bins=4).X, pseudotime),
        "refit weights": (
            lambda s: sd.refit(model, path, adata, pseudotime=pseudotime, weights=s, n_bins=4).X,
            size,
        ),
        "indices": (lambda s: model.get_latent_representation(indices=s), obs["batch"] == "batch_1"),
        "indices of cells": (lambda s: model.get_latent_representation(adata, s), obs["batch"] == "batch_1"),
        "counterfactual": (
            lambda s: (
                sd.counterfactual(
                    model, posterior, "sex", n_samples=2, batch=s, categorical={"chem": "v1"}
                ).difference.X
            ),
            obs["batch"],
        ),
        "observed times": (lambda s: _observed(expression, adata, s), pseudotime),
    }
    for name, (call, values) in calls.items():
        with quiet():
            right, by_position = np.asarray(call(values)), np.asarray(call(_bare(values)))
        np.testing.assert_array_equal(right, by_position, err_msg=name)
        shuffled = values.iloc[ORDER]
        strange = values.set_axis([f"other_{i}" for i in range(len(values))], axis=0)
        for wrong in (shuffled, strange):
            with quiet(), pytest.raises(ConditionError, match=r"in another order|with other names"):
                print(name, call(wrong))


@contextmanager
def quiet():
    """Warnings, of combinations never seen and the like, are not what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.ScdecodeWarning)
        yield


def _bare(values):
    """The same without names, which go by position."""
    return values.reset_index(drop=True)


def _observed(expression, adata, time):
    from scdecode.plot.observed import read_observed
    from scdecode.plot.reading import lines_of

    genes = list(expression.var_names[:2])
    seen = read_observed(
        expression, lines_of(expression), genes, adata, time=time, lineage=None, layer=None, library_size=None
    )
    return seen.x


def test_models_of_an_ensemble_decode_the_same_cells(model, adata):
    ensemble = sd.Ensemble([model, model])
    order = adata[ORDER]
    said = {"n_samples": 2, "batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}}
    with quiet():
        same = ensemble.decode(lambda m: m.posterior(adata), **said)
        assert list(same.obs_names) == list(adata.obs_names)
        with pytest.raises(PointsError, match=r"the names of the points of model 1, .* are not those of model 0"):
            ensemble.decode([model.posterior(adata), model.posterior(order)], **said)


def test_positions_and_masks_with_missing_values_are_refused(model):
    for wrong in (
        pd.array([True, None] * 40, dtype="boolean"),
        np.ma.masked_array(np.ones(80, dtype=bool), mask=[1] + [0] * 79),
        np.ma.masked_array([1, 2], mask=[0, 1]),
    ):
        with pytest.raises(InputError, match=r"indices: .*(missing|masked)"):
            model.get_latent_representation(indices=wrong)
