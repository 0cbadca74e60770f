"""Every public function, with one hostile argument at a time: an error of ours, at once, or a right result."""

import inspect
import os

import matplotlib as mpl
import pytest
from hostile_calls import RESULTS, SLOW, Bench, run
from hostile_values import public
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

mpl.use("Agg")

DEEP = os.environ.get("SCDECODE_HOSTILE", "")
"""A part of the names of the functions to try with every value, one by one, as in ``SCDECODE_HOSTILE=SCVI.decode``."""

N_EXAMPLES = 700
"""Calls in ``make test``: some 12 seconds, and as much for the models; the deep run makes all 90,000."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, so deep that no relative path leaves the test's own."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    yield folder
    plt.close("all")


@pytest.fixture(scope="module")
def tries(bench):
    """Every argument of every public function, by name; a method that classes share is one."""
    found, seen = {}, set()
    for name, (function, bound, good, parameters) in bench.calls().items():
        if function in seen:
            continue
        seen.add(function)
        found |= {
            f"{name}({'**' if p.kind is p.VAR_KEYWORD else ''}{p.name})": (function, bound, good, p) for p in parameters
        }
    return found


def tried(bench, tries, at, label, folder):
    """Return what is wrong with a hostile call, or nothing."""
    function, bound, good, parameter = tries[at]
    if (function.__name__, parameter.name, label) in SLOW:
        return None
    name = "abracadabra" if parameter.kind is parameter.VAR_KEYWORD else parameter.name
    before = set(folder.iterdir())
    wrong = run(function, bound, {**good, name: bench.values[label]})
    plt.close("all")
    left = [path.name for path in set(folder.iterdir()) - before if function.__name__ not in ("save", "convert")]
    wrong = f"files left: {left}" if left and not wrong else wrong
    return f"{at} = {label}: {wrong}" if wrong else None


@pytest.mark.parametrize("name", sorted(public()))
def test_every_public_function_is_checked(name):
    function, kind = public()[name]
    made = kind is not None and kind.__name__ in RESULTS and name.endswith(".__init__")
    takes = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    assert made or not takes or hasattr(function, "__checked__"), f"decorate {name} with @checked"


def test_every_public_function_has_good_arguments(bench):
    made = {f"{kind}.__init__" for kind in RESULTS}
    assert set(bench.calls()) == {name for name in public() if name not in made}


@pytest.mark.slow
@pytest.mark.skipif(not DEEP, reason="a tool for new functions: their good arguments")
def test_good_arguments_are_taken(bench, workplace):
    wrong = {
        name: run(function, bound, good, allowed=())
        for name, (function, bound, good, _) in bench.calls().items()
        if DEEP in name
    }
    assert {name: text for name, text in wrong.items() if text} == {}


def test_one_hostile_argument(bench, tries, workplace):
    """At most one argument is hostile, so that it is looked at, and not what stands before it."""

    @seed(0)
    @settings(max_examples=N_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(tries)), st.sampled_from(sorted(bench.values)))
    def check(at, label):
        assert tried(bench, tries, at, label, workplace) is None

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in sorted(public()) if DEEP and DEEP in name])
def test_every_hostile_argument(bench, tries, workplace, name):
    """With ``SCDECODE_HOSTILE`` set; some fifteen minutes for all functions."""
    chosen = [at for at in tries if at.startswith(f"{name}(")]
    wrong = [text for at in chosen for label in bench.values if (text := tried(bench, tries, at, label, workplace))]
    assert wrong == []
