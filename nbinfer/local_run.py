"""A run on a resident engine: load it, wait for the device, send rows."""

from __future__ import annotations

import queue
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from .lease import Ticket, lease_for
from .measure import PeakSampler
from .records import Finished, Record, RowRequest, Stage
from .resident import Plan, Resident
from .residents import pool
from .run import HEARTBEAT_S, INTERRUPT, Event, Run

__all__ = ["LocalRun"]


class LocalRun(Run):
    """Sends rows to a resident engine and yields what comes back.

    Parameters
    ----------
    plan : Plan
        What must be resident.
    requests, **options
        As of ``Run``.
    """

    def __init__(self, plan: Plan, requests: Sequence[RowRequest], **options: Any) -> None:
        super().__init__(requests, **options)
        self.plan = plan
        self.resident: Resident | None = None
        self.load_s = 0.0
        self.peak_bytes = 0
        # Of speculative decoding, over all rows: tokens drafted, and how many of them were kept.
        self.speculative: dict[str, int] = {}
        self._sampler: PeakSampler | None = None
        self._stage = f"loading {plan.engine} · {plan.model}"

    def _serve(self) -> Iterator[Record]:
        started = time.monotonic()
        loaded = yield from self._load()
        self.load_s = time.monotonic() - started if loaded == "loaded" else 0.0
        if loaded is None:
            return
        resident = self.resident
        assert resident is not None
        assert resident.worker is not None
        worker = resident.worker
        ticket = Ticket(resident, resident.label, lambda: self._mailbox.put({"ev": "granted"}))
        resident.runs += 1
        try:
            worker.send({"op": "begin", "run": self.run_id})
            worker.subscribe(self.run_id, self._mailbox.put)
            granted = yield from self._take_turn(self.plan.device, ticket)
            if granted:
                self._sampler = PeakSampler(worker.pid, resident.seen)
                with self._sampler:
                    yield from self._rows()
        finally:
            worker.unsubscribe(self.run_id)
            if self._stop_at is None and self._done < len(self.requests):
                worker.cancel(self.run_id)  # abandoned by whoever read the records
            worker.send({"op": "end", "run": self.run_id})
            lease_for(self.plan.device).release(ticket)
            resident.runs -= 1
            resident.used_at = time.monotonic()
            self._note_peak(resident)

    def _load(self) -> Generator[Record, None, str | None]:
        """Wait until the engine is resident; returns "loaded", "resident" or None."""
        listener = self._mailbox.put
        how = "resident"
        while True:
            resident = self.resident = pool.ensure(self.plan, listener)
            while True:
                event = yield from self._next_event()
                kind = event["ev"]
                if kind == "stage":
                    how = "loaded"
                    self._stage = f"loading {resident.label}: {event['text']}"
                    yield Stage(self._stage)
                elif kind == "load_failed":
                    self.outcome.error = event["error"]
                    return None
                elif kind == INTERRUPT:
                    pool.forget_waiter(resident, listener)
                    self._interrupted()
                    return None
                elif kind == "ready":
                    break
            if resident.worker is None or resident.worker.obeying:
                return how
            # An earlier run's cancel is still unanswered: this one waits until the engine
            # obeys or its escalation ends it, and then loads it anew.
            if not (yield from self._wait_until_obeying(resident)):
                return None

    def _wait_until_obeying(self, resident: Resident) -> Generator[Record, None, bool]:
        self._stage = f"waiting for {resident.label} to stop its cancelled run"
        assert resident.worker is not None
        while resident.worker.alive and not resident.worker.obeying:
            yield Stage(self._stage)
            try:
                if self._mailbox.get(timeout=HEARTBEAT_S)["ev"] == INTERRUPT:
                    self._interrupted()
                    return False
            except queue.Empty:
                continue
        return True

    def _send(self, rows: list[dict[str, Any]]) -> None:
        assert self.resident is not None
        assert self.resident.worker is not None
        self.resident.worker.send({"op": "rows", "run": self.run_id, "rows": rows})

    def _cancel(self) -> None:
        assert self.resident is not None
        assert self.resident.worker is not None
        self.resident.worker.cancel(self.run_id)

    def _settle_event(self, event: Event, finish_reason: str | None = None) -> Finished:
        for name, count in (event.get("speculative") or {}).items():
            self.speculative[name] = self.speculative.get(name, 0) + count
        return super()._settle_event(event, finish_reason)

    def _note_peak(self, resident: Resident) -> None:
        if self._sampler is not None:
            self.peak_bytes = max(self.peak_bytes, self._sampler.peak_bytes)
        resident.peak_bytes = max(resident.peak_bytes, self.peak_bytes)

    def _ended(self, event: Event) -> None:
        assert self.resident is not None
        self._note_peak(self.resident)
        done = f"while it ran ({self._done} of {len(self.requests)} rows were done)"
        self.outcome.error = self.resident.crashed(event["death"], done)
