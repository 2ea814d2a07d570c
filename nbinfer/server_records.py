"""Servers that were started from a notebook: their records, and how they are found and stopped.

A record is a file that only its user can read: it holds the key, so that other notebooks can use
the server. A record whose process is gone is removed by whoever sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import psutil

from . import measure, settings, wholefile
from .checks import Secret
from .errors import ConfigurationError

__all__ = ["Server", "find", "record", "servers", "stop"]

PATIENCE_S = 15.0


@dataclass(frozen=True)
class Server:
    """A server that was started here.

    Attributes
    ----------
    engine : str
        ``"vllm"``, ``"sglang"`` or ``"llamacpp"``.
    model : str
        The name under which it serves its model.
    url : str
        Its address, without ``/v1``.
    pid : int
        Its process, whose session holds everything that it has started.
    started : float
        ``time.time()`` when its process was made.
    keep : bool
        Whether it outlives the kernel that started it.
    python, log : str
        Its interpreter, and the file of its own words.
    api_key : str or None
        What its clients must send; in no ``repr``.
    """

    engine: str
    model: str
    url: str
    pid: int
    started: float
    keep: bool
    python: str
    log: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def alive(self) -> bool:
        """Whether its process is there, and is the one that was started."""
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.started) < 1
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    @property
    def client(self) -> str:
        """The name of the engine that asks it."""
        from .engines import registry  # ``nbinfer.engines`` itself may be on its way here

        asking = (spec.name for spec in registry.specs() if spec.asks == self.engine)
        return next(asking, self.engine)

    def memory(self) -> dict[str, int | None]:
        """``memory_bytes``: of its whole process tree, GPUs included; ``None`` where unknown."""
        return {"memory_bytes": measure.seen(self.pid).total if self.alive else None}

    def stop(self) -> None:
        """End it and all that it has started."""
        _end(self)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of its own words."""
        with contextlib.suppress(OSError):
            return "\n".join(
                Path(self.log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            )
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _folder() -> Path:
    return settings.home() / "servers"


def _file(server: Server) -> Path:
    return _folder() / f"{server.pid}.json"


def record(server: Server) -> None:
    """Write a server's record, for other notebooks to find it."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    wholefile.write(_file(server), json.dumps(vars(server)), mode=0o600)


def servers() -> list[Server]:
    """The servers that run here, whichever notebook has started them, oldest first.

    Returns
    -------
    list of Server
    """
    found = []
    with contextlib.suppress(OSError):
        for path in _folder().glob("*.json"):
            server = _read(path)
            if server is None or not server.alive:
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                found.append(server)
    return sorted(found, key=lambda s: s.started)


def _read(path: Path) -> Server | None:
    try:
        values: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        key = values.get("api_key")
        return Server(**{**values, "api_key": Secret(key) if key else None})
    except (OSError, ValueError, TypeError):
        return None


def find(url: str) -> Server | None:
    """The server at an address, if it was started here."""
    wanted = _place(url)
    return next((s for s in servers() if _place(s.url) == wanted), None)


def _place(url: str) -> tuple[str, int | None]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    loopback = host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")
    return ("loopback" if loopback else host, parts.port)


def stop(which: str | int | None = None) -> list[Server]:
    """Stop servers.

    Parameters
    ----------
    which : str or int, optional
        An engine's name, an address or a port; by default every server that is listed.

    Returns
    -------
    list of Server
        Those that were stopped.

    Raises
    ------
    ConfigurationError
        Where none is meant by that.
    """
    running = servers()
    meant = [s for s in running if which is None or _is_meant(s, str(which))]
    if which is not None and not meant:
        there = ", ".join(f"{s.engine} at {s.url}" for s in running) or "none"
        raise ConfigurationError(f"no server is {str(which)!r}", hint=f"there are: {there}")
    for server in meant:
        server.stop()
    return meant


def _is_meant(server: Server, which: str) -> bool:
    if which.isdigit():
        return urlsplit(server.url).port == int(which)
    return which == server.engine or ("//" in which and _place(which) == _place(server.url))


def _end(server: Server) -> None:
    """SIGTERM, some patience, then SIGKILL to the whole session."""
    from .worker.sessions import kill_session

    if server.alive:
        with contextlib.suppress(OSError):
            os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while server.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    kill_session(server.pid)
    with contextlib.suppress(OSError):
        _file(server).unlink()
