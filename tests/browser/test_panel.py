"""The panel in JupyterLab with the real llama.cpp, and the echo engine where time matters.

One page, opened once: what a test does is what the next one finds. Each makes what it needs.
"""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import pytest

from .book import NEEDS, Book, Panel, picture

expect = pytest.importorskip("playwright.sync_api", reason=NEEDS).expect
pytestmark = pytest.mark.timeout(600)

# With it an answer has all its tokens: echo's then takes 45 seconds, and says its prompt again.
ENDLESS = {"Most tokens": "900", "Others": "ignore_eos=true"}
CELLS = (
    "%load_ext nbinfer\nimport nbinfer, time\n"
    "%engine load echo -k token_s=0.05\n%engine use llamacpp -k n_ctx=1024",
    "panel = %panel\npanel",
    "",
    "",
)
ENGINES = ("echo", "llamacpp")
PANEL, SECOND = 1, 2


@pytest.fixture(scope="module")
def book(open_book: Any) -> Any:
    made = open_book("panel", *CELLS)
    panel = made.panel()
    panel.row("llamacpp").get_by_role("button", name="Load", exact=True).click()
    expect(panel.row("llamacpp")).to_contain_text("ready")
    yield made
    made.close()


@pytest.fixture
def panel(book: Book) -> Panel:
    return book.panel()


def begin(panel: Panel, engine: str) -> Any:
    """Ask an engine something long; returns the growing answer once its first words are shown."""
    panel.use(engine)
    prompt = panel.tab("Prompt")
    expect(prompt).to_contain_text(f"Asks {engine} · ")
    panel.button("New chat").click()
    expect(panel.log).to_have_count(0)
    for label, value in ENDLESS.items():
        panel.fill(label, value)
    panel.ask("Write a long story about a fox.")
    expect(prompt).to_contain_text("tok/s")
    return prompt


def name_three_colours(panel: Panel, tokens: int) -> None:
    """A short answer of llama.cpp in a new conversation."""
    panel.use("llamacpp")
    panel.tab("Prompt")
    panel.button("New chat").click()
    panel.fill("Most tokens", str(tokens))
    panel.fill("Others", "")
    panel.ask("Name three colours.")
    expect(panel.log).to_contain_text(f"{tokens} tokens")


def stop(panel: Panel) -> None:
    """Stop what is under way: it was, and is no more."""
    button = panel.button("Stop")
    expect(button).to_be_enabled()
    button.click()
    expect(panel.log).to_contain_text("the model is not told of it")
    expect(panel.button("Send")).to_be_enabled()


def pids(book: Book) -> str:
    return book.value("nbinfer.engines()[['engine', 'pid']].to_dict('list')")


# ------------------------------------------------------------------------ one engine


def test_what_is_chosen_is_what_a_plain_cell_uses(book: Book, panel: Panel):
    for engine in ENGINES:
        panel.use(engine)
        book.run("%infer --max-new-tokens 2 one two three")
        assert book.value("nbinfer.last()['engine'].item()") == engine
        expect(panel.tab("Prompt")).to_contain_text(f"Asks {engine} · ")
    assert book.value("len(nbinfer.engines())") == "2"


@pytest.mark.parametrize("engine", ENGINES)
def test_it_streams_and_stops(book: Book, panel: Panel, engine: str):
    before = pids(book)
    prompt = begin(panel, engine)
    expect(prompt).to_contain_text("TTFT")
    stop(panel)
    row = book.value("panel.df.iloc[-1][['finish_reason', 'engine']].tolist()")
    assert row == str(["cancelled", engine])
    assert pids(book) == before
    expect(panel.row(engine)).to_contain_text("ready")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_is_the_cells_and_not_the_panels(book: Book, panel: Panel, engine: str):
    before = pids(book)
    prompt = begin(panel, engine)
    cell = book.run("print('it runs')\ntime.sleep(600)", wait=False)
    expect(cell).to_contain_text("it runs")
    was = prompt.inner_text()
    expect(prompt).not_to_have_text(was, use_inner_text=True)  # drawn while the kernel is busy
    book.command("notebook:interrupt-kernel")
    expect(cell.last).to_contain_text("KeyboardInterrupt")
    stop(panel)  # it was still under way
    assert book.value("panel.df['finish_reason'].iloc[-1]") == "cancelled"
    assert pids(book) == before


