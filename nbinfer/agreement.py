"""How far two answers agree: a score, and what an engine thought where they part."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["agreement", "logprob_gaps", "words"]

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")
# Beyond so many words the texts are compared by lines: it takes quadratic time at worst.
MOST_WORDS = 4000


def words(text: str) -> list[str]:
    """Words, spaces and signs, which joined are the text again."""
    return _WORDS.findall(text)


def agreement(first: Any, other: Any) -> float | None:
    """How much of two answers is the same, from 0 to 1; 1 for equal ones alone.

    2 M / T, with M of the T words of both texts in common stretches (Ratcliff and Metzener,
    "Pattern Matching: The Gestalt Approach", Dr. Dobb's Journal, July 1988), as
    ``difflib.SequenceMatcher.ratio`` computes it. ``None`` without two answers.
    """
    if not isinstance(first, str) or not isinstance(other, str):
        return None
    if first == other:
        return 1.0
    parts = [text.split() for text in (first, other)]
    if max(map(len, parts)) > MOST_WORDS:
        parts = [text.splitlines() for text in (first, other)]
    ratio = difflib.SequenceMatcher(None, parts[0], parts[1], autojunk=False).ratio()
    return min(ratio, 0.9999) if ratio == 1.0 else ratio  # they differ in spaces alone


def logprob_gaps(
    place: int | None, first: tuple[Any, Any], other: tuple[Any, Any]
) -> tuple[float | None, float | None]:
    """By how much each engine preferred its own token where two answers part.

    Parameters
    ----------
    place : int or None
        The character at which they first differ.
    first, other : tuple of (str, list)
        Each answer and its column ``logprobs``.

    Returns
    -------
    tuple of (float or None, float or None)
        The first engine's gap and the other's: ln p(its own token) - ln p(the other's token), both
        by its own distribution; near 0 it was nearly a tie. ``None`` where the other's token is
        not among the alternatives that were asked, where an answer ends there, or where the two
        tokenizers part before the texts do.
    """
    if place is None:
        return None, None
    tokens = [_token_at(place, *answer) for answer in (first, other)]
    if tokens[0] is None or tokens[1] is None or tokens[0][0] != tokens[1][0]:
        return None, None
    mine, theirs = tokens[0][1], tokens[1][1]
    return _gap(mine, theirs["token"]), _gap(theirs, mine["token"])


def _token_at(place: int, text: Any, logprobs: Any) -> tuple[int, Mapping[str, Any]] | None:
    """The token that has the character, and where it begins."""
    if not isinstance(text, str) or not isinstance(logprobs, Iterable):
        return None
    begin = 0
    for entry in logprobs:
        end = begin + len(entry["token"])
        if text[begin:end] != entry["token"]:
            return None  # special tokens, or half a character: positions cannot be told
        if begin <= place < end:
            return begin, entry
        begin = end
    return None


def _gap(entry: Mapping[str, Any], token: str) -> float | None:
    found = next((t["logprob"] for t in entry.get("top") or () if t["token"] == token), None)
    if found is None or entry["logprob"] is None:
        return None
    return float(entry["logprob"] - found)
