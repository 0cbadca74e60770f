"""Batches with weights, and one for each cell, in the methods on cells: right to the number."""

import collections
import types

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import make_adata, make_model

from scdecode.cli.options import one_or_several
from scdecode.errors import ConditionError, InputError, ScdecodeError

pytest.importorskip("sparse")
NAMES = ["batch_1", "batch_2", "batch_3"]
SHARES = np.array([0.2, 0.5, 0.3])


@pytest.fixture(scope="module")
def model():
    return make_model(make_adata(60, 12), epochs=1)


def sampled(model, **said):
    return model.posterior_predictive_sample(**said).todense()


METHODS = {
    "expression": lambda model, **said: model.get_normalized_expression(return_numpy=True, **said),
    "expression, mean of draws": lambda model, **said: model.get_normalized_expression(n_samples=3, **said).to_numpy(),
    "expression, draws": lambda model, **said: model.get_normalized_expression(n_samples=3, return_mean=False, **said),
    "expression, own library": lambda model, **said: model.get_normalized_expression(
        library_size="latent", **said
    ).to_numpy(),
    "expression, genes": lambda model, **said: model.get_normalized_expression(
        gene_list=["gene_03", "gene_07"], **said
    ).to_numpy(),
    "expression, rows": lambda model, **said: model.get_normalized_expression(n_samples_overall=30, **said),
    "sample": sampled,
    "samples": lambda model, **said: sampled(model, n_samples=3, **said),
}
CORRELATIONS = {
    kind: lambda model, kind=kind, **said: model.get_feature_correlation_matrix(
        n_samples=2, correlation_type=kind, **said
    ).to_numpy()
    for kind in ("spearman", "pearson")
}


@pytest.mark.parametrize("method", METHODS | CORRELATIONS)
def test_weights_are_heeded(model, method):
    call = (METHODS | CORRELATIONS)[method]
    single = [call(model, transform_batch=name) for name in NAMES]
    assert not np.allclose(single[0], single[1])
    expected = sum(share * one for share, one in zip(SHARES, single, strict=True))
    for mapping in (
        dict(zip(NAMES, SHARES.tolist(), strict=True)),
        types.MappingProxyType(dict(zip(NAMES, (10 * SHARES).tolist(), strict=True))),  # they need not sum to one
        collections.OrderedDict(zip(NAMES[::-1], SHARES[::-1], strict=True)),
    ):
        np.testing.assert_allclose(call(model, transform_batch=mapping), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(call(model, transform_batch={"batch_1": 1, "batch_2": 0}), single[0])
    np.testing.assert_array_equal(call(model, transform_batch={"batch_1": 0, "batch_2": 7}), single[1])
    own = call(model, transform_batch=None)
    np.testing.assert_allclose(
        call(model, transform_batch={None: 3, "batch_2": 1}), 0.75 * own + 0.25 * single[1], rtol=1e-5, atol=1e-7
    )
    plain = sum(single) / 3
    for several in (
        NAMES,
        tuple(NAMES),
        np.array(NAMES),
        pd.Series(NAMES),
        pd.Categorical(NAMES),
        dict.fromkeys(NAMES, 1),
    ):
        np.testing.assert_allclose(call(model, transform_batch=several), plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [name for name in METHODS if name.startswith("expression") and "rows" not in name])
def test_one_batch_for_each_cell(model, method):
    call, adata = METHODS[method], model.adata
    code_n = np.random.default_rng(3).integers(3, size=60)
    names = np.array(NAMES)[code_n]
    single = [call(model, transform_batch=name) for name in NAMES]  # ([draws,] cells, genes)
    expected = np.stack([single[code][..., i, :] for i, code in enumerate(code_n)], axis=-2)
    for values in (
        names,
        pd.Series(names, adata.obs_names),
        pd.Categorical(names),
        pd.Index(names),
        pd.array(names, dtype="string"),
        np.ma.masked_array(names, mask=False),
    ):
        np.testing.assert_allclose(call(model, transform_batch=values), expected, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_batch_for_each_cell(model, method):
    call = METHODS[method]
    np.testing.assert_array_equal(
        call(model, transform_batch=np.array(["batch_2"] * 60)), call(model, transform_batch="batch_2")
    )


def test_what_is_not_clear_is_refused(model):
    names = model.adata.obs_names
    batches = np.array(NAMES * 20)
    for wrong, said in (
        (pd.Series(batches, names[::-1]), "names the cells in another order"),
        (pd.Series(batches, "other_" + names), "other names than the cells have"),
        (np.array(NAMES * 2), "an array of 6 names, some of them twice"),
        (["batch_1", "batch_1", "batch_2"], "a batch comes twice"),
        ({}, "an empty list"),
        ([], "an empty list"),
        ({"batch_1": -1, "batch_2": 2}, "the weights"),
        ({"batch_1": 0}, "the weights"),
        ({"batch_1": "x"}, "the weights"),
        ({"batch_9": 1}, "'batch_9' is not one of"),
        (np.array(NAMES).reshape(1, 3), r"an array of shape \(1, 3\)"),
        (np.ma.masked_array(batches, mask=[1] + [0] * 59), "masked or missing"),
        (pd.array([None, *batches[1:]], dtype="string"), "masked or missing"),
    ):
        with pytest.raises(ScdecodeError, match=rf"transform_batch: .*{said}"):
            model.get_normalized_expression(transform_batch=wrong)
    three = [0, 1, 2]
    with pytest.raises(InputError, match="may be one for each cell or batches to average over"):
        model.get_normalized_expression(indices=three, transform_batch=np.array(NAMES))
    found = model.get_normalized_expression(indices=three, transform_batch=pd.Series(NAMES, names[three]))
    for i, name in enumerate(NAMES):
        one = model.get_normalized_expression(indices=three, transform_batch=name)
        np.testing.assert_allclose(found.iloc[i], one.iloc[i], rtol=1e-6)
    with pytest.raises(ConditionError, match="another order"):
        model.get_normalized_expression(indices=three, transform_batch=pd.Series(NAMES, names[three[::-1]]))


def test_numbers_name_batches(model):
    adata = make_adata(60, 12)
    adata.obs["batch"] = np.arange(60) % 3
    numbered = make_model(adata, epochs=1)
    single = [numbered.get_normalized_expression(transform_batch=i) for i in range(3)]
    weighted = numbered.get_normalized_expression(transform_batch={0: 1, 2: 3})
    np.testing.assert_allclose(weighted, 0.25 * single[0] + 0.75 * single[2], rtol=1e-5)
    each = numbered.get_normalized_expression(transform_batch=torch.tensor([2] * 60))
    np.testing.assert_array_equal(each, single[2])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        (["a"], "a"),
        (["dose=5"], "dose=5"),
        (["a", "b"], ["a", "b"]),
        (["a=1", "b=0.5"], {"a": 1.0, "b": 0.5}),
        (["dose=5", "dose=10"], ["dose=5", "dose=10"]),
        (["a=1", "b"], ["a=1", "b"]),
        (["x=y=1", "b=2"], {"x=y": 1.0, "b": 2.0}),
    ],
)
def test_weights_on_the_command_line(given, meant):
    assert one_or_several(given) == meant
