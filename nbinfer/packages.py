"""Running uv: with pip's indexes, watched, ended with all its children, its words masked.

What fetches a model's wheel and what makes an engine's environment share it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import DownloadError

__all__ = [
    "POLL_S",
    "Progress",
    "cause",
    "environment",
    "find_links",
    "locked",
    "remove_leftover",
    "run",
    "said",
    "uv_binary",
]

Progress = Callable[[str], None]
POLL_S = 0.5

_CAUSES = {
    "disk": r"No space left on device|os error 28\b|[Qq]uota exceeded",
    "compiler": r"CMAKE_CXX?_COMPILER|No CMAKE_C|[Nn]o (?:C\+\+ )?compiler|cannot find compiler",
    "index": r"error sending request|dns error|tcp connect error|[Cc]onnection (?:refused|reset)"
    r"|[Nn]etwork (?:connectivity is|was|is) (?:disabled|unreachable)|Request failed after"
    r"|Failed to fetch|operation timed out",
    "torch": r"no version of torch==[\d.]+\+cpu",
    "unknown": r"was not found in the (?:package registry|provided package locations)",
}


def uv_binary(what: str) -> str:
    """The path of uv.

    Raises
    ------
    DownloadError
        If uv is not installed; ``what`` says for what it was needed.
    """
    from uv import find_uv_bin

    try:
        found: str = os.fspath(find_uv_bin())
    except FileNotFoundError as error:
        raise DownloadError(f"{what}: uv is not installed", hint="pip install uv") from error
    return found


def find_links() -> list[str]:
    """``--find-links`` for pip's own places: uv reads none of pip's settings."""
    arguments = []
    for place in os.environ.get("PIP_FIND_LINKS", "").split():
        arguments += ["--find-links", place]
    return arguments


def environment() -> dict[str, str]:
    """The environment for uv, with pip's indexes where uv has none of its own.

    By the environment and not as arguments: an index's address can hold a password, and
    arguments are in everyone's process list.
    """
    environment = dict(os.environ)
    pip = {
        key: os.environ.get(f"PIP_{key}", "").split() for key in ("INDEX_URL", "EXTRA_INDEX_URL")
    }
    web = {k: [u for u in v if u.startswith(("http://", "https://"))] for k, v in pip.items()}
    if web["INDEX_URL"] and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(environment):
        environment["UV_DEFAULT_INDEX"] = web["INDEX_URL"][0]
    if web["EXTRA_INDEX_URL"] and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & set(environment):
        environment["UV_INDEX"] = " ".join(web["EXTRA_INDEX_URL"])
    certificates = environment.get("PIP_CERT")
    if certificates and Path(certificates).is_file():
        environment.setdefault("SSL_CERT_FILE", certificates)
    return environment


def run(
    command: list[str],
    say: Callable[[float, str], None],
    *,
    env: dict[str, str] | None = None,
    limit_s: float | None = None,
) -> tuple[int, str]:
    """Run a command to its end; returns its exit status and its standard error.

    Parameters
    ----------
    command : list of str
        Program and arguments.
    say : callable
        Called about twice a second with the seconds gone and the standard error so far. An
        exception from it ends the command and all that it started.
    env : dict of str to str, optional
        Its environment. Default: :func:`environment`.
    limit_s : float, optional
        Seconds after which it is ended. The exit status is then 124. Default: none.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    output = b""
    try:
        while True:
            spent = time.monotonic() - began
            say(spent, output.decode("utf-8", "replace"))
            if limit_s is not None and spent > limit_s:
                return 124, output.decode("utf-8", "replace")
            try:
                _, output = process.communicate(timeout=POLL_S)
                break
            except subprocess.TimeoutExpired as waiting:
                # What has come so far; not on every platform.
                output = waiting.stderr if isinstance(waiting.stderr, bytes) else b""
    finally:
        if process.poll() is None:
            _kill_group(process)
    return process.returncode, output.decode("utf-8", "replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.communicate()


@contextlib.contextmanager
def locked(path: Path, waiting: str, say: Progress) -> Iterator[None]:
    """Hold a lock among processes; ``waiting`` is said while another one has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    began = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=POLL_S)
            break
        except Timeout:
            say(f"{waiting}: {time.monotonic() - began:.0f} s")
    try:
        yield
    finally:
        lock.release()


def remove_leftover(folder: Path) -> None:
    """Remove what a killed process of ours left. We hold the lock: no living one works in it."""
    import psutil

    # Its uv may live on, and would make the folder again: the path is in its arguments.
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            with contextlib.suppress(psutil.Error):
                found += [process, *process.children(recursive=True)]
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
            process.wait(timeout=5)
    shutil.rmtree(folder, ignore_errors=True)


def said(output: str, lines: int = 8) -> str:
    """The last lines of uv's words, without the user names and passwords of addresses."""
    last = [line for line in output.splitlines() if line.strip()][-lines:]
    return re.sub(r"://[^/@\s]+@", "://***@", "\n".join(last))


def cause(output: str) -> str:
    """Why uv failed: a key of ``_CAUSES``, or ``""``."""
    return next((name for name, pattern in _CAUSES.items() if re.search(pattern, output)), "")
