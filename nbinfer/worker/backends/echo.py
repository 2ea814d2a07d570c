"""An engine without a model: it answers with the prompt, one word a token.

It is a real subprocess behind the real protocol, for tests where time must be exact or a
part must fail in a way that a real engine cannot be made to.

Load parameters (``model_kwargs``): ``clock`` ("real" or "virtual"), ``prefill_s`` and
``token_s`` (seconds for a prompt and for each token, 0 by default), ``slots`` (rows in a
batch, 4), ``load_s``, ``memory_bytes`` (allocated and touched), ``load_fails`` (a message),
``load_hangs``, ``ignore_cancel``, ``ignore_signals``, ``tally`` (a file that gets a line for each
row that is begun: its text, as JSON).

A prompt whose first word starts with ``!`` is an order: ``!fail TEXT``, ``!exit N``,
``!kill SIGNAL``, ``!hang``, ``!flood BYTES``, ``!sleep SECONDS``, ``!grow BYTES``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time


class VirtualClock:
    """Time that moves only when the backend says so: exact stamps, no waiting."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class RealClock:
    """The machine's clock."""

    def __call__(self):
        return time.monotonic()

    def sleep(self, seconds):
        if seconds > 0:
            time.sleep(seconds)


class Backend:
    """Answers with the words of the last message, as many as ``max_new_tokens`` allows."""

    slots = 1

    def __init__(self):
        self.methods = {"where": lambda: {"pid": os.getpid(), "path": list(sys.path)}}
        self._ballast = []

    def load(self, model, stage):
        options = model["options"]
        self.clock = VirtualClock() if options.get("clock") == "virtual" else RealClock()
        self.batch = options.get("slots", 4)
        self._prefill_s = options.get("prefill_s", 0.0)
        self._token_s = options.get("token_s", 0.0)
        self._ignore_cancel = options.get("ignore_cancel", False)
        self._ignore_signals = options.get("ignore_signals", False)
        self._tally = options.get("tally")
        if options.get("load_fails"):
            raise RuntimeError(options["load_fails"])
        stage("allocating")
        self._ballast.append(bytearray(os.urandom(1)) * options.get("memory_bytes", 0))
        if options.get("load_hangs"):
            time.sleep(3600)
        if options.get("load_s"):
            stage("loading")
            time.sleep(options["load_s"])
        return {"library": "echo", "version": "1", "batch": self.batch}

    def generate(self, requests, emit, cancelled):
        if self._ignore_signals:
            # From this thread only a mask is possible; the main thread's handlers stay, so
            # the process-wide disposition is changed through the C library.
            import ctypes

            for number in (signal.SIGINT, signal.SIGTERM):
                ctypes.CDLL(None).signal(int(number), ctypes.c_void_p(1))  # SIG_IGN
        rows = [self._start(request) for request in requests]
        rows = [row for row in rows if self._order(row, emit, cancelled)]
        self.clock.sleep(self._prefill_s)
        for row in rows:
            emit.prefill(row["request"], row["prompt_tokens"], row["prompt_tokens"])
        while rows:
            self.clock.sleep(self._token_s)
            rows = [row for row in rows if self._step(row, emit, cancelled)]

    def _start(self, request):
        data = request.data
        text = data["prompt"] if "prompt" in data else data["messages"][-1]["content"]
        if self._tally:
            with open(self._tally, "a", encoding="utf-8") as file:
                file.write(json.dumps(text) + "\n")
        words = text.split()
        params = data.get("params", {})
        limit = params.get("max_new_tokens", 512)
        answer = words[:limit]
        if params.get("ignore_eos") and words:
            answer = [words[i % len(words)] for i in range(limit)]
        return {
            "request": request,
            "words": words,
            "prompt_tokens": len(words),
            "answer": answer,
            "reason": "length" if len(answer) == limit and len(words) != limit else "stop",
            "made": 0,
        }

    def _step(self, row, emit, cancelled):
        """Make one token; return whether the row goes on."""
        request = row["request"]
        if cancelled(request) and not self._ignore_cancel:
            emit.finished(request, "cancelled", prompt_tokens=row["prompt_tokens"])
            return False
        if row["made"] < len(row["answer"]):
            word = row["answer"][row["made"]]
            emit.token(request, word if row["made"] == 0 else " " + word)
            row["made"] += 1
        if row["made"] < len(row["answer"]):
            return True
        emit.finished(request, row["reason"], prompt_tokens=row["prompt_tokens"], cached_tokens=0)
        return False

    def _order(self, row, emit, cancelled):
        """Obey a ``!order``; return whether the row is to be answered."""
        request, words = row["request"], row["words"]
        order = words[0] if words and words[0].startswith("!") else ""
        rest = " ".join(words[1:])
        if order == "!fail":
            emit.failed(request, rest)
            return False
        if order == "!exit":
            os._exit(int(rest))
        if order == "!kill":
            os.kill(os.getpid(), getattr(signal, rest))
            time.sleep(3600)
        if order == "!hang":
            os.write(2, b"hanging\n")
            while self._ignore_cancel or not cancelled(request):
                time.sleep(0.01)
        if order == "!flood":
            line = b"x" * 1023 + b"\n"
            for _ in range(int(rest) // len(line)):
                os.write(2, line)
        if order == "!grow":
            self._ballast.append(bytearray(b"1") * int(rest))
        if order == "!sleep":
            self.clock.sleep(float(rest))
        return True

    def scope(self):
        return {"backend": self}

    def close(self):
        self._ballast.clear()
