"""Names and codes, the table of training conditions, and the way to JSON and back."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scdecode._utils.levels import Category
from scdecode.errors import ConditionError
from scdecode.schema import (
    N_CONTINUOUS_GROUPS,
    Columns,
    Schema,
    TrainingConditions,
    from_dict,
    tabulate_conditions,
    to_dict,
)


def make_schema(**changes):
    codes_nc = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    fields = {
        "genes": ("A", "B", "ΔC"),
        "columns": Columns(
            batch_key="donor",
            size_factor_key="factor",
            categorical_covariate_keys=("sex",),
            continuous_covariate_keys=("age",),
        ),
        "batch": Category("donor", ("d1", "d2")),
        "labels": None,
        "categorical": (Category("sex", ("f", "m")),),
        "continuous": ("age",),
        "conditions": tabulate_conditions(codes_nc, np.array([[0.1], [1 / 3], [7e-300]])),
        "n_cells": 3,
        "median_library": 1000.5,
        "median_size_factor": 1.0,
        "max_size_factor": 3.0,
    }
    return Schema(**fields | changes)


def assert_same(one: Schema, other: Schema):
    for field in dataclasses.fields(Schema):
        if field.name != "conditions":
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    for field in dataclasses.fields(TrainingConditions):
        mine, others = getattr(one.conditions, field.name), getattr(other.conditions, field.name)
        assert mine.dtype == others.dtype
        np.testing.assert_array_equal(mine, others)


# -- names and codes ---------------------------------------------------------------------------------------------------


def test_names_to_codes():
    category = Category("donor", ("d1", "10", "True"))
    codes_n = category.encode(["True", "d1", 10, "10", True], "batch", "batches")
    assert codes_n.dtype == np.int64
    assert codes_n.tolist() == [2, 0, 1, 1, 2]
    assert category.encode([], "batch", "batches").shape == (0,)
    assert category.encode(np.array(["d1"]), "batch", "batches").tolist() == [0]


def test_a_name_that_is_not_known():
    with pytest.raises(ConditionError, match=r"batch: 'd 1' is not one of the 2 batches \['d1', 'd2'\]; did you mean"):
        Category("donor", ("d1", "d2")).encode(["d1", "d 1", "d4"], "batch", "batches")


def test_sizes():
    schema = make_schema()
    assert (schema.n_genes, schema.n_batches, schema.n_labels, schema.n_levels) == (3, 2, 1, (2, 2, 1))
    assert schema.gene_codes == {"A": 0, "B": 1, "ΔC": 2}
    assert schema.columns.obs_keys == ("donor", "factor", "sex", "age")
    assert Columns().obs_keys == ()


# -- the table of training conditions ----------------------------------------------------------------------------------


def test_combinations_and_their_cells():
    codes_nc = np.array([[1, 0], [0, 0], [1, 0], [1, 2], [0, 0], [1, 0]])
    table = tabulate_conditions(codes_nc, np.zeros((6, 0)))
    assert table.codes_mc.tolist() == [[0, 0], [1, 0], [1, 2]]
    assert table.n_cells_m.tolist() == [2, 3, 1]
    assert table.continuous_md.shape == (3, 0)
    assert table.codes_mc.dtype == table.n_cells_m.dtype == np.int64


def test_a_covariate_is_cut_into_groups_of_equal_size():
    age_n = np.arange(100.0)
    table = tabulate_conditions(np.zeros((100, 2), dtype=np.int64), age_n[:, None])
    assert table.n_cells_m.tolist() == [20] * N_CONTINUOUS_GROUPS
    assert sorted(table.continuous_md[:, 0].tolist()) == [9.5, 29.5, 49.5, 69.5, 89.5]


def test_groups_are_cut_within_each_combination():
    codes_nc = np.repeat([[0, 0], [1, 0]], [10, 2], axis=0)
    table = tabulate_conditions(codes_nc, np.r_[np.arange(10.0), 100, 200][:, None])
    by_row = {
        (int(c), float(v)): int(n)
        for c, v, n in zip(table.codes_mc[:, 0], table.continuous_md[:, 0], table.n_cells_m, strict=True)
    }
    assert by_row == {(0, 0.5): 2, (0, 2.5): 2, (0, 4.5): 2, (0, 6.5): 2, (0, 8.5): 2, (1, 100.0): 1, (1, 200.0): 1}


def test_equal_covariates_make_one_group():
    table = tabulate_conditions(np.zeros((50, 1), dtype=np.int64), np.full((50, 2), 0.1))
    assert table.n_cells_m.tolist() == [50]
    np.testing.assert_allclose(table.continuous_md, [[0.1, 0.1]], rtol=1e-12)


def test_two_values_are_never_mixed():
    table = tabulate_conditions(np.zeros((50, 1), dtype=np.int64), np.repeat([0.0, 1.0], [45, 5])[:, None])
    assert dict(zip(table.continuous_md[:, 0].tolist(), table.n_cells_m.tolist(), strict=True)) == {0.0: 45, 1.0: 5}


def test_a_covariate_of_a_large_scale_does_not_hide_another():
    rng = np.random.default_rng(0)
    direction_n = rng.normal(size=200)
    values_nd = np.stack([1e6 * direction_n, 1e-6 * direction_n], axis=1)
    table = tabulate_conditions(np.zeros((200, 1), dtype=np.int64), values_nd)
    assert len(table.n_cells_m) == N_CONTINUOUS_GROUPS
    assert abs(np.corrcoef(table.continuous_md.T)[0, 1]) > 0.999


def test_a_covariate_that_is_constant_in_all_cells_is_kept():
    values_nd = np.stack([np.full(100, 3.0), np.arange(100.0)], axis=1)
    table = tabulate_conditions(np.zeros((100, 1), dtype=np.int64), values_nd)
    assert set(table.continuous_md[:, 0].tolist()) == {3.0}
    assert len(table.n_cells_m) == N_CONTINUOUS_GROUPS


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_table_keeps_the_cells_and_their_means(data):
    n, n_covariates = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 3))
    codes_nc = data.draw(hnp.arrays(np.int64, (n, 3), elements=st.integers(0, 2)))
    values_nd = data.draw(hnp.arrays(np.float32, (n, n_covariates), elements=st.floats(-1e6, 1e6, width=32)))
    table = tabulate_conditions(codes_nc, values_nd)
    combinations = {tuple(row) for row in codes_nc.tolist()}
    assert {tuple(row) for row in table.codes_mc.tolist()} == combinations
    assert table.n_cells_m.min() > 0
    for row in combinations:
        cells, rows = (codes_nc == row).all(axis=1), (table.codes_mc == row).all(axis=1)
        assert rows.sum() <= N_CONTINUOUS_GROUPS
        assert table.n_cells_m[rows].sum() == cells.sum()
        weighted_d = table.n_cells_m[rows] @ table.continuous_md[rows]
        np.testing.assert_allclose(weighted_d, values_nd[cells].astype(np.float64).sum(axis=0), rtol=1e-9, atol=1e-3)


def test_the_table_of_a_model(full_model):
    table, schema = full_model.schema.conditions, full_model.schema
    assert table.codes_mc.shape[1] == 4  # batch, sex, chem, label
    assert table.continuous_md.shape == (len(table.n_cells_m), 2)
    assert table.n_cells_m.sum() == schema.n_cells == 300
    assert (table.codes_mc < schema.n_levels).all()


def test_many_combinations_take_no_time_for_each_cell():
    n = 200_000
    codes_nc = np.random.default_rng(0).integers(0, 5000, (n, 1))
    table = tabulate_conditions(codes_nc, np.arange(n, dtype=np.float64)[:, None])
    assert table.n_cells_m.sum() == n


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_to_json_and_back():
    schema = make_schema()
    assert_same(from_dict(json.loads(json.dumps(to_dict(schema)))), schema)


def test_to_json_and_back_with_nothing_but_genes():
    plain = make_schema(
        columns=Columns(layer="counts"),
        batch=None,
        categorical=(),
        continuous=(),
        conditions=tabulate_conditions(np.zeros((3, 2), dtype=np.int64), np.zeros((3, 0))),
        median_size_factor=None,
        max_size_factor=None,
    )
    assert_same(from_dict(json.loads(json.dumps(to_dict(plain)))), plain)


def test_the_schema_of_a_model_to_json_and_back(full_model, model):
    for one in (full_model, model):
        assert_same(from_dict(json.loads(json.dumps(to_dict(one.schema)))), one.schema)


def replaced(values, path, new):
    """A deep copy of ``values`` with ``new`` at ``path``."""
    copy = json.loads(json.dumps(values))
    *parents, last = path
    place = copy
    for key in parents:
        place = place[key]
    place[last] = new
    return copy


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (["genes"], []),
        (["genes"], "ABC"),
        (["genes"], ["A", "A", "B"]),
        (["genes"], ["A", 2, "B"]),
        (["columns"], None),
        (["columns", "batch_key"], 3),
        (["columns", "batch_key"], None),
        (["columns", "batch_key"], ["donor"]),
        (["columns", "labels_key"], "label"),
        (["columns", "categorical_covariate_keys"], "sex"),
        (["columns", "categorical_covariate_keys"], []),
        (["columns", "continuous_covariate_keys"], None),
        (["columns", "size_factor_key"], None),
        (["batch"], None),
        (["batch"], {"key": "donor"}),
        (["batch", "names"], []),
        (["batch", "names"], ["d1"]),
        (["batch", "names"], ["d1", "d1"]),
        (["batch", "names"], [0, 1]),
        (["categorical"], []),
        (["categorical"], None),
        (["continuous"], []),
        (["continuous"], ["age", "age"]),
        (["conditions"], {}),
        (["conditions", "codes"], [[0, 1, 0]]),
        (["conditions", "codes", 0, 0], -1),
        (["conditions", "codes", 0, 0], 2),
        (["conditions", "codes", 0, 0], 0.5),
        (["conditions", "codes", 0, 0], "0"),
        (["conditions", "codes", 0, 0], 10**30),
        (["conditions", "codes", 0], [0, 1]),
        (["conditions", "continuous", 0, 0], float("nan")),
        (["conditions", "continuous", 0, 0], "old"),
        (["conditions", "continuous", 0, 0], None),
        (["conditions", "n_cells"], []),
        (["conditions", "n_cells"], 3),
        (["conditions", "n_cells", 0], 0),
        (["conditions", "n_cells", 0], 1.5),
        (["n_cells"], "3"),
        (["n_cells"], True),
        (["n_cells"], 3.0),
        (["median_library"], None),
        (["median_library"], float("nan")),
        (["median_library"], -1.0),
        (["median_size_factor"], None),
        (["max_size_factor"], float("inf")),
    ],
)
def test_a_schema_that_was_edited(path, new):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError, OverflowError)):
        from_dict(replaced(to_dict(make_schema()), path, new))


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Schema) if f.name != "continuous_range"])
def test_a_field_that_is_missing(field):
    values = to_dict(make_schema())
    del values[field]
    with pytest.raises(KeyError, match=field):
        from_dict(values)


def test_older_files_have_no_ranges():
    schema = dataclasses.replace(make_schema(), continuous_range=tuple((0.0, 1.5) for _ in make_schema().continuous))
    values = to_dict(schema)
    assert from_dict(values).continuous_range == schema.continuous_range
    del values["continuous_range"]
    assert from_dict(values).continuous_range is None
    n = len(schema.continuous)
    for wrong in ([[0, 1]] * (n + 1), [[1, 0]] * n, [[0, float("nan")]] * n, [["0", "1"]] * n, [0.0] * n, 3):
        with pytest.raises((TypeError, ValueError)):
            from_dict(values | {"continuous_range": wrong})


def labelled_schema(unlabeled="unknown"):
    columns = Columns(labels_key="type", unlabeled_category=unlabeled)
    conditions = tabulate_conditions(np.array([[0, 0], [0, 2]]), np.zeros((2, 0)))
    changes = {"batch": None, "categorical": (), "continuous": (), "conditions": conditions}
    factors = {"median_size_factor": None, "max_size_factor": None}
    labels = Category("type", ("B", "T", "unknown"))
    return make_schema(columns=columns, labels=labels, **changes, **factors)


def test_the_unlabelled_category_is_no_class():
    schema = labelled_schema()
    assert (schema.n_labels, schema.n_classes, schema.n_levels[-1]) == (3, 2, 3)
    assert labelled_schema(None).n_classes == 3
    assert make_schema().n_classes == 1
    assert_same(from_dict(json.loads(json.dumps(to_dict(schema)))), schema)
    older = to_dict(labelled_schema(None))
    del older["columns"]["unlabeled_category"]  # as it was before there were such models
    assert_same(from_dict(older), labelled_schema(None))


@pytest.mark.parametrize("edited", ["T", "none", 3])
def test_an_unlabelled_category_that_is_not_the_last_label(edited):
    with pytest.raises(ValueError, match="unlabeled_category: not as scdecode writes it"):
        from_dict(replaced(to_dict(labelled_schema()), ["columns", "unlabeled_category"], edited))
