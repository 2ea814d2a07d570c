"""An engine's session: every process that its library started, and what they leave."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

import psutil

from ..measure import tree
from . import leftovers

__all__ = ["kill_session", "session_pids"]

PATIENCE_S = 10.0


def session_pids(session: int) -> list[int]:
    """Every live process of a session."""
    if not hasattr(os, "getsid"):  # Windows has no sessions: the tree must do
        return tree(session)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def kill_session(
    session: int, ended: Callable[[], bool] = lambda: True, patience_s: float = PATIENCE_S
) -> None:
    """SIGKILL to every process of a session, until none of it is left and ``ended()``.

    A session has the number of its first process: while one of it lives no other takes that. The
    shared memory that they had is removed with them.
    """
    deadline = time.monotonic() + patience_s
    held: set[str] = set()
    while time.monotonic() < deadline:
        pids = session_pids(session)
        held |= leftovers.held(pids)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not pids and ended():
            break
        time.sleep(0.01)
    leftovers.remove(held)
