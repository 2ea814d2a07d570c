"""The worker's queue: which row runs when, and the stamps that its timings come from.

Rows wait here and not in the library, so a cancel reaches them at once and a second
run's rows need not stand behind the first's: runs take turns, row by row.

One clock stamps everything, the backend's own where it has one (``echo``), else
``time.monotonic``:

* *submitted*: the run began (``infer()`` has taken its rows), or, of a row that is ``timed``
  (a benchmark's, sent at its own moment), the row came;
* *dispatched*: the row was handed to the library;
* *first*, *last*: a token of the row was made.

``queue_s`` is submitted to dispatched, ``ttft_s`` dispatched to first, ``latency_s``
dispatched to last, ``tpot_s`` (last - first) / (output tokens - 1), as ``vllm bench
serve`` defines them for a request.
"""

from __future__ import annotations

import collections
import threading
import time

from nbinfer.worker.outbox import FINISHED_S


class Request:
    """One row on its way through the library. ``data`` is what the kernel sent."""

    __slots__ = (
        "data",
        "dispatched",
        "done",
        "first",
        "gaps",
        "last",
        "opening",
        "pieces",
        "row",
        "run",
        "stream",
        "submitted",
        "timed",
        "tokens",
        "told",
        "untold",
    )

    def __init__(self, run, data, now):
        self.run = run
        self.data = data
        self.row = data["row"]
        self.stream = bool(data.get("stream"))
        self.timed = bool(data.get("timed"))
        self.submitted = now if self.timed else run.submitted
        self.gaps = []  # seconds between its tokens, where it is timed
        self.dispatched = self.first = self.last = None
        self.pieces = []
        self.opening = ""  # what the chat template wrote of the answer: it comes before the rest
        self.tokens = self.untold = 0  # made; made since text was last sent
        self.told = self.done = False


class Run:
    """What one ``infer()`` sent: its waiting rows, and how many are in the library."""

    def __init__(self, name, submitted):
        self.name = name
        self.submitted = submitted
        self.waiting = collections.deque()
        self.in_flight = 0
        self.cancelled = False
        self.tokens = 0  # made so far, for the progress line
        self.prefill = [0, 0]  # prompt tokens done, of how many, of rows that began


class Emit:
    """What a backend reports through; every call is stamped here."""

    def __init__(self, scheduler, clock):
        self._scheduler = scheduler
        self._outbox = scheduler.outbox
        self._clock = clock

    def dispatched(self, request):
        """The row is handed to the library now (by default: when the backend got it)."""
        request.dispatched = self._clock()

    def prefill(self, request, done, total):
        """So many tokens of the prompt, of all of them, are in the KV cache."""
        run = request.run
        run.prefill[0] += done
        run.prefill[1] += total
        self._tell(run)

    def token(self, request, text="", tokens=1):
        """Tokens were made; ``text`` may be empty (half a character, a held stop string)."""
        is_first = request.first is None
        self.made(request, tokens)
        if text or is_first:
            self.text(request, text)

    def made(self, request, tokens=1):
        """Tokens were made, and their text comes later (``text``)."""
        now = self._clock()
        if request.first is None:
            request.first = now
        elif request.timed:
            request.gaps.append(now - request.last)
        request.last = now
        request.tokens += tokens
        request.untold += tokens
        request.run.tokens += tokens
        if not request.stream:
            self._tell(request.run)

    def stamped(self, request, first, last):
        """The library's own stamps of the first and last token, of the same clock as ours."""
        request.first, request.last = first, last

    def text(self, request, text):
        """A piece of the answer; whoever streams gets it now."""
        text, request.opening = request.opening + text, ""
        if text:
            request.pieces.append(text)
        if request.stream:
            first, request.told = not request.told, True
            self._outbox.delta(request.run.name, request.row, text, request.untold, first)
            request.untold = 0

    def _tell(self, run):
        self._outbox.progress(run.name, {"tokens": run.tokens, "prefill": list(run.prefill)})

    def finished(self, request, finish_reason, *, output=None, output_tokens=None, **fields):
        """The row is done. ``fields``: ``prompt_tokens``, ``cached_tokens``, ``logprobs`` ..."""
        if request.done:
            return
        request.done = True
        tokens = request.tokens if output_tokens is None else output_tokens
        event = {
            "ev": "finished",
            "run": request.run.name,
            "row": request.row,
            "output": "".join(request.pieces) if output is None else output,
            "finish_reason": finish_reason,
            "output_tokens": tokens,
            **self._timings(request, tokens),
            **fields,
        }
        self._outbox.post(event, within=FINISHED_S)

    def failed(self, request, message):
        """The row cannot be answered; the others go on."""
        if request.done:
            return
        request.done = True
        event = {
            "ev": "failed",
            "run": request.run.name,
            "row": request.row,
            "error": str(message),
            **self._timings(request, request.tokens),
        }
        self._outbox.post(event, within=FINISHED_S)

    @staticmethod
    def _timings(request, tokens):
        start, first, last = request.dispatched, request.first, request.last
        timings = {}
        if start is not None:
            timings["queue_s"] = start - request.submitted
        if first is not None:
            timings["ttft_s"] = first - start
            timings["latency_s"] = last - start
            if tokens > 1:
                timings["tpot_s"] = (last - first) / (tokens - 1)
            if request.timed:
                timings["itl_s"] = request.gaps
        return timings