def test_wrong_values_are_said_at_the_field(book: Book, panel: Panel):
    panel.tab("Prompt")
    panel.fill("Temperature", "hot")
    expect(panel.root.get_by_role("alert")).to_contain_text("temperature must be a finite number")
    panel.fill("Temperature", "")
    expect(panel.root.get_by_role("alert")).to_have_count(0)


def test_the_cell_that_does_the_same_does_the_same(book: Book, panel: Panel):
    name_three_colours(panel, 12)
    cell = panel.root.locator("textarea[title^='The same as a cell']:visible").input_value()
    assert cell.startswith("%%infer -e llamacpp ")
    book.run(cell)
    assert book.value("(nbinfer.last()['output'] == panel.df['output'].iloc[-1]).item()") == "True"


# ------------------------------------------------------------------------- both engines


def test_compare(book: Book, panel: Panel):
    compare = panel.tab("Compare")
    for engine in ENGINES:
        compare.get_by_label(f"{engine} · ").first.check()
    compare.get_by_title("Prompts, with a line --- between them").fill("Say: a\n---\nSay: b")
    panel.fill("Most tokens", "8")
    panel.button("Run").click()
    expect(compare).to_contain_text("4 rows; they are in")
    answers = compare.locator("table").last
    expect(answers.locator("tbody tr")).to_have_count(2)
    expect(answers.locator("tbody td", has_text="Say: a").first).to_be_visible()  # echo's
    expect(answers.locator("span[style*='underline']").first).to_be_visible()
    assert book.value("sorted(set(panel.compare.frame['engine']))") == str(sorted(ENGINES))


def test_measure(book: Book, panel: Panel):
    bench = panel.tab("Benchmark")
    bench.get_by_label("llamacpp · ").first.check()
    load = {"Prompt tokens": "32", "Answer tokens": "8", "Requests": "2", "Repeats": "1"}
    for label, value in load.items():
        panel.fill(label, value)
    panel.button("Measure").click()
    expect(bench).to_contain_text("measured; the whole table is in")
    expect(bench.locator("tbody tr")).to_have_count(1)
    assert book.value("panel.benchmark.frame['requests'].tolist()") == "[2]"


def test_two_tabs_of_a_browser_agree(book: Book, panel: Panel, open_page: Any):
    """What is done in one is shown in the other, and can be stopped there."""
    book.command("docmanager:save")
    other = Book(*open_page(), book.url)
    other.open()
    there = other.panel()
    begin(panel, "echo")
    expect(there.tab("Prompt")).to_contain_text("tok/s")
    expect(there.tab("Prompt")).to_contain_text("Asks echo · ")
    stop(there)
    expect(panel.log).to_contain_text("the model is not told of it")
    assert there.log.inner_text() == panel.log.inner_text()
    there.use("llamacpp")
    expect(panel.root.locator("strong").first).to_contain_text("llamacpp")
    for engine in ENGINES:
        assert there.row(engine).inner_text() == panel.row(engine).inner_text()
    other.close()


def test_two_panels_and_a_cell_agree(book: Book, panel: Panel):
    book.run("second = %panel\nsecond", SECOND)
    second = book.panel(1)
    second.use("echo")
    expect(panel.tab("Engines").locator("strong").first).to_contain_text("echo")
    book.run("%engine use llamacpp -k n_ctx=1024")
    for one in (panel, second):
        expect(one.tab("Engines").locator("strong").first).to_contain_text("llamacpp")
    begin(second, "llamacpp")
    expect(panel.row("llamacpp")).to_contain_text("busy")
    book.run("%infer --max-new-tokens 3 Name a colour.")  # it joins the same resident's batch
    assert book.value("nbinfer.last()['output_tokens'].item()") == "3"
    second.tab("Prompt")
    stop(second)
    for one in (panel, second):
        expect(one.row("llamacpp")).to_contain_text("ready")
    book.run("", SECOND)
    book.run("second.close()")
    expect(book.page.locator(".widget-tab")).to_have_count(1)


# ------------------------------------------------------------------------------ looks


