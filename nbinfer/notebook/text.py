"""Text made harmless, numbers with their units, and how wide a terminal draws them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Any

__all__ = [
    "NO_MATH",
    "UNKNOWN",
    "fit",
    "format_bytes",
    "format_seconds",
    "terminal_width",
    "unknown",
    "visible",
]

UNKNOWN = "–"
# Front ends typeset $…$ in a cell's HTML as mathematics, and obey what stands in it; an element
# of these classes, which pandas has too, they leave alone.
NO_MATH = "tex2jax_ignore mathjax_ignore"

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
    if unknown(count):
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
    if unknown(seconds):
        return UNKNOWN
    value = float(seconds)
    if abs(value) < 9.9995:
        return f"{value:.3f} s"
    if abs(value) < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def unknown(value: Any) -> bool:
    """Whether a cell holds nothing: ``None``, NaN, NA or NaT."""
    # pandas.NA first: it has no truth value to compare with.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def terminal_width(text: str) -> int:
    """Terminal columns: wide letters take two, combining marks none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fit(text: str, width: int, right: bool) -> str:
    """The text cut or filled up to so many terminal columns."""
    if terminal_width(text) > width:
        ends = itertools.accumulate(map(terminal_width, text))
        text = text[: sum(end < width for end in ends)] + "…"
    space = " " * (width - terminal_width(text))
    return space + text if right else text + space
