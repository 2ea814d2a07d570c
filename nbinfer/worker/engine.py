"""The worker's two loops: one thread reads requests, the main thread serves the engine.

The main thread loads and makes extra calls, because libraries expect to be imported and
initialised there; the reader never waits for it, so a cancel is heard during a run.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import queue
import signal
import sys
import threading
import time
import traceback

from nbinfer.worker import guardian, protocol
from nbinfer.worker.console import Console
from nbinfer.worker.outbox import Outbox
from nbinfer.worker.scheduler import Scheduler

LOG_LIMIT = 16 * 1024 * 1024
LOG_KEEP = 1024 * 1024


class Engine:
    """One backend behind one pair of pipes.

    Parameters
    ----------
    backend : str
        A module of ``nbinfer.worker.backends`` with a class ``Backend``.
    requests : binary file
        Where the kernel's messages arrive.
    events : int
        The descriptor that events are written to.
    """

    def __init__(self, backend, requests, events):
        self._name = backend
        self._requests = requests
        self._events = events
        self._outbox = Outbox(self._write, broken=lambda: leave(1))
        self._work = queue.SimpleQueue()
        self._backend = None
        self._scheduler = None
        self._console = None

    def run(self):
        # Of a crash in native code the log keeps the thread it happened in, not all that wait.
        faulthandler.enable(all_threads=False)
        self._own_signals()
        self._outbox.post(
            {
                "ev": "hello",
                "pid": os.getpid(),
                "python": sys.executable,
                "python_version": sys.version.split()[0],
                "protocol": protocol.PROTOCOL,
            }
        )
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=trim_log, name="log", daemon=True).start()
        while True:
            op, message = self._work.get()
            if op == "load":
                self._load(message)
            elif op == "call":
                self._call(message)
            elif op == "exec":
                self._console.run(message["run"], message["code"])
                if hasattr(self._backend, "rest"):
                    self._backend.rest()

    def _write(self, data):
        view = memoryview(data)
        while view:
            view = view[os.write(self._events, view) :]

    def _own_signals(self):
        # SIGINT stops the work, SIGTERM the worker. Set again after a load, because
        # engines install handlers of their own (llama.cpp ends its server on either).
        signal.signal(signal.SIGINT, self._interrupted)
        signal.signal(signal.SIGTERM, lambda *_: leave(143))

    def _interrupted(self, *_):
        if self._console is not None:
            self._console.on_signal()  # raises into the cell that runs
        if self._scheduler is not None:
            self._scheduler.cancel_all()

    def _read(self):
        try:
            while True:
                self._dispatch(protocol.read(self._requests))
        except protocol.StreamClosed:
            leave(0)  # the kernel is gone or wants us to be
        except Exception:
            traceback.print_exc()
            leave(1)

    def _dispatch(self, message):
        op = message["op"]
        if op in ("load", "call", "exec"):
            self._work.put((op, message))
        elif op == "begin":
            self._scheduler.begin(message["run"])
        elif op == "rows":
            self._scheduler.rows(message["run"], message["rows"])
        elif op == "cancel":
            if not self._console.stop(message["run"]):
                self._scheduler.cancel(message["run"])
        elif op == "end":
            self._scheduler.end(message["run"])
        elif op == "close":
            self._close()
        else:
            raise protocol.ProtocolError(f"unknown op {op!r}")

    def _load(self, message):
        def stage(text):
            self._outbox.post({"ev": "stage", "text": text})

        started = time.monotonic()
        stage("importing its library")
        try:
            module = importlib.import_module("nbinfer.worker.backends." + self._name)
            backend = module.Backend()
            report = backend.load(message["model"], stage)
        except BaseException as error:
            traceback.print_exc()
            kind = "import" if isinstance(error, ImportError) else "load"
            text = str(error) or type(error).__name__
            self._outbox.post({"ev": "refused", "message": text, "kind": kind})
            time.sleep(0.2)  # let the outbox flush; the kernel ends us in any case
            leave(2)
        self._own_signals()
        self._backend = backend
        self._scheduler = Scheduler(backend, self._outbox)
        scope = backend.scope() if hasattr(backend, "scope") else {}
        self._console = Console(scope, self._outbox.post)
        report = dict(report, load_s=time.monotonic() - started, slots=backend.slots)
        self._outbox.post({"ev": "loaded", "report": report})

    def _call(self, message):
        answer = {"ev": "answer", "call": message["call"]}
        try:
            method = self._backend.methods[message["method"]]
            answer["value"] = method(**message.get("arguments", {}))
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        self._outbox.post(answer)

    def _close(self):
        if self._backend is not None:
            self._backend.close()
        leave(0)


def leave(status):
    """End this process and every other one of its session, without Python's farewell.

    Interpreter shutdown would wait for native threads that may hang; the operating
    system frees everything either way.
    """
    # Only in a session of its own: run by hand, this must not end the user's terminal.
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        guardian.kill_others(os.getpid())
    os._exit(status)


def trim_log():
    """Keep the log under a limit: an engine that floods it must not fill the disk."""
    while True:
        time.sleep(0.5)
        try:
            if os.fstat(2).st_size > LOG_LIMIT:
                tail = os.pread(2, LOG_KEEP, os.fstat(2).st_size - LOG_KEEP)
                os.ftruncate(2, 0)
                os.write(2, b"[the log was cut here]\n" + tail)
        except OSError:
            continue
