"""Run a cell of Python beside a resident model."""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import interrupts, settings
from ..errors import ExecutionError, RunInterrupted
from ..run import new_run_id
from ..worker.host import Event

if TYPE_CHECKING:
    from .local import LocalEngine

__all__ = ["execute"]


def _print(text: str, stream: str) -> None:
    print(text, end="", file=sys.stderr if stream == "stderr" else sys.stdout)


def execute(
    engine: LocalEngine, code: str, *, show: Callable[[str, str], None] = _print
) -> str | None:
    """Run Python code in a loaded engine's process; load the engine if need be.

    Parameters
    ----------
    engine : LocalEngine
        One with the feature ``"exec"``.
    code : str
        Python. Names live on until the engine is unloaded.
    show : callable
        Called with a text and ``"stdout"`` or ``"stderr"`` for whatever is printed.

    Returns
    -------
    str or None
        The ``repr`` of a last expression, ``None`` where there is none.

    Raises
    ------
    ExecutionError
        If the code raises; the traceback of the engine's process is in it.
    RunInterrupted
        If the user stops it.
    EngineCrashed
        If the process dies of it.
    """
    run = new_run_id()
    mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    stop_at: float | None = None
    with interrupts.guard() as guard, guard.listening(lambda: mailbox.put({"ev": "interrupt"})):
        resident = engine.load().resident
        assert resident is not None
        assert resident.worker is not None
        worker = resident.worker
        worker.subscribe(run, mailbox.put)
        worker.send({"op": "exec", "run": run, "code": code})
        resident.runs += 1
        try:
            while True:
                try:
                    patience = None if stop_at is None else max(0.0, stop_at - time.monotonic())
                    event = mailbox.get(timeout=patience)
                except queue.Empty:
                    guard.take()
                    raise RunInterrupted("stopped waiting for the cell, which goes on") from None
                kind = event["ev"]
                if kind == "printed":
                    show(event["text"], event["stream"])
                elif kind == "interrupt" and stop_at is None:
                    stop_at = time.monotonic() + settings.current().cancel_grace_s
                    worker.cancel(run)
                elif kind == "died":
                    raise resident.crashed(event["death"], "while it ran a cell")
                elif kind == "executed":
                    error = event["error"]
                    if error is None:
                        value: str | None = event["value"]
                        return value
                    if error["interrupted"]:
                        guard.take()
                        raise RunInterrupted("stopped; the model stays resident")
                    raise ExecutionError(
                        f"{error['type']}: {error['message']}", worker_traceback=error["traceback"]
                    )
        finally:
            resident.runs -= 1
            worker.unsubscribe(run)
