"""A real ipykernel, driven as a notebook drives it, and a look at what it leaves behind.

Cells go through ``jupyter_client``; ``interrupt()`` is Jupyter's stop button and ``kill9()``
the system's out-of-memory killer. When the block ends, no worker of the kernel may be left.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import zmq
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

__all__ = ["Kernel", "Reply", "workers_of"]

MAIN = "nbinfer/worker/__main__.py"
GONE_S = 5.0
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def workers_of(kernel_pid: int) -> list[int]:
    """Live workers that this kernel started, whoever their parent is by now.

    A worker's guardian has the same command line: it counts once it is the one that is left.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()  # empty for a zombie
            if any(MAIN in word for word in words) and words[-1] == str(kernel_pid):
                found[process.pid] = process.ppid()
    return [pid for pid, parent in found.items() if parent not in found]


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Reply:
    """What a cell gave. ``began`` and ``ended`` are ``time.monotonic()`` of this process."""

    status: str = ""
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = field(default_factory=list)
    stdout: str = ""
    stderr: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    began: float | None = None
    ended: float | None = None
    idle: bool = False

    @property
    def done(self) -> bool:
        return self.status == "aborted" or (bool(self.status) and self.idle)

    def ok(self) -> Self:
        """Require that the cell ended without an error."""
        assert self.status == "ok", "\n".join([self.evalue, *self.traceback, self.stderr])
        return self


