"""Shared memory of an engine that was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nbinfer.worker import guardian, sessions

MAKES = """
import sys, time
from multiprocessing import shared_memory
blocks = [shared_memory.SharedMemory(create=True, size=4096) for _ in range(2)]
print(*(block.name for block in blocks), flush=True)
time.sleep(60)
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names are in /dev/shm on Linux")


@pytest.fixture
def engine():
    """A process in a session of its own, and the shared memory that it has made."""
    command = [sys.executable, "-c", MAKES]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        names = [Path("/dev/shm") / name for name in process.stdout.readline().split()]
        assert len(names) == 2
        yield process, names
        process.kill()
        process.wait()


def test_it_is_removed_with_the_session(engine):
    process, names = engine
    assert all(name.exists() for name in names)
    sessions.kill_session(process.pid, lambda: process.poll() is not None)
    assert process.returncode == -9
    assert sessions.session_pids(process.pid) == []
    assert not any(name.exists() for name in names)


def test_the_guardian_removes_it_too(engine):
    process, names = engine
    guardian.end_session(process.pid)
    process.wait()
    assert not any(name.exists() for name in names)
