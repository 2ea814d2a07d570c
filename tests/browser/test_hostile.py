"""What a hostile model answers is shown as text, wherever it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from .book import NEEDS, Book, Panel, Wires
from .hostile import AT_ONCE, CORPUS, answered, shown

expect = pytest.importorskip("playwright.sync_api", reason=NEEDS).expect
pytestmark = pytest.mark.timeout(600)

CELLS = (
    "%load_ext nbinfer\nimport nbinfer\nfrom nbinfer import ModelParams\n"
    "from nbinfer.notebook.panels.refresher import refresher\n"
    "from tests.browser.hostile import CORPUS, HUGE\n"
    "texts = list(CORPUS.values())\n%engine use echo",
    "panel = %panel\npanel",
    "",
)
# The conversation shows so many turns, of which each text makes two.
AT_A_TIME = 20
# An engine's name of a model is shown in its table, the panel's rows and the choice of engines.
MODELS = ("img onerror", "attribute break", "table break", "markdown link", "css url")


@pytest.fixture(scope="module")
def book(open_book: Any) -> Any:
    made = open_book("hostile", *CELLS)
    yield made
    made.close()


@pytest.fixture
def panel(book: Book) -> Panel:
    return book.panel()


def all_shown(place: Any, texts: Sequence[str]) -> None:
    """Each text is there to the letter, as what it is."""
    found = place.evaluate_all("them => them.map(one => one.textContent).join('\\n')")
    assert [text for text in texts if shown(text) not in found] == []


def batches() -> list[list[str]]:
    texts = list(CORPUS.values())
    return [texts[place : place + AT_A_TIME] for place in range(0, len(texts), AT_A_TIME)]


def ask_all(book: Book, place: int, before: str = "") -> None:
    """Each text of a batch is a prompt in a conversation of its own."""
    book.run(
        "panel.prompt.new.click()\n"
        f"for text in texts[{place * AT_A_TIME}:{(place + 1) * AT_A_TIME}]:\n"
        "    panel.prompt.turns = ()\n"
        f"    panel.prompt.text.value = {before!r} + text\n"
        "    panel.prompt.go.click()\n"
        "    assert panel.wait(60)\n"
        "print(len(panel.df))"
    )


def test_the_wires_are_tripped_where_a_text_is_obeyed(open_page: Any):
    """Every text that needs no click, taken as HTML, is noticed: so the other tests can fail."""
    page, wires = open_page()
    silent = []
    for name, text in AT_ONCE.items():
        page.goto("about:blank")
        wires.tripped.clear()
        page.set_content(text, wait_until="commit")
        if not _soon(page, wires):
            silent.append(name)
    page.context.close()
    assert silent == []


def _soon(page: Any, wires: Wires) -> bool:
    for _ in range(100):
        if wires.found():
            return True
        page.wait_for_timeout(50)
    return False


def test_in_the_conversation(book: Book, panel: Panel):
    tab = panel.tab("Prompt")
    for place, batch in enumerate(batches()):
        ask_all(book, place)
        expect(panel.log.locator("> div")).to_have_count(2 * len(batch))
        all_shown(panel.log, [*batch, *map(answered, batch)])
        book.shown_as_text()
    assert book.value("len(panel.df)") == str(len(CORPUS))
    expect(tab).to_be_visible()  # no style of theirs hides it


def test_in_errors(book: Book, panel: Panel):
    panel.tab("Prompt")
    for place, batch in enumerate(batches()):
        ask_all(book, place, "!fail ")
        expect(panel.log.get_by_role("alert")).to_have_count(len(batch))
        all_shown(panel.log.get_by_role("alert"), list(map(answered, batch)))
        book.shown_as_text()


def test_in_a_comparison(book: Book, panel: Panel):
    """Side by side, equal and marked as different, and in its numbers."""
    compare = panel.tab("Compare")
    book.run(
        "for name in ('one', 'two'):\n"
        "    nbinfer.EchoInferenceEngine(ModelParams(name)).load()\n"
        "refresher.draw()\n"
        "panel.compare.picker.choose('echo')\n"
        "panel.compare.text.value = '\\n---\\n'.join(texts[:50])\n"
        "panel.compare.go.click()\nassert panel.wait(120)\nprint(len(panel.compare.frame))"
    )
    expect(compare).to_contain_text("rows; they are in panel.compare.frame")
    expect(compare.locator("table").last.locator("tbody tr")).to_have_count(50)
    cells = compare.locator("table").last.locator("td, th")
    all_shown(cells, list(map(answered, list(CORPUS.values())[:50])))
    book.shown_as_text()
    book.run(
        "frame = panel.compare.frame.copy()\n"
        "second = frame['model'] == 'two'\n"
        "frame.loc[second, 'output'] = 'but <b>' + frame.loc[second, 'output'] + '</b>'\n"
        "panel.compare.keep(frame)"
    )
    expect(cells.locator("span[style*='underline']").first).to_be_visible()
    all_shown(cells, [f"but <b>{answered(text)}</b>" for text in list(CORPUS.values())[:50]])
    book.shown_as_text()


def test_in_the_table_of_rows(book: Book, panel: Panel):
    rows = panel.tab("Rows")
    book.run(
        "panel.rows._frames.clear()\n"
        "panel.rows.add(nbinfer.EchoInferenceEngine(ModelParams('one'))"
        ".infer([*texts, *('!fail ' + text for text in texts)], progress=False))"
    )
    seen = ""
    pages = -(-2 * len(CORPUS) // 20)
    for page in reversed(range(1, pages + 1)):
        expect(rows).to_contain_text(f"page {page} of {pages}")
        seen += rows.evaluate("one => one.textContent")
        book.shown_as_text()
        if page > 1:
            panel.button("Back").click()
    texts = [*CORPUS.values(), *map(answered, CORPUS.values())]
    assert [text for text in texts if shown(text) not in seen] == []


def test_in_the_output_of_cells(book: Book):
    """Streamed, as a table, in a comparison's table, and in the text of an error."""
    for place, batch in enumerate(batches()):
        cell = book.run(
            f"some = texts[{place * AT_A_TIME}:{(place + 1) * AT_A_TIME}]\n"
            "for text in some:\n"
            "    get_ipython().run_cell_magic('infer', '-e echo', text)\n"
            "engine = nbinfer.EchoInferenceEngine(ModelParams('one'))\n"
            "display(engine.infer(some, progress=False))\n"
            "other = nbinfer.EchoInferenceEngine(ModelParams('two'))\n"
            "display(nbinfer.compare([engine, other], some[:10], progress=False))\n"
            "display(engine.infer(['!fail ' + text for text in some], progress=False))"
        )
        expect(cell.locator("table")).to_have_count(3)
        all_shown(cell.locator("pre"), list(map(answered, batch)))
        all_shown(cell.locator("table").first, [*batch, *map(answered, batch)])
        all_shown(cell.locator("table").last, list(map(answered, batch)))
        book.shown_as_text()
    cell = book.run("nbinfer.features(engines=[texts[0]])")
    all_shown(cell, [CORPUS["img onerror"]])
    book.shown_as_text()


