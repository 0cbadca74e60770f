"""What the user says of batch, covariates and labels: every form of it, and that an average is what it says it is."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_adata, make_model

import scdecode as sd
from scdecode._utils.levels import Category
from scdecode.conditions import resolve, slots_in_words
from scdecode.errors import ConditionError, ConditionWarning
from scdecode.said import OUR_COLUMNS
from scdecode.schema import Columns, Schema, TrainingConditions

BATCHES = ("batch_1", "batch_2", "batch_3")


def make_schema(
    rows=((0, 0, 0, 5), (0, 1, 0, 3), (1, 0, 1, 2)),
    *,
    batches=("a", "b", "c"),
    sexes=("f", "m"),
    labels=("x", "y"),
    continuous=(),
    keys=("batch", "sex", "cell_type"),
):
    """A schema whose training cells have ``rows`` of (batch, sex, label, *continuous, number of cells)."""
    table = np.array(rows, dtype=float)
    return Schema(
        genes=("g1", "g2"),
        columns=Columns(),
        batch=Category(keys[0], tuple(batches)),
        labels=Category(keys[2], tuple(labels)),
        categorical=(Category(keys[1], tuple(sexes)),),
        continuous=tuple(continuous),
        conditions=TrainingConditions(table[:, :3].astype(int), table[:, 3:-1], table[:, -1].astype(int)),
        n_cells=int(table[:, -1].sum()),
        median_library=1000.0,
    )


def slots(schema, n_points=4, **said):
    """The combinations of the one group of points: {(batch, sex): weight}."""
    resolved = resolve(schema, n_points, **said)
    assert resolved.group_n is None
    np.testing.assert_allclose(resolved.weights_gm.sum(axis=1), 1)
    codes = resolved.codes_gmc[0]
    return {
        (schema.batch.names[b], schema.categorical[0].names[s]): w
        for (b, s, _), w in zip(codes.tolist(), resolved.weights_gm[0].tolist(), strict=True)
    }


# -- forms


def test_nothing_is_the_average_of_the_training_cells():
    assert slots(make_schema()) == {("a", "f"): 0.5, ("a", "m"): 0.3, ("b", "f"): 0.2}


def test_nothing_beside_something_given_is_the_average_of_the_cells_that_have_it():
    assert slots(make_schema(), batch="a") == pytest.approx({("a", "f"): 5 / 8, ("a", "m"): 3 / 8})
    assert slots(make_schema(), categorical={"sex": "f"}) == pytest.approx({("a", "f"): 5 / 7, ("b", "f"): 2 / 7})
    weights = {"a": 1, "b": 3}
    assert slots(make_schema(), batch=weights) == pytest.approx(
        {("a", "f"): 0.25 * 5 / 8, ("a", "m"): 0.25 * 3 / 8, ("b", "f"): 0.75}
    )


def test_given_and_never_seen_takes_the_average_of_all_and_warns():
    schema = make_schema()  # no training cell is of batch c
    with pytest.warns(ConditionWarning, match=r"2 combinations never occurred together in training \['batch=c, sex=f'"):
        assert slots(schema, batch="c") == pytest.approx({("c", "f"): 0.7, ("c", "m"): 0.3})
    with pytest.warns(ConditionWarning, match="1 combinations never occurred"):
        assert slots(schema, batch="b", categorical={"sex": "m"}) == {("b", "m"): 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", {"a": 1}),
        (np.str_("a"), {"a": 1}),
        (np.array("a"), {"a": 1}),
        (["a"], {"a": 1}),
        (["a", "b"], {"a": 1 / 2, "b": 1 / 2}),
        (("a", "b"), {"a": 1 / 2, "b": 1 / 2}),
        ({"a", "b"}, {"a": 1 / 2, "b": 1 / 2}),
        ({"a": 3, "b": 1}, {"a": 3 / 4, "b": 1 / 4}),
        ({"a": 0, "b": 0.1}, {"b": 1}),
        ({"a": np.float32(2), "b": torch.tensor(2.0)}, {"a": 1 / 2, "b": 1 / 2}),
        (pd.Series({"a": 3.0, "b": 1.0}).to_dict(), {"a": 3 / 4, "b": 1 / 4}),
    ],
)
def test_forms_of_one_condition(value, expected):
    found = slots(make_schema(), batch=value, categorical={"sex": "f"}, n_points=7)
    assert {batch: weight for (batch, _), weight in found.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    "value",
    [
        np.array(["b", "a", "b", "a"]),
        np.array(["b", "a", "b", "a"], dtype=object),
        pd.Series(["b", "a", "b", "a"], index=[9, 8, 7, 6]),
        pd.Series(["b", "a", "b", "a"], dtype="category"),
        pd.Categorical(["b", "a", "b", "a"], categories=["z", "b", "a"]),
        pd.Index(["b", "a", "b", "a"]),
        pd.array(["b", "a", "b", "a"], dtype="string"),
    ],
)
def test_forms_of_one_value_per_point(value):
    resolved = resolve(make_schema(), 4, batch=value, categorical={"sex": "f"})
    assert resolved.codes_gmc[resolved.group_n, 0, 0].tolist() == [1, 0, 1, 0]
    assert resolved.weights_gm.tolist() == [[1], [1]]
    assert resolved.obs["batch"].tolist() == ["b", "a", "b", "a"]


def test_names_that_are_numbers_or_truth_values():
    schema = make_schema(batches=("0", "1", "10"), sexes=("False", "True"))
    for value in (1, "1", np.int32(1), np.uint8(1)):
        assert set(slots(schema, batch=value, categorical={"sex": False})) == {("1", "False")}
    for value in (np.array([1, 0, 1, 0]), torch.tensor([1, 0, 1, 0]), pd.Series([1, 0, 1, 0])):
        resolved = resolve(schema, 4, batch=value, categorical={"sex": np.zeros(4, dtype=bool)})
        assert resolved.obs["batch"].tolist() == ["1", "0", "1", "0"]
        assert resolved.obs["sex"].tolist() == ["False"] * 4
    assert slots(schema, batch=range(2), categorical={"sex": False}) == pytest.approx(
        {("0", "False"): 0.5, ("1", "False"): 0.5}
    )
    for value in (np.array([1.0, 0, 1, 0]), np.array([1, 0, 1, 0], dtype=np.float32), np.array([True, False] * 2)):
        assert resolve(schema, 4, batch=value).obs["batch"].tolist() == ["1", "0", "1", "0"]
    with pytest.raises(ConditionError, match=r"batch: 1\.5 is not one of"):
        resolve(schema, 4, batch=np.array([1.5, 0, 1, 0]))


def test_per_point_and_average_together():
    """Each point averages over the combinations that its own value has in training."""
    resolved = resolve(make_schema(), 3, batch=np.array(["b", "a", "a"]))
    weights = {}
    for point, group in enumerate(resolved.group_n):
        for (b, s, _), w in zip(resolved.codes_gmc[group], resolved.weights_gm[group], strict=True):
            if w > 0:
                weights[point, "abc"[b], "fm"[s]] = w
    assert weights == pytest.approx(
        {(0, "b", "f"): 1, (1, "a", "f"): 5 / 8, (1, "a", "m"): 3 / 8, (2, "a", "f"): 5 / 8, (2, "a", "m"): 3 / 8}
    )
    assert resolved.obs["batch"].tolist() == ["b", "a", "a"]
    assert resolved.obs["sex"].tolist() == ["average"] * 3


def test_several_per_point():
    batch, sex = np.array(["a", "b", "a", "a"]), np.array(["f", "f", "m", "f"])
    schema = make_schema(((0, 0, 0, 5), (0, 1, 0, 3), (1, 0, 1, 2)))
    labels = np.array(["x", "y", "x", "x"])
    resolved = resolve(schema, 4, batch=batch, categorical={"sex": sex}, labels=labels, label_matters=True)
    assert len(resolved.codes_gmc) == 3
    codes = resolved.codes_gmc[resolved.group_n, 0]
    assert codes.tolist() == [[0, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]]


# -- averages, proven by decoding each condition by itself


@pytest.fixture(scope="module")
def three(model):
    """Points that need no warning of support."""
    z = model.reference_latents()
    return z[np.argsort(np.abs(model.support(z) - 50), kind="stable")[:3]]


@pytest.fixture(scope="module")
def cells():
    return make_adata().obs


@pytest.fixture(scope="module")
def categorical_model():
    """Batch and two categorical covariates, no continuous ones: the average can be counted from the cells."""
    keys = {"batch_key": "batch", "categorical_covariate_keys": ["sex", "chem"]}
    return make_model(make_adata(), setup=keys, gene_likelihood="zinb")


@pytest.fixture(scope="module")
def inside(categorical_model):
    z = categorical_model.reference_latents()
    return z[np.argsort(np.abs(categorical_model.support(z) - 50), kind="stable")[:3]]


def test_average_over_the_batches_of_training(model, three, cells):
    counts = cells["batch"].value_counts()
    assert len(counts) == 3
    by_hand = sum(n / len(cells) * model.decode(three, batch=str(batch)).X for batch, n in counts.items())
    expression = model.decode(three)
    np.testing.assert_allclose(expression.X, by_hand, rtol=1e-5)
    assert expression.obs["batch"].tolist() == ["average"] * 3
    listed = {row["batch"]: row["weight"] for row in json.loads(expression.uns["scdecode"]["conditions"])}
    assert listed == pytest.approx({str(b): n / len(cells) for b, n in counts.items()})
    assert expression.uns["scdecode"]["conditions_covered"] == 1


def test_average_over_a_list_and_with_weights(model, three):
    each = {batch: model.decode(three, batch=batch).X for batch in BATCHES}
    np.testing.assert_allclose(
        model.decode(three, batch=["batch_3", "batch_1"]).X, (each["batch_1"] + each["batch_3"]) / 2, rtol=1e-5
    )
    np.testing.assert_allclose(
        model.decode(three, batch={"batch_1": 1, "batch_2": 0, "batch_3": 4}).X,
        0.2 * each["batch_1"] + 0.8 * each["batch_3"],
        rtol=1e-5,
    )


def test_one_batch_per_point(model, three):
    decoded = model.decode(three, batch=np.array(["batch_2", "batch_1", "batch_3"])).X
    for i, batch in enumerate(("batch_2", "batch_1", "batch_3")):
        np.testing.assert_allclose(decoded[i], model.decode(three, batch=batch).X[i], rtol=1e-5)
    assert np.abs(decoded[0] / model.decode(three, batch="batch_3").X[0] - 1).max() > 1e-3  # batches do differ


@pytest.mark.parametrize("quantity", ["rate", "scale", "mean"])
def test_average_over_everything(categorical_model, inside, cells, quantity):
    by_hand = 0
    for (batch, sex, chem), n in cells.groupby(["batch", "sex", "chem"], observed=True).size().items():
        one = categorical_model.decode(inside, quantity=quantity, batch=batch, categorical={"sex": sex, "chem": chem})
        by_hand = by_hand + n / len(cells) * one.X
    np.testing.assert_allclose(categorical_model.decode(inside, quantity=quantity).X, by_hand, rtol=1e-5)


def test_average_over_the_rest_given_a_batch(categorical_model, inside, cells):
    of_batch = cells[cells["batch"] == "batch_2"]
    by_hand = 0
    for (sex, chem), n in of_batch.groupby(["sex", "chem"], observed=True).size().items():
        one = categorical_model.decode(inside, batch="batch_2", categorical={"sex": sex, "chem": chem})
        by_hand = by_hand + n / len(of_batch) * one.X
    np.testing.assert_allclose(categorical_model.decode(inside, batch="batch_2").X, by_hand, rtol=1e-5)


def test_average_over_the_rest_for_each_point(categorical_model, inside, cells):
    chem = np.array(["v3", "v1", "v2"])
    decoded = categorical_model.decode(inside, categorical={"chem": chem}).X
    for i, name in enumerate(chem):
        expected = categorical_model.decode(inside, categorical={"chem": name}).X[i]
        np.testing.assert_allclose(decoded[i], expected, rtol=1e-5)


def test_lists_multiply(categorical_model, inside):
    lists = {"batch": ["batch_1", "batch_2"], "sex": ["female", "male"], "chem": {"v1": 1, "v3": 3}}
    by_hand = sum(
        0.25
        * (0.25 if chem == "v1" else 0.75)
        * categorical_model.decode(inside, batch=batch, categorical={"sex": sex, "chem": chem}).X
        for batch, sex, chem in itertools.product(*lists.values())
    )
    decoded = categorical_model.decode(
        inside, batch=lists["batch"], categorical={"sex": lists["sex"], "chem": lists["chem"]}
    )
    np.testing.assert_allclose(decoded.X, by_hand, rtol=1e-5)


def test_average_over_continuous_covariates(full_model):
    z = full_model.reference_latents()
    z = z[np.argsort(np.abs(full_model.support(z) - 50), kind="stable")[:2]]
    expression = full_model.decode(z, max_conditions=10_000)
    conditions = json.loads(expression.uns["scdecode"]["conditions"])
    assert len(conditions) == 3 * 2 * 3 * 5  # combinations x groups; the label does not multiply them
    by_hand = 0
    for row in conditions[:: len(conditions) - 1]:
        assert set(row) == {"batch", "sex", "chem", "age", "pct", "weight"}  # the label changes nothing and is not said
    for row in conditions:
        one = full_model.decode(
            z,
            batch=row["batch"],
            categorical={"sex": row["sex"], "chem": row["chem"]},
            continuous={"age": row["age"], "pct": row["pct"]},
        )
        by_hand = by_hand + row["weight"] * one.X
    np.testing.assert_allclose(expression.X, by_hand, rtol=1e-4)
    cells = make_adata().obs
    for key in ("age", "pct"):  # groups of equal size have the mean of the cells
        assert sum(row[key] * row["weight"] for row in conditions) == pytest.approx(cells[key].mean(), rel=1e-5)
    assert expression.obs["age"].isna().all()


@pytest.mark.parametrize(
    "age",
    [35.0, "35", np.float32(35), [30, 40], {30: 1, 60: 2}, range(30, 34)],
    ids=str,
)
def test_continuous_values(full_model, age):
    z = full_model.reference_latents()
    z = z[np.argsort(np.abs(full_model.support(z) - 50), kind="stable")[:3]]
    fixed = {"batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}}
    if isinstance(age, dict):
        pairs = {key: weight / sum(age.values()) for key, weight in age.items()}
    elif isinstance(age, list | range):
        pairs = {key: 1 / len(age) for key in age}
    else:
        pairs = {float(age): 1}
    by_hand = sum(
        weight * full_model.decode(z, continuous={"age": value, "pct": 0.05}, **fixed).X
        for value, weight in pairs.items()
    )
    decoded = full_model.decode(z, continuous={"age": age, "pct": 0.05}, **fixed)
    np.testing.assert_allclose(decoded.X, by_hand, rtol=1e-5)
    one = len(pairs) == 1
    assert decoded.obs["age"].tolist() == ([35.0] * 3 if one else pytest.approx([np.nan] * 3, nan_ok=True))


@pytest.mark.parametrize("form", [np.asarray, pd.Series, torch.tensor, np.float16, pd.array])
def test_continuous_values_per_point(full_model, form):
    z = full_model.reference_latents()
    z = z[np.argsort(np.abs(full_model.support(z) - 50), kind="stable")[:3]]
    ages = form([30.0, 45.0, 60.0])
    decoded = full_model.decode(z, batch="batch_1", continuous={"age": ages})  # sex, chem and pct are averaged
    assert decoded.obs["age"].tolist() == [30, 45, 60]
    for i, age in enumerate((30, 45, 60)):
        expected = full_model.decode(z, batch="batch_1", continuous={"age": age}).X[i]
        np.testing.assert_allclose(decoded.X[i], expected, rtol=1e-5)


def test_a_dataframe_of_covariates(full_model, adata):
    z = full_model.reference_latents()
    z = z[np.argsort(np.abs(full_model.support(z) - 50), kind="stable")[:4]]
    rows = adata.obs.iloc[:4]
    decoded = full_model.decode(
        z, batch=rows["batch"], categorical=rows[["sex", "chem"]], continuous=rows[["age", "pct"]]
    )
    assert decoded.obs["chem"].tolist() == rows["chem"].tolist()
    np.testing.assert_allclose(decoded.obs["pct"], rows["pct"])


# -- the label


@pytest.fixture(scope="module")
def label_model():
    keys = {"batch_key": "batch", "labels_key": "cell_type"}
    return make_model(make_adata(), setup=keys, dispersion="gene-label")


def test_labels_count_with_their_dispersion(label_model):
    z = torch.tensor(label_model.reference_latents()[:2])
    names = ["branch_1", "branch_2", "trunk"]
    variances = {name: label_model.distribution(z, batch="batch_1", labels=name).variance for name in names}
    assert not torch.allclose(variances["trunk"], variances["branch_1"], rtol=1e-2)
    per_point = label_model.distribution(z, batch="batch_1", labels=np.array(["trunk", "branch_2"])).variance
    torch.testing.assert_close(per_point[0], variances["trunk"][0])
    torch.testing.assert_close(per_point[1], variances["branch_2"][1])


def test_labels_that_matter_are_averaged_over(label_model, cells):
    expression = label_model.decode(label_model.reference_latents().mean(axis=0))
    rows = json.loads(expression.uns["scdecode"]["conditions"])
    counted = cells.groupby(["batch", "cell_type"], observed=True).size() / len(cells)
    assert {(r["batch"], r["cell_type"]): r["weight"] for r in rows} == pytest.approx(counted.to_dict())


def test_labels_that_change_nothing(full_model):
    z = full_model.reference_latents().mean(axis=0)
    with pytest.warns(ConditionWarning, match="labels: the model's dispersion does not depend on the label"):
        expression = full_model.decode(z, labels="trunk")
    assert expression.obs["cell_type"].tolist() == ["trunk"]
    plain = full_model.decode(z)
    np.testing.assert_array_equal(expression.X, plain.X)
    assert "cell_type" not in plain.obs
    assert "cell_type" not in json.loads(plain.uns["scdecode"]["conditions"])[0]


@pytest.mark.parametrize("labels", ["x", ["x", "y"], {"x": 1, "y": 2}, np.array(["x", "y", "y"])], ids=str)
def test_labels_in_every_form(labels):
    schema = make_schema(((0, 0, 0, 5), (0, 0, 1, 3)))
    said = {"batch": "a", "categorical": {"sex": "f"}, "labels": labels}
    assert "cell_type" in resolve(schema, 3, label_matters=True, **said).obs
    with pytest.warns(ConditionWarning, match="it changes nothing"):
        assert "cell_type" in resolve(schema, 3, **said).obs


def test_the_label_that_changes_nothing_makes_no_combination_unseen():
    resolve(make_schema(), 2, batch="b", categorical={"sex": "f"})  # only label y was seen with these


# -- max_conditions


def test_max_conditions_keeps_the_most_frequent():
    schema = make_schema()
    with pytest.warns(ConditionWarning, match="the 2 most frequent combinations, which are averaged, cover 80%"):
        found = resolve(schema, 2, max_conditions=2)
    assert found.covered_g.tolist() == pytest.approx([0.8])
    assert found.codes_gmc[0].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert found.weights_gm[0].tolist() == pytest.approx([5 / 8, 3 / 8])
    assert resolve(schema, 2, max_conditions=3).covered_g.tolist() == [1.0]


@pytest.mark.filterwarnings("ignore:max_conditions")
def test_max_conditions_in_the_result(model, three, cells):
    expression = model.decode(three, max_conditions=1)
    most = cells["batch"].value_counts().index[0]
    np.testing.assert_allclose(expression.X, model.decode(three, batch=most).X, rtol=1e-6)
    share = cells["batch"].value_counts().iloc[0] / len(cells)
    assert expression.uns["scdecode"]["conditions_covered"] == pytest.approx(share)
    assert [row["batch"] for row in json.loads(expression.uns["scdecode"]["conditions"])] == [most]


def test_max_conditions_cuts_what_was_asked_for_with_a_warning():
    with pytest.warns(ConditionWarning, match="3 combinations were asked for, and the 2 of the largest"):
        found = slots(
            make_schema(((0, 0, 0, 1), (1, 0, 0, 1), (2, 0, 0, 1))),
            batch={"a": 1, "b": 3, "c": 2},
            categorical={"sex": "f"},
            max_conditions=2,
        )
    assert found == pytest.approx({("b", "f"): 0.6, ("c", "f"): 0.4})


@pytest.mark.parametrize("value", [0, -1, 1.5, None, True, "all"])
def test_max_conditions_is_a_positive_number(value):
    with pytest.raises(ConditionError, match=r"max_conditions: .* a whole number of at least 1 was expected"):
        resolve(make_schema(), 2, max_conditions=value)


# -- refused


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"batch": "A"}, r"batch: 'A' is not one of the 3 .*\['a', 'b', 'c'\]; did you mean 'a'\?"),
        ({"batch": np.array(["a", "b", "d", "a"])}, r"batch: 'd' is not one of"),
        ({"batch": ["a", "d"]}, r"batch: 'd' is not one of"),
        ({"batch": {"d": 1}}, r"batch: 'd' is not one of"),
        ({"batch": 0}, r"batch: 0 is not one of"),
        ({"batch": b"a"}, r"batch: b'a' is not one of"),
        ({"batch": np.array(["a", "b"])}, r"batch: an array of shape \(2,\) came, one value per point, \(4,\)"),
        ({"batch": np.array([["a"] * 4])}, r"batch: an array of shape \(1, 4\) came"),
        ({"batch": pd.Series({"a": 1.0, "b": 2.0})}, r"batch: an array of shape \(2,\)"),
        ({"batch": np.array([], dtype=str)}, r"batch: an array of shape \(0,\)"),
        ({"batch": np.nan}, "batch: 1 values are missing"),
        ({"batch": pd.NA}, "batch: 1 values are missing"),
        ({"batch": ["a", None]}, r"batch: 1 values are missing \(the first at 1\)"),
        ({"batch": np.array(["a", None, "b", None])}, r"batch: 2 values are missing \(the first at 1\)"),
        ({"batch": pd.Categorical(["a", None, "b", "a"])}, "batch: 1 values are missing"),
        ({"batch": np.ma.masked_array(["a"] * 4, [0, 0, 1, 0])}, r"batch: 1 values are missing \(the first at 2\)"),
        ({"batch": ["a", "a"]}, "batch: a list of 2 came in which values repeat"),
        ({"batch": []}, "batch: a list of 0 came .* which is empty"),
        ({"batch": {}}, r"batch: the weights \[\] came"),
        ({"batch": [["a"], ["b"]]}, "batch: .* came, single names or numbers were expected"),
        ({"batch": [["a"], ["b", "c"]]}, r"batch: \['a'\] is not one of"),
        ({"batch": {"a": 0}}, r"batch: the weights \[0\] came, numbers >= 0 with a positive sum were expected"),
        ({"batch": {"a": 1, "b": -1}}, "batch: the weights .* positive sum"),
        ({"batch": {"a": np.nan}}, "batch: the weights .* positive sum"),
        ({"batch": {"a": np.inf}}, "batch: the weights .* positive sum"),
        ({"batch": {"a": 1e308, "b": 1e308}}, "batch: the weights .* positive sum"),
        ({"batch": {"a": None}}, "batch: the weights"),
        ({"batch": {"a": "much"}}, "batch: the weights .* numbers were expected"),
        ({"batch": {"a": [1, 2], "b": [1, 2]}}, "batch: the weights .* single numbers were expected"),
        ({"categorical": {"Sex": "f"}}, r"categorical: 'Sex' is not .*\['sex'\]; did you mean 'sex'\?"),
        ({"categorical": {"sex": "w"}}, r"categorical\['sex'\]: 'w' is not one of the 2 "),
        ({"categorical": {"batch": "a"}}, "categorical: 'batch' is not"),
        ({"categorical": "f"}, "categorical: 'f' came, a mapping of covariate names to values was expected"),
        ({"categorical": ["f"]}, "categorical: .* a mapping of covariate names to values was expected"),
        ({"continuous": {"age": 3}}, "continuous: 'age' was given, but there are no continuous covariates"),
        ({"labels": "z"}, "labels: 'z' is not one of the 2"),
    ],
)
def test_refused(said, message):
    with pytest.raises(ConditionError, match=message):
        resolve(make_schema(), 4, **said)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("old", r"continuous\['age'\]: \['old'\] came, numbers were expected"),
        (np.nan, "1 values are missing"),
        (np.inf, r"\[inf\] came, finite numbers"),
        (1e39, "finite numbers"),
        (np.array([1, np.nan, 3, 4]), r"1 values are missing \(the first at 1\)"),
        (np.array([1, np.inf, 3, 4]), r"\[inf\] came, finite numbers"),
        (np.full(4, 1e39), "finite numbers"),
        (np.ones((4, 1)), r"an array of shape \(4, 1\) came"),
        (np.ones(3), r"an array of shape \(3,\) came"),
        (1j, "numbers were expected"),
        (np.full(4, 1j), "numbers were expected"),
        (np.zeros(4, dtype="M8[s]"), "numbers were expected"),
        (np.ma.masked_array(np.ones(4), [1, 0, 0, 0]), "1 values are missing"),
        ([[1], [2]], "single names or numbers were expected"),
        ([[1], [2, 3]], "numbers were expected"),
        ([1, 1.0], "values repeat"),
        ({1: 1, "1": 2}, "has a value twice"),
        ({(1, 2): 1}, "single names or numbers were expected"),
    ],
)
def test_refused_numbers(value, message):
    schema = make_schema(((0, 0, 0, 1.5, 3),), continuous=("age",))
    with pytest.raises(ConditionError, match=message) as error:
        resolve(schema, 4, continuous={"age": value})
    assert str(error.value).startswith("continuous['age']: ")


def test_a_condition_that_the_model_does_not_have(model):
    z = np.zeros((1, 4))
    for said, message in (
        ({"labels": "trunk"}, "labels: 'trunk' came, but the model was set up without labels; leave it out"),
        ({"categorical": {"sex": "male"}}, "categorical: 'sex' was given, but there are no categorical covariates"),
        ({"continuous": {"age": 3}}, "continuous: 'age' was given, but there are no continuous covariates"),
    ):
        with pytest.raises(ConditionError, match=message):
            model.decode(z, **said)
    without = make_model(make_adata(60, 10), setup={}, epochs=1)
    with pytest.raises(ConditionError, match="batch: 'batch_1' came, but the model was set up without batch"):
        without.decode(z, batch="batch_1")
    assert "batch" not in without.decode(without.reference_latents().mean(axis=0)).obs


def test_every_misspelling_is_met_with_the_name(model):
    for near in ("batch1", "Batch_1", "Batch 1", "batch-1", "batch_1 "):
        with pytest.raises(ConditionError, match="did you mean 'batch_1'"):
            model.decode(np.zeros((1, 4)), batch=near)


def test_a_list_as_long_as_the_points(model, three):
    with pytest.warns(
        ConditionWarning, match="batch: the list of 3 values is averaged over; for one value per point pass a numpy"
    ):
        decoded = model.decode(three, batch=list(BATCHES))
    np.testing.assert_allclose(decoded.X, sum(model.decode(three, batch=b).X for b in BATCHES) / 3, rtol=1e-5)
    model.decode(three[:1], batch=["batch_1"])  # one value for one point is no doubt


def test_warnings_point_at_the_caller(model, full_model, three):
    with pytest.warns(ConditionWarning) as caught:
        model.decode(three, batch=list(BATCHES))
    assert [w.filename for w in caught] == [__file__]
    with pytest.warns(ConditionWarning) as caught:
        full_model.distribution(torch.tensor(three), labels="trunk")
    assert [w.filename for w in caught] == [__file__]


# -- names of columns


def test_covariates_that_are_named_as_our_columns(tmp_path):
    """A batch key ``sample``, covariates ``time`` and ``weight``: common names, and columns of the result as well."""
    adata = make_adata(120, 12)
    adata.obs["draw"], adata.obs["time"] = adata.obs["batch"], adata.obs["age"]
    adata.obs["support"], adata.obs["weight"] = adata.obs["sex"], adata.obs["pct"]
    adata.obs["sample"] = adata.obs["chem"]
    setup = {
        "batch_key": "draw",
        "categorical_covariate_keys": ["support", "sample", "draw"],
        "continuous_covariate_keys": ["time", "weight"],
    }
    model = make_model(adata, setup=setup, epochs=1)
    z = model.reference_latents()[:3]
    z = z[model.support(z) < 99][:2]
    path = sd.Trajectory.between(model, z[0], z[1], n_points=2)
    said = {
        "batch": np.array(["batch_1", "batch_2"]),
        "categorical": {"support": np.array(["male", "female"]), "sample": "v1", "draw": np.array(["batch_2"] * 2)},
        "continuous": {"time": np.array([33.0, 44.0]), "weight": 0.1},
    }
    with pytest.warns(ConditionWarning, match="never occurred together"):  # two columns of batches that disagree
        expression = model.decode(path, spread=0.1, n_samples=3, out=tmp_path / "x.h5ad", **said)
    obs = expression.obs
    assert obs["condition_draw"].tolist() == ["batch_1", "batch_2"]
    assert obs["condition_support"].tolist() == ["male", "female"]
    assert obs["sample"].tolist() == ["v1", "v1"]
    assert obs["condition_condition_draw"].tolist() == ["batch_2", "batch_2"]
    assert obs["condition_time"].tolist() == [33, 44]
    assert obs["time"].tolist() == [0, 1]
    assert obs["support"].dtype == np.float32
    with pytest.warns(ConditionWarning):
        again = model.decode(**sd.decode_arguments(expression))
    np.testing.assert_array_equal(again.X, expression.X[:])
    with pytest.warns(ConditionWarning):
        counts = model.decode(path, quantity="counts", n_samples=2, **said)
    assert counts.obs["draw"].tolist() == [0, 1, 0, 1]
    with pytest.warns(ConditionWarning):
        again = model.decode(**sd.decode_arguments(counts))
    assert (again.X != counts.X).nnz == 0


def test_our_columns_are_those_of_a_result(full_model):
    z = full_model.reference_latents()
    first, second, *_ = np.argsort(full_model.support(z), kind="stable")
    path = sd.Trajectory.from_points(np.stack([z[[first, second]]] * 2), lineages=["a", "b"])
    obs = full_model.decode(path, quantity="counts", n_samples=2).obs
    conditions = {"batch", "sex", "chem", "age", "pct"}
    assert set(obs.columns) - conditions | {"weight", "reference_cell", "condition"} == set(OUR_COLUMNS)


def test_names_that_are_no_names_of_ours_stay():
    schema = make_schema(keys=("donor", "sex", "cell_type"))
    assert list(resolve(schema, 2).obs.columns) == ["donor", "sex", "library_size"]
    words = slots_in_words(schema, resolve(schema, 2))
    assert words[0] == {"donor": "a", "sex": "f", "weight": 0.5}
    assert slots_in_words(schema, resolve(schema, 2, batch=np.array(["a", "b"]))) == []


# -- properties


@st.composite
def weightings(draw):
    names = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    weights = draw(st.lists(st.floats(1e-6, 1e6), min_size=len(names), max_size=len(names)))
    return dict(zip(names, weights, strict=True))


@given(weightings(), st.sampled_from([None, "f", ["f", "m"], {"f": 0.3, "m": 0.1}]))
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:conditions")
def test_what_was_said_can_be_said_again_to_the_last_bit(batch, sex):
    schema = make_schema()
    once = resolve(schema, 5, batch=batch, categorical={"sex": sex})
    said = json.loads(json.dumps(once.arguments))
    again = resolve(schema, 5, **said)
    np.testing.assert_array_equal(again.weights_gm, once.weights_gm)
    np.testing.assert_array_equal(again.codes_gmc, once.codes_gmc)
    total = sum(batch.values())
    found = {}
    for row in slots_in_words(schema, once):
        found[row["batch"]] = found.get(row["batch"], 0) + row["weight"]
    assert found == pytest.approx({name: weight / total for name, weight in batch.items()}, rel=1e-6)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("fm")), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:conditions")
def test_per_point_conditions_reach_their_points(pairs):
    batch, sex = (np.array(values) for values in zip(*pairs, strict=True))
    resolved = resolve(make_schema(), len(pairs), batch=batch, categorical={"sex": sex})
    codes = resolved.codes_gmc[resolved.group_n, 0]
    assert [("ab"[b], "fm"[s]) for b, s, _ in codes] == pairs


# -- speed


def test_a_thousand_batches_per_point_are_fast():
    """A group for each batch, each with its own average over a covariate: pandas took ten seconds."""
    names = tuple(f"b{i}" for i in range(1000))
    rows = [(b, s, 0, 1 + b % 3) for b in range(1000) for s in (0, 1)]
    schema = make_schema(rows, batches=names)
    batch = np.array(names)[np.arange(5000) % 1000]
    start = time.perf_counter()
    resolved = resolve(schema, 5000, batch=batch)
    assert time.perf_counter() - start < 3
    assert resolved.weights_gm.shape == (1000, 2)
    assert resolved.obs["batch"].tolist() == batch.tolist()


def test_a_series_in_another_order_than_the_points(model, three):
    points = pd.DataFrame(three, index=["a", "b", "c"])
    batch = pd.Series(["batch_1", "batch_2", "batch_3"], index=["b", "a", "c"])
    with pytest.raises(ConditionError, match="batch: a Series came that names the points in another order"):
        model.decode(points, batch=batch)
    in_order = model.decode(points, batch=batch.loc[points.index])
    assert in_order.obs["batch"].tolist() == ["batch_2", "batch_1", "batch_3"]
    by_position = model.decode(points, batch=batch.to_numpy())
    assert by_position.obs["batch"].tolist() == ["batch_1", "batch_2", "batch_3"]
    other_names = pd.Series(["batch_1", "batch_2", "batch_3"], index=[7, 8, 9])
    with pytest.raises(ConditionError, match=r"batch: got a Series with other names than the points have .*to_numpy"):
        model.decode(points, batch=other_names)
    no_names = other_names.reset_index(drop=True)
    assert model.decode(points, batch=no_names).obs["batch"].tolist() == ["batch_1", "batch_2", "batch_3"]


# -- where the training cells are not known ---------------------------------------------------------------------------


def unknown(schema):
    """As a model of scvi-tools is, before a reference is attached."""
    return dataclasses.replace(schema, conditions=None, n_cells=None, median_library=None)


def test_levels_count_the_same_where_nobody_knows_the_cells():
    schema = unknown(make_schema())
    with pytest.warns(ConditionWarning, match=r"\['batch', 'sex'\] not given, .* plain average; say which you want"):
        assert slots(schema) == pytest.approx(dict.fromkeys(itertools.product("abc", "fm"), 1 / 6))
    with pytest.warns(ConditionWarning, match=r"\['sex'\] not given"):
        assert slots(schema, batch="a") == pytest.approx({("a", "f"): 0.5, ("a", "m"): 0.5})
    with pytest.warns(ConditionWarning, match=r"\['sex'\] not given"):
        found = slots(schema, batch={"a": 3, "b": 1})
    assert found == pytest.approx({("a", "f"): 0.375, ("a", "m"): 0.375, ("b", "f"): 0.125, ("b", "m"): 0.125})
    assert slots(schema, batch="a", categorical={"sex": "m"}) == {("a", "m"): 1}  # and no warning
    assert slots(unknown(make_schema(batches=("a",), sexes=("f",)))) == {("a", "f"): 1}


def test_of_many_levels_a_fair_choice_is_averaged():
    names = tuple(f"b{i}" for i in range(1000))
    schema = unknown(make_schema(batches=names))
    with pytest.warns(ConditionWarning, match=r"over 100 of the 2,000 combinations \(max_conditions\), chosen at r"):
        found = slots(schema)
    assert len(found) == 100
    assert set(found.values()) == {0.01}
    codes = [int(batch[1:]) for batch, _ in found]
    assert 300 < np.mean(codes) < 700 and min(codes) < 100 and max(codes) > 900  # not the first hundred
    with pytest.warns(ConditionWarning):
        assert slots(schema) == found  # the same in each call
    with pytest.warns(ConditionWarning, match="over 100 of the 2,000 combinations"):
        by_sex = slots(schema, categorical={"sex": ["f", "m"]})
    assert {sex: round(sum(w for (_, s), w in by_sex.items() if s == sex), 6) for sex in "fm"} == {"f": 0.5, "m": 0.5}
    with pytest.warns(ConditionWarning, match="plain average; say"):
        assert len(slots(schema, max_conditions=2000)) == 2000


def test_the_share_of_a_choice_is_told():
    schema = unknown(make_schema(batches=tuple(f"b{i}" for i in range(100))))
    with pytest.warns(ConditionWarning):
        assert resolve(schema, 1, max_conditions=50).covered_g == pytest.approx([0.25])


def test_points_of_their_own_batches_where_nobody_knows_the_cells():
    schema = unknown(make_schema())
    with pytest.warns(ConditionWarning, match=r"\['sex'\] not given"):
        resolved = resolve(schema, 3, batch=np.array(["a", "c", "a"]))
    assert resolved.group_n.tolist() == [0, 1, 0]
    assert resolved.weights_gm.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert resolved.codes_gmc[1, :, 0].tolist() == [2, 2]


def test_numbers_that_nobody_can_average():
    schema = unknown(make_schema(((0, 0, 0, 40.0, 5),), continuous=("age",)))
    with pytest.raises(ConditionError, match=r"continuous: \['age'\] were not given, .*continuous=\{'age': \.\.\.\}"):
        resolve(schema, 2, batch="a")
    resolve(schema, 2, batch="a", categorical={"sex": "m"}, continuous={"age": 3.0})
    resolve(schema, 2, batch="a", categorical={"sex": "m"}, continuous={"age": np.array([3.0, 4.0])})


def test_more_combinations_than_numpy_counts():
    names = tuple(f"l{i}" for i in range(100))
    categorical = tuple(Category(f"c{i}", names) for i in range(12))
    keys = tuple(c.key for c in categorical)
    schema = Schema(("g",), Columns(categorical_covariate_keys=keys), None, None, categorical, ())
    with pytest.warns(ConditionWarning, match="plain average over 100 of the"):
        resolved = resolve(schema, 1)
    assert resolved.codes_gmc.shape == (1, 100, 14)
    assert len(np.unique(resolved.codes_gmc[0], axis=0)) == 100
    assert 30 < resolved.codes_gmc[0, :, 1:-1].mean() < 70
