"""A real JupyterLab in a real Chromium, driven by Playwright.

``pip install -e ".[browser]"`` and Debian's ``chromium`` (or ``playwright install chromium``) are
what these tests need; where one of them is missing they are skipped, with that line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
START_S = 60


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the system's own, or Playwright's."""
    for module in ("playwright", "jupyterlab", "voila"):
        pytest.importorskip(module, reason='they need: pip install -e ".[browser]"')
    from playwright import sync_api as sync

    with sync.sync_playwright() as driver:
        own = shutil.which("chromium") or shutil.which("google-chrome")
        if own is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("apt install chromium, or: playwright install chromium")
        found = driver.chromium.launch(executable_path=own, args=["--no-sandbox"])
        yield found
        found.close()


@contextlib.contextmanager
def served(folder: Path, module: str, *words: str) -> Iterator[str]:
    """A server of Jupyter's, with settings of its own; yields its address."""
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
        wait_for(address, server, log)
        yield address
    finally:
        server.terminate()  # its kernels end with it, and their workers with them
        server.wait(30)


@pytest.fixture(scope="session")
def lab(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab: its address, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    asks = folder / ".settings" / "@jupyterlab" / "apputils-extension"
    asks.mkdir(parents=True)
    (asks / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    words = ("--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1")
    words += ("--no-browser", "--allow-root", "--IdentityProvider.token=")
    with served(folder, "jupyterlab", *words, f"--ServerApp.root_dir={folder}") as address:
        yield address, folder


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


def notebook(folder: Path, name: str, *cells: str) -> None:
    """Write a notebook of code cells."""
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(made, folder / name)
