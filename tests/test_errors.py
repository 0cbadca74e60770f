"""The exception tree, the parts that messages are made of, and where warnings point."""

import inspect
import warnings

import pytest

from scdecode import errors
from scdecode.errors import (
    ConditionWarning,
    ConfigError,
    check_choice,
    check_integer,
    check_number,
    listing,
    missing_extra,
    suggestion,
    unknown_name,
    warn,
)


def exported(kind):
    return {name: c for name, c in vars(errors).items() if inspect.isclass(c) and issubclass(c, kind)}


def test_the_tree_is_the_one_that_is_drawn():
    drawn = [
        line.split()[0]
        for line in errors.__doc__.replace("│", " ").replace("├──", "").replace("└──", "").split("\n")
        if line.strip()
    ]
    for name in exported(Exception):
        assert drawn.count(name) == 1, name


def test_every_error_has_the_one_root_and_a_builtin_kind():
    builtin = {
        "InputError": ValueError,
        "PointsError": ValueError,
        "CountsError": ValueError,
        "ConditionError": ValueError,
        "ConfigError": ValueError,
        "NotTrainedError": RuntimeError,
        "TrainingError": RuntimeError,
        "FormatError": ValueError,
        "CorruptModelError": errors.FormatError,
        "NewerFormatError": errors.FormatError,
        "ForeignModelError": errors.FormatError,
        "UnsafeModelError": errors.FormatError,
        "OutputError": OSError,
        "MissingExtraError": ImportError,
    }
    raised = {name: c for name, c in exported(Exception).items() if not issubclass(c, Warning)}
    assert set(raised) == {"ScdecodeError", *builtin}
    for name, kind in builtin.items():
        assert issubclass(raised[name], kind)
        assert issubclass(raised[name], errors.ScdecodeError)


def test_warnings_are_user_warnings():
    assert set(exported(Warning)) == {
        "ScdecodeWarning",
        "SupportWarning",
        "ConditionWarning",
        "CountsWarning",
        "TrainingWarning",
        "ConvergenceWarning",
    }
    assert all(issubclass(c, UserWarning) for c in exported(Warning).values())


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "[]"),
        (["a"], "['a']"),
        (range(3), "[0, 1, 2]"),
        ((n for n in "abc"), "['a', 'b', 'c']"),
        (range(10), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"),
        (range(11), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... and 1 more]"),
        (range(5010), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... and 5,000 more]"),
    ],
)
def test_listing(names, text):
    assert listing(names) == text


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("donor1", "donor_1"),
        ("Donor 1", "donor_1"),
        ("DONOR-2", "donor_2"),
        ("donor_1", "donor_1"),
        ("zzz", None),
        (3, None),
        ("", None),
    ],
)
def test_suggestion(name, near):
    assert suggestion(name, ["donor_1", "donor_2"]) == ("" if near is None else f"; did you mean {near!r}?")


def test_an_unknown_name_has_place_value_choices_and_remedy():
    message = unknown_name("batch", "donor1", ["donor_1", "donor_2"], "training batches")
    expected = "batch: 'donor1' is not one of the 2 training batches ['donor_1', 'donor_2']; did you mean 'donor_1'?"
    assert message == expected


def test_an_unknown_name_where_there_are_none():
    assert unknown_name("layer", "counts", [], "layers") == "layer: 'counts' was given, but there are no layers"


def test_choices():
    check_choice("use", "a", ("a", "b"))
    with pytest.raises(ConfigError, match=r"use: 'c' is not one of the 2 choices \['a', 'b'\]"):
        check_choice("use", "c", ("a", "b"))


@pytest.mark.parametrize("value", [1, 2, 10**30])
def test_integers(value):
    check_integer("n", value, 1)


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True, float("nan"), [1]])
def test_no_integers(value):
    with pytest.raises(ConfigError, match=r"^n: .* came, a whole number of at least 1 was expected"):
        check_integer("n", value, 1)


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 1, 1.0])
def test_numbers(value):
    check_number("p", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [-0.1, 1.1, "0.5", None, True, float("nan"), 1j])
def test_no_numbers(value):
    with pytest.raises(ConfigError, match=r"^p: .* came, a number of at least 0.0 and at most 1.0 was expected"):
        check_number("p", value, 0.0, 1.0)


def test_an_open_minimum_is_not_allowed():
    with pytest.raises(ConfigError, match="a number above 0 was expected"):
        check_number("lr", 0.0, 0, open_minimum=True)


def test_a_missing_extra_has_its_install_line():
    error = missing_extra("matplotlib", "plot", "a picture")
    assert isinstance(error, ImportError)
    assert "pip install 'scdecode[plot]'" in str(error)


def test_a_warning_points_at_the_line_of_the_user():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn("look here", ConditionWarning)
    assert caught[0].filename == __file__


def test_a_warning_from_deep_inside_points_at_the_line_of_the_user(adata):
    import scdecode as sd

    adata.obs["barcode"] = [f"cell {i}" for i in range(adata.n_obs)]
    sd.SCVI.setup_anndata(adata, batch_key="barcode")
    with pytest.warns(ConditionWarning, match="300 levels for 300 cells") as caught:
        sd.SCVI(adata, n_latent=2, n_hidden=4)
    assert [w.filename for w in caught] == [__file__]
