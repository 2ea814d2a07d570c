"""How a frame of rows looks: bounded, with units, and with a model's text made harmless.

A model's output is untrusted: in HTML it is escaped, in a terminal its control characters
are shown instead of obeyed. Only what is shown is formatted, however large the frame.
"""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..frame import COLUMNS
from .differences import marked_rows
from .text import (
    NO_MATH,
    UNKNOWN,
    fit,
    format_bytes,
    format_seconds,
    terminal_width,
    unknown,
    visible,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["format_bytes", "format_seconds", "frame_html", "frame_text", "visible"]

# Said once in the caption, because they are the run's and not the row's.
CAPTION_COLUMNS = ("engine", "model", "run_id", "model_memory_bytes", "peak_memory_bytes")
# What a narrow terminal can do without, the most dispensable first.
LEAST_FIRST = ("cached_tokens", "queue_s", "prompt_tokens", "tpot_s", "finish_reason", "ttft_s")
MARKS = ("prompt", "output", "run_id")
# A table of ours is read as a whole; rows of runs are looked into.
MOST_TABLE_ROWS = 200

_SECONDS = re.compile(r"(?<!_per)_s(_p\d+)?$")


class View:
    """The part of a frame that is shown, as text cells, and the lines around it."""

    def __init__(self, df: pd.DataFrame, max_rows: int, max_chars: int) -> None:
        facts = df.attrs.get("nbinfer") or {}
        ours = MOST_TABLE_ROWS if "table" in facts else max_rows
        self.max_rows, self.max_chars, max_columns = _bounds(ours, max_chars)
        self.total = len(df)
        head = (self.max_rows + 1) // 2 if self.total > self.max_rows else self.total
        tail = min(self.max_rows, self.total) - head
        self.head_rows, self.left_out = head, self.total - head - tail
        places, self.columns_left_out = _places(df, facts, max_columns)
        self.cut = False
        # Only what is shown from here on: a cell may be megabytes long.
        shown = df.iloc[[*range(head), *range(self.total - tail, self.total)]]
        self.names: list[str] = []
        self.right: list[bool] = []
        self.cells: list[list[str]] = []
        for level in range(shown.index.nlevels if _telling(df.index) else 0):
            values = shown.index.get_level_values(level)
            self._add(values.name if values.name is not None else "", values)
        for place in places:  # by place: names need not be unique
            self._add(df.columns[place], shown.iloc[:, place])
        self.caption = _line(facts["table"]) if "table" in facts else _caption(df, facts)

    def _add(self, name: Any, values: Any) -> None:
        from pandas.api.types import is_bool_dtype, is_numeric_dtype

        unit = _unit(str(name))
        self.names.append(_line(str(name)))
        self.right.append(is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype))
        self.cells.append([self._text(value, unit) for value in values.tolist()])

    def _text(self, value: Any, unit: Callable[[Any], str] | None) -> str:
        if unknown(value):
            return UNKNOWN
        if isinstance(value, float | int) and not isinstance(value, bool):
            # A user's text column may be called answer_s: a unit is for numbers alone.
            return (
                unit(value) if unit else f"{value:.4g}" if isinstance(value, float) else f"{value}"
            )
        text = value if isinstance(value, str) else str(value)
        if len(text) <= self.max_chars:
            return visible(text)
        self.cut = True
        return visible(text[: self.max_chars]) + "…"

    @property
    def rows(self) -> list[list[str]]:
        return [list(row) for row in zip(*self.cells, strict=True)]

    @property
    def note(self) -> str:
        """What is not shown, and the setting that shows it."""
        parts = []
        if self.left_out:
            parts.append(_lifted(f"{self.max_rows:,} of {self.total:,} rows shown", "max_rows"))
        if self.columns_left_out:
            parts.append(_lifted(f"{self.columns_left_out:,} columns left out", "max_columns"))
        if self.cut:
            parts.append(_lifted(f"long text cut at {self.max_chars:,} characters", "max_colwidth"))
        return ". ".join(parts)

    def narrow(self, width: int) -> list[str]:
        """Drop the columns that a narrow terminal can do without; returns their names."""
        hidden = []
        for name in LEAST_FIRST:
            if name in self.names and sum(10 if r else 26 for r in self.right) > width:
                place = self.names.index(name)
                for parts in (self.names, self.right, self.cells):
                    del parts[place]
                hidden.append(name)
        return hidden


def _bounds(rows: int, chars: int) -> tuple[int, int, int]:
    """Our bounds, or pandas' where the user has changed those from their defaults."""
    import pandas as pd

    def chosen(option: str, ours: int, least: int, defaults: tuple[int, ...]) -> int:
        value = pd.get_option(f"display.{option}")
        if value in defaults:
            return ours
        return 10**9 if value is None else max(int(value), least)

    text = chosen("max_colwidth", chars, 4, (50, 0))
    return chosen("max_rows", rows, 1, (60, 0)), text, chosen("max_columns", 24, 1, (20, 0))


def _lifted(what: str, option: str) -> str:
    return f"{what}; pandas.set_option('display.{option}', N) shows more"


