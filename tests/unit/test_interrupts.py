"""SIGINT as a message."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from nbinfer import RunInterrupted, interrupts
from nbinfer.interrupts import Guard, guard, stoppable


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.001)  # the handler runs between two instructions


@pytest.fixture(autouse=True)
def _as_before():
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before
    assert interrupts._active is None


def test_an_interrupt_raises_nothing_and_is_counted():
    with guard() as held:
        ctrl_c()
        ctrl_c()
        assert held.count == 2
        assert held.take()
        assert not held.take()


def test_listeners_are_told_each_time():
    told = []
    with guard() as held:
        with held.listening(lambda: told.append("a")):
            ctrl_c()
            with held.listening(lambda: told.append("b")):
                ctrl_c()
        ctrl_c()
        held.take()
    assert told == ["a", "a", "b"]


def test_an_interrupt_that_nobody_took_raises_at_the_end():
    reached = False
    with pytest.raises(RunInterrupted, match="stopped as it ended"), guard():
        ctrl_c()
        reached = True
    assert reached


def test_one_that_was_taken_does_not():
    with guard() as held:
        ctrl_c()
        assert held.take()


def test_one_after_the_last_was_taken_does():
    with pytest.raises(RunInterrupted), guard() as held:
        ctrl_c()
        held.take()
        ctrl_c()


def test_nested_guards_are_one():
    with guard() as outer:
        with guard() as inner:
            assert inner is outer
            ctrl_c()
        assert outer.take()  # the inner block's end did not raise


def test_an_error_of_the_block_comes_first():
    with pytest.raises(ValueError, match="mine"), guard():
        ctrl_c()
        raise ValueError("mine")


def test_outside_of_it_ctrl_c_is_pythons_own():
    with guard():
        pass
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
        time.sleep(1)


def test_a_handler_of_the_users_own_comes_back():
    told = []
    before = signal.signal(signal.SIGINT, lambda *_: told.append(1))
    try:
        with guard() as held:
            ctrl_c()
            assert held.take()
        assert told == []
        ctrl_c()
        assert told == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_does_nothing():
    seen = []

    def work() -> None:
        handler = signal.getsignal(signal.SIGINT)
        with guard() as held:
            seen.append((isinstance(held, Guard), signal.getsignal(signal.SIGINT) is handler))
            seen.append(interrupts._active)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, True), None]


def test_a_guard_in_another_thread_leaves_the_main_threads_alone():
    def work() -> None:
        with guard() as other:
            others.append(other)

    others: list[Guard] = []
    with guard() as held:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert others[0] is not held
        ctrl_c()
        assert held.take()
        assert not others[0].take()


def test_a_listener_is_told_of_one_that_nobody_was_there_for():
    told = []
    with guard() as held:
        ctrl_c()
        with held.listening(lambda: told.append("late")):
            pass
        held.take()
        with held.listening(lambda: told.append("never")):
            pass
    assert told == ["late"]


def test_a_thread_may_have_a_guard_of_its_own():
    mine, told, left = Guard(), [], threading.Event()

    def work():
        with stoppable(mine), guard() as held, held.listening(lambda: told.append("stop")):
            assert held is mine
            left.wait(5)
            assert held.take()
        with guard() as other:  # after the block it has none
            assert other is not mine

    thread = threading.Thread(target=work)
    thread.start()
    with guard() as held:
        assert held is not mine
        mine.stop()
        assert not held.take()
    left.set()
    thread.join()
    assert set(told) == {"stop"}
