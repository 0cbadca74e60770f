"""Tables of pandas without pandas: what pandas itself says of them, and nothing where they are not as expected."""

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from scdecode.formats import frames
from scdecode.formats.archives import read_archive
from scdecode.formats.frames import frame_of, history_of
from scdecode.formats.pickles import Captured, read_only_pickle

MODELS = Path(os.environ.get("SCDECODE_MODELS") or Path(__file__).parents[2] / "shared" / "models")
realdata = pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models in {MODELS}")

FRAMES = {
    "one column": pd.DataFrame({"elbo_train": [1.5, 2.5]}, index=pd.RangeIndex(2, name="epoch")),
    "numbered index": pd.DataFrame({"elbo_train": [1.5, 2.5]}, index=pd.Index([3, 7], name="epoch")),
    "two dtypes": pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": [3, 4]}),
    "objects": pd.DataFrame({"a": [1.5, None]}, dtype=object),
    "truth": pd.DataFrame({"a": [True, False]}),
    "single precision": pd.DataFrame({"a": np.float32([1.5, 2.5])}),
    "many columns": pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=list("abcd")),
    "no rows": pd.DataFrame({"a": np.array([], dtype=float)}),
    "no columns": pd.DataFrame(index=[1, 2]),
}


def read(value, protocol=2):
    return read_only_pickle(pickle.dumps(value, protocol), "model.pt")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", FRAMES)
def test_columns_are_those_of_pandas(name, protocol):
    expected = FRAMES[name]
    columns = frame_of(read(expected, protocol))
    assert columns is not None
    assert list(columns) == list(expected)
    for column, values_n in columns.items():
        np.testing.assert_array_equal(values_n, expected[column].to_numpy())
        assert values_n.dtype == expected[column].dtype


def test_what_is_no_table_of_numbers_by_name_is_none():
    for value in (
        None,
        3,
        [],
        Captured("pandas.core.frame.DataFrame"),
        read(pd.Series([1.5])),
        read(pd.DataFrame({1: [1.5]})),  # a column without a text
        read(pd.DataFrame({"a": ["x", "y"]}).astype("category")),
        read(pd.DataFrame([[1, 2]], columns=["a", "a"])),
    ):
        assert frame_of(value) is None


def test_history_has_a_number_for_each_epoch():
    history = {
        "elbo_train": pd.DataFrame({"elbo_train": [3.0, 2.0, 1.0]}, index=pd.RangeIndex(3, name="epoch")),
        "elbo_validation": pd.DataFrame({"elbo_validation": [5.0]}, index=pd.Index([1], name="epoch")),
        "mixed": pd.DataFrame({"mixed": [1, None, np.float32(2.5)]}, dtype=object),
        "tensors": [torch.tensor(1.0), torch.tensor([2.0]), np.array(3)],
    }
    expected = {
        "elbo_train": [3.0, 2.0, 1.0],
        "elbo_validation": [np.nan, 5.0, np.nan],
        "mixed": [1.0, np.nan, 2.5],
    }
    found = history_of(read({key: history[key] for key in expected}))
    assert list(found) == list(expected)
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])
    assert history_of({"tensors": history["tensors"]}) == {"tensors": [1.0, 2.0, 3.0]}


def test_history_of_lists_as_before_version_0_9():
    assert history_of({"elbo_train": [2.0, 1], "elbo_test": [3.0, 2.0]}) == {
        "elbo_train": [2.0, 1.0],
        "elbo_test": [3.0, 2.0],
    }


def test_what_cannot_be_told_is_left_out():
    steps = pd.DataFrame({"loss": np.arange(100.0)}, index=pd.RangeIndex(100, name="step"))
    odd = {
        "steps": steps,
        "text": pd.DataFrame({"a": ["x"]}),
        "two columns": pd.DataFrame({"a": [1.0], "b": [1.0]}),
        "twice": pd.DataFrame({"a": [1.0, 2.0]}, index=[0, 0]),
        "fractions": pd.DataFrame({"a": [1.0, 2.0]}, index=[0.5, 1.0]),
        "nested": [[1.0]],
        "huge": [2**1000 * 10**20],
        "words": ["a"],
        "number": 3,
        3: [1.0],
    }
    read_odd = {key: read(value) if isinstance(value, pd.DataFrame) else value for key, value in odd.items()}
    assert history_of({**read_odd, "good": [1.5]}) == {"good": [1.5]}
    for value in (None, 3, [], "x", read(steps)):
        assert history_of(value) == {}


def test_histories_far_larger_than_their_numbers_are_left_out(monkeypatch):
    wide = {str(i): read(pd.DataFrame({"a": [1.0]}, index=pd.Index([i], name="epoch"))) for i in range(4)}
    assert len(history_of(wide)) == 4
    monkeypatch.setattr(frames, "_MOST_NUMBERS", 15)
    assert history_of(wide) == {}


def test_tables_of_any_parts_are_no_error():
    """Parts of a captured table replaced by others, one after the other."""
    frame = pd.DataFrame({"a": [1.5, 2.5]}, index=pd.RangeIndex(2, name="epoch"))
    whole = read(frame)
    others = [
        None,
        3,
        "a",
        [],
        (),
        {},
        np.arange(3),
        np.array(1.0),
        slice(0, 2**62, 1),
        slice("a"),
        Captured("x"),
        b"a",
    ]
    others += [
        np.array([], dtype=object),
        [np.arange(2)],
        torch.tensor(1.0),
        Captured("x", (1, 2)),
        whole,
        (1, 2),
        [[], []],
    ]
    n_tried = 0

    def replaced(node, change, path=()):
        """The value with the part at a path replaced."""
        if not path:
            return change
        first, rest = path[0], path[1:]
        if isinstance(node, Captured):
            args, state = node.args, node.state
            if first == "args":
                args = replaced(args, change, rest)
            else:
                state = replaced(state, change, rest)
            return Captured(node.name, args, state)
        if isinstance(node, dict):
            return {key: replaced(part, change, rest) if key == first else part for key, part in node.items()}
        return type(node)(replaced(part, change, rest) if i == first else part for i, part in enumerate(node))

    def paths(node, path=()):
        yield path
        if isinstance(node, Captured):
            yield from paths(node.args, (*path, "args"))
            yield from paths(node.state, (*path, "state"))
        elif isinstance(node, dict):
            for key, part in node.items():
                yield from paths(part, (*path, key))
        elif isinstance(node, list | tuple):
            for i, part in enumerate(node):
                yield from paths(part, (*path, i))

    for path in paths(whole):
        for other in others:
            changed = replaced(whole, other, path)
            frame_of(changed)
            history_of({"a": changed, "b": other})
            n_tried += 1
    assert n_tried > 500


@realdata
@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "epochs", "first"),
    [
        ("SCVI-0.16.1-pancreas", 3, {"train_loss_step": 599.3184204101562, "elbo_train": 805.8103637695312}),
        ("SCANVI-1.0.3", 1, {"elbo_train": 339.1617126464844, "kl_global_train": 0.0}),
        ("TOTALVI-1.3.2-unsupported", 1, {"elbo_validation": 81363.0234375, "elbo_train": 82539.3984375}),
    ],
)
def test_histories_of_real_models(folder, epochs, first):
    history = read_archive(MODELS / folder / "model.pt")["attr_dict"]["history_"]
    found = history_of(history)
    assert {len(column) for column in found.values()} == {epochs}
    assert set(found) == set(history) - {"lr-Adam"}  # counted in steps
    for key, number in first.items():
        assert found[key][0] == number
    for key, table in history.items():
        columns = frame_of(table)
        assert columns is not None
        assert list(columns) == [key]
