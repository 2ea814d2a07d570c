"""Cells of llama.cpp's unified KV cache: who holds how many, and how many a request will need."""

from __future__ import annotations

import json
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


def estimate(data, image_tokens):
    """Tokens that a request will fill: about one for three bytes, corrected once it is known."""
    if "messages" not in data:
        size, images = len(data["prompt"].encode("utf-8", "replace")), 0
    else:
        parts = [part for message in data["messages"] for part in _parts(message["content"])]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        images = len(parts) - len(texts)
        size = sum(len(t.encode("utf-8", "replace")) for t in texts)
        size += 60 * len(data["messages"]) + 120
        size += len(json.dumps(data["params"].get("tools") or ""))
    return size // 3 + 8 + images * image_tokens + data["params"]["max_new_tokens"]


def has_images(data):
    """Whether a request holds an image."""
    return any(
        part["type"] != "text"
        for message in data.get("messages", ())
        for part in _parts(message["content"])
    )


def text_of(content):
    """A message's text, of which the parts are lines."""
    return "\n".join(part["text"] for part in _parts(content))


def _parts(content):
    if content is None or isinstance(content, str):  # none beside a call of a tool
        return [{"type": "text", "text": content or ""}]
    return content
