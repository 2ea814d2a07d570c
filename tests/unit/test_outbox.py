"""What leaves a worker when, and in which order."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import pytest

from nbinfer.worker import outbox as module
from nbinfer.worker import protocol
from nbinfer.worker.outbox import Outbox

from ..conftest import eventually


class Wire:
    """The other end: frames as they arrive, and a gate that can hold them up."""

    def __init__(self) -> None:
        self.frames: list[list[dict[str, Any]]] = []
        self.open = threading.Event()
        self.open.set()
        self.writing = threading.Event()

    def __call__(self, data: bytes) -> None:
        self.writing.set()
        assert self.open.wait(10)
        self.frames.append(protocol.read(io.BytesIO(data))["events"])

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for frame in list(self.frames) for event in frame]

    def of(self, row: int) -> list[dict[str, Any]]:
        return [event for event in self.events if event.get("row") == row]


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def outbox(wire):
    # Its thread is a daemon without an end: in a worker it lives as long as the process.
    return Outbox(wire, broken=lambda: pytest.fail("not broken"))


def finished(row: int) -> dict[str, Any]:
    return {"ev": "finished", "run": "r", "row": row}


def test_an_event_leaves_by_itself(wire, outbox):
    outbox.post({"ev": "hello"})
    assert eventually(lambda: wire.events == [{"ev": "hello"}])


def test_the_first_delta_leaves_at_once(wire, outbox, monkeypatch):
    monkeypatch.setattr(module, "DELTA_S", 3600)
    outbox.delta("r", 0, "a", 1, first=True)
    assert eventually(lambda: len(wire.events) == 1)
    outbox.delta("r", 0, "b", 1, first=False)
    time.sleep(0.1)
    assert len(wire.events) == 1  # what follows waits
    outbox.delta("r", 1, "c", 1, first=True)  # another row's first takes it along
    assert eventually(lambda: len(wire.events) == 3)
    assert [e["text"] for e in wire.of(0)] == ["a", "b"]


def test_a_first_delta_is_written_by_its_own_thread(wire, outbox):
    outbox.delta("r", 0, "a", 1, first=True)
    assert [e["text"] for e in wire.events] == ["a"]  # there was nobody to wait for


def test_a_first_delta_waits_for_nobody_who_writes(wire, outbox):
    wire.open.clear()
    outbox.post({"ev": "hello"})
    assert wire.writing.wait(10)
    outbox.delta("r", 0, "a", 1, first=True)
    assert not wire.events
    wire.open.set()
    assert eventually(lambda: len(wire.events) == 2)


def test_deltas_of_a_row_are_merged(wire, outbox):
    outbox.delta("r", 0, "start", 1, first=True)
    wire.open.clear()
    wire.writing.clear()
    outbox.post({"ev": "hello"})
    assert wire.writing.wait(10)
    for number in range(1000):
        outbox.delta("r", number % 2, f" {number}", 1, first=False)
    wire.open.set()
    assert eventually(lambda: sum(e.get("tokens", 0) for e in wire.events) == 1001)
    assert len(wire.of(0)) == 2
    assert len(wire.of(1)) == 1
    even = "".join(f" {n}" for n in range(0, 1000, 2))
    assert "".join(e["text"] for e in wire.of(0)) == "start" + even
    assert wire.of(1)[0]["tokens"] == 500


def test_rows_of_two_runs_are_not_merged(wire, outbox):
    wire.open.clear()
    outbox.post({"ev": "hello"})
    assert wire.writing.wait(10)
    outbox.delta("a", 0, "x", 1, first=False)
    outbox.delta("b", 0, "y", 1, first=False)
    wire.open.set()
    assert eventually(lambda: len(wire.events) == 3)
    assert [(e["run"], e["text"]) for e in wire.events[1:]] == [("a", "x"), ("b", "y")]


def test_a_row_is_finished_after_its_deltas(wire, outbox):
    for row in range(50):
        outbox.delta("r", row, "a", 1, first=True)
        for _ in range(5):
            outbox.delta("r", row, "b", 1, first=False)
        outbox.post(finished(row), within=module.FINISHED_S)
    assert eventually(lambda: sum(e["ev"] == "finished" for e in wire.events) == 50)
    for row in range(50):
        events = wire.of(row)
        assert "".join(e.get("text", "") for e in events) == "abbbbb"
        assert [e["ev"] for e in events].index("finished") == len(events) - 1


def test_what_comes_after_an_event_of_the_row_stays_behind_it(wire, outbox):
    wire.open.clear()
    outbox.post({"ev": "hello"})
    assert wire.writing.wait(10)
    outbox.delta("r", 0, "before", 1, first=False)
    outbox.post({"ev": "mark", "run": "r", "row": 0})
    outbox.delta("r", 0, "after", 1, first=False)
    wire.open.set()
    assert eventually(lambda: len(wire.events) == 4)
    assert [e.get("text", e["ev"]) for e in wire.of(0)] == ["before", "mark", "after"]


def test_many_events_travel_in_few_frames(wire, outbox):
    wire.open.clear()
    outbox.post({"ev": "hello"})
    assert wire.writing.wait(10)
    for row in range(5000):
        outbox.post(finished(row), within=module.FINISHED_S)
    wire.open.set()
    assert eventually(lambda: len(wire.events) == 5001)
    assert len(wire.frames) == 2
    assert [e["row"] for e in wire.events[1:]] == list(range(5000))


def test_progress_keeps_the_last_totals(wire, outbox):
    for tokens in range(1, 2001):
        outbox.progress("r", {"tokens": tokens, "prefill": [0, 0]})
    assert eventually(lambda: bool(wire.events) and wire.events[-1]["tokens"] == 2000)
    assert len(wire.events) <= 3


def test_a_writer_that_blocks_does_not_block_the_producer(wire, outbox):
    wire.open.clear()
    started = time.monotonic()
    for _ in range(20_000):
        outbox.delta("r", 0, "x", 1, first=False)
    assert time.monotonic() - started < 5
    wire.open.set()
    assert eventually(lambda: sum(e["tokens"] for e in wire.events) == 20_000)


@pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
def test_a_broken_pipe_is_told_once(error):
    told = []

    def write(_: bytes) -> None:
        raise error

    outbox = Outbox(write, broken=lambda: told.append(1))
    outbox.post({"ev": "hello"})
    assert eventually(lambda: told == [1])
    outbox.post({"ev": "hello"})
    outbox._thread.join(5)
    assert not outbox._thread.is_alive()
    assert told == [1]
