"""The kernel's side of one worker: start it, talk to it, see that it ends.

Three guarantees are kept here:

* **No interrupt reaches a worker.** It has a session of its own.
* **No worker outlives its kernel.** Workers are started from one permanent thread, because
  Linux sends the parent-death signal when the *thread* that forked ends; and a closed pipe
  ends them everywhere else.
* **Nothing of a worker outlives it.** When it ends, for whatever reason, its whole session
  is killed and waited for before anybody is told.

What this does not cover: a descendant that made a session of its own.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import settings
from ..notices import notify
from . import protocol
from .sessions import kill_session

__all__ = ["Death", "Event", "Worker", "stop_spawner"]

Event = dict[str, Any]
MAIN = Path(__file__).with_name("__main__.py")

_spawner: ThreadPoolExecutor | None = None
_spawner_lock = threading.Lock()


def spawn(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process from the one thread that lives as long as the kernel does."""
    global _spawner
    with _spawner_lock:
        if _spawner is None:
            _spawner = ThreadPoolExecutor(1, thread_name_prefix="nbinfer-spawner")
        return _spawner.submit(lambda: subprocess.Popen[bytes](arguments, **options)).result()


def stop_spawner() -> None:
    """End the spawning thread. Only when no worker lives: it would take them with it."""
    global _spawner
    with _spawner_lock:
        if _spawner is not None:
            _spawner.shutdown(wait=True)
            _spawner = None


