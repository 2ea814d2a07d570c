"""The process of a server that starts: spawned, waited for, and ended with this kernel."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from . import settings
from .errors import LoadError
from .notices import notify
from .remote.service import is_loopback
from .residents import closing, pool
from .server_records import Server, record
from .worker.host import inherited, spawn

__all__ = ["Starting"]

PROGRAM = Path(__file__).parent / "worker" / "server.py"
POLL_S = 0.25
Progress = Callable[[str], None]


class Starting:
    """A server's process, from its start until it answers."""

    def __init__(
        self, engine: str, backend: str, python: str, message: dict[str, Any], keep: bool
    ) -> None:
        where = message["where"]
        self._host = where["host"]
        shown = "127.0.0.1" if where["host"] in ("0.0.0.0", "::") else where["host"]
        log = pool.log_path(f"{engine}-server")
        # A file and not a pipe: a server that outlives this kernel must not lose its reader.
        self._events = Path(f"{log}.events")
        words = [python, "-u", str(PROGRAM), backend, str(os.getpid()), "keep" if keep else "end"]
        with log.open("ab") as said, self._events.open("wb") as events:
            process = spawn(
                words,
                stdin=subprocess.PIPE,
                stdout=events,
                stderr=said,
                start_new_session=True,
                env=inherited(python),
                cwd=os.sep,
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # how it ended is told by ``wait``
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        if keep:
            process.stdin.close()
        self._process = process
        self._server = Server(
            engine=engine,
            model=where["name"],
            url=f"http://{f'[{shown}]' if ':' in shown else shown}:{where['port']}",
            pid=process.pid,
            started=psutil.Process(process.pid).create_time(),
            keep=keep,
            python=python,
            log=str(log),
            api_key=where["key"],
        )
        # Written now: one that is still starting is listed, and can be stopped.
        record(self._server)
        _started[process.pid] = (process, self._server)

    def wait(self, say: Progress) -> Server:
        """Until it answers."""
        server = self._server
        headers = {"authorization": f"Bearer {server.api_key}"} if server.api_key else {}
        with httpx.Client(timeout=2.0, trust_env=False, headers=headers) as client:
            while True:
                ended = self._process.poll() is not None
                say(self._stage())
                if ended:
                    raise self._failed(f"its process ended ({self._process.returncode})")
                if _answers(client, server.url):
                    break
                time.sleep(POLL_S)
        self._events.unlink(missing_ok=True)
        if server.api_key and not is_loopback(f"http://{self._host}"):
            notify(f"its API key is in {settings.home() / 'servers'}, for this user alone")
        return server

    def _stage(self) -> str:
        """What it says that it is at."""
        stage = "starting"
        for line in self._events.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                event = json.loads(line)
                if "failed" in event:
                    raise self._failed(event["failed"])
                stage = event["stage"]
        return stage

    def _failed(self, why: str) -> LoadError:
        tail = self._server.log_tail(12)
        return LoadError(
            f"the server of {self._server.engine} did not start: {why}\n{tail}".rstrip(),
            hint=f"Its whole log: {self._server.log}",
            log_tail=tail,
        )

    def end(self) -> None:
        """It failed, or nobody waits for it any more."""
        self._events.unlink(missing_ok=True)
        _close(self._process.pid)


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return (
            client.get(f"{url}/health").status_code == 200
            and client.get(f"{url}/v1/models").status_code == 200
        )
    except httpx.HTTPError:
        return False


# Servers of this kernel: their ends of the pipes, which end them when the kernel does.
_started: dict[int, tuple[subprocess.Popen[bytes], Server]] = {}


def _close(pid: int) -> None:
    process, server = _started.pop(pid)
    server.stop()
    process.wait()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _close_all() -> None:
    """End the servers of this kernel, but those that are to outlive it."""
    for pid, (process, server) in list(_started.items()):
        if server.keep and process.poll() is None:
            del _started[pid]
        else:
            _close(pid)


closing.append(_close_all)
