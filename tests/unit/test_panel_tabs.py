"""The panel's other tabs: comparison, benchmark, recommendation, rows; and hostile answers."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

import nbinfer
from nbinfer import ModelParams, frame, notices, selection
from nbinfer.notebook.panels import parts
from nbinfer.notebook.panels.comparison import side_by_side
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.notebook.panels.results import PAGE
from nbinfer.selection import Selection

from ..conftest import eventually, our_threads, workers
from .panels import fresh, living, tree  # noqa: F401
from .test_panel_prompt import send, use


@pytest.fixture
def panel(shell):
    made = nbinfer.panel()
    use()
    return made


def load(*models, **kwargs):
    """Resident echo engines: what the comparison can choose."""
    for model in models:
        nbinfer.EchoInferenceEngine(ModelParams(model, model_kwargs=kwargs)).load()
    refresher.draw()


# --------------------------------------------------------------------- comparison


def test_a_comparison_of_two(shell, panel):
    load("one", "two")
    tab = panel.compare
    refresher.draw()
    tab.picker.choose("echo")
    chosen = tab.picker.selections
    assert {"one", "two"} <= {s.model.model_name for s in chosen}
    tab.text.value = "a b c\n---\nd"
    tab.form["max_new_tokens"].widget.value = "2"
    tab.go.click()
    assert panel.wait(20)
    found = tab.frame
    assert found["output"].tolist() == ["a b"] * len(chosen) + ["d"] * len(chosen)
    assert "a b" in tab.answers.value
    assert "<table" in tab.numbers.value
    assert len(panel.df) == len(found)
    assert set(panel.df) <= {*frame.COLUMNS, *frame.OPTIONAL, "sample"}
    # Two of one engine are no line of %%compare: it is Python, and gives the same.
    assert "nbinfer.compare(engines, ['a b c', 'd'], params)" in tab.cell.value
    *head, last = tab.cell.value.splitlines()
    space = {}
    exec("\n".join([*head, f"again = {last}"]), space)
    assert space["again"]["output"].tolist() == found["output"].tolist()


def test_a_comparison_can_be_stopped(shell, panel):
    load("one", "two", token_s=0.05)
    tab = panel.compare
    refresher.draw()
    for key, row in tab.picker._rows.items():
        tab.picker._boxes[key].value = row.selection.model.model_name in ("one", "two")
    tab.text.value = "word " * 200
    tab.go.click()
    assert eventually(lambda: "echo · one" in tab.status.value)
    tab.stop.click()
    assert panel.wait(10)
    assert set(tab.frame["finish_reason"]) == {"cancelled"}
    assert set(tab.frame["model"]) == {"one"}
    assert notices.listeners == []
    assert not tab.busy


@pytest.mark.parametrize(("engines", "text"), [((), "a"), (("echo",), ""), (("llamacpp",), "a")])
def test_what_is_missing_is_said(panel, engines, text):
    load("one")
    tab = panel.compare
    refresher.draw()
    tab.picker.choose(*engines)
    tab.text.value = text
    tab.go.click()
    assert "Failed." in tab.status.value
    assert not tab.busy


def test_differences_are_marked_and_escaped():
    rows = [
        frame.Row(0, id=0, prompt="<p>", output="one <b>two</b>", finish_reason="stop"),
        frame.Row(0, id=0, prompt="<p>", output="one <i>three</i>", finish_reason="stop"),
        frame.Row(1, id=1, prompt="q", output=None, error="<u>no</u>", finish_reason="error"),
        frame.Row(1, id=1, prompt="q", output="x" * 100_000, finish_reason="stop"),
    ]
    found = pd.concat(
        [
            frame.build([rows[place]], {"engine": name, "model": "m", "run_id": name})
            for name, place in (("a", 0), ("b", 1), ("a", 2), ("b", 3))
        ],
        ignore_index=True,
    )
    drawn = side_by_side(found)
    assert "text-decoration:underline" in drawn
    assert tags(drawn) <= ALLOWED
    assert len(drawn) < 20_000


# ---------------------------------------------------------------------- benchmark


def test_a_benchmark(shell, panel):
    load("one")
    tab = panel.benchmark
    refresher.draw()
    for key, row in tab.picker._rows.items():
        tab.picker._boxes[key].value = row.selection.model.model_name == "one"
    for name, text in {
        "prompt_tokens": "4",
        "output_tokens": "3",
        "concurrency": "1,2",
        "requests": "2",
        "repeats": "1",
    }.items():
        tab.fields[name].value = text
    tab.go.click()
    assert panel.wait(30)
    assert tab.frame["concurrency"].tolist() == [1, 2]
    assert tab.frame["error"].isna().all()
    assert "<table" in tab.table.value
    line = tab.cell.value
    assert line == (
        "%benchmark -e echo -m echo=one --prompt-tokens 4 --output-tokens 3 --concurrency 1,2 "
        "--requests 2 --repeats 1"
    )
    assert shell.line(line)["concurrency"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("repeats", "many", "Repeats takes whole numbers"),
        ("requests", "1,2", "Requests takes one number"),
        ("prompt_tokens", "<b>", "prompt_tokens"),
    ],
)
def test_a_wrong_field_of_a_benchmark_is_said(panel, name, text, says):
    load("one")
    tab = panel.benchmark
    refresher.draw()
    for key, row in tab.picker._rows.items():
        tab.picker._boxes[key].value = row.selection.model.model_name == "one"
    tab.fields[name].value = text
    tab.go.click()
    assert panel.wait(10)
    assert says in tab.status.value
    assert "<b>" not in tab.status.value


# ------------------------------------------------------------------ tabs and rows


def test_tabs_are_made_when_they_are_opened_and_closed_with_the_panel(shell):
    before = living()
    panel = nbinfer.panel()
    assert panel._made == {}
    for place, title in enumerate(panel._tabs.titles):
        panel._tabs.set_state({"selected_index": place})
        assert title not in panel._pages or title in panel._made
    assert "Which model?" in [w.value for w in tree(panel) if hasattr(w, "value")]
    panel.close()
    assert living() <= before
    assert our_threads() == []


def test_rows_are_shown_a_page_at_a_time(shell):
    panel = nbinfer.panel()
    many = [
        frame.Row(i, id=i, prompt="p", output=f"<{i}>", finish_reason="stop") for i in range(10_000)
    ]
    panel.rows.add(frame.build(many, {"engine": "echo", "model": "m", "run_id": "r"}))
    assert len(panel.df) == 10_000
    table = panel.rows._table
    assert table.value.count("<tr>") == PAGE + 1
    assert "&lt;9999&gt;" in table.value
    assert panel.rows.on.disabled
    panel.rows.back.click()
    assert f"page {10_000 // PAGE - 1:,} of {10_000 // PAGE:,}" in panel.rows._place.value
    panel.rows.turn(-(10**6))
    assert "&lt;0&gt;" in table.value
    assert panel.rows.back.disabled
    assert len(table.value) < 50_000


def test_an_empty_frame_has_the_columns(shell):
    found = nbinfer.panel().df
    assert len(found) == 0
    assert list(found) == list(frame.COLUMNS)


def test_a_saved_notebook_shows_the_engines_the_chat_and_the_rows(panel):
    send(panel, "what is <seen>")
    bundle = panel._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    static = bundle["text/html"]
    assert "echo" in static
    assert "what is &lt;seen&gt;" in static
    assert tags(static) <= ALLOWED
    assert bundle["text/plain"] == repr(panel)


# ------------------------------------------------------------------------ hostile

XSS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "</div></td></table></pre><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href=javascript:alert(1)>x</a>",
    "[x](javascript:alert(1)) ![x](http://x/y.png)",
    "<style>*{display:none}</style>",
    "<!--", "-->", "<![CDATA[", "]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;",
    "<ScRiPt >alert(1)</sCrIpT>",
    "<\x00script>alert(1)</script>",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "\u202eevil\u2066",
    "$$\\href{javascript:alert(1)}{x}$$",
    "\ud800",
]  # fmt: skip
ALLOWED = {
    "div",
    "span",
    "strong",
    "code",
    "br",
    "pre",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    *("svg", "path", "text"),
}


HARMLESS = {
    *("class", "style", "role", "title", "aria-hidden", "aria-label", "tabindex", "scope"),
    *("colspan", "d", "x", "y", "viewbox", "width", "height", "fill", "stroke"),
}


class Tags(HTMLParser):
    """Every tag of a text; an attribute that could run something fails at once."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        assert {name for name, _ in attrs} <= HARMLESS, attrs

    def handle_comment(self, data):
        raise AssertionError(data)

    def unknown_decl(self, data):
        raise AssertionError(data)


