"""The panel in JupyterLab: opened, asked, stopped, with a hostile answer."""

from __future__ import annotations

import pytest

from .conftest import notebook

HOSTILE = '<img src=x onerror="window.tripwire=1"><script>window.tripwire=1</script>'


@pytest.fixture
def page(browser, tmp_path):
    """An empty page; what it showed in the end is in ``end.png``, which a failed test keeps."""
    made = browser.new_page(viewport={"width": 1100, "height": 1400})
    made.set_default_timeout(20_000)
    yield made
    made.screenshot(path=tmp_path / "end.png")
    made.close()


def run(page, lab, *cells):
    """Open a notebook with these cells, and run them all."""
    address, folder = lab
    notebook(folder, "panel.ipynb", *cells)
    page.goto(f"{address}/doc/tree/panel.ipynb")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def tab(page, name):
    page.locator(".jupyter-widgets .lm-TabBar-tab", has_text=name).first.click()


def test_open_ask_stream_stop(page, lab, tmp_path):
    run(
        page,
        lab,
        "%load_ext nbinfer\n%engine use echo -k token_s=0.05",
        "panel = %panel\npanel",
    )
    tab(page, "Prompt")
    text = page.locator("textarea[title='Prompt']")
    text.fill(HOSTILE)
    page.get_by_role("button", name="Send").click()
    log = page.locator("[role=log]")
    log.get_by_text(HOSTILE).nth(1).wait_for()  # what was asked, and the answer
    assert page.evaluate("window.tripwire") is None
    text.fill("word " * 500)
    page.get_by_role("button", name="Send").click()
    page.get_by_text("word word word").last.wait_for()
    page.get_by_text("tok/s").first.wait_for()
    stop = page.get_by_role("button", name="Stop").first
    assert stop.is_enabled()
    page.screenshot(path=tmp_path / "prompt.png")
    stop.click()
    page.get_by_text("the model is not told of it").wait_for()
    # What was done, as a cell.
    cell = page.locator("textarea[title^='The same as a cell']").first
    assert cell.input_value().startswith("import nbinfer")  # it was the second turn
    tab(page, "Rows")
    page.get_by_text("rows 1–2 of 2").wait_for()
    tab(page, "Engines")
    page.get_by_text("Memory of resident models").wait_for()
    page.screenshot(path=tmp_path / "engines.png")
    tab(page, "Start")
    page.get_by_text("Which model?").wait_for()
    tab(page, "Compare")
    page.get_by_text("Run", exact=True).first.wait_for()
