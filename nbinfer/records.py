"""What a run yields. ``infer()``, ``stream()``, the magics and the benchmark all fold these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import NbinferError
from .frame import Row

__all__ = ["Delta", "Finished", "Outcome", "Progress", "Record", "RowRequest", "Stage"]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """One prompt of a run, before it is sent.

    Attributes
    ----------
    index, sample : int
        The prompt's position, and which of its ``n`` completions.
    id : object
        The row's identifier: the user's own, or the position.
    prompt : str
        What the row shows as its prompt.
    body : dict
        ``messages`` or ``prompt``, as the worker takes them.
    params : dict
        The backend's generation parameters.
    error : str or None
        Why it cannot be sent at all; such a row fails without reaching the engine.
    """

    index: int
    sample: int
    id: Any
    prompt: str
    body: dict[str, Any]
    params: dict[str, Any]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """What a run is doing before its first row: installing, loading, waiting for a device."""

    text: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a row's text, as it is made. ``tokens`` may be 0 or several."""

    number: int
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Running totals: rows done of all, tokens made, prompt tokens in the cache of those begun.

    ``seconds`` is the time since the first row was sent. ``resumed`` of the rows done came from a
    file and took none of it.
    """

    done: int
    rows: int
    tokens: int
    prefilled: int
    prompt_tokens: int
    seconds: float
    resumed: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A row that is done: answered, failed or cancelled."""

    number: int
    row: Row


@dataclass(slots=True)
class Outcome:
    """How a run ended; filled in as it goes, read when it is over.

    Attributes
    ----------
    interrupted : bool
        Whether the user stopped it.
    sent : bool
        Whether any row reached the engine.
    error : NbinferError or None
        What ended it for all rows (a crash, a failed load).
    """

    interrupted: bool = False
    sent: bool = False
    error: NbinferError | None = None


Record = Stage | Delta | Progress | Finished
