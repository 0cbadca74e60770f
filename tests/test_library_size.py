"""Library sizes: always counts, never their logarithm; or size factors, in their own units."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_adata, make_model
from test_conditions import make_schema

import scdecode as sd
from scdecode.errors import ConditionError, ConditionWarning
from scdecode.library_size import DEFAULT_LIBRARY, read_library_size

SCHEMA = make_schema()


def read(value, n_points=3, schema=SCHEMA):
    return read_library_size(schema, n_points, value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [10_000]),
        ("observed", [1000]),
        (500, [500]),
        (np.float16(500), [500]),
        (np.array(500), [500]),
        (np.array([500]), [500]),
        ("500", [500]),
        (torch.tensor(500.0, requires_grad=True), [500]),
        ([500, 600, 700], [500, 600, 700]),
        ((500, 600, 700), [500, 600, 700]),
        (np.array([500, 600, 700], dtype=np.uint16), [500, 600, 700]),
        (np.array([[500], [600], [700]]), [500, 600, 700]),
        (pd.Series([500, 600, 700], index=list("abc")), [500, 600, 700]),
        (pd.DataFrame({"n": [500, 600, 700]}), [500, 600, 700]),
        (pd.array([500, 600, 700], dtype="Int64"), [500, 600, 700]),
        (torch.tensor([500, 600, 700]), [500, 600, 700]),
        (1e-6 + 25, [25.000001]),
        (1e30, [1e30]),
    ],
    ids=str,
)
def test_forms(value, expected):
    if isinstance(value, str) and value == "500":
        with pytest.raises(ConditionError, match="library_size: '500' came, a number, an array or 'observed'"):
            read(value)
        return
    sizes = read(value)
    assert sizes.dtype == np.float32
    np.testing.assert_array_equal(sizes, np.float32(expected))


def test_default_is_counts_per_ten_thousand(model):
    assert DEFAULT_LIBRARY == 1e4
    z = model.reference_latents().mean(axis=0)
    expression = model.decode(z)
    assert expression.obs["library_size"].tolist() == [10_000]
    np.testing.assert_allclose(expression.X.sum(), 1e4, rtol=1e-5)


def test_observed_is_the_median_of_the_training_cells(model, adata):
    expression = model.decode(model.reference_latents().mean(axis=0), library_size="observed")
    median = np.median(np.asarray(adata.X.sum(axis=1)))
    assert expression.obs["library_size"].tolist() == [median]
    np.testing.assert_allclose(expression.X.sum(), median, rtol=1e-5)


@pytest.mark.parametrize(
    "value",
    [
        0,
        -1,
        np.nan,
        np.inf,
        -np.inf,
        1e39,  # infinite in float32, in which the network counts
        1e-50,  # zero in float32
        [500, 0, 500],
        [500, np.nan, 500],
        np.ma.masked_array([500.0, 500.0, 500.0], [0, 1, 0]),
        np.ma.masked_array(["500", "500", "500"], [0, 1, 0]),
        pd.array([500, None, 500], dtype="Float64"),
    ],
    ids=str,
)
def test_not_positive(value):
    with pytest.raises(
        ConditionError,
        match=r"(?s)library_size: (.* came, positive finite numbers were expected|got .*, expected numbers)",
    ):
        read(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Observed", "'Observed' came, a number, an array or 'observed' was expected"),
        ([500, 600], r"an array of shape \(2,\) came, one number or one per point, \(3,\), was expected"),
        (np.ones((3, 2)), r"an array of shape \(3, 2\)"),
        (np.ones((1, 3)), r"an array of shape \(1, 3\)"),
        ([], r"an array of shape \(0,\)"),
        ({"a": 500}, "got .*, expected numbers"),
        (["a", "b", "c"], "got .*, expected numbers"),
        (500j, "got .*, expected numbers"),
        (np.array([500j] * 3), "got .*, expected numbers"),
        (np.zeros(3, dtype="M8[s]"), "got .*, expected numbers"),
        ([[500], [600, 700]], "expected numbers|an array of shape"),
        (slice(3), "got .*, expected numbers"),
    ],
    ids=str,
)
def test_refused(value, message):
    with pytest.raises(ConditionError, match=message) as error:
        read(value)
    assert str(error.value).startswith("library_size: ")


# -- logarithms


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (9.21034, "9.21034 is taken as counts, and looks like the logarithm .* pass its exponential, 10,000"),
        (np.log(5000), "pass its exponential, 5,000"),
        ([8.0, 8.5, 9.0], "9 is taken as counts.* pass its exponential, 8,103"),
        (19.9, "exponential"),
        (1.0, "exponential, 3"),
    ],
    ids=str,
)
def test_logarithm(value, said):
    with pytest.warns(ConditionWarning, match=f"library_size: .*{said}"):
        sizes = read(value)
    np.testing.assert_array_equal(sizes, np.atleast_1d(np.float32(value)))  # taken as said, all the same


@pytest.mark.parametrize("value", [20, 1000, [1.0, 5.0, 20.0]])
def test_no_logarithm(value):
    read(value)  # a warning would be an error


def test_logarithm_through_the_model(model):
    z = model.reference_latents().mean(axis=0)
    for call in (model.decode, lambda z, **said: model.distribution(torch.tensor(z)[None], **said)):
        with pytest.warns(ConditionWarning, match=r"looks like the logarithm.* 10,000") as caught:
            call(z, library_size=np.log(1e4), batch="batch_1")
        assert [w.filename for w in caught] == [__file__]


@given(st.floats(20, 1e30))
@settings(max_examples=50, deadline=None)
def test_any_library_is_what_was_said(size):
    assert read(size)[0] == np.float32(size)


# -- per point


def test_per_point(model):
    z = model.reference_latents()
    z = z[np.argsort(np.abs(model.support(z) - 50), kind="stable")[:3]]
    sizes = [500.0, 1000.0, 20_000.0]
    expression = model.decode(z, library_size=sizes, batch="batch_1")
    assert expression.obs["library_size"].tolist() == sizes
    np.testing.assert_allclose(expression.X.sum(axis=1), sizes, rtol=1e-5)
    scale = model.decode(z, quantity="scale", batch="batch_1")
    np.testing.assert_allclose(expression.X, scale.X * np.array(sizes)[:, None], rtol=1e-6)
    np.testing.assert_array_equal(model.decode(z, quantity="scale", library_size=sizes, batch="batch_1").X, scale.X)


# -- size factors


@pytest.fixture(scope="module")
def factor_model():
    return make_model(make_adata(), setup={"batch_key": "batch", "size_factor_key": "size_factor"})


def test_size_factor_model(factor_model, adata):
    z = factor_model.reference_latents().mean(axis=0)
    factors = adata.obs["size_factor"]
    default = factor_model.decode(z, batch="batch_1")
    observed = factor_model.decode(z, batch="batch_1", library_size="observed")
    twice = factor_model.decode(z, batch="batch_1", library_size=2 * factors.median())
    assert default.obs["library_size"].tolist() == pytest.approx([factors.median()])
    np.testing.assert_array_equal(default.X, observed.X)
    np.testing.assert_allclose(twice.X, 2 * default.X, rtol=1e-6)
    scale = factor_model.decode(z, batch="batch_1", quantity="scale").X
    np.testing.assert_allclose(default.X, scale * np.float32(factors.median()), rtol=1e-6)


def test_counts_where_a_size_factor_is_wanted(factor_model):
    """The other way round: 1e4 counts into a model of size factors near 1."""
    z = factor_model.reference_latents().mean(axis=0)
    with pytest.warns(ConditionWarning, match=r"10000 came, and this model was set up with size factors \(median") as w:
        factor_model.decode(z, library_size=1e4)
    assert [warning.filename for warning in w] == [__file__]
    factor_model.decode(z, library_size=1.5)  # looks like no logarithm here


@pytest.mark.parametrize("value", [0, -1, np.nan])
def test_size_factor_not_positive(factor_model, value):
    with pytest.raises(sd.ScdecodeError, match="positive finite numbers"):
        factor_model.decode(np.zeros(4), library_size=value)


def test_a_series_in_another_order_than_the_points(model):
    points = pd.DataFrame(model.reference_latents()[:3], index=["a", "b", "c"])
    sizes = pd.Series([100.0, 200.0, 300.0], index=["c", "b", "a"])
    with pytest.raises(ConditionError, match="library_size: a Series came that names the points in another order"):
        model.decode(points, batch="batch_1", library_size=sizes)
    found = model.decode(points, batch="batch_1", library_size=sizes.loc[points.index])
    assert found.obs["library_size"].tolist() == [300, 200, 100]
