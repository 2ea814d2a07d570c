"""From an answer's text to the ``reasoning`` column: the block that a model thinks in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .worker.thoughts import CLOSE, OPEN, opened

if TYPE_CHECKING:
    from .frame import Row
    from .generation import GenerationParams

__all__ = ["separate", "split"]


def split(text: str, *, inside: bool = False) -> tuple[str | None, str]:
    """Reasoning and answer.

    Parameters
    ----------
    text : str
        What the model made.
    inside : bool, default False
        Whether it begins inside the block, because the prompt ends with ``<think>``.

    Returns
    -------
    tuple of (str or None, str)
        The text of a leading ``<think>…</think>`` block, without the white space around it, and
        what follows. Of a block without an end all is reasoning. ``None`` without any.
    """
    head = text.lstrip()
    if not inside and not head.startswith(OPEN):
        return None, text
    thought, end, answer = head.removeprefix(OPEN).partition(CLOSE)
    return thought.strip() or None, answer.lstrip() if end else ""


def separate(row: Row, params: GenerationParams) -> Row:
    """Fill ``row.reasoning`` with what ``row.output`` begins with, unless that is not wanted."""
    if params.separate_reasoning and row.output:
        inside = params.raw and opened(row.prompt)
        row.reasoning, row.output = split(row.output, inside=inside)
    return row
