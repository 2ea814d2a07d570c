"""Ctrl-C and Jupyter's stop button as a message instead of an exception from nowhere.

While a run is under way in the main thread, SIGINT raises nothing: it is noted and put
into the run's mailbox, so it can never strike between a row's arrival and its being kept,
inside a lock, or while the frame is being shown. Whoever opened the guard raises at the
end. In other threads (a panel, a subshell) no signal arrives: there the guard does nothing,
unless the thread has one of its own (``stoppable``), whose ``stop()`` is its interrupt.

What this does not cover: code of the user's own between two pieces of ``engine.stream()``.
There SIGINT is Python's usual KeyboardInterrupt.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .errors import RunInterrupted

__all__ = ["Guard", "guard", "stoppable"]


class Guard:
    """Counts interrupts and passes each on to whoever listens."""

    def __init__(self) -> None:
        self.count = 0
        self.handled = 0
        self._told = 0  # those that reached a listener
        self._listeners: list[Callable[[], None]] = []

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """An interrupt, from any thread."""
        self.count += 1
        listeners = list(self._listeners)
        if listeners:
            self._told = self.count
        for listener in listeners:
            listener()

    def take(self) -> bool:
        """Whether an interrupt came that nobody has acted upon yet; from now on it is."""
        pending = self.count > self.handled
        self.handled = self.count
        return pending

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call ``listener`` at each interrupt, and at once for one that nobody was there for.

        It runs inside a signal handler: keep it small.
        """
        self._listeners.append(listener)
        try:
            if self.count > max(self.handled, self._told):
                self._told = self.count
                listener()
            yield
        finally:
            self._listeners.remove(listener)


_active: Guard | None = None
_own = threading.local()


@contextmanager
def stoppable(own: Guard) -> Iterator[None]:
    """In a thread that no signal reaches: for the length of the block ``own`` is its guard."""
    _own.guard = own
    try:
        yield
    finally:
        del _own.guard


@contextmanager
def guard() -> Iterator[Guard]:
    """Turn SIGINT into a message for the length of the block; nested guards are one.

    Raises
    ------
    RunInterrupted
        At the end of the block, if an interrupt came that nothing in it acted upon (``take``):
        one that strikes as the last row arrives must stop "Run All" like any other.
    """
    global _active
    if threading.current_thread() is not threading.main_thread():
        yield getattr(_own, "guard", None) or Guard()
        return
    if _active is not None:
        yield _active
        return
    mine = _active = Guard()
    before = signal.signal(signal.SIGINT, mine)
    try:
        yield mine
    finally:
        _active = None
        signal.signal(signal.SIGINT, before)
    if mine.take():
        raise RunInterrupted("stopped as it ended; finished rows are kept in nbinfer.last()")
