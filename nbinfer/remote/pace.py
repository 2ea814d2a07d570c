"""How much is under way at once: concurrency that adapts, and limits of requests and tokens.

Without ``num_workers`` the number of requests under way is adapted, as TCP does (additive
increase, multiplicative decrease; D. Chiu and R. Jain, "Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance in Computer Networks", 1989), window by window, a window
being as many answers as are under way:

- a window without trouble raises it: doubled until the first trouble, by an eighth afterwards;
- 429, 503 and 529 cut it to 0.7 of what it was, once a window;
- so does latency: seconds per token above 2.5 times the best window's, while fewer than 5 %
  more tokens a second come out than in the window before. Such requests only wait in the server.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque

__all__ = ["FEWEST", "MOST", "START", "Bucket", "Pace"]

START, FEWEST, MOST = 16, 1, 256
CUT = 0.7
SLOWER = 2.5
GAIN = 1.05


class Bucket:
    """At most so much a minute, evenly: the virtual scheduling of ITU-T I.371's GCRA.

    One second's worth may come at once.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._interval = 60.0 / per_minute if per_minute else 0.0
        self._due = 0.0

    async def take(self, amount: float = 1.0) -> None:
        """Wait until the limit allows ``amount`` more."""
        if not self._interval:
            return
        now = time.monotonic()
        wait = self._due - now
        self._due = max(self._due, now - 1.0) + amount * self._interval
        if wait > 0:
            await asyncio.sleep(wait)

    def give_back(self, amount: float) -> None:
        """Less was used than was taken; a negative amount: more."""
        self._due -= amount * self._interval


class Pace:
    """Lets requests go, so many at once. For one event loop.

    Parameters
    ----------
    workers : int, optional
        A fixed number; by default it is adapted.
    servers : int, default 1
        Over how many servers the work is spread: they begin with ``START`` each.
    """

    def __init__(self, workers: int | None, servers: int = 1) -> None:
        self._adapts = workers is None
        self.limit = float(workers or START * servers)
        self.most_used = 0
        self._most = MOST * servers
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._slow_start = True
        self._best: float | None = None  # fewest seconds per token in any window
        self._before = 0.0  # tokens a second in the window before
        self._new_window()

    def _new_window(self) -> None:
        self._began = time.monotonic()
        self._tokens = 0
        self._speeds: list[float] = []
        self._full = self._under_way >= int(self.limit)
        self._was_cut = False

    async def enter(self) -> None:
        """Wait for a place, first come, first served."""
        if self._under_way < int(self.limit) and not self._waiting:
            self._took()
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # the place was given in the very moment of the cancel
            else:
                self._waiting.remove(place)
            raise

    def _took(self) -> None:
        self._under_way += 1
        self.most_used = max(self.most_used, self._under_way)
        self._full |= self._under_way >= int(self.limit)

    def leave(self) -> None:
        """Give the place back."""
        self._under_way -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._under_way < int(self.limit):
            place = self._waiting.popleft()
            if not place.done():
                self._took()
                place.set_result(None)

    def answered(self, seconds: float, tokens: int) -> None:
        """A request was answered; ``tokens`` came out of it in ``seconds``."""
        self._tokens += tokens
        self._speeds.append(seconds / max(tokens, 1))
        if self._adapts and len(self._speeds) >= max(4, int(self.limit)):
            self._judge()

    def _judge(self) -> None:
        rate = self._tokens / max(time.monotonic() - self._began, 1e-6)
        speed = statistics.median(self._speeds)
        self._best = speed if self._best is None else min(self._best, speed)
        if not self._was_cut and self._full:  # what was not used tells nothing
            if speed > SLOWER * self._best and rate < GAIN * self._before:
                self._cut()
            else:
                step = self.limit if self._slow_start else max(1.0, self.limit / 8)
                self.limit = min(self._most, self.limit + step)
        self._before = rate
        self._new_window()
        self._admit()

    def busy(self) -> None:
        """The server asked for fewer requests."""
        if self._adapts and not self._was_cut:
            self._cut()

    def _cut(self) -> None:
        self._slow_start = False
        self._was_cut = True
        self.limit = max(FEWEST, self.limit * CUT)
