"""What a run shows while it works: nothing for half a second, then one line.

A reporter is called with each record of a run. It never raises and never slows a run: the
line is redrawn five times a second at most.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

from . import settings
from .errors import ConfigurationError
from .records import Delta, Finished, Progress, Record, Stage

__all__ = ["Plain", "Reporter", "Silent", "StatusLine", "Terminal", "reporter"]

REDRAW_S = 0.2


class Reporter(AbstractContextManager["Reporter"], Protocol):
    """Anything that is called with records, between ``__enter__`` and ``__exit__``."""

    def __call__(self, record: Record, /) -> None: ...


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __call__(self, record: Record, /) -> None:  # noqa: ARG002
        return None


class StatusLine(Silent):
    """Folds records into one line of text; subclasses draw it.

    The line tells the phase (load, wait, prefill, decode), rows done of all rows, tokens a
    second over the last seconds, and the time left, estimated from the rows done.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._drawn = self._began + settings.current().status_delay_s - REDRAW_S
        self._rows_since: float | None = None
        self._done = 0
        self._last: Progress | None = None
        self._speeds: list[tuple[float, int]] = []  # (when, tokens), of the last seconds

    def draw(self, text: str) -> None:
        """Show the line, instead of the one before."""

    def __call__(self, record: Record) -> None:
        now = time.monotonic()
        if isinstance(record, Finished):
            self._done += 1
            self._rows_since = self._rows_since or now
        elif isinstance(record, Progress):
            self._last = record
            self._speeds = [s for s in self._speeds if now - s[0] < 5] + [(now, record.tokens)]
        if now - self._drawn >= REDRAW_S and not isinstance(record, Delta):
            self._drawn = now
            self.draw(self.text(record, now))

    def text(self, record: Record, now: float) -> str:
        """The line for this moment."""
        if isinstance(record, Stage):
            return f"{record.text} · {now - self._began:.0f} s"
        progress = self._last
        if progress is None:
            return f"{self._done} rows"
        parts = [f"{progress.done} of {progress.rows} rows"] if progress.rows > 1 else []
        if progress.tokens == 0:
            of = f" {progress.prefilled:,} of {progress.prompt_tokens:,} tokens"
            parts.insert(0, "prefill" + (of if progress.prompt_tokens else ""))
        speed = self._speed()
        if speed:
            parts.append(f"{speed:.0f} tok/s")
        made = progress.done - progress.resumed
        if made and progress.done < progress.rows:
            left = progress.seconds * (progress.rows - progress.done) / made
            parts.append(f"{_clock(left)} left")
        else:
            parts.append(f"{now - self._began:.0f} s")
        return " · ".join(parts)

    def _speed(self) -> float | None:
        if len(self._speeds) < 2:
            return None
        (start, before), (end, after) = self._speeds[0], self._speeds[-1]
        return (after - before) / (end - start) if end > start else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Terminal(StatusLine):
    """A tqdm bar on standard error, for the command line and for scripts."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None

    def draw(self, text: str) -> None:
        rows = self._last.rows if self._last else None
        if self._bar is None:
            from tqdm import tqdm

            shape = "{desc}" if rows is None else "{l_bar}{bar}| {n_fmt}/{total_fmt} {postfix}"
            self._bar = tqdm(total=rows, leave=False, file=sys.stderr, bar_format=shape)
        if rows is None:
            self._bar.set_description_str(text)
            return
        if self._bar.total != rows:
            self._bar.bar_format = "{l_bar}{bar}| {n_fmt}/{total_fmt} {postfix}"
            self._bar.set_description_str("")
            self._bar.total = rows
        self._bar.n = self._done
        self._bar.set_postfix_str(text.partition(" rows · ")[2] or text)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


class Plain(Silent):
    """A line on standard error for each new stage, where no terminal can redraw one."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, record: Record) -> None:
        if isinstance(record, Stage) and record.text != self._last:
            self._last = record.text
            print(record.text, file=sys.stderr, flush=True)


def reporter(choice: bool | Reporter | None) -> Reporter:
    """The reporter for ``progress=``.

    Parameters
    ----------
    choice : bool or Reporter or None
        ``None``: a line in a Jupyter kernel, a bar in a terminal, else nothing. ``True``
        draws the bar also where no terminal is.
    """
    if choice is False:
        return Silent()
    if choice is None or choice is True:
        if in_kernel():
            from .notebook.status import NotebookStatus

            return NotebookStatus()
        if choice or sys.stderr.isatty():
            return Terminal()
        return Silent()
    if not callable(choice):
        raise ConfigurationError(f"progress must be a bool or a Reporter, not {choice!r:.80}")
    return choice


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel, without importing IPython for the question."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
