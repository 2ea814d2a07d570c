"""The panel in JupyterLab: opened, asked, stopped, with a hostile answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import ROOT, notebook, served

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
    name = f"panel-{len(list(folder.glob('*.ipynb')))}.ipynb"  # another name, another kernel
    notebook(folder, name, *cells)
    page.goto(f"{address}/doc/tree/{name}")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text("| Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def tab(page, name):
    page.locator(".jupyter-widgets .lm-TabBar-tab", has_text=name).first.click()


@pytest.fixture
def shot(page, tmp_path):
    """Take a picture: into NBINFER_TEST_PICTURES where that is set, for the docs."""
    folder = Path(os.environ.get("NBINFER_TEST_PICTURES") or tmp_path)

    def take(name):
        page.locator(".jupyter-widgets", has=page.locator(".lm-TabBar-tab")).first.screenshot(
            path=folder / f"panel-{name}.png"
        )

    return take


def test_open_ask_stream_stop(page, lab, shot):
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
    stop.click()
    page.get_by_text("the model is not told of it").wait_for()
    # What was done, as a cell.
    cell = page.locator("textarea[title^='The same as a cell']").first
    assert cell.input_value().startswith("import nbinfer")  # it was the second turn
    tab(page, "Rows")
    page.get_by_text("rows 1–2 of 2").wait_for()
    tab(page, "Engines")
    page.get_by_text("Memory of resident models").wait_for()
    tab(page, "Start")
    page.get_by_text("Which model?").wait_for()
    tab(page, "Compare")
    page.get_by_text("Run", exact=True).first.wait_for()


def test_a_real_engine_is_loaded_asked_compared_and_recovers(page, lab, shot):
    run(
        page,
        lab,
        "%load_ext nbinfer\n%engine load echo -m echo",
        "panel = %panel\npanel",
        "import os\ndef crash():\n"
        "    os.kill(int(nbinfer.engines().query(\"engine == 'llamacpp'\")['pid'].iloc[0]), 9)\n"
        "import nbinfer",
    )
    page.get_by_title("%engine load llamacpp -m smollm2-135m").click()
    page.get_by_text("llamacpp · smollm2-135m is loaded").wait_for(timeout=60_000)
    shot("engines")
    tab(page, "Prompt")
    page.get_by_text("Parameters").first.click()
    page.get_by_label("Most tokens").first.fill("24")
    page.get_by_label("Temperature").first.fill("hot")
    page.locator("textarea[title='Prompt']").fill("Name three colours.")
    page.get_by_text("temperature must be a finite number").first.wait_for()
    page.get_by_label("Temperature").first.fill("")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("24 tokens").first.wait_for(timeout=60_000)
    shot("prompt")
    tab(page, "Compare")
    page.get_by_label("llamacpp · smollm2-135m (ready)").first.check()
    page.get_by_label("echo · echo (ready)").first.check()
    page.get_by_title("Prompts, with a line --- between them").fill("Say: a\n---\nSay: b")
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("4 rows; they are in").wait_for(timeout=120_000)
    shot("compare")
    tab(page, "Rows")
    page.get_by_text("rows 1–5 of 5").wait_for()
    shot("rows")
    # The engine's process is killed: it shows, and a click loads it again.
    page.locator(".jp-CodeCell .cm-content").last.click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\ncrash()")
    page.keyboard.press("Shift+Enter")
    tab(page, "Engines")
    page.get_by_text("SIGKILL; %engine logs llamacpp").wait_for()
    page.get_by_title("%engine load llamacpp -m smollm2-135m").click()
    page.get_by_text("ready").first.wait_for(timeout=60_000)
    tab(page, "Start")
    page.get_by_text("Which model?").wait_for()
    page.get_by_text("Take ").first.wait_for(timeout=60_000)
    shot("start")


@pytest.mark.timeout(400)
def test_under_voila_its_notebook_is_an_application(page, shot, tmp_path):
    """Its cells are run for each visitor, and leave a panel that works."""
    words = ("--port={port}", "--no-browser", "--Voila.ip=127.0.0.1", "--theme=dark")
    with served(tmp_path, "voila", *words, str(ROOT / "notebooks" / "07_panel.ipynb")) as address:
        page.goto(address, timeout=300_000)
        page.locator(".jupyter-widgets .lm-TabBar-tab").first.wait_for(timeout=300_000)
        tab(page, "Prompt")
        page.locator("textarea[title='Prompt']").fill("Name a colour.")
        page.get_by_text("Parameters").first.click()
        page.get_by_label("Most tokens").first.fill("8")
        page.get_by_role("button", name="Send").click()
        page.get_by_text("8 tokens").first.wait_for(timeout=60_000)
        shot("voila")