def _places(df: pd.DataFrame, facts: Mapping[str, Any], max_columns: int) -> tuple[list[int], int]:
    """The places of the columns to show, and how many are left out for being too many.

    What is empty or said in the caption is not shown. Of too many columns the user's own go, the
    last first.
    """
    if "table" in facts:
        return list(range(df.shape[1])), 0
    hidden = facts.get("hidden", ())
    places = [
        place
        for place, name in enumerate(df.columns)
        if name in MARKS[:2]
        or not (
            name in hidden
            or df.iloc[:, place].isna().all()
            or _said(name, df.iloc[:, place], facts)
        )
    ]
    ours = [place for place in places if df.columns[place] in COLUMNS]
    users = [place for place in places if df.columns[place] not in COLUMNS]
    kept = users[: max(max_columns - len(ours), 1)]
    return sorted([*ours, *kept]), len(users) - len(kept)


def _said(name: Any, values: pd.Series[Any], facts: Mapping[str, Any]) -> bool:
    """Whether the caption says the column's one value."""
    if name not in CAPTION_COLUMNS or facts.get(name) is None:
        return False
    return not len(values) or bool((values == facts[name]).fillna(False).all())


def _telling(index: pd.Index[Any]) -> bool:
    """Whether the index holds something of the user's, such as an id, and no mere position."""
    named = any(name is not None for name in index.names)
    return named or index.nlevels > 1 or index.dtype.kind != "i"


def _unit(name: str) -> Callable[[Any], str] | None:
    if name.endswith("_bytes"):
        return format_bytes
    return format_seconds if _SECONDS.search(name) else None


def _line(text: str) -> str:
    """A name as one line of bounded length: a path, or a user's column."""
    short = text if len(text) <= 200 else text[:200] + "…"
    return visible(short).replace("\n", "⏎").replace("\t", " ")


def _caption(df: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    if "caption" in facts:
        return visible(str(facts["caption"]))
    parts = [_line(str(facts[name])) for name in ("engine", "model") if facts.get(name)]
    parts.append(f"{len(df):,} row" + ("" if len(df) == 1 else "s"))
    for word in ("resumed", "failed", "cancelled"):
        if facts.get(f"rows_{word}"):
            parts.append(f"{facts[f'rows_{word}']:,} {word}")
    if not unknown(facts.get("wall_s")):
        parts.append(format_seconds(facts["wall_s"]))
    speed = facts.get("output_tokens_per_s")
    if speed:
        parts.append(f"{speed:.0f} tok/s" if speed >= 9.95 else f"{speed:.2g} tok/s")
    memory = [
        f"{format_bytes(facts[name])} {word}"
        for name, word in (("model_memory_bytes", "resident"), ("peak_memory_bytes", "peak"))
        if not unknown(facts.get(name))
    ]
    return " · ".join([*parts, *([", ".join(memory)] if memory else [])])


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
    number = f"{cell};text-align:right;white-space:nowrap"
    styles = [number if right else prose for right in view.right]

    def line(tag: str, cells: list[str]) -> str:
        drawn = (
            f'<{tag} style="{style}">{html.escape(text)}</{tag}>'
            for style, text in zip(styles, cells, strict=True)
        )
        return f"<tr>{''.join(drawn)}</tr>"

    rows = [line("td", row) for row in view.rows]
    if "comparison" in (df.attrs.get("nbinfer") or {}):
        rows = marked_rows(view.names, view.rows, styles)
    if view.left_out:
        gap = f'<td colspan="{len(styles)}" style="{cell};opacity:.7">{_gap(view)}</td>'
        rows.insert(view.head_rows, f"<tr>{gap}</tr>")
    note = (
        f'<div style="opacity:.7;font-size:85%">{html.escape(view.note)}</div>' if view.note else ""
    )
    return (
        f'<div class="{NO_MATH}"><div style="opacity:.8;font-size:90%">'
        f"{html.escape(view.caption)}</div>"
        f'<table style="border-collapse:collapse"><thead>'
        f"{line('th', view.names)}</thead>"
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
    names, right = view.names, view.right
    # No more of a cell than a line could hold: measuring megabytes would take seconds.
    rows = [
        [c[: 4 * width].replace("\n", "⏎").replace("\t", " ") for c in row] for row in view.rows
    ]
    wanted = [max(map(terminal_width, column)) for column in zip(names, *rows, strict=True)]
    widths = [w if r else min(w, width) for w, r in zip(wanted, right, strict=True)]
    while sum(widths) + 2 * len(widths) > width:
        widest = max(range(len(widths)), key=lambda i: 0 if right[i] else widths[i])
        if right[widest] or widths[widest] <= max(12, terminal_width(names[widest])):
            break
        widths[widest] -= 1

    def line(cells: list[str]) -> str:
        drawn = [fit(c, w, r) for c, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(drawn).rstrip()

    lines = [line(names), *map(line, rows)]
    if view.left_out:
        lines.insert(1 + view.head_rows, _gap(view))
    if hidden:
        lines.append(f"a wider terminal shows more columns: {', '.join(hidden)}")
    elif widths != wanted:
        lines.append("a wider terminal shows more of the text")
    return "\n".join([view.caption, *lines, *([view.note] if view.note else [])])


def _gap(view: View) -> str:
    return f"… {view.left_out:,} more rows …"
