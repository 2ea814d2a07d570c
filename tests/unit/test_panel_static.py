"""A saved notebook shows a panel as it was, to a reader who has no kernel."""

from __future__ import annotations

import html
from pathlib import Path

import nbconvert
import nbformat
import pytest
from nbclient import NotebookClient

from ..browser.hostile import CORPUS

ROOT = Path(__file__).parents[2]
HOSTILE = CORPUS["img onerror"]


def test_a_page_made_of_a_saved_notebook_shows_engines_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By nbconvert, without a kernel: as JupyterLab saves it, without widgets' state."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    cells = (
        "%load_ext nbinfer\n%engine use echo",
        f"panel = %panel\npanel.prompt.text.value = {HOSTILE!r}\npanel.prompt.go.click()\n"
        "assert panel.wait(60)\npanel",
    )
    saved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(saved, timeout=240, kernel_name="python3", store_widget_state=False).execute()
    page, _ = nbconvert.HTMLExporter().from_notebook_node(saved)
    (shown,) = page.split('data-mime-type="text/html"')[1:]
    assert "llamacpp" in shown
    # What was asked, what was answered, and their row.
    assert shown.count(html.escape(HOSTILE, quote=False)) >= 3
    assert HOSTILE not in shown
    assert "widget-view+json" not in page
