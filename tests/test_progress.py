"""What is said of things that take long: once, where somebody looks, and not where they are done soon."""

import threading
from typing import ClassVar

import pytest
import rich.console

from scdecode.progress import notice


class Terminal:
    """A console that keeps what is printed."""

    is_terminal, is_jupyter = True, False
    made: ClassVar[list] = []

    def __init__(self, *, stderr):
        assert stderr
        self.printed, self.said = [], threading.Event()
        self.made.append(self)

    def print(self, *words):
        self.printed.append(words)
        self.said.set()


@pytest.fixture
def console(monkeypatch):
    """The class of the consoles, those made, and whether it is a terminal or a notebook."""
    monkeypatch.setattr(Terminal, "made", [])
    monkeypatch.setattr(rich.console, "Console", Terminal)
    return Terminal


def timers():
    return [one for one in threading.enumerate() if isinstance(one, threading.Timer)]


def test_what_is_slow_is_said_once(console):
    with notice("a long story", after=0.01):
        (one,) = console.made
        assert one.said.wait(30)
        threading.Event().wait(0.05)  # five times as long again
    assert one.printed == [("a long story",)]


def test_nothing_of_what_is_fast(console):
    before = timers()
    with notice("a long story", after=60):
        assert len(timers()) == len(before) + 1
        assert all(one.daemon for one in timers())  # nothing waits for it where the process ends
    for one in set(timers()) - set(before):
        one.join(30)
    assert set(timers()) <= set(before)
    assert console.made[0].printed == []


def test_nothing_after_an_error(console):
    before = timers()
    with pytest.raises(ValueError, match="broken"), notice("a long story", after=60):
        raise ValueError("broken")
    for one in set(timers()) - set(before):
        one.join(30)
    assert set(timers()) <= set(before) and console.made[0].printed == []


@pytest.mark.parametrize("notebook", [False, True])
def test_where_nobody_looks_nothing_is_said(monkeypatch, console, notebook):
    monkeypatch.setattr(Terminal, "is_terminal", False)
    monkeypatch.setattr(Terminal, "is_jupyter", notebook)
    with notice("a long story", after=0.01):
        assert console.made[0].said.wait(30 if notebook else 0.1) == notebook
    assert len(console.made[0].printed) == notebook


def test_in_a_pipe_nothing_is_written(capfd, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with notice("a long story", after=0.01):
        threading.Event().wait(0.1)
    assert capfd.readouterr() == ("", "")