def test_in_the_table_of_engines(book: Book, panel: Panel):
    names = [CORPUS[name] for name in MODELS]
    cell = book.run(
        f"for name in {names!r}:\n    nbinfer.EchoInferenceEngine(ModelParams(name)).load()\n"
        "refresher.draw()\n%engine"
    )
    all_shown(cell.locator("table"), names)
    for tab in ("Engines", "Compare", "Benchmark"):
        expect(panel.tab(tab)).to_contain_text(names[0])
        all_shown(panel.root, names)
        book.shown_as_text()


def test_a_megabyte_on_one_line(book: Book, panel: Panel):
    """It is cut where it is shown, whole in the frame, and the page still answers."""
    prompt = panel.tab("Prompt")
    book.run(
        "panel.prompt.new.click()\npanel.prompt.text.value = HUGE\npanel.prompt.go.click()\n"
        "assert panel.wait(120)\npanel.df.iloc[-1:]"
    )
    expect(panel.log).to_contain_text("more characters; panel.df has all")
    assert book.value("panel.df['output'].iloc[-1] == HUGE") == "True"
    book.run("panel.rows.turn(1_000)")
    expect(panel.tab("Rows")).to_contain_text("long text cut at 300 characters")
    panel.tab("Prompt")
    prompt.locator("textarea[title='Prompt']").fill("still there")
    panel.button("Send").click()
    expect(panel.log).to_contain_text("still there")
    assert panel.root.evaluate("one => one.textContent.length") < 200_000
    book.shown_as_text()
