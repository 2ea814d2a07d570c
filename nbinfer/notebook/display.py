"""How a frame of rows looks: bounded, with units, and with a model's text made harmless.

A model's output is untrusted: in HTML it is escaped, in a terminal its control characters
are shown instead of obeyed. Only what is shown is formatted, however large the frame.
"""

from __future__ import annotations

import html
import re
import shutil
import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "format_bytes",
    "format_seconds",
    "frame_html",
    "frame_text",
    "visible",
]

# Said once in the caption, because they are the run's and not the row's.
CAPTION_COLUMNS = ("engine", "model", "run_id", "model_memory_bytes", "peak_memory_bytes")
# What a narrow terminal can do without, the most dispensable first.
LEAST_FIRST = (
    "cached_tokens",
    "queue_s",
    "prompt_tokens",
    "tpot_s",
    "finish_reason",
    "ttft_s",
)
MARKS = ("prompt", "output", "run_id")
UNKNOWN = "–"

_SECONDS = re.compile(r"(?<!_per)_s(_p\d+)?$")
_NUMBERS = re.compile(r"_s(_p\d+)?$|_bytes$|_tokens$|^(id|sample|pid|rows|failed|cancelled)$")

# Everything but tab and newline below space, DEL, C1, and what turns the reading direction.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with its control characters as pictures: nothing in it is obeyed.

    ``ESC`` becomes ``␛``, so no colour, cursor move or title change reaches a terminal; bidi
    overrides and other control characters become their escapes. Letters of right-to-left
    scripts, tabs and newlines stay.
    """
    return _HARMFUL.sub(_picture, text.replace("\r\n", "\n"))


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\u{code:04x}"


def format_bytes(count: Any) -> str:
    """Bytes with a decimal unit: ``193 MB``, ``1.23 GB``; ``–`` where unknown."""
    if _unknown(count):
        return UNKNOWN
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1000, larger
    if unit == "B":
        return f"{value:.0f} B"
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f} {unit}"


def format_seconds(seconds: Any) -> str:
    """Seconds: ``0.123 s``, ``12.3 s``, ``2 min 05 s``; ``–`` where unknown."""
    if _unknown(seconds):
        return UNKNOWN
    value = float(seconds)
    if abs(value) < 9.9995:
        return f"{value:.3f} s"
    if abs(value) < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def _unknown(value: Any) -> bool:
    # pandas.NA first: it has no truth value to compare with.
    if value is None or type(value).__name__ == "NAType":
        return True
    return isinstance(value, float) and value != value


# ----------------------------------------------------------------------- the view


class View:
    """The part of a frame that is shown, as text cells, and the lines around it."""

    def __init__(self, df: pd.DataFrame, max_rows: int, max_chars: int) -> None:
        max_rows, max_chars = _user_bounds(max_rows, max_chars)
        table = df.attrs["nbinfer"].get("table")
        self.columns = list(df.columns)
        if table is None:
            said = {n for n in CAPTION_COLUMNS if n in df.columns and _constant(df, n)}
            empty = {n for n in df.columns if n not in MARKS and df[n].isna().all()}
            self.columns = [n for n in df.columns if n not in said | empty]
        cut = len(df) > max_rows
        head = (max_rows + 1) // 2 if cut else len(df)
        tail = max_rows - head if cut else 0
        self.head = self._cells(df.iloc[:head], max_chars)
        self.tail = self._cells(df.iloc[len(df) - tail :], max_chars) if tail else []
        self.left_out = len(df) - head - tail
        self.caption = _caption(df) if table is None else visible(table)
        self.note = self._note(df, max_rows, max_chars)

    def _cells(self, part: pd.DataFrame, max_chars: int) -> list[list[str]]:
        formatted = []
        for name in self.columns:
            to_text = _formatter(str(name), max_chars)
            formatted.append([to_text(value) for value in part[name].tolist()])
        return [list(row) for row in zip(*formatted, strict=True)]

    def _note(self, df: pd.DataFrame, max_rows: int, max_chars: int) -> str:
        parts = []
        if self.left_out:
            parts.append(
                f"{max_rows:,} of {len(df):,} rows shown; "
                "pandas.set_option('display.max_rows', N) shows more"
            )
        if any(cell.endswith("…") for row in (*self.head, *self.tail) for cell in row):
            parts.append(
                f"long text cut at {max_chars:,} characters; "
                "pandas.set_option('display.max_colwidth', N) shows more"
            )
        return ". ".join(parts)

    def narrow(self, width: int) -> list[str]:
        """Drop the columns that a narrow terminal can do without; returns their names."""
        hidden = []
        for name in LEAST_FIRST:
            texts = sum(not self.aligned_right(n) for n in self.columns)
            needed = 10 * (len(self.columns) - texts) + 26 * texts
            if needed > width and name in self.columns:
                place = self.columns.index(name)
                self.columns.pop(place)
                for row in (*self.head, *self.tail):
                    row.pop(place)
                hidden.append(name)
        return hidden

    def aligned_right(self, name: str) -> bool:
        return _NUMBERS.search(str(name)) is not None


def _user_bounds(max_rows: int, max_chars: int) -> tuple[int, int]:
    """Our bounds, or pandas' where the user has changed those from their defaults."""
    import pandas as pd

    rows, chars = pd.get_option("display.max_rows"), pd.get_option("display.max_colwidth")
    if rows != 60:
        max_rows = 10**9 if rows is None else max(int(rows), 1)
    if chars != 50:
        max_chars = 10**9 if chars is None else max(int(chars), 4)
    return max_rows, max_chars


