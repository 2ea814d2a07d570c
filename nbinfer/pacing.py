"""When a benchmark's rows are sent: so many under way, or each at a moment of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Pace"]


@dataclass(slots=True)
class Pace:
    """Tells a run when its next row may go.

    A run that has one sends rows singly and has each of them timed: submitted when it is sent,
    with the seconds between its tokens.

    Attributes
    ----------
    concurrency : int or None
        A closed loop: a row goes when fewer than so many are under way.
    arrivals : sequence of float or None
        An open loop: seconds after the run's beginning at which each row goes, ascending, however
        many are under way. With both, a row waits for its moment and for a place.
    sent : dict of int to float
        When each row went, in seconds after the beginning: later than its moment where the
        client could not keep up.
    """

    concurrency: int | None = None
    arrivals: Sequence[float] | None = None
    sent: dict[int, float] = field(default_factory=dict)

    def wait_s(self, number: int, pending: int, elapsed: float) -> float:
        """Seconds until row ``number`` may go: 0 or less now, infinite until another ends."""
        if self.concurrency is not None and pending >= self.concurrency:
            return math.inf
        return 0.0 if self.arrivals is None else self.arrivals[number] - elapsed