class Scheduler:
    """Hands rows to a backend from ``backend.slots`` threads, a batch at a time."""

    def __init__(self, backend, outbox):
        self.backend = backend
        self.outbox = outbox
        self._clock = getattr(backend, "clock", time.monotonic)
        self._emit = Emit(self, self._clock)
        self._changed = threading.Condition()
        self._runs = collections.OrderedDict()
        self._batch = getattr(backend, "batch", 1)
        for number in range(backend.slots):
            thread = threading.Thread(target=self._serve, name=f"slot-{number}", daemon=True)
            thread.start()

    def begin(self, name):
        with self._changed:
            self._runs[name] = Run(name, self._clock())

    def rows(self, name, rows):
        with self._changed:
            run = self._runs.get(name)
            if run is None or run.cancelled:
                return  # abandoned by the kernel before these arrived
            now = self._clock()
            run.waiting.extend(Request(run, data, now) for data in rows)
            self._changed.notify_all()

    def cancel(self, name):
        """Drop what waits; what runs is told through ``cancelled`` and answers for itself."""
        with self._changed:
            run = self._runs.get(name)
            if run is None:
                self.outbox.post({"ev": "cancelled", "run": name})
                return
            run.cancelled = True
            run.waiting.clear()
            self._answer_cancelled(run)

    def cancel_all(self):
        for name in list(self._runs):
            self.cancel(name)

    def end(self, name):
        with self._changed:
            self._runs.pop(name, None)

    def _answer_cancelled(self, run):
        if run.cancelled and not run.in_flight:
            self._runs.pop(run.name, None)
            self.outbox.post({"ev": "cancelled", "run": run.name})

    def _take(self):
        """The next rows for one slot: what the backend picks, or one from each run in turn."""
        choose = self._pick if hasattr(self.backend, "pick") else self._in_turn
        with self._changed:
            while True:
                taken = choose()
                if taken:
                    return taken
                self._changed.wait()

    def _in_turn(self):
        """Up to a batch of waiting rows, one from each run in turn."""
        taken = []
        waiting = [run for run in self._runs.values() if run.waiting]
        while waiting and len(taken) < self._batch:
            for run in waiting[: self._batch - len(taken)]:
                taken.append(run.waiting.popleft())
                run.in_flight += 1
                self._runs.move_to_end(run.name)
            waiting = [run for run in waiting if run.waiting]
        return taken

    def _pick(self):
        """The rows that the backend picks out of one run that has none in the library.

        A run has one batch at a time: its next is not a second one that shares the cores.
        """
        for run in self._runs.values():
            if run.waiting and not run.in_flight:
                taken = self.backend.pick(list(run.waiting))
                left = set(taken)
                run.waiting = collections.deque(r for r in run.waiting if r not in left)
                run.in_flight += len(taken)
                self._runs.move_to_end(run.name)
                return taken
        return []

    def _serve(self):
        while True:
            requests = self._take()
            for request in requests:
                self._emit.dispatched(request)
            problem = "the engine ended without an answer"
            try:
                self.backend.generate(requests, self._emit, lambda r: r.run.cancelled)
            except Exception as error:  # a row's failure must not end the slot
                problem = f"{type(error).__name__}: {error}"
            for request in requests:
                if not request.done and request.run.cancelled:
                    self._emit.finished(request, "cancelled")
                elif not request.done:
                    self._emit.failed(request, problem)
            with self._changed:
                for request in requests:
                    request.run.in_flight -= 1
                    self._answer_cancelled(request.run)
                self._changed.notify_all()
