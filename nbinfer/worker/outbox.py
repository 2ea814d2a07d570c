"""Events on their way to the kernel, a few frames a second instead of one a token.

A row's first piece is written by the thread that made it: to wake another takes milliseconds
where the engine keeps every core busy, and would be added to TTFT. What follows is gathered:
up to 50 ms for pieces of text, 2 ms for finished rows. Pieces of the same row become one
event. Order is kept within a row.
"""

from __future__ import annotations

import threading
import time

from nbinfer.worker import protocol

DELTA_S = 0.050
FINISHED_S = 0.002
PROGRESS_S = 0.200


class Outbox:
    """Gathers events and writes them from one thread.

    Parameters
    ----------
    write : callable
        Takes the bytes of one frame. It may block; producers then go on.
    broken : callable
        Called once when ``write`` fails: the kernel is gone.
    """

    def __init__(self, write, broken):
        self._write = write
        self._broken = broken
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._is_broken = False
        self._events = []
        self._deltas = {}  # (run, row) -> its delta among self._events
        self._progress = {}  # run -> its latest totals
        self._due = None  # when what is gathered must leave
        self._last = 0.0
        self._last_progress = 0.0
        self._thread = threading.Thread(target=self._flush_forever, name="outbox", daemon=True)
        self._thread.start()

    def post(self, event, within=0.0):
        """Send an event at most ``within`` seconds after the last flush."""
        with self._changed:
            self._events.append(event)
            if event.get("row") is not None:
                self._deltas.pop((event["run"], event["row"]), None)
            self._schedule(within)

    def delta(self, run, row, text, tokens, first):
        """Send a piece of a row's text; a ``first`` one is written now, by the caller.

        Where somebody else is writing it goes with what is gathered next, so that of all who
        make tokens one at most waits for the kernel to read.
        """
        fresh = {"ev": "delta", "run": run, "row": row, "text": text, "tokens": tokens}
        if first and self._writing.acquire(blocking=False):
            try:
                with self._changed:
                    self._events.append(fresh)
                self._send()
            finally:
                self._writing.release()
            return
        key = (run, row)
        with self._changed:
            event = self._deltas.get(key)
            if event is None:
                self._deltas[key] = fresh
                self._events.append(fresh)
            else:
                event["text"] += text
                event["tokens"] += tokens
            self._schedule(0.0 if first else DELTA_S)

    def progress(self, run, totals):
        """Keep a run's totals; they travel a few times a second."""
        with self._changed:
            self._progress[run] = totals
            self._schedule_at(max(time.monotonic(), self._last_progress + PROGRESS_S))

    def _schedule(self, within):
        self._schedule_at(max(time.monotonic(), self._last + within) if within else 0.0)

    def _schedule_at(self, due):
        if self._due is None or due < self._due:
            self._due = due
            self._changed.notify()

    def _flush_forever(self):
        while self._wait_until_due():
            with self._writing:
                self._send()

    def _wait_until_due(self):
        """Wait until something must leave; ``False`` once nobody reads."""
        with self._changed:
            while not self._is_broken:
                left = None if self._due is None else self._due - time.monotonic()
                if left is not None and left <= 0:
                    return True
                self._changed.wait(left)
        return False

    def _gather(self):
        with self._changed:
            events, self._events, self._deltas, self._due = self._events, [], {}, None
            now = time.monotonic()
            if self._progress and now >= self._last_progress + PROGRESS_S:
                events += [{"ev": "progress", "run": r, **p} for r, p in self._progress.items()]
                self._progress = {}
                self._last_progress = now
            elif self._progress:
                self._due = self._last_progress + PROGRESS_S
            self._last = now
            return events

    def _send(self):
        """Write what is gathered. The caller holds ``_writing``: frames keep their order."""
        events = self._gather()
        if not events or self._is_broken:
            return
        try:
            self._write(protocol.pack({"events": events}))
        except (OSError, ValueError):
            self._is_broken = True
            self._broken()
