"""Progress of slow calls: in a terminal, a notebook, a file; nested, silenced, and not at all where they are fast."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from small_models import make_adata, make_model

import scdecode as sd
from scdecode._utils import logs
from scdecode._utils import progress as module
from scdecode._utils.logs import logger
from scdecode._utils.progress import counting_progress, notice, progress, tracked, training_progress
from scdecode.errors import ConfigError


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Stream(io.StringIO):
    """Standard error that may be a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    def last(self):
        """The last line, without the codes of the terminal."""
        return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.getvalue()).replace("\r", "\n").strip().splitlines()[-1]

    def __enter__(self):  # within the test, as pytest sets its own between fixtures and test
        self.before, sys.stderr = sys.stderr, self
        return self

    def __exit__(self, *_):
        sys.stderr = self.before


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def alone(monkeypatch):
    """No other handlers than ours, as in a script; pytest has its own at the root."""
    monkeypatch.setattr(logs, "_shown_elsewhere", lambda: False)


@pytest.fixture
def file(monkeypatch, alone):
    """Standard error in a file."""
    return Stream(terminal=False)


@pytest.fixture
def terminal(monkeypatch, alone):
    """Standard error in a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Stream(terminal=True)


@pytest.fixture(autouse=True)
def verbosity():
    before = logger.level
    yield
    logger.setLevel(before)


def test_a_training_in_a_file_is_a_line_every_tenth_and_a_last_one(file, clock):
    with file, training_progress(enabled=True) as show:
        for epoch in range(1, 401):
            clock.now += 0.1
            show(epoch, 400, {"elbo_train": 1234.56, "elbo_validation": 1300.0})
    lines = file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == ("training: 40/400 epochs (10%), train 1,234.6, validation 1,300.0, 4.0 s, about 36 s left")
    assert lines[-1] == "training: 400/400 epochs (100%), train 1,234.6, validation 1,300.0, 40 s"


def test_a_slow_training_is_a_line_each_half_minute(file, clock):
    with file, training_progress(enabled=True) as show:
        for epoch in range(1, 6):
            clock.now += 31
            show(epoch, 1000, {"elbo_train": 1.0})
        clock.now += 1
        show(6, 1000, {"elbo_train": 1.0})
    assert [line.split(" (")[0] for line in file.getvalue().splitlines()] == [
        f"training: {n}/1,000 epochs" for n in range(1, 7)
    ]


def test_what_is_done_at_once_says_nothing(file, clock):
    with file, counting_progress("decoding", 100, unit="points") as add:
        for _ in range(10):
            clock.now += 0.09
            add(10)
    assert file.getvalue() == ""


def test_what_takes_longer_says_so(file, clock):
    with file, counting_progress("decoding", 100, unit="points") as add:
        for _ in range(4):
            clock.now += 0.6
            add(25)
    lines = file.getvalue().splitlines()
    assert lines == [
        "decoding: 50/100 points (50%), 1.2 s, about 1.2 s left",
        "decoding: 75/100 points (75%), 1.8 s, about 0.6 s left",
        "decoding: 100/100 points (100%), 2.4 s",
    ]


def test_how_many_there_are_may_be_unknown(file, clock):
    with file, counting_progress("searching", None, unit="steps") as add:
        for _ in range(3):
            clock.now += 20
            add(1)
    assert file.getvalue().splitlines() == ["searching: 2 steps, 40 s", "searching: 3 steps, 1 min 0 s"]


def test_a_call_inside_another_says_nothing_of_its_own(file, clock):
    with file, progress("outer", after=0) as show:
        for _ in tracked(range(3), "inner"):
            clock.now += 40
        show(1, 1, "")
    with file:
        for _ in tracked(range(2), "later"):
            clock.now += 40
    titles = {line.split(":")[0] for line in file.getvalue().splitlines()}
    assert titles == {"outer", "later"}


def test_an_error_frees_the_place(file, clock):
    def broken():
        with file, progress("first", after=0) as show:
            show(1, 4, "")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    with file, progress("second", after=0) as show:
        show(1, 1, "")
    assert [line.split(",")[0] for line in file.getvalue().splitlines()] == [
        "first: 1/4 (25%)",
        "second: 1/1 (100%)",
    ]


@pytest.mark.parametrize("how", ["enabled", "verbosity", "number", "level"])
def test_it_can_be_left_out(file, clock, how):
    if how == "level":
        logging.getLogger("scdecode").setLevel(logging.WARNING)
    elif how != "enabled":
        sd.settings.verbosity = {"verbosity": "warning", "number": 0}[how]
    with file, progress("training", enabled=how != "enabled", after=0) as show:
        show(1, 2, "")
    with file, notice("slow", after=0.0):
        threading.Event().wait(0.05)
    assert file.getvalue() == ("slow\n" if how == "enabled" else "")


def test_an_application_with_logging_of_its_own_gets_the_records(clock, caplog):
    file = Stream(terminal=False)
    with file, progress("training", after=0) as show:
        show(1, 1, "")
    assert file.getvalue() == ""
    assert [(record.name, record.levelname) for record in caplog.records] == [("scdecode", "INFO")]


def test_a_bar_in_a_terminal_stays(terminal, clock):
    with terminal, training_progress(enabled=True) as show:
        for epoch in range(1, 4):
            clock.now += 1
            show(epoch, 3, {"elbo_train": 12.0})
    last = terminal.last()
    assert "training" in last and "3/3" in last and "train 12.0" in last


def test_a_narrow_terminal_has_a_bar_of_one_line(terminal, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with terminal, training_progress(enabled=True) as show:
        show(1, 400, {"elbo_train": 12345.0, "elbo_validation": 12345.0})
        show(400, 400, {"elbo_train": 12345.0, "elbo_validation": 12345.0})
    assert len(terminal.last()) <= 40
    assert "400/400" in terminal.last() and "12,345" not in terminal.getvalue()


def test_a_dumb_terminal_has_lines(terminal, clock, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal, training_progress(enabled=True) as show:
        show(1, 1, {})
    assert terminal.getvalue() == "training: 1/1 epochs (100%), 0.0 s\n"


def test_without_standard_error_nothing_fails(monkeypatch, alone):
    with training_progress(enabled=True) as show:
        monkeypatch.setattr(sys, "stderr", None)
        show(1, 1, {})


def test_a_notice_of_what_is_slow_comes_once(file):
    said = threading.Event()
    with file, notice("a long story", after=0.01):
        for _ in range(300):
            if file.getvalue():
                break
            said.wait(0.01)
        said.wait(0.05)  # five times as long again
    assert file.getvalue() == "a long story\n"


def test_no_notice_of_what_is_fast(file):
    before = set(threading.enumerate())
    with file, notice("a long story", after=60):
        own = [one for one in threading.enumerate() if one not in before]
        assert len(own) == 1 and own[0].daemon  # nothing waits for it where the process ends
    own[0].join(30)
    assert not own[0].is_alive() and file.getvalue() == ""


def test_no_notice_after_an_error(file):
    with file, pytest.raises(ValueError, match="broken"), notice("a long story", after=60):
        raise ValueError("broken")
    assert file.getvalue() == ""


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize(
    "call", ["decode", "ensemble", "counterfactual", "refit", "geodesic", "encode", "support", "generate"]
)
def test_slow_calls_show_progress(file, monkeypatch, model, call):
    monkeypatch.setitem(progress.__wrapped__.__kwdefaults__, "after", 0.0)
    adata = make_adata(60, 40)
    path = sd.Trajectory.along_pseudotime(model.posterior(adata), adata.obs["pseudotime"], n_points=5)
    calls = {
        "decode": (lambda: model.decode(path), "decoding: 5/5 points"),
        "ensemble": (lambda: sd.Ensemble([model, model]).decode([path, path]), "decoding: 5/5 points"),
        "counterfactual": (lambda: sd.counterfactual(model, path, "batch"), "comparing: 5/5 points"),
        "refit": (lambda: sd.refit(model, path, adata, pseudotime="pseudotime"), "refitting: genes: 1/1 parts"),
        "geodesic": (
            lambda: sd.geometry.geodesic(model, path.points[0], path.points[-1], max_iterations=2),
            "searching the geodesic: 2/2 steps",
        ),
        "encode": (lambda: model.get_latent_representation(adata), "encoding: 60/60 cells"),
        "support": (lambda: model.support(np.zeros((1000, 4))), "measuring support: 4/4 tiles"),
        "generate": (lambda: model.generate(7), "generating: 7/7 cells"),
    }
    do, line = calls[call]
    with file:
        do()
    assert any(one.startswith(f"{line} (100%), ") for one in file.getvalue().splitlines()), file.getvalue()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "word"),
    [
        *((word, word) for word in ("silent", "warning", "info", "debug")),
        *enumerate(("silent", "warning", "info", "debug")),
        ("INFO", "info"),
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.ERROR, "silent"),
    ],
)
def test_verbosity_by_word_number_or_level(value, word):
    sd.settings.verbosity = value
    assert sd.settings.verbosity == word
    assert repr(sd.settings) == f"Settings(verbosity={word!r})"


@pytest.mark.parametrize("value", ["loud", "", 4, -1, 1.5, True, None, ["info"], logging])
def test_another_verbosity_is_refused(value):
    before = sd.settings.verbosity
    with pytest.raises(ConfigError, match=r"verbosity: got .*expected one of"):
        sd.settings.verbosity = value
    assert sd.settings.verbosity == before


def test_other_settings_are_refused_with_what_to_do():
    with pytest.raises(AttributeError, match="did you mean 'verbosity'"):
        sd.settings.verbosty = 1
    with pytest.raises(AttributeError, match="seed="):
        sd.settings.seed = 0
    assert not hasattr(sd.settings, "num_threads")
    assert dir(sd.settings) == ["verbosity"]


# -- the real thing ----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys; sys.path[:0] = {path!r}
from small_models import make_adata, make_model
model = make_model(make_adata(60, 10), epochs=0)
model.train(20, device="cpu")
"""


def test_a_script_whose_output_is_a_file():
    code = SCRIPT.format(path=sys.path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("training: ")]
    assert 2 <= len(lines) <= 12 and lines[-1].startswith("training: 20/20 epochs (100%), train ")
    assert done.stdout == ""


def test_a_notebook_without_widgets_keeps_a_last_line():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(SCRIPT.format(path=sys.path)), nbformat.v4.new_code_cell("model")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter's own packages
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = cells[0].outputs
    # a slow machine may say that it compiles the loops, which is no warning
    assert not [one for one in outputs if one.output_type != "display_data" and "compiling" not in one.text], outputs
    (bar,) = [one.data for one in outputs if one.output_type == "display_data"]
    assert bar["text/plain"].startswith("training: 20/20 epochs (100%), train ")
    assert "<progress" in bar["text/html"]
    assert "widget" not in str(notebook.metadata) + str(outputs)
    assert "<strong>SCVI: " in cells[1].outputs[0].data["text/html"]


def test_train_says_nothing_without_progress(file):
    with file:
        make_model(make_adata(60, 10), epochs=2)
    assert file.getvalue() == ""
