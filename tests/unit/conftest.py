"""What the unit tests share: echo engines, interrupts on time, a shell with the magics."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from nbinfer import EchoInferenceEngine, ModelParams
from nbinfer.residents import pool

from ..shell import TestingShell


def echo(name: str = "echo", **options: Any) -> EchoInferenceEngine:
    """An echo engine; ``options`` are its load parameters."""
    return EchoInferenceEngine(ModelParams(name, model_kwargs=options))


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
