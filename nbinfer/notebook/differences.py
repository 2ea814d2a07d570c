"""Answers beside each other in HTML: what differs from the first engine's is marked."""

from __future__ import annotations

import difflib
import html
from collections.abc import Sequence

from ..agreement import MOST_WORDS, words
from .text import UNKNOWN

__all__ = ["marked", "marked_rows"]

_MARK = "text-decoration:underline;text-decoration-style:dotted;font-weight:600"


def marked(reference: str, text: str) -> str:
    """The text, escaped, with the words marked that the reference does not have there.

    Where it lacks words, a sign ∅ says which. Both are as they are shown, cut and made harmless.
    """
    mine, theirs = words(text), words(reference)
    if max(len(mine), len(theirs)) > MOST_WORDS:
        return html.escape(text)
    found = []
    matcher = difflib.SequenceMatcher(None, theirs, mine, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        part = html.escape("".join(mine[k:m]))
        if kind == "equal":
            found.append(part)
        elif kind == "delete":
            left_out = html.escape("".join(theirs[i:j]))
            found.append(f'<span style="{_MARK};opacity:.6" title="without: {left_out}">∅</span>')
        else:
            found.append(f'<span style="{_MARK}">{part}</span>')
    return "".join(found)


def marked_rows(
    names: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]
) -> list[str]:
    """Table rows of a comparison, long or wide."""
    wide = [place for place, name in enumerate(names) if name.endswith("_output")]
    output = names.index("output") if "output" in names else None
    prompt = names.index("id") if "id" in names else 0
    drawn: list[str] = []
    reference: tuple[str, str] | None = None  # a prompt's id, and the first engine's answer to it
    for row in rows:
        cells = [html.escape(text) for text in row]
        if output is not None and "first_difference" in names:
            if row[names.index("first_difference")] == UNKNOWN:
                reference = (row[prompt], row[output])
            elif reference is not None and reference[0] == row[prompt]:
                cells[output] = marked(reference[1], row[output])
        elif wide:
            for place in wide[1:]:
                if UNKNOWN not in (row[wide[0]], row[place]):
                    cells[place] = marked(row[wide[0]], row[place])
        line = (f'<td style="{s}">{c}</td>' for s, c in zip(styles, cells, strict=True))
        drawn.append(f"<tr>{''.join(line)}</tr>")
    return drawn
