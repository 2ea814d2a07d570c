"""A cell that runs beside the model: what ``%%engine_exec`` sends, in the worker's main thread.

Names live on from one cell to the next, in a namespace that is the worker's own. Nothing but
text goes back: what was printed, the value's ``repr``, or the traceback.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import signal
import sys
import threading
import traceback

LONGEST_REPR = 20_000


class Interrupted(KeyboardInterrupt):
    """The user stopped the cell."""


class Console:
    """Runs cells; ``post`` sends events to the kernel.

    Parameters
    ----------
    scope : dict
        The names that every cell finds, such as ``model``. A cell may shadow them.
    """

    def __init__(self, scope, post):
        self._names = {"__name__": "__console__", **scope}
        self._post = post
        self._running = None
        self._stopped = False
        self._cells = 0

    def run(self, run, code):
        """Run one cell and send its end: ``{"ev": "executed", "value": ..., "error": ...}``."""
        end = {"ev": "executed", "run": run, "value": None, "error": None}
        self._running, self._stopped = run, False
        try:
            with self._printing(run):
                end["value"] = self._execute(code)
        except BaseException as error:  # SystemExit too: a cell must not end the worker
            end["error"] = self._described(error)
        finally:
            self._running = None
        self._post(end)
        if self._stopped:
            self._post({"ev": "cancelled", "run": run})

    def stop(self, run):
        """From another thread: interrupt this cell, if it is the one that runs."""
        if run is None or self._running != run:
            return False
        self._stopped = True
        # A real signal, so that a sleeping main thread wakes.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return True

    def on_signal(self):
        """In the main thread, at SIGINT: whether it was for a cell."""
        if self._running is not None:
            raise Interrupted
        return False

    def _execute(self, code):
        self._cells += 1
        name = f"<engine_exec {self._cells}>"
        # So that a traceback shows the cell's own lines.
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";"):
            last = ast.Expression(tree.body.pop().value)
        exec(compile(tree, name, "exec"), self._names)
        if last is None:
            return None
        value = eval(compile(last, name, "eval"), self._names)
        if value is None:
            return None
        text = repr(value)
        return text if len(text) <= LONGEST_REPR else text[:LONGEST_REPR] + " …"

    def _described(self, error):
        text = "stopped" if isinstance(error, Interrupted) else str(error)
        frames = traceback.extract_tb(error.__traceback__)
        # Our own frames say nothing to the cell's author.
        own = next((i for i, f in enumerate(frames) if f.filename.startswith("<engine_exec")), None)
        shown = frames[own:] if own is not None else []
        lines = traceback.format_list(shown) + traceback.format_exception_only(error)
        head = "Traceback (most recent call last):\n" if shown else ""
        return {
            "type": type(error).__name__,
            "message": text,
            "traceback": (head + "".join(lines)).rstrip(),
            "interrupted": isinstance(error, Interrupted),
        }

    @contextlib.contextmanager
    def _printing(self, run):
        """What this thread prints goes to the notebook; others' output stays in the log."""
        with (
            contextlib.redirect_stdout(_Stream(self._post, run, "stdout", sys.stdout)),
            contextlib.redirect_stderr(_Stream(self._post, run, "stderr", sys.stderr)),
        ):
            yield


class _Stream(io.TextIOBase):
    def __init__(self, post, run, name, log):
        self._post, self._run, self._name, self._log = post, run, name, log
        self._thread = threading.get_ident()

    def writable(self):
        return True

    def write(self, text):
        if threading.get_ident() != self._thread:
            return self._log.write(text)
        if text:
            self._post({"ev": "printed", "run": self._run, "stream": self._name, "text": text})
        return len(text)

    def flush(self):
        self._log.flush()
