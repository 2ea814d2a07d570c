"""Ends what an engine's library started, when the worker is killed with no time to do it.

vLLM's engine core does not notice that its parent is gone. A worker that ends by itself, or is
ended by its kernel, takes its session along; when the kernel is killed, the system kills the
worker alone. This process, forked before the worker has a thread, waits for that on a pipe
whose other end only the worker holds.

What this does not cover: its own death by SIGKILL before the worker's; a descendant that made
a session of its own; systems without ``/proc``.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from nbinfer.worker import leftovers

PATIENCE_S = 10.0


def start():
    """Fork the guardian. Only on Linux, and only in a session of the worker's own."""
    me = os.getpid()
    if sys.platform != "linux" or os.getsid(0) != me:
        return
    read, write = os.pipe()
    if os.fork():
        os.close(read)
        os.set_inheritable(write, False)  # nobody else may keep it open
        return
    try:
        # The kernel waits for the end of the worker's pipes: none may stay open here.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.dup2(read, 3)
        os.closerange(4, 65536)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.read(3, 1)  # returns when the worker is gone
        end_session(me)
    finally:
        os._exit(0)


def end_session(session):
    """SIGKILL to every other process of a session, until none is left."""
    deadline = time.monotonic() + PATIENCE_S
    while kill_others(session) and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_others(session):
    """SIGKILL to every other process of a session; returns how many there were.

    Their shared memory, and this one's, goes with them.
    """
    found = others(session)
    held = leftovers.held([*found, os.getpid()])
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    leftovers.remove(held)
    return len(found)


def others(session):
    """Processes of a session beside this one, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            if os.getsid(int(entry)) != session:
                continue
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as stream:
                state = stream.read().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(int(entry))
    return found
