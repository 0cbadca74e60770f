"""Work shared among our own threads: each part once, errors in the caller, and nothing left running."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdecode.kernels.threads import in_background, n_threads, own_threads, side_by_side


@contextmanager
def sharing(n):
    """Work is shared among ``n`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with own_threads():
            yield
    finally:
        torch.set_num_threads(before)


def stretches_of(n, **options):
    found = []
    side_by_side(lambda first, last: found.append((first, last)), n, **options)
    return sorted(found)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(0, 300),
    n_parts=st.integers(1, 5),
    least=st.integers(1, 320),
    piece=st.none() | st.integers(1, 320),
)
def test_each_number_is_in_one_stretch(n, n_parts, least, piece):
    with sharing(n_parts):
        found = stretches_of(n, least=least, piece=piece)
    assert [i for first, last in found for i in range(first, last)] == list(range(n))
    if piece is None:
        assert len(found) <= n_parts
        assert all(last - first >= min(least, n) for first, last in found)
    elif len(found) > 1:
        assert all(last - first == piece for first, last in found[:-1])


def test_alone_without_own_threads():
    assert n_threads() == 1
    seen = []
    side_by_side(lambda first, last: seen.append((first, last, threading.get_ident())), 100)
    assert seen == [(0, 100, threading.get_ident())]
    pending = in_background(threading.get_ident)
    assert pending.result() == threading.get_ident()  # done at once


def test_several_threads_take_part_at_once():
    meeting = threading.Barrier(3, timeout=30)  # it breaks unless three are there
    with sharing(3):
        side_by_side(lambda first, last: meeting.wait(), 3)


def test_within_each_thread_torch_computes_alone_and_without_gradients():
    meeting, seen = threading.Barrier(2, timeout=30), []

    def part(first, last):
        meeting.wait()
        seen.append((threading.current_thread() is here, torch.get_num_threads(), torch.is_grad_enabled()))

    here = threading.current_thread()
    with sharing(2):
        side_by_side(part, 2)
    assert sorted(seen) == [(False, 1, False), (True, 1, True)]


def failing(where, meeting, finished, error):
    """A part that fails in the caller, in another thread or in both, and otherwise ends later."""

    def part(first, last):
        meeting.wait()
        mine = threading.current_thread() is threading.main_thread()
        if where == "both" or mine == (where == "caller"):
            raise error(threading.current_thread().name)
        threading.Event().wait(0.05)
        finished.append(first)

    return part


@pytest.mark.parametrize("piece", [None, 1])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["caller", "another", "both"])
def test_an_error_is_raised_once_all_have_stopped(where, error, piece):
    finished = []
    with sharing(2), pytest.raises(error) as raised:
        side_by_side(failing(where, threading.Barrier(2, timeout=30), finished, error), 2, piece=piece)
    assert len(finished) == (where != "both")
    if where != "another":
        assert str(raised.value) == threading.current_thread().name
    with sharing(2):  # and the threads are as good as before
        assert [i for first, last in stretches_of(10) for i in range(first, last)] == list(range(10))


needs_signals = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads here")


@pytest.mark.usefixtures("interrupts")
@needs_signals
def test_an_interrupt_while_waiting_for_another_thread():
    """No thread may write into the caller's arrays once the caller has been left."""
    meeting, finished = threading.Barrier(2, timeout=30), []

    def part(first, last):
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            threading.Event().wait(0.05)  # until the caller waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            threading.Event().wait(0.3)
            finished.append(first)

    with sharing(2), pytest.raises(KeyboardInterrupt):
        side_by_side(part, 2)
    assert finished


def test_shared_within_shared():
    """Within a part of the caller work is shared again, within that of another thread it is not; it is all done."""
    counts = np.zeros((6, 50), np.int64)

    def outer(first, last):
        for row in range(first, last):

            def inner(start, stop, row=row):
                counts[row, start:stop] += 1

            side_by_side(inner, 50, piece=4)

    with sharing(3):
        side_by_side(outer, 6)
        side_by_side(outer, 6, piece=1)
    assert (counts == 2).all()


def test_in_background_another_thread_computes():
    with sharing(2):
        here, go = threading.get_ident(), threading.Event()
        waiting = in_background(lambda: (go.wait(30), threading.get_ident()))
        go.set()  # were it done here, it would not have come so far
        was_set, there = waiting.result()
        assert was_set and there != here
        assert waiting.result() == (was_set, there)  # as often as asked
        failed = in_background(lambda: 1 / 0)
        failed.wait()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                failed.result()
    failed = in_background(lambda: 1 / 0)  # there is no other thread, and the error is kept all the same
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_within_again_and_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with own_threads():
            assert (n_threads(), torch.get_num_threads()) == (3, 1)
            with own_threads():
                assert (n_threads(), torch.get_num_threads()) == (3, 1)
            assert (n_threads(), torch.get_num_threads()) == (3, 1)
        assert (n_threads(), torch.get_num_threads()) == (1, 3)
        with pytest.raises(KeyError), own_threads():
            raise KeyError
        assert (n_threads(), torch.get_num_threads()) == (1, 3)
        torch.set_num_threads(1)
        with own_threads():
            assert (n_threads(), torch.get_num_threads()) == (1, 1)
    finally:
        torch.set_num_threads(before)


def add_up(n_times=40):
    """Sums of stretches, computed again and again by two threads; what each should be is known."""
    found = []
    with sharing(2):
        for i in range(n_times):
            sums = np.zeros(64)

            def part(first, last, sums=sums, i=i):
                for j in range(first, last):
                    sums[j] = i + float(torch.ones(10, 10).mm(torch.ones(10, 10)).sum()) * j

            side_by_side(part, 64, piece=8)
            found.append(sums.tolist() == [i + 1000.0 * j for j in range(64)])
    return found


def test_two_threads_of_the_callers_share_at_once():
    found, errors, together = {}, [], threading.Barrier(2, timeout=30)

    def run(name):
        try:
            torch.get_num_threads()  # a new thread takes torch's last number for its own at its first question
            torch.set_num_threads(2)
            together.wait()
            found[name] = (add_up(), torch.get_num_threads(), n_threads())
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert not errors
    assert all(all(right) for right, *_ in found.values())
    assert {name: rest for name, (_, *rest) in found.items()} == {"a": [2, 1], "b": [2, 1]}


def _in_a_fork(answers):
    names = sorted(one.name for one in threading.enumerate())
    answers.put((all(add_up(3)), n_threads(), names))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork():
    assert all(add_up(3))  # there are threads, which the fork has not
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_in_a_fork, args=(answers,), daemon=True)
    process.start()
    try:
        right, n, names = answers.get(timeout=60)
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert right and n == 1
    assert not any(name == "scdecode-kernels" for name in names)  # before the work began anew
    assert all(add_up(3))
