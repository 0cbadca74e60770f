"""Every public function, with one hostile argument at a time: an error of ours, at once, or a right result."""

import inspect
import os
from collections import Counter

import matplotlib as mpl
import pytest
from hostile_calls import RESULTS, Bench, run
from hostile_values import public, values
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

mpl.use("Agg")

DEEP = os.environ.get("SCDECODE_HOSTILE", "")
"""A part of the names of the functions to try with every value, one by one, as in ``SCDECODE_HOSTILE=SCVI.decode``."""


AT_ZERO = ("simulate_branching(", "Config.__init__(")
"""Functions that the fuzz finds nothing raw in; SCDECODE_HOSTILE tries the others, which still raise raw errors."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def tries(bench):
    """Every argument of every public function, by name."""
    return {
        f"{name}({'**' if p.kind is p.VAR_KEYWORD else ''}{p.name})": (function, bound, good, p)
        for name, (function, bound, good, parameters) in bench.calls().items()
        for p in parameters
    }


def tried(bench, tries, at, label):
    """Return what is wrong with a hostile call, or nothing."""
    function, bound, good, parameter = tries[at]
    name = "abracadabra" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
    value = values(bench.scvi, bench.adata, bench.path)[label]
    wrong = run(function, bound, {**good, name: value})
    return f"{at} = {label}: {wrong}" if wrong else None


@pytest.mark.parametrize("name", sorted(public()))
def test_every_public_function_is_checked(name):
    function, kind = public()[name]
    made = kind is not None and kind.__name__ in RESULTS and name.endswith(".__init__")
    takes = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    assert made or not takes or hasattr(function, "__checked__"), f"decorate {name} with @checked"


@pytest.mark.skipif(not DEEP, reason="a tool for new functions: their good arguments")
def test_good_arguments_are_taken(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {name: run(function, bound, good) for name, (function, bound, good, _) in bench.calls().items()}
    assert {name: text for name, text in wrong.items() if text} == {}


def test_one_hostile_argument(bench, tries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = sorted(values(bench.scvi, bench.adata, bench.path))

    clean = [at for at in sorted(tries) if any(part in at for part in AT_ZERO)]

    @seed(0)
    @settings(max_examples=600, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(clean), st.sampled_from(labels))
    def check(at, label):
        assert tried(bench, tries, at, label) is None

    check()


@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="SCDECODE_HOSTILE names the functions to try with every value")
def test_every_hostile_argument(bench, tries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = sorted(values(bench.scvi, bench.adata, bench.path))
    wrong = [text for at in tries if DEEP in at for label in labels if (text := tried(bench, tries, at, label))]
    assert Counter(wrong) == {}
