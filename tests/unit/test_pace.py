"""How much is under way at once, on a clock of the test's own."""

from __future__ import annotations

import asyncio

import pytest

from nbinfer.remote import pace
from nbinfer.remote.pace import FEWEST, MOST, START, Bucket, Pace


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def window(limits: Pace, clock: list[float], seconds: float, tokens: int = 10) -> float:
    """One window in which every place was taken; the limit after it."""

    async def fill():
        count = int(limits.limit)
        for _ in range(count):
            await limits.enter()
        clock[0] += seconds
        for _ in range(count):
            limits.answered(seconds, tokens)
            limits.leave()

    asyncio.run(fill())
    return limits.limit


def test_it_doubles_while_nothing_is_amiss(clock):
    limits = Pace(None)
    assert limits.limit == START
    # A server with room: as many again, in the same time.
    assert [window(limits, clock, 1.0) for _ in range(5)] == [32, 64, 128, 256, MOST]


def test_latency_without_gain_cuts_it(clock):
    limits = Pace(None)
    # A server that is full at 16: twice the requests take twice the time.
    found = [window(limits, clock, seconds) for seconds in (1, 2, 4, 2.8)]
    assert found[:2] == [32, 64]
    assert found[2] == pytest.approx(64 * 0.7)
    assert found[3] < found[2]


def test_slower_rows_are_no_reason_while_more_comes_out(clock):
    limits = Pace(None)
    for seconds in (1.0, 1.5, 2.2, 3.0):  # 16/1, 32/1.5, 64/2.2, 128/3: the rate still rises
        window(limits, clock, seconds)
    assert limits.limit == 256


def test_a_busy_server_cuts_it_once_a_window_and_then_it_grows_by_an_eighth(clock):
    limits = Pace(None)
    limits.busy()
    limits.busy()
    assert limits.limit == pytest.approx(START * 0.7)
    cut = limits.limit
    window(limits, clock, 1.0)  # the window of the cut raises nothing
    assert limits.limit == cut
    assert window(limits, clock, 1.0) == pytest.approx(cut + cut / 8)


def test_it_never_ends_below_one(clock):
    limits = Pace(None)
    for _ in range(50):
        limits.busy()
        limits._new_window()
    assert limits.limit == FEWEST


def test_a_number_of_ones_own_is_kept(clock):
    limits = Pace(5)
    limits.busy()
    assert window(limits, clock, 1.0) == 5


def test_what_was_not_used_is_not_raised(clock):
    limits = Pace(None)

    async def few():
        for _ in range(40):
            await limits.enter()
            limits.answered(1.0, 1)
            limits.leave()

    asyncio.run(few())
    assert limits.limit == START


def test_places_go_to_whoever_waits_longest_and_a_cancel_gives_its_own_back():
    async def work():
        limits = Pace(1)
        await limits.enter()
        order = []

        async def one(name):
            await limits.enter()
            order.append(name)
            limits.leave()

        tasks = [asyncio.create_task(one(name)) for name in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        limits.leave()
        tasks[0].cancel()  # in the moment in which its place was given
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == ["c"]
        await asyncio.wait_for(limits.enter(), 1)

    asyncio.run(work())


def test_a_bucket_is_even_and_takes_back(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(round(seconds, 3))

    monkeypatch.setattr(pace.asyncio, "sleep", sleep)
    monkeypatch.setattr(pace.time, "monotonic", lambda: 50.0)

    async def work():
        bucket = Bucket(60)  # one a second, of which one may come at once
        for _ in range(4):
            await bucket.take()
        bucket.give_back(2)
        await bucket.take()
        await Bucket(None).take(10**9)

    asyncio.run(work())
    assert slept == [1.0, 2.0, 1.0]
