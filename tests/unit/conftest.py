"""What the unit tests share: echo engines, interrupts on time, a shell with the magics."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from nbinfer import EchoInferenceEngine, ModelParams
from nbinfer.recipes import RECIPES, Recipe
from nbinfer.residents import pool

from ..shell import TestingShell


def echo(name: str = "echo", **options: Any) -> EchoInferenceEngine:
    """An echo engine; ``options`` are its load parameters."""
    return EchoInferenceEngine(ModelParams(name, model_kwargs=options))


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """Mount a small file system as NBINFER_HOME; root's writes stop at no mode bits."""
    places = []

    def mount(*options: str) -> Path:
        place = tmp_path / "mounted"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", *options, "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        places.append(place)
        monkeypatch.setenv("NBINFER_HOME", str(place))
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


TINY = Recipe("tiny", ("tinylib",), ("tinylib>=1",), "a library of one line")


def wheel(
    folder: Path, name: str, code: str = "", version: str = "1.0", requires: str = ""
) -> None:
    """A wheel: a zip with a module and its metadata."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + (f"Requires-Dist: {requires}\n" if requires else ""),
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, a recipe of one wheel in a folder, no index and no network."""
    wheels = tmp_path / "wheels"
    wheel(wheels, "tinylib")
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def pid_of(engine: EchoInferenceEngine) -> int:
    """The process of a resident engine."""
    resident = engine.resident
    assert resident is not None
    assert resident.worker is not None
    return resident.worker.pid


def gone(pid: int) -> bool:
    """Whether no process of this number is left, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


@contextmanager
def interrupts_at(*seconds: float) -> Iterator[None]:
    """SIGINT to this process, as Jupyter's stop button sends it, after so many seconds."""
    timers = [threading.Timer(s, os.kill, (os.getpid(), signal.SIGINT)) for s in seconds]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()


@contextmanager
def interrupt_when(true: Any) -> Iterator[None]:
    """SIGINT to this process as soon as ``true()`` is."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            if true():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def busy(engine: EchoInferenceEngine) -> bool:
    """Whether a run is under way on an engine."""
    return any(r.busy for r in pool.residents() if r.plan.key == engine.plan().key)


def hanging(engine: EchoInferenceEngine) -> bool:
    """Whether a ``!hang`` has reached the engine: until then a cancel finds it in the queue."""
    resident = engine.resident
    return resident is not None and "hanging" in resident.worker.log_tail()


@pytest.fixture
def shell(clean: None) -> Iterator[TestingShell]:
    """A fresh shell with ``%load_ext nbinfer``; afterwards it is as it was."""
    # The one instance: IPython's display() shows nothing without one.
    made = TestingShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    made.cell("%load_ext nbinfer")
    yield made
    if "nbinfer" in made.extension_manager.loaded:
        made.cell("%unload_ext nbinfer")
    atexit.unregister(made.atexit_operations)
    made.atexit_operations()
    TestingShell.clear_instance()
