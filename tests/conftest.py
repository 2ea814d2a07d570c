"""What every test has: a clean state before, and nothing of ours left after."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import nbinfer
from nbinfer import interrupts, lease, notices, runstore, selection, settings
from nbinfer.residents import pool


def workers() -> list[psutil.Process]:
    """Worker processes that this process started, and theirs."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("nbinfer/worker" in word for word in process.cmdline()):
                found.append(process)
    return found


def our_threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("nbinfer"))


def descriptors() -> set[str]:
    """What this process has open, without what pytest itself opens and closes."""
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            target = str(fd.readlink())
            if target.startswith("pipe:") or "nbinfer" in target:
                found.add(f"{fd.name} {target}")
    return found


def eventually(true, seconds: float = 10.0) -> bool:
    """Whether ``true()`` becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.02)
    return bool(true())


def reset_state() -> None:
    selection.reset()
    settings.reset()
    runstore.clear()
    notices.listeners.clear()


@pytest.fixture
def clean() -> Iterator[None]:
    """All state reset; afterwards no process, thread or descriptor of ours is left."""
    gc.collect()
    before = descriptors()
    reset_state()
    yield
    nbinfer.shutdown()
    lease.reset()
    reset_state()
    assert pool.residents() == []
    assert interrupts._active is None
    assert eventually(lambda: not workers()), workers()
    assert eventually(lambda: not our_threads()), our_threads()
    gc.collect()
    assert eventually(lambda: not (descriptors() - before)), descriptors() - before
