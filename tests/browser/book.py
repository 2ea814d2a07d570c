"""What the tests drive: a notebook that is open in a browser, and the wires on its page."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
from PIL import Image

from .servers import WAIT_S

__all__ = ["NEEDS", "PANEL", "Book", "Panel", "Wires", "new_page", "picture"]

NEEDS = 'they need: pip install -e ".[test,browser]"'
PANEL = ".widget-vbox:has(> .widget-tab)"
HERE = ("127.0.0.1", "localhost")
# Voila's own page asks for these, with or without us.
THEIRS = "https://cdn.jsdelivr.net/npm/@fortawesome/"
# Nothing of these is ours: of a text that is shown as text, none of them comes. Ours are a style
# sheet in a panel's first part, and plots; in what is printed JupyterLab makes links of addresses.
FOREIGN = (
    "script, iframe, object, embed, img, math, video, audio, form, base, meta, link, marquee, "
    "details, template, image, animate, svg:not([role=img], [aria-hidden]), "
    "style:not(.nbinfer-panel > :first-child *), mjx-container, .katex, "
    "[onerror], [onload], a[href^='javascript'], a[href^='data']:not(pre a)"
)


def new_page(browser: Any) -> Any:
    """An empty page that waits long enough."""
    page = browser.new_page(viewport={"width": 1000, "height": 1400})
    page.set_default_timeout(WAIT_S * 1000)
    page.set_default_navigation_timeout(2 * WAIT_S * 1000)
    return page


class Wires:
    """Everything on a page that a hostile text could set off.

    Attributes
    ----------
    tripped : list of str
        Dialogs, pop-ups, requests to other hosts.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.tripped: list[str] = []
        page.on("dialog", self._dialog)
        page.on("popup", lambda _: self.tripped.append("a pop-up"))
        # What leaves the machine is noted, and goes nowhere.
        page.route(self._is_foreign, self._request)

    @staticmethod
    def _is_foreign(url: str) -> bool:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and parts.hostname not in HERE

    def _request(self, route: Any) -> None:
        if not route.request.url.startswith(THEIRS):
            self.tripped.append(f"a request to {route.request.url}")
        route.abort()

    def _dialog(self, dialog: Any) -> None:
        self.tripped.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def found(self) -> list[str]:
        """What was tripped so far, ``window.tripwire`` of every frame included."""
        found = [*self.tripped]
        for frame in self.page.frames:
            with contextlib.suppress(Exception):  # a frame may be gone
                if frame.evaluate("window.tripwire || Object.prototype.tripwire"):
                    found.append(f"window.tripwire of {frame.url or 'a frame'}")
        return found

    def check(self) -> None:
        """Nothing was tripped."""
        assert (found := self.found()) == [], found


class Panel:
    """A panel on a page."""

    def __init__(self, page: Any, root: Any) -> None:
        self.page, self.root = page, root

    def tab(self, name: str) -> Any:
        """Open a tab; returns what it shows."""
        self.root.locator(".lm-TabBar-tab", has_text=name).click()
        return self.root.locator(".widget-tab-contents > :not(.lm-mod-hidden)")

    def button(self, name: str) -> Any:
        """The button of the open tab with this word."""
        return self.root.locator("button:visible", has_text=name)

    def fill(self, label: str, value: str) -> None:
        """Write into a field of the open tab's parameters, and leave it."""
        field = self.root.get_by_label(label, exact=True).locator("visible=true")
        if field.count() == 0:
            self.root.locator(".jupyter-widget-Collapse-header:visible").click()
        field.fill(value)
        field.press("Tab")

    def ask(self, text: str) -> None:
        """Send a prompt, and wait until it is under way or answered."""
        prompt = self.tab("Prompt")
        prompt.locator("textarea[title='Prompt']").fill(text)
        self.button("Send").click()
        prompt.locator("[role=log]").get_by_text(text.strip()[:40]).last.wait_for()

    @property
    def log(self) -> Any:
        """The conversation."""
        return self.root.locator("[role=log]")

    def use(self, engine: str) -> None:
        """Make an engine what a plain ``%%infer`` uses."""
        self.tab("Engines").get_by_title(f"%engine use {engine} ").click()
        self.page.wait_for_function(
            "([root, name]) => root.querySelector('strong')?.textContent.startsWith(name)",
            arg=[self.root.element_handle(), engine],
        )

    def row(self, engine: str) -> Any:
        """What the Engines tab says of an engine: the line of its buttons."""
        use = self.page.get_by_title(f"%engine use {engine} ")
        return self.tab("Engines").locator(".widget-hbox", has=use).first


class Book:
    """A notebook in JupyterLab."""

    def __init__(self, page: Any, wires: Wires, url: str) -> None:
        self.page, self.wires, self.url = page, wires, url

    @staticmethod
    def write(path: Path, *cells: str) -> None:
        """A notebook of code cells."""
        made = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        nbformat.write(made, path)

    def open(self) -> None:
        """Open it, and wait for its kernel."""
        self.page.goto(self.url)
        self.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        self.page.get_by_text("| Idle").wait_for()

    def close(self) -> None:
        """Close its page."""
        self.page.context.close()

    def command(self, name: str, **options: Any) -> None:
        """A command of JupyterLab's, as its menus have it; returns when it has ended."""
        call = "([name, options]) => window.jupyterapp.commands.execute(name, options)"
        self.page.evaluate(f"async call => {{ await ({call})(call) }}", [name, options])

    def run(self, code: str | None = None, place: int = -1, *, wait: bool = True) -> Any:
        """Run a cell, the last by default, with this code in place of its own.

        Returns
        -------
        Locator
            The cell's outputs, whole where ``wait`` is true.
        """
        self.page.evaluate(
            """async ([code, place, wait]) => {
                const app = window.jupyterapp, book = app.shell.currentWidget.content;
                place = (place + book.widgets.length) % book.widgets.length;
                book.deselectAll();
                book.activeCellIndex = place;
                if (code !== null) book.activeCell.model.sharedModel.setSource(code);
                const ended = app.commands.execute('notebook:run-cell');
                if (wait) await ended;
            }""",
            [code, place, wait],
        )
        cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        return cells.nth(place).locator(".jp-OutputArea-output")

    def value(self, expression: str) -> str:
        """An expression's value in the kernel, as ``print`` shows it; in the last cell."""
        return str(self.run(f"print({expression})").inner_text()).strip()

    def panel(self, number: int = 0) -> Panel:
        """A panel that it shows."""
        root = self.page.locator(PANEL).nth(number)
        root.wait_for()
        return Panel(self.page, root)

    def shown_as_text(self) -> None:
        """No wire was tripped, and no output holds what only obeyed HTML can make."""
        self.wires.check()
        outputs = self.page.locator(".jp-OutputArea-output")
        found = outputs.locator(FOREIGN).evaluate_all("them => them.map(one => one.outerHTML)")
        assert found == [], "\n".join(found)


def picture(shown: Any, name: str, default: Path) -> None:
    """A small picture: into ``NBINFER_TEST_PICTURES`` where that is set, for the docs."""
    folder = Path(os.environ.get("NBINFER_TEST_PICTURES") or default)
    with Image.open(io.BytesIO(shown.screenshot(animations="disabled"))) as taken:
        few = taken.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    few.save(folder / f"panel-{name}.png", optimize=True)
