"""How frames look: bounded, with units, escaped."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys

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
SAFE_ATTRIBUTES = {"class", "style", "colspan"}


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


def test_what_hides_columns_is_shown_our_way_while_it_is_whole():
    shell = TestingShell()
    install_formatters(shell)
    frame = pd.DataFrame({"engine": ["<b>"], "ttft_s": [0.5], "ttft_s_low": [0.25]})
    frame.attrs["nbinfer"] = {"caption": "2 repeats", "hidden": ["ttft_s_low"]}
    shown, _ = shell.display_formatter.format(frame)
    assert shown["text/plain"].splitlines()[0] == "2 repeats"
    assert "0.500 s" in shown["text/plain"]
    assert "ttft_s_low" not in shown["text/plain"] + shown["text/html"]
    part = frame[["engine", "ttft_s"]]
    assert shell.display_formatter.format(part)[0]["text/plain"] == repr(part)


def test_a_plot_is_a_picture_without_a_word_to_matplotlib():
    from matplotlib.figure import Figure

    shell = TestingShell()
    figure = Figure(figsize=(1, 1))
    assert "image/png" not in shell.display_formatter.format(figure)[0]
    for _ in range(2):
        install_formatters(shell)
        shown, _ = shell.display_formatter.format(figure)
        assert shown["image/png"].startswith(b"\x89PNG")
    uninstall_formatters(shell)
    assert "image/png" not in shell.display_formatter.format(figure)[0]
    svg = shell.display_formatter.formatters["image/svg+xml"]
    svg.for_type(Figure, lambda _: "<svg/>")
    install_formatters(shell)
    assert "image/png" not in shell.display_formatter.format(figure)[0]
    uninstall_formatters(shell)
    assert shell.display_formatter.format(figure)[0]["image/svg+xml"] == "<svg/>"


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


def test_a_users_text_column_may_have_a_units_name():
    inputs = pd.DataFrame({"answer_s": ["abc"], "note_bytes": ["<b>"], "size_bytes": [1234]})
    page = Tags(frame_html(build([Row(0, id=0, prompt="p", output="o")], FACTS, inputs=inputs)))
    for text in ("abc", "<b>", "1.23 kB"):
        assert text in page.text


def test_names_need_not_be_unique():
    frame = frame_of("first")
    both = pd.concat([frame, frame], axis=1)
    assert both.attrs == frame.attrs
    assert frame_html(both).count("first") == 2
    assert frame_text(both, width=200).count("first") == 2


def test_an_index_of_the_users_is_shown_and_a_position_is_not():
    frame = build([Row(0, id="<key>", prompt="p", output="o")], FACTS)
    assert "<key>" in Tags(frame_html(frame.set_index("id"))).text
    assert frame_text(frame.set_index("id"), width=200).splitlines()[1].split()[0] == "id"
    cut = frame_of("a", "b", "c")
    assert frame_text(cut[cut["id"] > 1], width=200).splitlines()[2].split()[:2] == ["2", "p"]


def test_an_ellipsis_of_the_models_own_is_no_cut():
    assert "cut at" not in frame_html(frame_of("to be continued…"))
    assert "cut at 4 characters" in frame_html(frame_of("abcdef"), max_rows=1, max_chars=4)


def test_an_unbounded_column_width_is_honoured_without_measuring_all_of_it():
    frame = frame_of(*["é" * 100_000] * 3)  # was quadratic: minutes
    with pd.option_context("display.max_colwidth", None):
        text = frame_text(frame, width=100)
        assert frame_html(frame).count("é") == 300_000
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "a wider terminal shows more of the text" in text


def test_many_input_columns_are_bounded_and_said():
    inputs = pd.DataFrame({f"c{i}": ["<" * 300] * 30 for i in range(500)})
    rows = [Row(i, id=i, prompt="p", output="o") for i in range(30)]
    frame = build(rows, FACTS, inputs=inputs)
    page = frame_html(frame)
    assert len(page) < 1_000_000
    assert "479 columns left out; pandas.set_option(&#x27;display.max_columns&#x27;, N)" in page
    assert ">output</th>" in page
    with pd.option_context("display.max_columns", None):
        assert ">c499</th>" in frame_html(frame)


def test_names_and_captions_are_one_line_each():
    inputs = pd.DataFrame({"a\nb\x1b": ["v"]})
    row = Row(0, id=0, prompt="p", output="o")
    frame = build([row], {**FACTS, "model": "x\n\x1b[2J" + "y" * 9_999}, inputs=inputs)
    lines = frame_text(frame, width=400).splitlines()
    assert lines[0].startswith("echo · x⏎␛[2Jyyy")
    assert len(lines[0]) < 400
    assert lines[1].split()[0] == "a⏎b␛"


def test_what_the_caption_does_not_say_stays_a_column():
    frame = frame_of("a", "b")
    frame["model"] = "another"
    assert "another" in frame_text(frame, width=200)
    frame.attrs.clear()
    assert frame_text(frame, width=400).splitlines()[0] == "2 rows"
    assert "echo" in frame_text(frame, width=400)


def test_numbers_are_right_and_text_ids_left():
    inputs = pd.DataFrame({"score": [0.123456], "ok": [True]})
    page = frame_html(build([Row(0, id="k", prompt="p", output="o")], FACTS, inputs=inputs))
    by_text = {text: style for style, text in re.findall(r'<td style="([^"]*)">([^<]*)</td>', page)}
    assert "text-align:right" in by_text["0.1235"]
    assert "text-align:left" in by_text["k"]
    assert "text-align:left" in by_text["True"]


def test_formatters_installed_before_pandas_work_after():
    code = """
from IPython.core.interactiveshell import InteractiveShell
from nbinfer.notebook.formatters import install_formatters, uninstall_formatters
import sys
shell = InteractiveShell.instance()
install_formatters(shell)
assert "pandas" not in sys.modules
import pandas as pd
from nbinfer.frame import Row, build
frame = build([Row(0, id=0, prompt="p", output="<b>")], {"run_id": "r", "engine": "echo"})
shown, _ = shell.display_formatter.format(frame)
assert "&lt;b&gt;" in shown["text/html"]
assert shown["text/plain"].startswith("echo"), shown
plain = pd.DataFrame({"a": [1]})
assert shell.display_formatter.format(plain)[0]["text/html"] == plain._repr_html_()
assert shell.display_formatter.format(plain)[0]["text/plain"] == repr(plain)
uninstall_formatters(shell)
assert shell.display_formatter.format(frame)[0]["text/plain"] == repr(frame)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