class Kernel:
    """One kernel with ``%load_ext nbinfer``.

    Parameters
    ----------
    extension : bool
        Whether to load the extension at once.
    environment : str, as keywords
        Variables added to this process's own.
    """

    def __init__(self, *, extension: bool = True, **environment: str) -> None:
        self._extension = extension
        self._environment = environment
        self._cells: dict[str, Reply] = {}
        self.widgets: dict[str, dict[str, Any]] = {}
        self._killed = False
        self._seen: set[int] = set()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="nbk-")
        folder = Path(self._folder.name)
        # A folder of its own for temporary files: what a worker leaves there is noticed.
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._log = (folder / "kernel.log").open("w+b")
        self._manager = KernelManager(
            kernel_name="python3", connection_file=str(folder / "kernel.json")
        )
        self._manager.start_kernel(
            stdout=self._log,
            stderr=self._log,
            cwd=str(folder),
            env={
                **os.environ,
                "TMPDIR": str(self.temporary),
                "IPYTHONDIR": str(folder / "ipython"),
                "PYTHONPATH": str(Path(__file__).parents[1]),
                **self._environment,
            },
        )
        self.pid: int = self._manager.provisioner.pid
        client: BlockingKernelClient = self._manager.client()
        self._client = client
        try:
            client.start_channels(hb=False, stdin=False)
            client.wait_for_ready(timeout=60)
            self._poller = zmq.Poller()
            self._poller.register(client.shell_channel.socket, zmq.POLLIN)
            self._poller.register(client.iopub_channel.socket, zmq.POLLIN)
            if self._extension:
                self.run("%load_ext nbinfer").ok()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._seen.update(self.workers())
        try:
            self._client.stop_channels()
            if not self._killed:
                self._manager.shutdown_kernel(now=error is not None)
            self._manager.cleanup_resources()
            left = self.left()
        finally:
            self._client.context.destroy(linger=0)
            self._log.close()
            self._folder.cleanup()
        if error is None:
            assert not left, f"workers {left} outlived their kernel"

    # ------------------------------------------------------------------------ cells

    def send(self, code: str, cell: str = "") -> str:
        """Queue a cell, as "Run All" does: an error of an earlier one aborts it.

        ``cell`` is its id, which JupyterLab and VS Code send along.
        """
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        about = {"cellId": cell} if cell else {}
        message = self._client.session.msg("execute_request", content, metadata=about)
        self._client.shell_channel.send(message)
        number = str(message["header"]["msg_id"])
        self._cells[number] = Reply()
        return number

    def wait(self, message: str, timeout: float = 60.0) -> Reply:
        """The reply of a cell that was sent; raises if it does not come in time."""
        return self._until(message, lambda reply: reply.done, timeout)

    def began(self, message: str, timeout: float = 60.0) -> float:
        """Wait until a cell begins; returns when that was."""
        reply = self._until(message, lambda reply: reply.began is not None, timeout)
        assert reply.began is not None
        return reply.began

    def printed(self, message: str, characters: int, timeout: float = 60.0) -> None:
        """Wait until a cell has printed so much, or ended."""
        self._until(message, lambda r: r.done or len(r.stdout) >= characters, timeout)

    def run(self, code: str, timeout: float = 60.0) -> Reply:
        """Run one cell to its end."""
        return self.wait(self.send(code), timeout)

    def value(self, expression: str, timeout: float = 60.0) -> Any:
        """The value of an expression in the kernel, through JSON."""
        code = f"import json as _json; print('VALUE', _json.dumps({expression}, default=str))"
        (line,) = (
            text
            for text in self.run(code, timeout).ok().stdout.splitlines()
            if text.startswith("VALUE ")
        )
        return json.loads(line.removeprefix("VALUE "))

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A DataFrame of the kernel as a list of rows; unknown is ``None``."""
        found: list[dict[str, Any]] = json.loads(self.value(f"{name}.to_json(orient='records')"))
        return found

    def pump(self, seconds: float) -> None:
        """Take in what arrives for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._receive(left)

    def _until(self, message: str, true: Any, timeout: float) -> Reply:
        reply = self._cells[message]
        deadline = time.monotonic() + timeout
        while not true(reply):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"a cell took more than {timeout} s:\n{self.log()}")
            self._receive(min(left, 0.5))
            assert self._killed or psutil.pid_exists(self.pid), f"no kernel:\n{self.log()}"
        return reply

    def _receive(self, timeout: float) -> None:
        ready = dict(self._poller.poll(timeout * 1000))
        for channel in (self._client.iopub_channel, self._client.shell_channel):
            if channel.socket in ready:
                self._take(channel.get_msg(timeout=0))

    def _take(self, message: dict[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind in ("comm_open", "comm_msg", "comm_close"):
            self._take_widget(kind, content)
            return
        reply = self._cells.get(message["parent_header"].get("msg_id", ""))
        if reply is None:
            return
        now = time.monotonic()
        if kind == "execute_input":
            reply.began = now
        elif kind == "stream":
            setattr(reply, content["name"], getattr(reply, content["name"]) + content["text"])
        elif kind in ("execute_result", "display_data"):
            reply.results.append(content["data"])
        elif kind == "error":
            reply.traceback = [_ANSI.sub("", line) for line in content["traceback"]]
        elif kind == "execute_reply":
            reply.status = content["status"]
            reply.ename = content.get("ename", "")
            reply.evalue = content.get("evalue", "")
        elif kind == "status" and content["execution_state"] == "idle":
            reply.idle = True
        if reply.done and reply.ended is None:
            reply.ended = now

    # ---------------------------------------------------------------------- widgets

    def tell(self, widget: str, **data: Any) -> None:
        """Send a widget's comm message, as the front end does: a click, a new value."""
        content = {"comm_id": widget, "data": data}
        self._client.shell_channel.send(self._client.session.msg("comm_msg", content))

    def click(self, button: str) -> None:
        """Click a button."""
        self.tell(button, method="custom", content={"event": "click"})

    def _take_widget(self, kind: str, content: dict[str, Any]) -> None:
        """Keep what the kernel sends of its widgets: ``widgets`` is what a front end knows."""
        if kind == "comm_close":
            self.widgets.pop(content["comm_id"], None)
        elif content["data"].get("method", "update") == "update":
            state = self.widgets.setdefault(content["comm_id"], {})
            state.update(content["data"].get("state", {}))

    # -------------------------------------------------------------------- processes

    def interrupt(self) -> float:
        """Jupyter's stop button; returns when it was pressed."""
        now = time.monotonic()
        self._manager.interrupt_kernel()
        return now

    def kill9(self) -> None:
        """SIGKILL to the kernel alone; its workers must notice by themselves."""
        self._seen.update(self.workers())
        self._killed = True
        os.kill(self.pid, signal.SIGKILL)
        self._manager.provisioner.process.wait()

    def workers(self) -> list[int]:
        """Pids of the kernel's live workers."""
        return workers_of(self.pid)

    def left(self, seconds: float = GONE_S) -> list[int]:
        """Workers still there after so many seconds; returns at once when there are none."""
        deadline = time.monotonic() + seconds
        while True:
            found = sorted({*self.workers(), *filter(_alive, self._seen)})
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def log(self) -> str:
        """The end of what the kernel's process itself printed."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-4000:]
