"""What a panel's buttons ask for: done one after another, beside the kernel.

A handler only puts work here and returns. The thread lives while there is work, so an idle
panel has none. Work runs under a guard of its own, whose ``stop()`` means to it what the
kernel's interrupt means to a cell: finished rows are kept and the model stays loaded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import brief_traceback
from ...interrupts import Guard, stoppable

__all__ = ["Job", "Jobs"]

# A run gives up within ``cancel_grace_s``; a thread that cannot is a daemon and is left behind.
JOIN_S = 10.0


@dataclass(eq=False)
class Job:
    """Work that was asked for.

    Attributes
    ----------
    work : callable
        Called in the jobs' thread.
    failed : callable
        Called there with what it raised, as text.
    dropped : callable
        Called where the job was stopped before it began.
    """

    work: Callable[[], None]
    failed: Callable[[str], None]
    dropped: Callable[[], None]
    guard: Guard = field(default_factory=Guard)


class Jobs:
    """A panel's work, in a thread that ends with the last job. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, job: Job) -> bool:
        """Take a job; returns at once, and whether it was taken: a closed panel takes none."""
        with self._lock:
            if self._closed:
                return False
            self._waiting.append(job)
            if self._thread is None:
                made = threading.Thread(target=self._run, name="nbinfer-panel-work", daemon=True)
                self._thread = made
                made.start()
        return True

    def stop(self, job: Job) -> None:
        """Stop a job: what waits is dropped, what runs is interrupted."""
        with self._lock:
            waits = job in self._waiting
            if waits:
                self._waiting.remove(job)
        if waits:
            job.dropped()
        else:
            job.guard.stop()

    def end(self, *, closed: bool = False) -> None:
        """Stop every job, and return when the thread has ended."""
        with self._lock:
            self._closed = self._closed or closed
            jobs = [*([self._running] if self._running else []), *self._waiting]
            thread = self._thread
        for job in jobs:
            self.stop(job)
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is no work; whether there is none."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            return not thread.is_alive()
        return True

    def _next(self) -> Job | None:
        with self._lock:
            self._running = self._waiting.popleft() if self._waiting else None
            if self._running is None:
                self._thread = None
            return self._running

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                with stoppable(job.guard):
                    job.work()
            except BaseException as error:  # the thread goes on, and the panel says why
                job.failed("\n".join(brief_traceback(error)))
