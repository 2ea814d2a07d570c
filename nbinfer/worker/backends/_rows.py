"""One row of a Transformers batch: its tokens, its text so far, and when it is done."""

from __future__ import annotations

import math

from tokenizers.decoders import DecodeStream


class Row:
    """A request on its way through ``generate``; a batch that must be split keeps it.

    Attributes
    ----------
    ids : list of int
        The prompt's tokens.
    made : list of int
        The answer's tokens so far. After a split the row goes on from ``ids + made``.
    reason : str or None
        Why it is done.
    adapter : str or None
        The name inside the model of what applies to it.
    cached : int
        How many of the prompt's tokens were not computed again.
    assisted : bool
        Whether another model, or its prompt, guesses its tokens.
    images : dict of Tensor or None
        What the processor made of the prompt's images.
    """

    def __init__(self, request, ids, tokenizer, limit, stop_ids):
        self.request = request
        self.params = request.data["params"]
        self.ids = ids
        self.made = []
        self.limit = limit
        self.stop_ids = stop_ids
        self.reason = None
        self.problem = None  # an exception that its own parameters caused
        self.adapter = None
        self.cached = 0
        self.assisted = False
        self.images = None
        self.generator = None
        self.grammar = self.read_calls = None
        self.top_logprobs = self.params.get("logprobs")
        self.last_logprobs = None
        self._logprobs = []
        self._tokenizer = tokenizer
        skip = self.params.get("skip_special_tokens", True)
        self._text = Text(tokenizer, skip)
        self._stops = Stops(self.params.get("stop_strings") or ())

    @property
    def done(self):
        return self.reason is not None

    @property
    def tokens(self):
        return self.ids + self.made

    def take(self, token, emit):
        """The model chose a token for this row."""
        self.made.append(token)
        self._note_logprobs(token)
        if self.grammar is not None:
            self.grammar.accept(token)
        if token in self.stop_ids:
            text, self.reason = self._stops.rest(), "stop"
        else:
            text, stopped = self._stops.feed(self._text.feed(token))
            if stopped:
                self.reason = "stop"
            elif self.grammar is not None and self.grammar.complete:
                text, self.reason = text + self._stops.rest(), "stop"
            elif len(self.made) >= self.limit:
                text, self.reason = text + self._stops.rest(), "length"
        emit.token(self.request, text)

    def advance(self, token, emit):
        """Take a token, and answer if it is the last. What goes wrong is this row's error alone."""
        try:
            if self.problem is not None:
                raise self.problem
            self.take(token, emit)
        except Exception as error:  # of a grammar or a tokenizer
            self.reason = "error"
            emit.failed(self.request, f"{type(error).__name__}: {error}")
            return
        if self.done:
            self.finish(emit)

    def finish(self, emit, reason=None):
        fields = {"prompt_tokens": len(self.ids), "cached_tokens": self.cached}
        if self.top_logprobs is not None:
            fields["logprobs"] = self._logprobs
        reason = reason or self.reason
        if self.read_calls is not None and reason in ("stop", "length"):
            fields.update(self.read_calls(self.made))
        emit.finished(self.request, reason, output_tokens=len(self.made), **fields)

    def _note_logprobs(self, token):
        if self.last_logprobs is None:
            return
        top = self.last_logprobs.topk(self.top_logprobs) if self.top_logprobs else ([], [])
        self._logprobs.append(
            {
                **self._logprob(token, self.last_logprobs[token]),
                "top": [self._logprob(i, v) for v, i in zip(*top, strict=True)],
            }
        )
        self.last_logprobs = None

    def _logprob(self, token, value):
        value = float(value)
        return {
            "token": self._tokenizer.decode([int(token)]),
            "id": int(token),
            "logprob": value if math.isfinite(value) else None,
        }


class Text:
    """Tokens into text, as they come; half a character waits for its other half."""

    def __init__(self, tokenizer, skip_special_tokens):
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._fast = getattr(tokenizer, "_tokenizer", None)
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._ids, self._told = [], ""

    def feed(self, token):
        if self._fast is not None:
            return self._stream.step(self._fast, token) or ""
        # Tokenizers in Python have no stream: decode all, and hold back an unfinished end.
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=self._skip)
        if text.endswith("\ufffd") or not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece


class Stops:
    """Stop strings in a stream of text: what could begin one is held back."""

    def __init__(self, stops):
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece):
        """The text that may be shown, and whether a stop string ended it."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self._held = ""
            return text[: min(places)], True
        held = max(
            (n for s in self._stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def rest(self):
        """What was held back, once nothing more can come."""
        held, self._held = self._held, ""
        return held
