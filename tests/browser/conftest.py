"""A real JupyterLab in a real Chromium, driven by Playwright.

``pip install -e ".[test,browser]"`` and ``python tests/browser/chromium.py`` give what these tests
need; where one of them is missing they are skipped, with a line that says what to do. Browser and
JupyterLab are this folder's alone: Playwright's event loop, and the kernels' workers, would be in
the way of other tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import chromium, servers
from .book import NEEDS, Book, Wires, new_page


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """Chromium: the system's own, or Playwright's."""
    for module in ("playwright", "jupyterlab", "voila"):
        pytest.importorskip(module, reason=NEEDS)
    from playwright import sync_api as sync

    path = chromium.find()
    if path is None:
        pytest.skip(chromium.WANTED)
    sync.expect.set_options(timeout=servers.WAIT_S * 1000)
    with sync.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab: its address, and the folder that it shows."""
    folder = tmp_path_factory.mktemp("lab")
    with servers.lab(folder) as address:
        yield address, folder


@pytest.fixture(scope="package")
def open_page(browser: Any) -> Any:
    """Opens pages on which every wire is watched."""

    def opened() -> tuple[Any, Wires]:
        page = new_page(browser)
        return page, Wires(page)

    return opened


@pytest.fixture(scope="package")
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
