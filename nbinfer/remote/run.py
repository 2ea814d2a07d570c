"""A run on servers: rows become tasks of the loop, what comes of them goes to the run's mailbox."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import measure, server_records
from ..errors import NbinferError, ServerUnreachable
from ..lease import Ticket, lease_for
from ..measure import PeakSampler
from ..records import Record, RowRequest
from ..run import INTERRUPT, Event, Run
from .exchange import Answer, Request, Wire, exchange, fields
from .failures import Failure, backoff
from .loop import loop
from .service import Server, Service

__all__ = ["RemoteRun"]

TICK_S = 0.1


@dataclass(slots=True, eq=False)
class _Row:
    """A row under way: what was asked, the answer so far, and how much of it was told."""

    asked: dict[str, Any]
    submitted: float
    answer: Answer = field(default_factory=Answer)
    told_tokens: int = 0
    told_pieces: int = 0
    refused: int = 0
    shown: bool = False

    def begin(self) -> None:
        """An attempt: of one that failed nothing is kept."""
        self.answer = Answer(gaps=[] if self.asked.get("timed") else None)
        self.told_tokens = self.told_pieces = 0


class RemoteRun(Run):
    """Sends rows to servers and yields what comes back.

    Parameters
    ----------
    service, wire, model
        Where, in which words, and the name under which the model is served.
    prepare : coroutine function
        Makes sure of the servers before the first row; raises what stands in the way.
    ours : Server, optional
        Its record, where we started it on this machine: its memory is measured, the run takes
        the lease of the device, and if it ends its last words are told.
    requests, **options
        As of ``Run``.
    """

    def __init__(
        self,
        requests: Sequence[RowRequest],
        *,
        service: Service,
        wire: Wire,
        model: str,
        prepare: Callable[[], Coroutine[Any, Any, None]],
        ours: server_records.Server | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        super().__init__(requests, **options)
        self.service = service
        self.connect_s = 0.0
        self.retries = 0
        self.idle_bytes: int | None = None
        self.peak_bytes = 0
        self._ours = ours
        self._device = device
        self._wire = wire
        self._model = model
        self._prepare = prepare
        self._most_refusals = service.params.max_retries + len(service.urls)
        self._tasks: set[asyncio.Task[None]] = set()
        self._made = 0  # tokens of finished rows, and pieces of those under way
        self._cancelling = False
        self._stage = f"asking {service.label} what it serves"

    # ----------------------------------------------------------- in the run's thread

    def _serve(self) -> Iterator[Record]:
        started = time.monotonic()
        future = loop.submit(self._prepare())
        future.add_done_callback(lambda _: self._mailbox.put({"ev": "asked"}))
        while True:
            event = yield from self._next_event()
            if event["ev"] == "asked":
                break
            if event["ev"] == INTERRUPT:
                future.cancel()
                self._interrupted()
                return
        try:
            future.result()
        except NbinferError as error:
            self.outcome.error = error
            return
        except concurrent.futures.CancelledError:  # the loop was stopped
            self.outcome.error = ServerUnreachable(f"{self.service.label} was given up")
            return
        self.connect_s = time.monotonic() - started
        loop.soon(self._begin)
        try:
            yield from self._rows() if self._ours is None else self._rows_of_ours(self._ours.pid)
        finally:
            loop.soon(self._cancel_all)

    def _rows_of_ours(self, process: int) -> Iterator[Record]:
        """The same on a server of ours: its cores are those of the other engines here."""
        ticket = Ticket(
            self.service, self.service.label, lambda: self._mailbox.put({"ev": "granted"})
        )
        seen = self.service.seen or measure.seen(process)
        self.service.seen = seen
        self.idle_bytes = seen.total
        try:
            if (yield from self._take_turn(self._device, ticket)):
                with PeakSampler(process, seen) as sampler:
                    yield from self._rows()
                self.peak_bytes = sampler.peak_bytes
        finally:
            lease_for(self._device).release(ticket)

    def _send(self, rows: list[dict[str, Any]]) -> None:
        loop.soon(self._start, rows, time.monotonic())

    def _cancel(self) -> None:
        loop.soon(self._cancel_all)

    def _ended(self, event: Event) -> None:
        error: NbinferError = event["error"]
        first, *log = error.message.split("\n", 1)
        first += f" ({self._done} of {len(self.requests)} rows were done)"
        error.message = "\n".join([first, *log])
        self.outcome.error = error

    # ------------------------------------------------------------------- in the loop

    def _begin(self) -> None:
        self._task(self._tick())

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._mailbox.put({"ev": "progress", "tokens": self._made, "prefill": (0, 0)})

    def _start(self, rows: list[dict[str, Any]], submitted: float) -> None:
        if not self._cancelling:
            for asked in rows:
                self._task(self._answer(_Row(asked, submitted)))

    def _cancel_all(self) -> None:
        if self._cancelling:
            return
        self._cancelling = True
        under_way = list(self._tasks)
        for task in under_way:
            task.cancel()
        self._task(self._wait_for(under_way))

    async def _wait_for(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        self._mailbox.put({"ev": "cancelled"})

    async def _answer(self, row: _Row) -> None:
        try:
            event = await self._attempts(row)
        except asyncio.CancelledError:
            text = row.answer.text or None
            event = {"ev": "finished", "finish_reason": "cancelled", "output": text}
        except Exception as error:  # a fault of ours must not leave a row without an end
            event = {"ev": "failed", "error": f"{type(error).__name__}: {error}"[:600]}
        self._mailbox.put({**event, "row": row.asked["row"]})

    async def _attempts(self, row: _Row) -> Event:
        """Send a row until it is answered or must be given up."""
        service, params = self.service, self.service.params
        request = self._wire.request(row.asked, self._model)
        expected = len(row.asked.get("prompt", "")) // 4 + row.asked["params"]["max_new_tokens"]
        attempt = 0
        while True:
            row.begin()
            place = "no server"
            try:
                async with service.turn(expected) as server:
                    place = server.shown
                    await self._attempt(server, request, row)
                self._account(row.answer, expected)
                queue_s = row.answer.sent_at - row.submitted
                return {"ev": "finished", "queue_s": queue_s, **fields(row.answer)}
            except Failure as failure:
                row.refused += failure.down
                if failure.down and not service.lost and row.refused <= self._most_refusals:
                    continue  # it was not begun: it waits for a server, and that is no attempt
                if service.lost:
                    self._mailbox.put({"ev": "died", "error": self._lost(failure)})
                if failure.down or not failure.again or attempt >= params.max_retries or row.shown:
                    return self._failed(failure, place, attempt, row)
                attempt += 1
                self.retries += 1
                if failure.wait_s is None or not failure.busy:  # else the server's pause is it
                    await asyncio.sleep(
                        backoff(attempt, params.retry_backoff_base_s, params.retry_backoff_max_s)
                    )

    async def _attempt(self, server: Server, request: Request, row: _Row) -> None:
        def heard(answer: Answer) -> None:
            new = answer.tokens - row.told_tokens
            self._made += new
            if row.asked["stream"] and len(answer.pieces) > row.told_pieces:
                text = "".join(answer.pieces[row.told_pieces :])
                number = row.asked["row"]
                self._mailbox.put({"ev": "delta", "row": number, "text": text, "tokens": new})
                row.shown = True  # it cannot be taken back
            row.told_tokens, row.told_pieces = answer.tokens, len(answer.pieces)

        try:
            await exchange(server, self._wire, request, row.answer, heard)
        except Failure as failure:
            self._made -= row.told_tokens
            self.service.heeds(server, failure)
            raise
        server.answered += 1
        self._made += (row.answer.output_tokens or row.told_tokens) - row.told_tokens

    def _account(self, answer: Answer, expected: int) -> None:
        """Tell the limits what the row has used."""
        made = answer.output_tokens or answer.tokens
        used = (answer.prompt_tokens or 0) + made
        self.service.tokens.give_back(expected - used)
        self.service.pace.answered(answer.last_at - answer.sent_at, made)

    def _failed(self, failure: Failure, place: str, attempt: int, row: _Row) -> Event:
        tried = f" (after {attempt + 1} attempts)" if attempt else ""
        words = self.service.scrubbed(failure.message)
        event: Event = {"ev": "failed", "error": f"{place}: {words}{tried}"}
        if row.answer.pieces:
            event["output"] = row.answer.text
        return event

    def _lost(self, failure: Failure) -> ServerUnreachable:
        words = self.service.scrubbed(failure.message)
        hint = "The finished rows are kept. RemoteParams(max_retries=...) waits longer."
        if self._ours is not None and not self._ours.alive:
            words = f"its process has ended\n{self.service.scrubbed(self._ours.log_tail(12))}"
            hint = f"The finished rows are kept. The server's whole log: {self._ours.log}"
        return ServerUnreachable(f"{self.service.label} answers no more: {words}", hint=hint)
