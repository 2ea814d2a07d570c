"""One place for what nbinfer says unasked: an eviction, a reload, an engine that hangs."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["listeners", "notify"]

# A panel may add itself; each gets the text.
listeners: list[Callable[[str], None]] = []


def notify(text: str) -> None:
    """Say one line on standard error, whichever thread it happens in."""
    print(f"nbinfer: {text}", file=sys.stderr, flush=True)
    for listener in list(listeners):
        listener(text)