def inherited(python: str) -> dict[str, str]:
    """The kernel's environment, without what would put its packages on another Python's path."""
    foreign = python != sys.executable
    own = ["PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "VIRTUAL_ENV"]
    if settings.home() / "envs" in Path(python).parents:
        own.append("PYTHONDONTWRITEBYTECODE")  # our own: imports take half the time once compiled
    kept = {k: v for k, v in os.environ.items() if not (foreign and k in own)}
    return {**kept, "PYTHONNOUSERSITE": "1"} if foreign else kept


@dataclass(frozen=True)
class Death:
    """How a worker ended.

    Attributes
    ----------
    signal : str or None
        The signal's name, or ``None`` where it exited.
    exit_code : int or None
        The exit status where no signal ended it.
    by_us : bool
        Whether nbinfer ended it (unload, an escalation).
    """

    signal: str | None
    exit_code: int | None
    by_us: bool


class Worker:
    """One engine process.

    Parameters
    ----------
    backend : str
        A module of ``nbinfer.worker.backends``.
    python : str
        The interpreter that has the engine's library.
    log : pathlib.Path
        Where the engine's own output goes.
    listener : callable, optional
        Gets the worker's own events, from the first on; see ``subscribe``.
    environment : dict of str to str, optional
        Variables added to the kernel's own.

    Notes
    -----
    Subscribers are called from the reading thread, in order, and must not block:
    ``queue.SimpleQueue.put`` is what they are for.
    """

    def __init__(
        self,
        backend: str,
        python: str,
        log: Path,
        listener: Callable[[Event], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        self.death: Death | None = None
        self._ended = threading.Event()
        self._ours = False
        self._lock = threading.Lock()
        self._subscribers: dict[str, Callable[[Event], None]] = {"": listener} if listener else {}
        self._cancelling: set[str] = set()
        self._cancel_answered = threading.Condition(self._lock)
        self._outgoing: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        descriptor = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = spawn(
                [python, "-u", "-X", "faulthandler", str(MAIN), backend, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=descriptor,
                start_new_session=True,
                env={**inherited(python), **(environment or {})},
                cwd=os.sep,  # never import what lies in the notebook's folder
            )
        finally:
            os.close(descriptor)
        self.pid = self._process.pid
        self._threads = [
            threading.Thread(target=self._read, name="nbinfer-reader", daemon=True),
            threading.Thread(target=self._write, name="nbinfer-writer", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------ talking

    @property
    def alive(self) -> bool:
        # The process itself is looked at too: ending its session and telling takes a moment.
        return not self._ended.is_set() and self._process.returncode is None

    def send(self, message: Event) -> None:
        """Queue a message; a worker that does not read never blocks the caller."""
        self._outgoing.put(message)

    def subscribe(self, run: str, listener: Callable[[Event], None]) -> None:
        """Pass on a run's events. ``""`` is the worker's own: hello, stage, loaded, refused.

        A worker that has died answers at once with ``{"ev": "died"}``.
        """
        with self._lock:
            self._subscribers[run] = listener
            dead = self.death
        if dead is not None:
            listener({"ev": "died", "death": dead})

    def unsubscribe(self, run: str) -> None:
        """Stop passing on; what still arrives for this run is thrown away."""
        with self._lock:
            self._subscribers.pop(run, None)

    def cancel(self, run: str) -> None:
        """Ask for a run's end. If the worker does not obey, its signals follow on a clock."""
        with self._lock:
            if self.death is not None or run in self._cancelling:
                return
            self._cancelling.add(run)
        self.send({"op": "cancel", "run": run})
        clock = (run, time.monotonic())
        name = "nbinfer-escalation"
        threading.Thread(target=self._escalate, args=clock, name=name, daemon=True).start()

    @property
    def obeying(self) -> bool:
        """False while a cancel has not been answered."""
        with self._lock:
            return not self._cancelling

    def _write(self) -> None:
        assert self._process.stdin is not None
        pipe = self._process.stdin
        while (message := self._outgoing.get()) is not None:
            try:
                frame = protocol.pack(message)
            except (ValueError, TypeError) as error:
                self._unsendable(message, error)
                continue
            with contextlib.suppress(OSError, ValueError):  # it died: the reader tells
                pipe.write(frame)
                pipe.flush()
        with contextlib.suppress(OSError):
            pipe.close()

    def _unsendable(self, message: Event, error: Exception) -> None:
        """Answer for the worker what could not be sent to it, or somebody would wait for ever."""
        rows = message.get("rows", ())
        if len(rows) > 1:
            for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                self.send({**message, "rows": part})
        for row in rows if len(rows) == 1 else ():
            event = {"ev": "failed", "run": message["run"], "row": row["row"]}
            self._deliver({**event, "error": f"it cannot be sent to the engine: {error}"})
        if message["op"] == "load":
            self._deliver({"ev": "refused", "kind": "load", "message": str(error)})

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                for event in protocol.read(self._process.stdout).get("events", ()):
                    self._deliver(event)
        except (protocol.StreamClosed, OSError):
            pass
        except (protocol.ProtocolError, KeyError, TypeError) as error:
            self._ours = True
            notify(f"what the engine's process {self.pid} sent is no message ({error}); ending it")
        finally:
            self._finish()

    def _deliver(self, event: Event) -> None:
        run = event.get("run", "")
        if event["ev"] == "cancelled":
            with self._lock:
                self._cancelling.discard(run)
                self._cancel_answered.notify_all()
        with self._lock:
            listener = self._subscribers.get(run)
        if listener is not None:
            listener(event)

    # ------------------------------------------------------------------- ending

    def _escalate(self, run: str, started: float) -> None:
        """SIGINT, SIGTERM, SIGKILL to a worker that ignores a cancel, each announced."""
        for number, after in zip(
            (signal.SIGINT, signal.SIGTERM, signal.SIGKILL),
            settings.current().escalation_s,
            strict=True,
        ):
            with self._lock:
                obeyed = self._cancel_answered.wait_for(
                    lambda: run not in self._cancelling or self.death is not None,
                    timeout=max(0.0, started + after - time.monotonic()),
                )
            if obeyed:
                return
            notify(
                f"engine process {self.pid} has ignored a cancel for {after:g} s; "
                f"sending {number.name}"
            )
            self._signal(number)

    def _signal(self, number: signal.Signals) -> None:
        self._ours = self._ours or number in (signal.SIGTERM, signal.SIGKILL)
        if number == signal.SIGKILL:
            self._kill_session()
        else:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)

    def _kill_session(self) -> None:
        """SIGKILL to the whole session, until none of it is left."""
        kill_session(self.pid, lambda: self._process.poll() is not None)

    def _finish(self) -> None:
        """The pipe is closed: reap the process and its session, then tell everybody."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)  # let it die of its own cause, which we report
        self._kill_session()
        code = self._process.wait()
        self._outgoing.put(None)
        assert self._process.stdout is not None
        self._process.stdout.close()
        name = signal.Signals(-code).name if code < 0 else None
        death = Death(name, None if code < 0 else code, by_us=self._ours)
        with self._lock:
            self.death = death
            self._cancelling.clear()
            self._cancel_answered.notify_all()
            listeners = list(self._subscribers.values())
        self._ended.set()
        for listener in listeners:
            listener({"ev": "died", "death": death})

    def close(self, timeout: float = 5.0) -> None:
        """Unload: ask it to close, kill what is left, return when every pid is gone."""
        self._ours = True
        self.send({"op": "close"})
        if not self._ended.wait(min(timeout, 1.0)):
            self._kill_session()
            self._ended.wait(timeout)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def wait_ended(self, timeout: float | None = None) -> bool:
        """Wait until the worker and its session are gone."""
        return self._ended.wait(timeout)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the engine's own output."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 200 * lines))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])
        return ""


def kernel_python() -> str:
    """The interpreter of the kernel itself."""
    return sys.executable
