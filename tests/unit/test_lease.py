"""Who computes now."""

from __future__ import annotations

import random
import threading
import time

import pytest

from nbinfer import lease as module
from nbinfer.lease import Lease, Ticket, lease_for


class Claims:
    """Makes tickets, and notes when each is granted."""

    def __init__(self) -> None:
        self.granted: list[str] = []

    def ticket(self, owner: object, label: str) -> Ticket:
        return Ticket(owner, label, lambda: self.granted.append(label))


@pytest.fixture
def claims():
    return Claims()


def test_a_free_device_is_granted_at_once(claims):
    lease = Lease()
    ticket = claims.ticket("a", "a1")
    assert lease.request(ticket) is None
    assert ticket.held
    assert claims.granted == ["a1"]


def test_another_owner_waits_and_is_told_for_whom(claims):
    lease = Lease()
    first, second = claims.ticket("a", "a1"), claims.ticket("b", "b1")
    lease.request(first)
    assert lease.request(second) == "a1"
    assert not second.held
    lease.release(first)
    assert second.held
    assert claims.granted == ["a1", "b1"]


def test_the_same_owner_joins(claims):
    lease = Lease()
    first, second, other = (
        claims.ticket("a", "a1"),
        claims.ticket("a", "a2"),
        claims.ticket("b", "b1"),
    )
    lease.request(first)
    assert lease.request(second) is None
    lease.request(other)
    lease.release(first)
    assert not other.held  # one of the two still computes
    lease.release(second)
    assert other.held


def test_owners_come_in_turn_and_take_all_of_theirs_along(claims):
    lease = Lease()
    tickets = [claims.ticket(label[0], label) for label in ("a1", "b1", "c1", "b2", "c2")]
    for ticket in tickets:
        lease.request(ticket)
    lease.release(tickets[0])
    assert claims.granted == ["a1", "b1", "b2"]
    lease.release(tickets[1])
    lease.release(tickets[3])
    assert claims.granted == ["a1", "b1", "b2", "c1", "c2"]


def test_who_gives_up_waiting_is_passed_over(claims):
    lease = Lease()
    first, second, third = (claims.ticket(x, x) for x in "abc")
    for ticket in (first, second, third):
        lease.request(ticket)
    lease.release(second)
    lease.release(first)
    assert claims.granted == ["a", "c"]


def test_releasing_more_than_once_does_no_harm(claims):
    lease = Lease()
    first, second = claims.ticket("a", "a"), claims.ticket("b", "b")
    lease.request(first)
    lease.request(second)
    for _ in range(3):
        lease.release(first)
    assert claims.granted == ["a", "b"]
    assert second.held
    lease.release(claims.ticket("c", "never asked"))
    assert second.held


def test_each_device_has_a_lease_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "_leases", {})
    assert lease_for("cpu") is lease_for("cpu")
    assert lease_for("cpu") is not lease_for("cuda:0")
    before = lease_for("cpu")
    module.reset()
    assert lease_for("cpu") is not before


def test_never_two_owners_at_once_under_threads():
    lease = Lease()
    inside: list[int] = []
    wrong: list[list[int]] = []
    guard = threading.Lock()

    def work(owner: int) -> None:
        mine = random.Random(owner)
        for _ in range(50):
            granted = threading.Event()
            ticket = Ticket(owner % 3, str(owner), granted.set)
            lease.request(ticket)
            assert granted.wait(20)
            with guard:
                inside.append(owner % 3)
                if len(set(inside)) > 1:
                    wrong.append(list(inside))
            if mine.random() < 0.2:
                time.sleep(0.001)
            with guard:
                inside.remove(owner % 3)
            lease.release(ticket)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