def tags(text):
    parser = Tags()
    parser.feed(text)
    parser.close()
    return parser.found


def htmls(panel):
    style, *others = [w.value for w in tree(panel) if type(w).__name__ == "HTML"]
    assert style.startswith("<style>")  # ours, and the same in every panel
    return others


def test_hostile_answers_are_text_in_every_tab(shell, panel):
    load("one", "two")
    words = " ".join(XSS).replace("\ud800", "")  # half a character is refused before it is sent
    send(panel, words)
    tab = panel.compare
    refresher.draw()
    tab.picker.choose("echo")
    tab.text.value = words
    tab.go.click()
    assert panel.wait(20)
    assert set(panel.df["finish_reason"]) == {"stop"}
    for value in [*htmls(panel), panel.snapshot()]:
        assert tags(value) <= ALLOWED
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", value)
    assert html.escape("<img src=x onerror=alert(1)>") in panel.prompt.history.value


@pytest.mark.parametrize("text", XSS)
def test_each_hostile_text_in_each_kind_of_block(text):
    for drawn in (parts.block(text), parts.failed(text), parts.quiet(text)):
        assert tags(drawn) <= ALLOWED


def test_a_megabyte_in_one_line_is_bounded(panel):
    send(panel, "<" * 1_000_000)
    assert len(panel.df["output"][0]) == 1_000_000
    for value in htmls(panel):
        assert len(value) < 200_000
        assert tags(value) <= ALLOWED
    assert len(panel.snapshot()) < 300_000
    assert workers()


def test_names_of_models_are_text(shell, panel):
    selection.use(Selection("echo", ModelParams("<img src=x onerror=alert(1)>\x1b")))
    refresher.draw()
    panel.compare.draw(panel._drawn)
    send(panel, "a")
    for value in htmls(panel):
        assert tags(value) <= ALLOWED


def test_what_is_said_unasked_is_in_the_panel_too(panel, monkeypatch):
    asked = panel.prompt._keep

    def keep(found):
        notices.notify("making <b>room</b>")
        asked(found)

    monkeypatch.setattr(panel.prompt, "_keep", keep)
    send(panel, "a")
    assert "making &lt;b&gt;room" in panel.prompt.notes.value
    monkeypatch.undo()
    send(panel, "a")
    assert panel.prompt.notes.value == ""
    assert notices.listeners == []
