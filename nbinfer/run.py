"""What every run shares: rows sent ahead, answers gathered, the rest settled.

Everything that can happen arrives in one mailbox: the load's stages, the lease, rows, the
engine's end and the user's interrupt. So a run is one loop over messages, it can be stopped at
any of its points, and no exception strikes it from outside.
"""

from __future__ import annotations

import abc
import queue
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from . import settings
from .errors import NbinferError
from .frame import Row
from .lease import Ticket, lease_for
from .pacing import Pace
from .records import Delta, Finished, Outcome, Progress, Record, RowRequest, Stage

__all__ = ["AHEAD", "Event", "Run", "new_run_id"]

Event = dict[str, Any]
# Rows sent ahead of those that are done: enough to keep any engine fed, few enough that a
# hundred thousand prompts are not held twice.
AHEAD = 512
HEARTBEAT_S = 0.1
INTERRUPT = "interrupt"


def new_run_id() -> str:
    """A run's identifier: sortable by its start, short enough for a column."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + uuid.uuid4().hex[:6]


class Run(abc.ABC):
    """Sends rows to an engine and yields what comes back.

    Parameters
    ----------
    requests : sequence of RowRequest
        All rows, in order.
    outcome : Outcome
        Filled in: how it ended.
    stream : bool
        Whether pieces of text are wanted as they are made.
    wait : bool
        Whether to wait while another engine computes on the same device.
    ahead : int
        How many rows the engine has at once, waiting or running.
    """

    def __init__(
        self,
        requests: Sequence[RowRequest],
        *,
        run_id: str,
        outcome: Outcome,
        stream: bool = False,
        wait: bool = True,
        ahead: int = AHEAD,
    ) -> None:
        self.requests = requests
        self.run_id = run_id
        self.outcome = outcome
        self.sent_at = self.done_at = 0.0
        self.pace: Pace | None = None
        self._stream = stream
        self._wait = wait
        self._ahead = ahead
        self._mailbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._pending: dict[int, list[str]] = {}  # rows that were sent: their text so far
        self._next = 0
        self._done = 0
        self._tokens = 0
        self._prefill = (0, 0)
        self._settled = bytearray(len(requests))
        self._stop_at: float | None = None
        self._stage = ""

    def stop(self) -> None:
        """Interrupt the run from any thread."""
        self._mailbox.put({"ev": INTERRUPT})

    def records(self) -> Generator[Record, None, None]:
        """Yield records until every row is settled; closing it early cancels the rest.

        It installs no signal handler: whoever reads it holds an ``interrupts.guard()`` that
        calls ``stop()``.
        """
        yield from self._reject_unsendable()
        if self._done < len(self.requests):
            yield from self._serve()
        yield from self._settle_rest()

    # ------------------------------------------------------------- what a run does

    @abc.abstractmethod
    def _serve(self) -> Iterator[Record]:
        """Make the engine ready, then ``_rows()``."""

    @abc.abstractmethod
    def _send(self, rows: list[dict[str, Any]]) -> None:
        """Give rows to the engine: ``row`` (its number), ``params``, ``stream`` and its body."""

    @abc.abstractmethod
    def _cancel(self) -> None:
        """Ask the engine to give up the run's rows. It answers with ``cancelled``."""

    @abc.abstractmethod
    def _ended(self, event: Event) -> None:
        """The engine itself has ended, in the middle of the run."""

    # ---------------------------------------------------------------- before rows

    def _reject_unsendable(self) -> Iterator[Record]:
        for number, request in enumerate(self.requests):
            if request.error is not None:
                yield self._settle(number, finish_reason="error", error=request.error)

    def _next_event(self) -> Generator[Record, None, Event]:
        """The next message; meanwhile the stage is told again, so that a clock can be shown."""
        while True:
            try:
                return self._mailbox.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                yield Stage(self._stage)

    def _take_turn(self, device: str, ticket: Ticket) -> Generator[Record, None, bool]:
        """Wait for a device's lease, unless asked not to; whether the run may go on."""
        if not self._wait:
            return True
        holder = lease_for(device).request(ticket)
        self._stage = f"waiting for {holder} to finish on the {device}"
        while True:
            event = yield from self._next_event()
            if event["ev"] == "granted":
                return True
            if event["ev"] == INTERRUPT:
                self._interrupted()
                return False
            if event["ev"] == "died":
                self._ended(event)
                return False

    # ----------------------------------------------------------------------- rows

    def _rows(self) -> Iterator[Record]:
        self.sent_at = time.monotonic()
        self.outcome.sent = True
        while self._done < len(self.requests):
            if self._stop_at is None:
                self._send_ahead()
            try:
                event = self._mailbox.get(timeout=self._patience())
            except queue.Empty:
                if self._stop_at is not None and time.monotonic() >= self._stop_at:
                    return  # it did not answer in time; late replies are nobody's
                yield self._progress()
                continue
            kind = event["ev"]
            if kind == "delta":
                yield from self._delta(event)
            elif kind == "finished":
                yield self._settle_event(event)
            elif kind == "failed":
                yield self._settle_event(event, finish_reason="error")
            elif kind == "progress":
                self._tokens, self._prefill = event["tokens"], tuple(event["prefill"])
                yield self._progress()
            elif kind == "died":
                self._ended(event)
                return
            elif kind == "cancelled":
                return
            elif kind == INTERRUPT:
                if self._stop_at is not None:
                    return  # a second interrupt: wait no longer
                self._interrupted()
                self._cancel()

    def _send_ahead(self) -> None:
        if self.pace is None and len(self._pending) > self._ahead // 2:
            return
        rows = []
        while self._next < len(self.requests) and self._may_send():
            number = self._next
            self._next += 1
            if self._settled[number]:
                continue
            request = self.requests[number]
            self._pending[number] = []
            row = {"row": number, "params": request.params, "stream": self._stream}
            rows.append({**row, **request.body} if self.pace is None else self._timed(row, request))
        if rows:
            self._send(rows)

    def _may_send(self) -> bool:
        if self.pace is None:
            return len(self._pending) < self._ahead
        elapsed = time.monotonic() - self.sent_at
        return self.pace.wait_s(self._next, len(self._pending), elapsed) <= 0

    def _timed(self, row: dict[str, Any], request: RowRequest) -> Event:
        assert self.pace is not None
        self.pace.sent[row["row"]] = time.monotonic() - self.sent_at
        return {**row, "timed": True, **request.body}

    def _patience(self) -> float:
        if self._stop_at is None:
            return min(HEARTBEAT_S, self._until_due())
        return max(0.0, min(HEARTBEAT_S, self._stop_at - time.monotonic()))

    def _until_due(self) -> float:
        """Seconds until the pace lets the next row go; a row that ends is a message of its own."""
        if self.pace is None or self._next >= len(self.requests):
            return HEARTBEAT_S
        elapsed = time.monotonic() - self.sent_at
        return max(0.0, self.pace.wait_s(self._next, len(self._pending), elapsed))

    def _progress(self) -> Progress:
        done, total = self._prefill
        seconds = time.monotonic() - self.sent_at
        return Progress(self._done, len(self.requests), self._tokens, done, total, seconds)

    def _delta(self, event: Event) -> Iterator[Record]:
        pieces = self._pending.get(event["row"])
        if pieces is not None:
            pieces.append(event["text"])
            self._tokens += event["tokens"]
            yield Delta(event["row"], event["text"], event["tokens"])

    # -------------------------------------------------------------------- endings

    def _interrupted(self) -> None:
        self.outcome.interrupted = True
        self._stop_at = time.monotonic() + settings.current().cancel_grace_s

    def _settle_event(self, event: Event, finish_reason: str | None = None) -> Finished:
        known = {name: event[name] for name in _FROM_EVENT if event.get(name) is not None}
        reason = finish_reason or event["finish_reason"]
        return self._settle(event["row"], finish_reason=reason, **known)

    def _settle(self, number: int, **values: Any) -> Finished:
        request = self.requests[number]
        self._pending.pop(number, None)
        if not self._settled[number]:
            self._settled[number] = 1
            self._done += 1
        self.done_at = time.monotonic()
        row = Row(index=request.index, sample=request.sample, id=request.id, prompt=request.prompt)
        row.messages = request.body.get("messages")
        for name, value in values.items():
            setattr(row, name, value)
        return Finished(number, row)

    def _settle_rest(self) -> Iterator[Record]:
        """Rows without an answer: cancelled by the user, or lost with the engine."""
        error: NbinferError | None = self.outcome.error
        for number in range(len(self.requests)):
            if self._settled[number]:
                continue
            text = "".join(self._pending.get(number, ())) or None
            if error is not None and not self.outcome.interrupted:
                values = {"finish_reason": "error", "error": error.message.splitlines()[0]}
            else:
                values = {"finish_reason": "cancelled"}
            yield self._settle(number, output=text, **values)


_FROM_EVENT = (
    "output",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "queue_s",
    "ttft_s",
    "tpot_s",
    "latency_s",
    "itl_s",
    "error",
    "logprobs",
    "prompt_logprobs",
    "tool_calls",
)
