"""What llama.cpp's server core answers: one request's stream of chunks, and its errors."""

from __future__ import annotations

import json
import math

from nbinfer.worker.backends._llamacpp_words import BAD_GRAMMAR
from nbinfer.worker.thoughts import Thoughts


class Answer:
    """The streaming callback of one request. Truthy stops llama.cpp; it must not raise."""

    def __init__(self, request, emit, cells, cancelled, compiling=None):
        self._request = request
        self._compiling = compiling  # of a form that has to be checked
        self._emit = emit
        self._cells = cells
        self.cancelled = cancelled
        self._logprobs = [] if request.data["params"].get("logprobs") is not None else None
        self._top = request.data["params"].get("logprobs") or 0
        self._reason = self._error = None
        self._usage = {}
        self._thoughts = Thoughts()
        self._calls = {}
        self._drafted = None
        self._made = 0
        self._prefilled = 0
        self.reserved = 0
        self.needs_more = None

    def start(self, reserved):
        self.reserved = reserved
        self.needs_more = None
        self._prefilled = 0
        self._compiled = self._compiling is None
        if not self._compiled:
            self._compiling.begin()

    def begun(self):
        """The library has taken the request, or refused it."""
        if not self._compiled:
            self._compiled = True
            self._error = self._compiling.end() or self._error

    def __call__(self, chunk):
        try:
            return self._chunk(chunk)
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            return True

    def _chunk(self, chunk):
        if "error" in chunk or "choices" not in chunk:
            self._error = describe(chunk.get("error", chunk))
            return True
        self.begun()
        if self._error is not None or self.cancelled():
            return True
        progress = chunk.get("prompt_progress")
        if progress:
            return self._prompt(progress)
        self._usage = chunk.get("usage") or self._usage
        timings = chunk.get("timings", {})
        if "draft_n" in timings:
            self._drafted = timings["draft_n"], timings.get("draft_n_accepted", 0)
        made = timings.get("predicted_n", self._made)
        for choice in chunk["choices"]:
            self._reason = choice.get("finish_reason") or self._reason
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else self._told(delta)
            new = max(made - self._made, 1 if text else 0)
            self._made += new
            if new:
                self._emit.token(self._request, text or "", new)
            if self._logprobs is not None and choice.get("logprobs"):
                self._logprobs += [self._logprob(t) for t in choice["logprobs"]["content"]]
        return False

    def _told(self, delta):
        """The text of a piece of a chat's answer; calls of tools are none."""
        for call in delta.get("tool_calls") or ():
            known = self._calls.setdefault(call["index"], ["", ""])
            function = call.get("function") or {}
            known[0] = function.get("name") or known[0]
            known[1] += function.get("arguments") or ""
        reasoning = self._thoughts.reasoning(delta.get("reasoning_content") or "")
        return reasoning + self._thoughts.answer(delta.get("content") or "")

    def _read_calls(self):
        """The calls of a finished answer."""
        for _, (name, arguments) in sorted(self._calls.items()):
            try:
                yield {"name": name, "arguments": json.loads(arguments or "{}")}
            except ValueError:
                if self._reason != "length":
                    self._error = f"the call of the tool {name!r} is no JSON: {arguments[:200]!r}"

    def _prompt(self, progress):
        limit = self._request.data["params"]["max_new_tokens"]
        need = min(progress["total"] + limit, self._cells.total)
        if need > self.reserved and not self._cells.enlarge(need - self.reserved):
            self.needs_more = need
            return True
        if need < self.reserved:
            self._cells.release(self.reserved - need)
        self.reserved = need
        done = progress["processed"] - self._prefilled
        total = progress["total"] if not self._prefilled and not progress["processed"] else 0
        self._prefilled = progress["processed"]
        if done or total:
            self._emit.prefill(self._request, done, total)
        return False

    def _logprob(self, token):
        top = token.get("top_logprobs") or []
        return {
            "token": token["token"],
            "id": token.get("id"),
            "logprob": finite(token["logprob"]),
            "top": [
                {"token": t["token"], "id": t.get("id"), "logprob": finite(t["logprob"])}
                for t in top[: self._top]
            ],
        }

    def close(self):
        """Tell how it ended; what the scheduler can say better is left to it."""
        usage = self._usage
        fields = {
            "prompt_tokens": usage.get("prompt_tokens"),
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        }
        if self._drafted is not None:
            drafted, accepted = self._drafted
            fields["speculative"] = {"drafted_tokens": drafted, "accepted_tokens": accepted}
        if self._logprobs is not None:
            fields["logprobs"] = self._logprobs
        if self._calls:
            fields["tool_calls"] = list(self._read_calls())
        if self._reason not in (None, "length"):
            self._emit.text(self._request, self._thoughts.end())
        if self._error is not None:
            self._emit.failed(self._request, self._error)
        elif self._reason is None and self.cancelled():
            self._emit.finished(self._request, "cancelled", **fields)
        elif self._reason is None:
            self._emit.failed(self._request, "llama.cpp ended the answer without a reason")
        else:
            self._emit.finished(
                self._request,
                self._reason,
                output_tokens=usage.get("completion_tokens"),
                **fields,
            )


def finite(value):
    """A log probability that JSON can carry; minus infinity becomes ``None``."""
    return value if math.isfinite(value) else None


def describe(error):
    """One line from llama.cpp's error object."""
    if not isinstance(error, dict):
        return str(error)
    if error.get("type") == "exceed_context_size_error":
        return (
            "the prompt has {n_prompt_tokens} tokens and the context is {n_ctx}: shorten it, "
            'or load the model with a larger model_kwargs={{"n_ctx": ...}}'.format(**error)
        )
    message = error.get("message") or str(error)
    return BAD_GRAMMAR if "failed to parse grammar" in message else message