def _constant(df: pd.DataFrame, name: Any) -> bool:
    return bool(df[name].nunique(dropna=False) <= 1)


def _formatter(name: str, max_chars: int) -> Callable[[Any], str]:
    if name.endswith("_bytes"):
        return format_bytes
    if _SECONDS.search(name):
        return format_seconds

    def text(value: Any) -> str:
        if not isinstance(value, list | dict | tuple) and _unknown(value):
            return UNKNOWN
        if isinstance(value, float):
            return f"{value:.4g}"
        # Cut before anything else is done with it: a value may be megabytes long.
        long = value if isinstance(value, str) else repr(value)
        return visible(long[:max_chars]) + ("…" if len(long) > max_chars else "")

    return text


def _caption(df: pd.DataFrame) -> str:
    facts: Mapping[str, Any] = df.attrs["nbinfer"]
    parts = [str(facts.get(name)) for name in ("engine", "model") if facts.get(name)]
    parts.append(f"{len(df):,} row" + ("" if len(df) == 1 else "s"))
    for name, word in (("rows_failed", "failed"), ("rows_cancelled", "cancelled")):
        if facts.get(name):
            parts.append(f"{facts[name]:,} {word}")
    if not _unknown(facts.get("wall_s")):
        parts.append(format_seconds(facts["wall_s"]))
    if facts.get("output_tokens_per_s"):
        parts.append(f"{facts['output_tokens_per_s']:.0f} tok/s")
    memory = [
        f"{format_bytes(facts[name])} {word}"
        for name, word in (("model_memory_bytes", "resident"), ("peak_memory_bytes", "peak"))
        if not _unknown(facts.get(name))
    ]
    if memory:
        parts.append(", ".join(memory))
    return visible(" · ".join(parts))


def frame_html(df: pd.DataFrame, *, max_rows: int = 20, max_chars: int = 300) -> str:
    """A bounded HTML view of a frame of rows.

    Parameters
    ----------
    df : pandas.DataFrame
        With ``attrs["nbinfer"]``.
    max_rows, max_chars : int
        How many rows, half of them from the end, and how much of a text. pandas' options
        ``display.max_rows`` and ``display.max_colwidth`` win where they have been changed.
    """
    view = View(df, max_rows, max_chars)
    edge = "border-bottom:1px solid color-mix(in srgb,currentColor 25%,transparent)"
    cell = f"padding:.2em .6em;vertical-align:top;{edge}"
    prose = f"{cell};text-align:left;white-space:pre-wrap;overflow-wrap:anywhere;min-width:8em"
    styles = [
        f"{cell};text-align:right;white-space:nowrap" if view.aligned_right(n) else prose
        for n in view.columns
    ]

    def line(tag: str, cells: list[str]) -> str:
        drawn = (
            f'<{tag} style="{style}">{html.escape(text)}</{tag}>'
            for style, text in zip(styles, cells, strict=True)
        )
        return f"<tr>{''.join(drawn)}</tr>"

    rows = [line("td", row) for row in view.head]
    if view.left_out:
        gap = f"… {view.left_out:,} more rows …"
        span = len(view.columns)
        rows.append(f'<tr><td colspan="{span}" style="{cell};opacity:.7">{gap}</td></tr>')
    rows += [line("td", row) for row in view.tail]
    note = (
        f'<div style="opacity:.7;font-size:85%">{html.escape(view.note)}</div>' if view.note else ""
    )
    return (
        f'<div><div style="opacity:.8;font-size:90%">{html.escape(view.caption)}</div>'
        f'<table style="border-collapse:collapse"><thead>'
        f"{line('th', [visible(str(n)) for n in view.columns])}</thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{note}</div>"
    )


def frame_text(
    df: pd.DataFrame, *, max_rows: int = 20, max_chars: int = 80, width: int | None = None
) -> str:
    """A bounded plain-text view of a frame of rows, for terminals.

    Parameters
    ----------
    df, max_rows, max_chars
        As for ``frame_html``.
    width : int, optional
        Columns of the terminal; texts are cut further until the table fits.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    view = View(df, max_rows, max_chars)
    hidden = view.narrow(width)
    names = [visible(str(n)) for n in view.columns]
    rows = [[c.replace("\n", "⏎").replace("\t", " ") for c in r] for r in (*view.head, *view.tail)]
    right = [view.aligned_right(n) for n in view.columns]
    widths = [max(map(_columns, column)) for column in zip(names, *rows, strict=True)]
    while sum(widths) + 2 * len(widths) > width:
        widest = max(range(len(widths)), key=lambda i: 0 if right[i] else widths[i])
        if right[widest] or widths[widest] <= max(12, _columns(names[widest])):
            break
        widths[widest] -= 1

    def line(cells: list[str]) -> str:
        drawn = [_fit(c, w, r) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(drawn).rstrip()

    lines = [line(names), *map(line, rows)]
    if view.left_out:
        lines.insert(1 + len(view.head), f"… {view.left_out:,} more rows …")
    if hidden:
        lines.append(f"a wider terminal shows more columns: {', '.join(hidden)}")
    return "\n".join([view.caption, *lines, *([view.note] if view.note else [])])


def _columns(text: str) -> int:
    """Terminal columns: wide letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fit(text: str, width: int, right: bool) -> str:
    if _columns(text) > width:
        while _columns(text) > width - 1:
            text = text[:-1]
        text += "…"
    space = " " * (width - _columns(text))
    return space + text if right else text + space
