"""The pool of loaded engines: one worker per engine, model and load parameters.

A load runs in a thread of its own and tells whoever waits through a callback, so an
interrupted cell stops waiting at once while the load goes on, and the next cell finds it.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import measure, recent, settings
from .errors import EngineNotInstalled, LoadError, NbinferError
from .notices import notify
from .resident import Listener, Plan, Resident
from .worker.host import Event, Worker, stop_spawner

__all__ = ["Pool", "closing", "pool", "shutdown"]


class Pool:
    """All residents of this kernel. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._residents: dict[tuple[str, ...], Resident] = {}
        self._numbers = itertools.count(1)

    def residents(self) -> list[Resident]:
        """Those that are loading, ready or crashed, oldest first."""
        with self._lock:
            return list(self._residents.values())

    def pids(self) -> list[int]:
        """Every process of a resident."""
        workers = [r.worker for r in self.residents() if r.worker is not None]
        return [pid for worker in workers if worker.alive for pid in measure.tree(worker.pid)]

    def find(self, key: tuple[str, ...]) -> Resident | None:
        with self._lock:
            return self._residents.get(key)

    def ensure(self, plan: Plan, listener: Listener) -> Resident:
        """Find or begin to load; never blocks.

        ``listener`` gets ``{"ev": "stage"}`` events while it loads, then one
        ``{"ev": "ready"}`` or ``{"ev": "load_failed", "error": NbinferError}``.
        """
        with self._lock:
            resident = self._residents.get(plan.key)
            if resident is not None and resident.state == "ready":
                assert resident.worker is not None
                if resident.worker.alive:
                    resident.used_at = time.monotonic()
                    listener({"ev": "ready"})
                    return resident
            if resident is None or resident.state != "loading":
                resident = Resident(plan)
                self._residents[plan.key] = resident
                name = f"nbinfer-load-{plan.engine}"
                threading.Thread(
                    target=self._load, args=(resident,), name=name, daemon=True
                ).start()
            resident._waiting.append(listener)
            listener({"ev": "stage", "text": resident.stage})
            return resident

    def forget_waiter(self, resident: Resident, listener: Listener) -> None:
        """An abandoned call no longer wants to know how a load ends."""
        with self._lock, contextlib.suppress(ValueError):
            resident._waiting.remove(listener)

    # ------------------------------------------------------------------ loading

    def _tell(self, resident: Resident, event: Event, last: bool = False) -> None:
        with self._lock:
            listeners = list(resident._waiting)
            if last:
                resident._waiting.clear()
        for listener in listeners:
            listener(event)

    def _load(self, resident: Resident) -> None:
        def stage(text: str) -> None:
            if resident.state != "loading":  # raised into a download, it ends there
                raise LoadError(f"{resident.label} was unloaded while it was loading")
            resident.stage = text
            self._tell(resident, {"ev": "stage", "text": text})

        try:
            # First: no model is fetched for an engine that is not there.
            resident.python = resident.plan.python(stage)
            message, estimate = resident.plan.prepare(stage)
            resident.model_facts = message.get("facts", {})
            self.make_room(resident.label, estimate, but=resident)
            self._start(resident, message, stage)
        except BaseException as error:
            if not isinstance(error, NbinferError):
                error = LoadError(f"{resident.label} could not be loaded: {error!r}")
            resident.error = error
            with self._lock:
                if resident.state == "loading":
                    resident.state = "crashed"
                if self._residents.get(resident.plan.key) is resident and resident.worker is None:
                    del self._residents[resident.plan.key]
            if resident.worker is not None:
                resident.worker.close()
            self._tell(resident, {"ev": "load_failed", "error": error}, last=True)
        else:
            if resident.plan.library:  # not an engine that is for tests
                recent.remember(resident.plan.engine, resident.plan.model)
            self._tell(resident, {"ev": "ready"}, last=True)

    def _start(
        self, resident: Resident, message: dict[str, Any], stage: Callable[[str], None]
    ) -> None:
        plan = resident.plan
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        started = time.monotonic()
        with self._lock:
            if resident.state != "loading":
                raise LoadError(f"{resident.label} was unloaded while it was loading")
            worker = Worker(plan.backend, resident.python, self.log_path(plan.engine), events.put)
            resident.worker = worker
        worker.send({"op": "load", "model": message})
        while True:
            event = events.get()
            kind = event["ev"]
            if kind == "stage":
                stage(event["text"])
            elif kind == "hello":
                resident.report["python"] = event["python"]
                resident.report["python_version"] = event["python_version"]
            elif kind == "refused":
                raise self._refusal(resident, event)
            elif kind == "died":
                if resident.state == "unloaded":
                    raise LoadError(f"{resident.label} was unloaded while it was loading")
                raise resident.crashed(event["death"], "while it was loading")
            elif kind == "loaded":
                break
        resident.report.update(event["report"])
        resident.model_facts = {**resident.model_facts, **resident.report.pop("model", {})}
        resident.seen = measure.seen(worker.pid)
        resident.idle_bytes = resident.seen.total
        resident.peak_bytes = resident.idle_bytes or 0
        resident.loaded_s = time.monotonic() - started
        resident.ready_at = resident.used_at = time.monotonic()
        with self._lock:
            if resident.state == "loading":
                resident.state = "ready"
        worker.subscribe("", lambda event: self._own_event(resident, event))
        if resident.report.get("warning"):
            notify(resident.report["warning"])

    def _own_event(self, resident: Resident, event: Event) -> None:
        if event["ev"] == "died":
            with self._lock:
                if resident.state == "ready":
                    resident.state = "crashed"

    @staticmethod
    def _refusal(resident: Resident, event: Event) -> NbinferError:
        plan, text = resident.plan, event["message"]
        tail = resident.worker.log_tail() if resident.worker is not None else ""
        if event["kind"] == "import":
            what = plan.recipe
            return EngineNotInstalled(
                f"{resident.python} cannot import {plan.library or plan.backend}: {text}",
                hint=f"run %engine install {what} --reinstall (or: nbinfer install {what} "
                "--reinstall)"
                if what
                else f"Install it: pip install {plan.library or plan.backend}",
            )
        return LoadError(
            f"{plan.engine} could not load {plan.model!r}: {text}",
            hint=f"The library's own log: %engine logs {plan.engine}",
            log_tail=tail,
        )

    def log_path(self, engine: str) -> Path:
        """A new file for a process's own words."""
        name = f"{engine}-{os.getpid()}-{next(self._numbers)}.log"
        for folder in (settings.home() / "logs", Path(tempfile.gettempdir()) / "nbinfer-logs"):
            # A read-only or full home must not stop an engine: its log then goes elsewhere.
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _drop_old_logs(folder)
                path = folder / name
                path.touch(mode=0o600)
                return path
        return Path(os.devnull)

    def make_room(self, label: str, needed: int, but: Resident | None = None) -> None:
        """Evict the least recently used idle residents until the budget holds what is new."""
        budget = settings.current().budget_bytes()
        if needed > budget:  # no eviction could help; the estimate may be wrong, so it may try
            notify(
                f"{label} needs about {needed / 1e6:,.0f} MB by itself, more than the memory "
                f"budget of {budget / 1e6:,.0f} MB; loading it all the same"
            )
            return
        while True:
            with self._lock:
                others = [
                    r for r in self._residents.values() if r is not but and r.state == "ready"
                ]
                used = sum(self._bytes(r) for r in others)
                idle = sorted((r for r in others if not r.busy), key=lambda r: r.used_at)
            if used + needed <= budget or not idle:
                return
            victim = idle[0]
            notify(
                f"unloading {victim.label} ({self._bytes(victim) / 1e6:,.0f} MB) to make room for "
                f"{label}: the memory budget is {budget / 1e6:,.0f} MB"
            )
            self.unload(victim)

    @staticmethod
    def _bytes(resident: Resident) -> int:
        """The machine's memory that it holds: the budget is of that alone."""
        if resident.worker is None or not resident.worker.alive:
            return 0
        return measure.tree_bytes(resident.worker.pid)

    # ---------------------------------------------------------------- unloading

    def unload(self, resident: Resident) -> int:
        """End a resident's process tree; returns the bytes that came back."""
        with self._lock:
            if self._residents.get(resident.plan.key) is resident:
                del self._residents[resident.plan.key]
            resident.state = "unloaded"
            worker = resident.worker
        if worker is None:
            return 0
        freed = measure.seen(worker.pid).known if worker.alive else 0
        worker.close()
        with contextlib.suppress(OSError):
            if worker.log.name.endswith(".log"):
                worker.log.unlink()
        return freed

    def unload_all(self) -> None:
        for resident in self.residents():
            self.unload(resident)


def _drop_old_logs(folder: Path, keep_s: float = 7 * 86400) -> None:
    """Logs of kernels that did not end cleanly, older than a week."""
    for path in folder.glob("*.log"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > keep_s:
                path.unlink()


pool = Pool()

# What else ends with a shutdown: a panel adds its own.
closing: list[Callable[[], None]] = []


def shutdown() -> None:
    """Unload everything: no process, no thread and no descriptor of ours is left."""
    pool.unload_all()
    for close in closing:
        close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(
        t.name.startswith("nbinfer-load") for t in threading.enumerate()
    ):
        time.sleep(0.01)
    stop_spawner()


atexit.register(shutdown)
