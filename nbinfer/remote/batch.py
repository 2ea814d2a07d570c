"""Batch APIs: a run that is handed over whole, and fetched when the cloud has done it.

Half the price, within a day. The batch lives at the cloud: an interrupt stops waiting, and the
batch's id, given in place of ``True``, goes on where that was.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from ..errors import ConfigurationError, NbinferError, ServerError
from ..notices import notify
from ..records import Record, RowRequest
from ..run import INTERRUPT, Event, Run
from .discovery import discover
from .exchange import Answer, Request, Wire, fields
from .failures import Failure, backoff, from_body, from_exception, from_response
from .loop import loop
from .service import Server, Service

__all__ = ["BatchRun", "BatchState", "Batches", "checked_answer", "request"]

FIRST_POLL_S, LAST_POLL_S = 2.0, 60.0


@dataclass(frozen=True)
class BatchState:
    """What a batch's cloud says of it.

    Attributes
    ----------
    status : str
        In the cloud's own word.
    ended : bool
        Whether its answers can be fetched.
    problem : str
        Why it failed as a whole; ``""`` where it did not.
    results : tuple of str
        Where its answers are.
    """

    id: str
    status: str
    done: int
    total: int
    ended: bool = False
    problem: str = ""
    results: tuple[str, ...] = ()


class Batches(Protocol):
    """A cloud's own words for batches."""

    most: int

    async def create(self, server: Server, requests: Mapping[str, Request]) -> BatchState:
        """Hand over requests, by the name that each answer will bear."""

    async def state(self, server: Server, batch_id: str) -> BatchState:
        """How far it is."""

    def results(
        self, server: Server, state: BatchState
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Its answers: the request's name, and the body of a chat or of an error."""


async def request(server: Server, method: str, path: str, **options: Any) -> dict[str, Any]:
    """One call of a batch API, tried again where that may help; its JSON.

    Raises
    ------
    Failure
    """
    attempt = 0
    while True:
        try:
            try:
                response = await server.client.request(method, path, **options)
            except httpx.HTTPError as error:
                raise from_exception(error) from None
            if response.status_code != 200:
                raise from_response(response, response.content)
            value: dict[str, Any] = response.json()
            return value
        except Failure as failure:
            attempt += 1
            # A POST that was lost on its way may have been heard: a batch must not be paid twice.
            unheard = method == "GET" or failure.down or failure.busy
            if not failure.again or not unheard or attempt > 5:
                raise
            await asyncio.sleep(failure.wait_s or backoff(attempt, 0.5, 10.0))


def checked_answer(value: Mapping[str, Any]) -> dict[str, Any]:
    """A body that is an answer.

    Raises
    ------
    Failure
        For one that tells an error.
    """
    failure = from_body(value)
    if failure is not None:
        raise failure
    return dict(value)


class BatchRun(Run):
    """A run by a batch API. Rows have no times of their own: a cloud tells none.

    Parameters
    ----------
    requests, **options
        As of ``Run``.
    service, wire, batches, model
        Where, and in which words.
    batch : str or True
        ``True`` makes a batch; an id waits for one that was made before.
    """

    def __init__(
        self,
        requests: Sequence[RowRequest],
        *,
        service: Service,
        wire: Wire,
        batches: Batches,
        model: str,
        batch: str | bool,
        **options: Any,
    ) -> None:
        super().__init__(requests, **options)
        self.service = service
        self.batch_id = batch if isinstance(batch, str) else None
        self.connect_s = 0.0
        self.retries = 0
        self.idle_bytes = None
        self.peak_bytes = 0
        self._wire = wire
        self._batches = batches
        self._model = model
        self._stage = "handing over a batch"
        self._numbers: dict[str, int] = {}

    def _send(self, rows: list[dict[str, Any]]) -> None:
        """All rows are handed over at once."""

    def _cancel(self) -> None:
        """The batch goes on; only the waiting ends."""

    def _ended(self, event: Event) -> None:
        self.outcome.error = event["error"]

    def _serve(self) -> Any:
        bodies = {}
        for number, asked in enumerate(self.requests):
            if not self._settled[number]:
                row = {"params": asked.params, "stream": False, **asked.body}
                made = _in_one_piece(self._wire.request(row, self._model))
                name = _name(asked, made)
                bodies[name], self._numbers[name] = made, number
        if len(bodies) > self._batches.most:
            self.outcome.error = ConfigurationError(
                f"a batch takes {self._batches.most:,} requests, and these are {len(bodies):,}",
                hint="send them in parts, or without batch",
            )
            return
        future = loop.submit(self._work(bodies))
        future.add_done_callback(lambda _: self._mailbox.put({"ev": "over"}))
        while True:
            event = yield from self._next_event()
            if event["ev"] == INTERRUPT:
                future.cancel()
                self._interrupted()
                if self.batch_id is not None:
                    notify(f"the batch goes on: batch={self.batch_id!r} waits for it again")
                return
            if event["ev"] == "over":
                break
            yield from self._take(event)
        self._conclude(future)

    def _take(self, event: Event) -> list[Record]:
        if event["ev"] == "failed":
            return [self._settle_event(event, finish_reason="error")]
        return [self._settle_event(event)]

    def _conclude(self, future: concurrent.futures.Future[None]) -> None:
        try:
            future.result()
        except NbinferError as error:
            self.outcome.error = error
        except Failure as failure:
            self.outcome.error = ServerError(
                f"{self.service.label}: {self.service.scrubbed(failure.message)}"
            )
        if self.outcome.error is not None:
            return
        missing = [n for n in range(len(self.requests)) if not self._settled[n]]
        if missing:
            self.outcome.error = ServerError(
                f"the batch {self.batch_id} ended without an answer to {len(missing)} rows",
                hint="run them again: with output_path only those are sent",
            )

    # ------------------------------------------------------------------- in the loop

    async def _work(self, bodies: Mapping[str, Request]) -> None:
        await discover(self.service)
        server = self.service.servers[0]
        if self.batch_id is None:
            state = await self._batches.create(server, bodies)
            self.batch_id = state.id
            notify(f"batch {state.id} is handed over; batch={state.id!r} waits for it again")
        self.outcome.sent = True
        state = await self._batches.state(server, self.batch_id)
        pause = FIRST_POLL_S
        while not state.ended:
            self._stage = f"batch {state.id}: {state.status}, {state.done} of {state.total} done"
            await asyncio.sleep(pause)
            pause = min(LAST_POLL_S, pause * 1.5)
            state = await self._batches.state(server, self.batch_id)
        if state.problem:
            raise ServerError(
                f"the batch {state.id} failed: {self.service.scrubbed(state.problem)}"
            )
        async for name, body in self._batches.results(server, state):
            number = self._numbers.get(name)
            if number is None:
                raise ConfigurationError(
                    f"the batch {state.id} answers other prompts, or was asked with others "
                    "parameters",
                    hint="pass the prompts, model and parameters with which it was made",
                )
            self._mailbox.put({"row": number, **self._event(body)})

    def _event(self, body: dict[str, Any]) -> Event:
        answer = Answer()
        try:
            self._wire.whole(checked_answer(body), answer)
            if answer.refused is not None:
                raise Failure(answer.refused)
            if answer.finish_reason is None:
                raise Failure("an answer without a choice")
        except Failure as failure:
            return {"ev": "failed", "error": self.service.scrubbed(failure.message)}
        told = fields(answer)
        told.pop("latency_s", None)
        return {"ev": "finished", **told}


def _in_one_piece(asked: Request) -> Request:
    body = {k: v for k, v in asked.body.items() if k not in ("stream", "stream_options")}
    return Request(asked.path, body)


def _name(asked: RowRequest, made: Request) -> str:
    """An answer's name: its row, and a trace of what was asked, so that no other is taken."""
    text = json.dumps(made.body, sort_keys=True).encode()
    return f"{asked.index}-{asked.sample}-{hashlib.sha256(text).hexdigest()[:12]}"
