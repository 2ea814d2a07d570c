"""A real JupyterLab in a real Chromium, driven by Playwright.

``pip install -e ".[browser]"`` and ``python tests/browser/chromium.py`` give what these tests
need; where one of them is missing they are skipped, with a line that says what to do.
"""

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
from typing import Any

import pytest

from . import chromium
from .book import NEEDS, Book, Wires

ROOT = Path(__file__).parents[2]
# Generous: other programs may have the machine's cores.
START_S = WAIT_S = 180


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: the system's own, or Playwright's."""
    for module in ("playwright", "jupyterlab", "voila"):
        pytest.importorskip(module, reason=NEEDS)
    from playwright import sync_api as sync

    path = chromium.find()
    if path is None:
        pytest.skip(chromium.WANTED)
    sync.expect.set_options(timeout=WAIT_S * 1000)
    with sync.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
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
        server.wait(60)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab: its address, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    asks = folder / ".settings" / "@jupyterlab" / "apputils-extension"
    asks.mkdir(parents=True)
    (asks / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    words = ("--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1")
    words += ("--no-browser", "--allow-root", "--IdentityProvider.token=")
    # Its commands (restart, interrupt, save, theme) can then be called by name.
    words += ("--expose-app-in-browser", f"--ServerApp.root_dir={folder}")
    with served(folder, "jupyterlab", *words) as address:
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


@pytest.fixture(scope="session")
def open_page(browser: Any) -> Any:
    """Opens pages on which every wire is watched; they stay open, with what they show."""

    def opened(**options: Any) -> tuple[Any, Wires]:
        page = browser.new_page(viewport={"width": 1000, "height": 1400}, **options)
        page.set_default_timeout(WAIT_S * 1000)
        page.set_default_navigation_timeout(2 * WAIT_S * 1000)
        return page, Wires(page)

    return opened


@pytest.fixture(scope="session")
def open_book(open_page: Any, lab: tuple[str, Path]) -> Any:
    """Opens a new notebook of these cells in the session's JupyterLab, and runs them."""

    def opened(name: str, *cells: str) -> Book:
        address, folder = lab
        book = Book(*open_page(), f"{address}/doc/tree/{name}.ipynb")
        book.write(folder / f"{name}.ipynb", *cells)
        book.open()
        for place in range(len(cells)):
            book.run(place=place)
        return book

    return opened


@pytest.fixture(autouse=True)
def _kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """What the pages showed when a test failed is in its folder, which is kept."""
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before and "browser" in request.fixturenames:
        found = request.getfixturevalue("browser")
        pages = [page for context in found.contexts for page in context.pages]
        for number, page in enumerate(pages):
            page.screenshot(path=tmp_path / f"end-{number}.png")
