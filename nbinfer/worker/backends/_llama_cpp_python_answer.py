"""What is known of the request that llama-cpp-python answers."""

from __future__ import annotations

import math

import numpy

from nbinfer.worker.thoughts import opening


class Abandoned(Exception):
    """Nobody waits for this answer any more."""


class Answer:
    """What is known of the request under way.

    ``cached`` is false where the prefix cache is not asked: an image's tokens are read by the
    library elsewhere.
    """

    def __init__(self, request, emit, cancelled, llama, cached):
        self._request = request
        self._emit = emit
        self._cancelled = cancelled
        self._llama = llama
        self._top = request.data["params"].get("logprobs")
        self._logprobs = []
        self._prompt_tokens = self._read = self._made = 0
        self._cached = cached
        self._passes = 0
        self._drafted = getattr(llama.draft_model, "drafted", 0)
        self._reason = None

    def passes(self):
        """The model is run once, whatever comes of it."""
        self._passes += 1

    def go_on(self):
        if self._cancelled():
            raise Abandoned

    def begins(self, tokens):
        self._prompt_tokens = len(tokens)
        self._emit.prefill(self._request, 0, len(tokens))
        if "messages" in self._request.data:
            end = self._llama.detokenize(list(tokens[-8:]), special=True)
            self._request.opening = opening(end.decode("utf-8", "replace"))

    def read(self, count):
        if not self._made:
            self._read += count
            self._emit.prefill(self._request, count, 0)

    def makes(self, token):
        self.go_on()
        self._made += 1
        self._emit.made(self._request)
        if self._top is not None:
            self._logprobs.append(self._logprob(token))

    def take(self, choice):
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        self._reason = choice.get("finish_reason") or self._reason
        if text:
            self._emit.text(self._request, text)

    def _logprob(self, token):
        """From the scores that the token was drawn from: they are the context's last."""
        if self._llama.draft_model is not None:  # those of several tokens are there
            scores = self._llama.scores[self._prompt_tokens + self._made - 2]
        else:
            pointer = self._llama._ctx.get_logits_ith(-1)
            scores = numpy.ctypeslib.as_array(pointer, shape=(self._llama.n_vocab(),))
        scores = scores.astype(numpy.float64)
        logprobs = scores - scores.max()
        logprobs -= math.log(numpy.exp(logprobs).sum())
        best = numpy.argsort(-logprobs)[: self._top]
        return {**self._entry(token, logprobs), "top": [self._entry(t, logprobs) for t in best]}

    def _entry(self, token, logprobs):
        value = float(logprobs[token])
        text = self._llama.detokenize([int(token)], special=True).decode("utf-8", "replace")
        return {
            "token": text,
            "id": int(token),
            "logprob": value if math.isfinite(value) else None,
        }

    def close(self):
        fields = {
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._prompt_tokens - self._read if self._cached else 0,
            "output_tokens": self._made,
        }
        if self._llama.draft_model is not None:
            fields["speculative"] = {
                "drafted_tokens": self._llama.draft_model.drafted - self._drafted,
                "accepted_tokens": max(0, self._made - self._passes),
            }
        if self._top is not None:
            fields["logprobs"] = self._logprobs
        if self._reason is None:
            self._emit.failed(self._request, "llama-cpp-python ended the answer without a reason")
        else:
            self._emit.finished(self._request, self._reason, **fields)
