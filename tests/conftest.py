"""What every test has: a clean state before, and nothing of ours left after."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import nbinfer
from nbinfer import environments, interrupts, lease, notices, runstore, selection, settings
from nbinfer.progress import Silent
from nbinfer.recipes import RECIPES
from nbinfer.residents import pool

# Tests that need an engine's own environment say so: by the marker ``needs``, or by running once
# for each engine of tests/engines/conftest.py.
WITHOUT = "NBINFER_TEST_WITHOUT"
# Tests that are left out of CI for their time: NBINFER_TEST_THOROUGH=1 runs them too.
THOROUGH = "NBINFER_TEST_THOROUGH"
# Engines whose server is of another environment than their name says.
OF_SERVERS = {"remote-vllm": "vllm"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is ``thorough``, unless it is asked for: probes prove its substance in CI."""
    if os.environ.get(THOROUGH):
        return
    chosen, left_out = [], []
    for item in items:
        (left_out if _is_thorough(item) else chosen).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen


def _is_thorough(item: pytest.Item) -> bool:
    """Whether it is marked ``thorough``, for all engines or for the one it runs on."""
    variant = getattr(getattr(item, "callspec", None), "params", {}).get("variant")
    return any(not m.args or variant in m.args for m in item.iter_markers("thorough"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Install what the collected tests need, by our own command, before any test's clock runs.

    Compiling takes minutes. What cannot be installed fails the session: an engine is left out by
    name (``NBINFER_TEST_WITHOUT=native,llama-cpp-python``) or not at all.
    """
    if session.config.option.collectonly:
        return
    needed = set()
    for item in session.items:
        if "engines" in item.path.parts:
            values = getattr(getattr(item, "callspec", None), "params", {}).values()
            named = [OF_SERVERS.get(v, v) for v in values if isinstance(v, str)]
            needed |= {name for name in named if name in RECIPES}
        needed |= {name for mark in item.iter_markers("needs") for name in mark.args}
    for name in sorted(needed - set(os.environ.get(WITHOUT, "").split(","))):
        found = environments.find(name)
        # One of an older recipe is made anew; a Python of the user's own is left alone.
        if environments.available(name) in (None, found and found.python):
            install(session, name)


def install(session: pytest.Session, name: str) -> None:
    """Install one environment, with a line of progress now and then."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    told = [float("-inf")]

    def say(text: str) -> None:
        if reporter is not None and time.monotonic() > told[0] + 20:
            told[0] = time.monotonic()
            reporter.write_line(text)

    environments.install(name, progress=say)


# Every key and secret header of these tests has it in its text.
PLANTED = b"planted"


@pytest.fixture(scope="session", autouse=True)
def _keys_are_nowhere() -> Iterator[None]:
    """What the tests used as keys is in no file that nbinfer wrote, and in no notebook."""
    yield
    places = [settings.home() / "logs", Path(__file__).parents[1] / "notebooks"]
    files = [path for place in places if place.is_dir() for path in place.rglob("*")]
    assert [p for p in files if p.is_file() and PLANTED in p.read_bytes()] == []


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


class Hears(Silent):
    """A reporter that calls a function with each record of a run."""

    def __init__(self, told: Callable[[Any], None]) -> None:
        self._told = told

    def __call__(self, record: Any, /) -> None:
        self._told(record)


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
