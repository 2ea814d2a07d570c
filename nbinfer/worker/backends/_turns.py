"""Forward passes of several batches take turns; one that nobody waits for ends in the middle."""

from __future__ import annotations

import threading


class Abandoned(Exception):
    """Nobody waits for any row of this batch any more."""


class Turns:
    """A lock whose waiters are served in their order: threads alternate, none starves."""

    def __init__(self):
        self._changed = threading.Condition()
        self._next = self._now = 0

    def acquire(self):
        with self._changed:
            mine = self._next
            self._next += 1
            self._changed.wait_for(lambda: self._now == mine)

    def release(self):
        with self._changed:
            self._now += 1
            self._changed.notify_all()
