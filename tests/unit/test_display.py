"""How frames look: bounded, with units, escaped."""

from __future__ import annotations

import html.parser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbinfer.frame import Row, build
from nbinfer.notebook.display import (
    format_bytes,
    format_seconds,
    frame_html,
    frame_text,
    visible,
)
from nbinfer.notebook.formatters import install_formatters, uninstall_formatters

from ..shell import TestingShell

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[31mred\x1b]0;title\x07\x1b[2J",
    "over\rwritten",
    "\u202egnp.exe\u202c \u2066x\u2069",
    "nul \0 c1 \x9b31m del \x7f",
    "half \ud800",
    "[link](javascript:alert(1)) &lt;b&gt;",
]
FACTS = {
    "run_id": "r",
    "engine": "echo",
    "model": "m",
    "wall_s": 1.25,
    "output_tokens_per_s": 157.3,
    "model_memory_bytes": 193_000_000,
    "peak_memory_bytes": 240_400_000,
}


def frame_of(*outputs: str, **facts: object) -> pd.DataFrame:
    rows = [
        Row(i, id=i, prompt="p", output=o, output_tokens=1, ttft_s=0.1234, error=None)
        for i, o in enumerate(outputs)
    ]
    return build(rows, {**FACTS, **facts})


class Tags(html.parser.HTMLParser):
    """Every tag of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


SAFE_TAGS = {"div", "table", "thead", "tbody", "tr", "td", "th"}
SAFE_ATTRIBUTES = {"style", "colspan"}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_output_is_text_in_html(text):
    page = Tags(frame_html(frame_of(text)))
    assert page.tags <= SAFE_TAGS
    assert page.attributes <= SAFE_ATTRIBUTES
    if "\x1b" not in text and "\r" not in text and text.isprintable():
        assert text in page.text


@given(st.text(st.characters(), max_size=40))
def test_any_output_is_text_in_html(text):
    page = Tags(frame_html(frame_of(text)))
    assert page.tags <= SAFE_TAGS
    assert page.attributes <= SAFE_ATTRIBUTES


def test_names_ids_and_errors_are_escaped_too():
    rows = [Row(0, id="<b>id</b>", prompt="p", error="<i>e</i>")]
    inputs = pd.DataFrame({"<u>col</u>": ["<s>v</s>"]})
    page = Tags(frame_html(build(rows, {**FACTS, "model": "<em>m</em>"}, inputs=inputs)))
    assert page.tags <= SAFE_TAGS
    for text in ("<b>id</b>", "<i>e</i>", "<u>col</u>", "<s>v</s>", "<em>m</em>"):
        assert text in page.text


@given(st.text(st.characters()))
def test_nothing_visible_is_obeyed_by_a_terminal(text):
    shown = visible(text)
    allowed = "\n\t"
    assert all(c in allowed or (ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F) for c in shown)
    assert not any(0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 for c in shown)
    shown.encode("utf-8")


def test_visible_keeps_what_is_harmless():
    assert visible("שלום\tעולם\n🙂") == "שלום\tעולם\n🙂"
    assert visible("a\r\nb\rc\x1b[1m") == "a\nb␍c␛[1m"


def test_hostile_output_in_a_terminal():
    shown = frame_text(frame_of(*HOSTILE), width=400)
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert len(shown.splitlines()) == 2 + len(HOSTILE)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1234, "1.23 kB"),
        (193_000_000, "193 MB"),
        (9_996_000, "10.0 MB"),
        (1_230_000_000, "1.23 GB"),
        (999_600, "1.00 MB"),
        (None, "–"),
        (pd.NA, "–"),
        (float("nan"), "–"),
    ],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.123 s"), (12.34, "12.3 s"), (125, "2 min 05 s"), (9.9999, "10.0 s"), (pd.NA, "–")],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_the_caption_says_once_what_is_the_runs():
    text = frame_text(frame_of("a", "b", rows_failed=1), width=200)
    first = text.splitlines()[0]
    assert (
        first == "echo · m · 2 rows · 1 failed · 1.250 s · 157 tok/s · 193 MB resident, 240 MB peak"
    )
    header = text.splitlines()[1].split()
    assert header == ["id", "prompt", "output", "output_tokens", "ttft_s"]


def test_ten_thousand_rows_of_ten_thousand_characters_are_bounded():
    frame = frame_of(*["<" * 10_000] * 10_000)
    for shown in (frame_html(frame), frame_text(frame)):
        assert len(shown) < 100_000
        assert "9,980 more rows" in shown
        assert "display.max_rows" in shown
        assert "display.max_colwidth" in shown


def test_the_setting_that_it_names_lifts_the_bound():
    frame = frame_of(*["y" * 400] * 30)
    with pd.option_context("display.max_rows", 30, "display.max_colwidth", 400):
        shown = frame_html(frame)
    assert shown.count("y" * 400) == 30
    assert "more rows" not in shown


def test_only_our_frames_are_shown_our_way():
    shell = TestingShell()
    plain = pd.DataFrame({"a": [1]})
    before = shell.display_formatter.format(plain)
    install_formatters(shell)
    install_formatters(shell)
    assert shell.display_formatter.format(plain) == before
    data, _ = shell.display_formatter.format(frame_of("<b>"))
    assert "&lt;b&gt;" in data["text/html"]
    assert data["text/plain"].startswith("echo · m · 1 row")
    stripped = frame_of("x").drop(columns="run_id")
    assert shell.display_formatter.format(stripped)[0]["text/html"] == stripped._repr_html_()
    uninstall_formatters(shell)
    assert shell.display_formatter.format(plain) == before
    assert "echo · m" not in shell.display_formatter.format(frame_of("x"))[0]["text/plain"]


def test_another_extensions_formatter_is_kept_and_given_back():
    shell = TestingShell()
    html_formatter = shell.display_formatter.formatters["text/html"]
    html_formatter.for_type(pd.DataFrame, lambda df: "theirs")
    install_formatters(shell)
    plain = pd.DataFrame({"a": [1]})
    assert shell.display_formatter.format(plain)[0]["text/html"] == "theirs"
    assert "theirs" not in shell.display_formatter.format(frame_of("x"))[0]["text/html"]
    uninstall_formatters(shell)
    assert shell.display_formatter.format(frame_of("x"))[0]["text/html"] == "theirs"
