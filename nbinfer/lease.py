"""Who may compute on a device now.

Two engines computing at once on the same cores ruin both (llama.cpp's spinning threads
can be hundreds of times slower), so a run takes its device's lease first. Runs on the
engine that already computes join its batch; another engine's wait in turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Lease", "Ticket", "lease_for", "reset"]


@dataclass(eq=False)
class Ticket:
    """A run's claim. ``granted`` is called once, from whichever thread frees the device."""

    owner: Any
    label: str
    granted: Callable[[], None]
    held: bool = False


class Lease:
    """One device's lease, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: list[Ticket] = []
        self._waiting: deque[Ticket] = deque()

    def request(self, ticket: Ticket) -> str | None:
        """Ask for the device.

        Returns
        -------
        str or None
            ``None`` if it is granted (``ticket.granted`` has been called), else the label of
            whoever is waited for.
        """
        with self._lock:
            if self._holders and self._holders[0].owner is not ticket.owner:
                self._waiting.append(ticket)
                return self._holders[0].label
            self._holders.append(ticket)
            ticket.held = True
        ticket.granted()
        return None

    def release(self, ticket: Ticket) -> None:
        """Give the device back, or stop waiting for it. More than once does no harm."""
        granted: list[Ticket] = []
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if ticket in self._holders:
                self._holders.remove(ticket)
            ticket.held = False
            if not self._holders and self._waiting:
                owner = self._waiting[0].owner
                granted = [t for t in self._waiting if t.owner is owner]
                self._waiting = deque(t for t in self._waiting if t.owner is not owner)
                self._holders = list(granted)
                for each in granted:
                    each.held = True
        for each in granted:
            each.granted()


_leases: dict[str, Lease] = {}
_leases_lock = threading.Lock()


def lease_for(device: str) -> Lease:
    """The lease of a device such as ``"cpu"``."""
    with _leases_lock:
        return _leases.setdefault(device, Lease())


def reset() -> None:
    """Forget every lease (tests)."""
    with _leases_lock:
        _leases.clear()
