"""Cells of llama.cpp's unified KV cache: who holds how many, and how many a request will need."""

from __future__ import annotations

import threading


class Cells:
    """Tokens of the unified KV cache, reserved and given back.

    ``enlarge`` is for a prompt that proved longer than estimated: it never waits, because a
    request that waits inside the library while holding cells could wait for ever.
    """

    def __init__(self, total):
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    def reserve(self, count, cancelled):
        with self._changed:
            while self._free < count:
                if cancelled():
                    return False
                self._changed.wait(0.1)
            self._free -= count
            return True

    def enlarge(self, extra):
        with self._changed:
            if self._free < extra:
                return False
            self._free -= extra
            return True

    def release(self, count):
        with self._changed:
            self._free += count
            self._changed.notify_all()


def estimate(data):
    """Tokens that a request will fill: about one for three bytes, corrected once it is known."""
    if "messages" in data:
        texts = [m["content"] for m in data["messages"]]
        size = sum(len(t.encode("utf-8", "replace")) for t in texts) + 60 * len(texts) + 120
    else:
        size = len(data["prompt"].encode("utf-8", "replace"))
    return size // 3 + 8 + data["params"]["max_new_tokens"]