# Of text and its ground, as WCAG counts it; 4.5 is what it asks of text of this size.
CONTRAST = """one => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let ground = one;
    while (ground && (rgb(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0)
        ground = ground.parentElement;
    const both = [getComputedStyle(one).color, getComputedStyle(ground).backgroundColor];
    const [low, high] = both.map(rgb).map(light).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""
SHOWS = {
    "Start": "Take ",
    "Engines": "Memory of resident models",
    "Prompt": "System message",
    "Compare": "The same as a cell",
    "Benchmark": "The same as a cell",
    "Rows": "page ",
}


@pytest.fixture(scope="module")
def talked(book: Book) -> None:
    """A short answer to show, and a page high enough for every tab."""
    name_three_colours(book.panel(), 24)
    book.page.set_viewport_size({"width": 1000, "height": 2600})


@pytest.mark.parametrize(("theme", "end"), [("Light", ""), ("Dark", "-dark")])
@pytest.mark.usefixtures("talked")
def test_every_tab_is_readable_in_both_themes(book: Book, panel: Panel, tmp_path, theme, end):
    book.command("apputils:change-theme", theme=f"JupyterLab {theme}")
    body = book.page.locator("body")
    expect(body).to_have_attribute("data-jp-theme-name", f"JupyterLab {theme}")
    for title, text in SHOWS.items():
        tab = panel.tab(title)
        expect(tab).to_contain_text(text)
        shown = tab.locator(":is(.widget-html-content > *, .widget-label):visible").first
        assert shown.evaluate(CONTRAST) >= 4.5
        assert book.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        picture(panel.root, title.lower() + end, tmp_path)


# ---------------------------------------------------------------------- much, and faults


def test_ten_thousand_rows_are_turned_page_by_page(book: Book, panel: Panel):
    before = int(book.value("len(panel.df)"))
    book.run(
        "many = nbinfer.EchoInferenceEngine(nbinfer.ModelParams(model_kwargs={'slots': 64}))\n"
        "panel.rows.add(many.infer([f'prompt {i}' for i in range(10_000)], progress=False))\n"
        "many.unload()"
    )
    rows = panel.tab("Rows")
    expect(rows).to_contain_text(f"of {before + 10_000:,}")
    expect(rows).to_contain_text("prompt 9999")
    pages = -(-(before + 10_000) // 20)
    for turned in range(1, 4):
        panel.button("Back").click()
        expect(rows).to_contain_text(f"page {pages - turned:,} of {pages:,}")
    assert 1 < rows.locator("tr").count() <= 21
    assert "prompt 9999" not in rows.inner_text()
    panel.button("Next").click()
    expect(rows).to_contain_text(f"page {pages - 2:,} of {pages:,}")


def test_a_crash_is_said_and_the_engine_is_loaded_again(book: Book, panel: Panel):
    begin(panel, "llamacpp")
    pid = book.value("nbinfer.engines().query(\"engine == 'llamacpp'\")['pid'].item()")
    os.kill(int(pid), signal.SIGKILL)
    expect(panel.log.get_by_role("alert")).to_contain_text("SIGKILL")
    expect(panel.button("Send")).to_be_enabled()
    assert book.value("panel.df['finish_reason'].iloc[-1]") == "error"
    row = panel.row("llamacpp")
    expect(row).to_contain_text("crashed")
    expect(row).to_contain_text("SIGKILL; %engine logs llamacpp")
    row.locator("button:visible", has_text=re.compile("^(Load|Restart)$")).click()
    expect(row).to_contain_text("ready")
    panel.tab("Prompt")
    panel.fill("Most tokens", "4")
    panel.ask("Name a colour.")
    expect(panel.log).to_contain_text("4 tokens")
    assert pid not in pids(book)


def test_a_restarted_kernel_leaves_a_panel_that_says_so(book: Book, panel: Panel):
    """It shows what it did, and that it is disconnected; its cell makes another that works."""
    panel.tab("Engines")
    gone = panel.root.get_by_role("alert").filter(has_text="Disconnected")
    expect(gone).not_to_be_visible()
    book.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:restart-kernel') }")
    book.page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(gone).to_be_visible()
    expect(panel.root).to_contain_text("llamacpp")
    book.page.get_by_text("| Idle").wait_for()
    for place in (0, PANEL):
        book.run(place=place)
    expect(panel.tab("Engines")).to_contain_text("not loaded")
    expect(gone).not_to_be_visible()
    panel.use("echo")
