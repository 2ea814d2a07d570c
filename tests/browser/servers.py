"""Jupyter's servers, each with a folder and settings of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NOTEBOOKS", "WAIT_S", "lab", "voila"]

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
# For a server, a page, or a change on it. Generous: other programs may have the machine's cores.
WAIT_S = 180


@contextlib.contextmanager
def served(folder: Path, module: str, *words: str) -> Iterator[str]:
    """A server of Jupyter's, whose words may name its ``{port}``; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    places = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter") for name in ("CONFIG", "RUNTIME")}
    environment = {
        **os.environ,
        **places,
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / ".ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
    }
    command = [sys.executable, "-m", module, *(word.format(port=port) for word in words)]
    log = folder / f"{module}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        _wait_for(address, server, log)
        yield address
    finally:
        server.terminate()  # its kernels end with it, and their workers with them
        server.wait(WAIT_S)


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[str]:
    """A JupyterLab that shows this folder."""
    asks = folder / ".settings" / "@jupyterlab" / "apputils-extension"
    asks.mkdir(parents=True)
    (asks / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    words = ("--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1")
    words += ("--no-browser", "--allow-root", "--IdentityProvider.token=")
    # Its commands (restart, interrupt, save, theme) can then be called by name.
    words += ("--expose-app-in-browser", f"--ServerApp.root_dir={folder}")
    with served(folder, "jupyterlab", *words) as address:
        yield address


@contextlib.contextmanager
def voila(folder: Path, notebook: Path) -> Iterator[str]:
    """A Voila with this notebook, in its dark theme."""
    words = ("--port={port}", "--no-browser", "--Voila.ip=127.0.0.1", "--theme=dark")
    with served(folder, "voila", *words, str(notebook)) as address:
        yield address


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
