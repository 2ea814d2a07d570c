"""The panel's notebook as an application: a real Voila, the real llama.cpp, the dark theme."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .book import NEEDS, PANEL, Panel, picture
from .servers import NOTEBOOKS, voila

expect = pytest.importorskip("playwright.sync_api", reason=NEEDS).expect


@pytest.mark.timeout(600)
def test_its_notebook_is_an_application(open_page: Any, tmp_path: Path):
    """Its cells are run for each visitor, and leave a panel that works."""
    page, wires = open_page()
    with voila(tmp_path, NOTEBOOKS / "07_panel.ipynb") as address:
        page.goto(address)
        panel = Panel(page, page.locator(PANEL).first)
        panel.tab("Prompt")
        panel.button("New chat").click()
        panel.fill("Most tokens", "8")
        panel.ask("Name a colour.")
        expect(panel.log).to_contain_text("8 tokens")
        picture(panel.root, "voila", tmp_path)
        panel.fill("Most tokens", "2000")
        panel.ask("Write a very long story about a fox.")
        expect(panel.root).to_contain_text("tok/s")
        panel.button("Stop").click()
        expect(panel.log).to_contain_text("the model is not told of it")
        expect(panel.row("llamacpp")).to_contain_text("ready")
        wires.check()
    page.context.close()
