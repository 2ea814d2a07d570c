"""What a reader without a kernel, without a mouse or without eyes has of a panel."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbconvert import HTMLExporter

import nbinfer
from nbinfer.notebook.panels import parts
from nbinfer.notebook.panels.refresher import refresher

from .panels import fresh, tree  # noqa: F401
from .test_panel_prompt import send, use
from .test_panel_tabs import load

# Widgets that are used, each with what names it for who does not see it: for a button its word and
# a tooltip that says which of many it is, for a field its label or its title.
FIELDS = ("Text", "Textarea", "Combobox", "Dropdown", "Checkbox", "SelectMultiple", "FileUpload")


@pytest.fixture
def panel(shell):
    """A panel of which every tab was opened, with an answer and a comparison."""
    made = nbinfer.panel()
    use()
    load("one", "two")
    _ = made.start, made.compare, made.benchmark
    refresher.draw()
    send(made, "what is <seen>")
    return made


# ---------------------------------------------------------------------- without a mouse


def test_everything_that_is_used_has_a_name(panel):
    found = 0
    for one in tree(panel):
        kind = type(one).__name__
        if kind == "Button":
            assert one.description, one
            if one.layout.display != "none":
                assert one.tooltip, one.description
        elif kind == "ToggleButtons":
            assert one.tooltips or one.description, one
        elif kind in FIELDS:
            assert one.description or one.tooltip, one
        else:
            continue
        found += 1
        assert one.tabbable is not False
    assert found > 60


def test_nothing_but_a_button_is_clicked(panel):
    """HTML of ours has no script and no handler: what acts is a widget, which keys reach."""
    for one in tree(panel):
        if type(one).__name__ == "HTML":
            assert not re.search(r"\son\w+=|<script|<a\b|<button", one.value)


def test_states_and_failures_are_words_and_not_colours_alone(panel):
    for line in panel.engines._lines.values():
        assert line.row.state in line._text.value
    assert "Failed" in parts.failed("x")
    assert 'role="alert"' in parts.failed("x")


def test_colours_are_the_themes(panel):
    """No colour of our own outside of a fallback, so that a dark theme is dark."""
    for one in tree(panel):
        if type(one).__name__ == "HTML":
            without = re.sub(r"var\(--[^)]*\)", "", one.value)
            assert not re.search(r"#[0-9a-fA-F]{3,6}\b|\brgb\(|:\s*(?:black|white)\b", without)


# ------------------------------------------------------------------- without a kernel


def page(bundle):
    """A notebook with this output, saved without the widgets' state, as nbconvert shows it."""
    output = nbformat.v4.new_output("execute_result", bundle, execution_count=1)
    cell = nbformat.v4.new_code_cell("%panel", outputs=[output], execution_count=1)
    body, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    return body


def test_a_saved_notebook_shows_engines_and_answers_as_a_page(panel):
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    body = page(bundle)
    for words in ("A plain <code>%%infer</code> uses", "echo", "not loaded", "ready"):
        assert words in body
    assert body.count("what is &lt;seen&gt;") >= 2  # asked and answered, and in the rows
    assert "what is <seen>" not in body
    assert panel.model_id not in body  # no place is kept for a widget that is not there


def test_a_page_of_a_panel_that_cannot_be_drawn_says_why(panel, monkeypatch):
    monkeypatch.setenv("NBINFER_MEMORY_BUDGET", "<much>")
    body = page(panel._repr_mimebundle_())
    assert "NBINFER_MEMORY_BUDGET" in body
    assert "<much>" not in body


def test_a_reader_of_plain_text_has_the_table(panel):
    text = panel._repr_mimebundle_()["text/plain"]
    assert "echo" in text
    assert "not loaded" in text
