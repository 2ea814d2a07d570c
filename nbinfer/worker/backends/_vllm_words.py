"""What vLLM's errors say, in one line."""

from __future__ import annotations

import contextlib


def worded(error):
    """The first line of what vLLM says; its validation errors add the offending object."""
    with contextlib.suppress(IndexError):
        return str(error).strip().splitlines()[0]
    return type(error).__name__
