"""What a run shows in a panel while it works: the answer as it grows, and how fast it comes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Self

from ...progress import Silent, StatusLine
from ...records import Delta, Finished, Record, Stage
from ..text import format_seconds, unknown
from .parts import MOST_CHARS, Shown, block, quiet

__all__ = ["Answer", "Status", "speed"]


class Answer(Silent):
    """A reporter: the text of one prompt's answers, TTFT and tokens a second.

    TTFT is counted here from the end of the load or the wait; the row that comes in the end has
    the engine's own.
    """

    def __init__(self, text: Shown, status: Shown) -> None:
        self._shown, self._status = text, status
        self._texts: dict[int, str] = {}  # the ends of each answer
        self._made: dict[int, int] = {}  # and all its characters
        self._stage = ""
        self._since = time.monotonic()
        self._first: float | None = None
        self._tokens = 0

    def __call__(self, record: Record) -> None:
        now = time.monotonic()
        if isinstance(record, Stage):
            self._stage, self._since = record.text, now
        elif isinstance(record, Delta):
            self._first = self._first or now
            self._tokens += record.tokens
            number, text = record.number, record.text
            self._made[number] = self._made.get(number, 0) + len(text)
            self._texts[number] = (self._texts.get(number, "") + text)[-MOST_CHARS:]
        else:
            self._stage = ""
        if isinstance(record, Finished) or self._shown.due:
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._shown.now("".join(map(self._block, self._texts)))
        self._status.now(quiet(self._told(now)))

    def _block(self, number: int) -> str:
        text = self._texts[number]
        left_out = self._made[number] - len(text)
        return block(f"… {left_out:,} characters before this …\n{text}" if left_out else text)

    def _told(self, now: float) -> str:
        if self._first is None:
            return self._stage or f"waiting for the first token · {now - self._since:.1f} s"
        parts = [f"TTFT {format_seconds(max(0.0, self._first - self._since))}"]
        if self._tokens > 1 and now > self._first:
            parts.append(f"{(self._tokens - 1) / (now - self._first):.1f} tok/s")
        return " · ".join([*parts, _count(self._tokens)])


class Status(StatusLine):
    """A reporter: phase, rows done, tokens a second, as one line of a widget.

    ``names`` are those of the runs to come, each told while it is under way.
    """

    def __init__(self, shown: Shown, names: Iterable[str] = ()) -> None:
        super().__init__()
        self._shown = shown
        self._names = iter(names)
        self._name = ""

    def __enter__(self) -> Self:
        StatusLine.__init__(self)  # a run begins: rows and clock are its own
        self._drawn = 0.0
        self._name = next(self._names, "")
        return self

    def draw(self, text: str) -> None:
        self._shown.now(quiet(f"{self._name} · {text}" if self._name else text))


def speed(row: Any) -> str:
    """A row's own numbers: TTFT, tokens a second after the first, tokens, how it ended."""
    parts = []
    if not unknown(row.ttft_s):
        parts.append(f"TTFT {format_seconds(float(row.ttft_s))}")
    if not unknown(row.tpot_s) and row.tpot_s > 0:
        parts.append(f"{1 / row.tpot_s:.1f} tok/s")
    if not unknown(row.output_tokens):
        parts.append(_count(int(row.output_tokens)))
    if not unknown(row.latency_s):
        parts.append(format_seconds(float(row.latency_s)))
    if row.finish_reason not in ("stop", "error") and not unknown(row.finish_reason):
        parts.append(str(row.finish_reason))
    return " · ".join(parts)


def _count(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens:,} tokens"
