"""One request and its answer: sent, read as it comes, stamped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import httpx
from httpx_sse import EventSource

from ..worker.thoughts import Thoughts
from .failures import Failure, from_body, from_exception, from_response
from .service import Server

__all__ = ["Answer", "Request", "Wire", "exchange", "fields"]

# More than any answer: what a broken or hostile server may send before it is cut off.
DRAIN_S = 0.5
MOST_CHARACTERS = 64_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """What goes on the wire.

    Attributes
    ----------
    path : str
        Below the API's address, such as ``/chat/completions``.
    body : dict
        JSON.
    above : bool
        Whether the path is beside the API's version and not below it: a server's own.
    """

    path: str
    body: dict[str, Any]
    above: bool = False


@dataclass(slots=True)
class Call:
    """A tool's call, as it comes."""

    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """What has come of one answer.

    Attributes
    ----------
    sent_at, first_at, last_at : float
        ``time.monotonic()`` when the request was sent, and when its first and its last token
        came; 0 where there was none. The first bytes of a stream are no token.
    tokens : int
        Pieces that came: the server's own count is ``output_tokens``.
    gaps : list of float or None
        Seconds between the pieces, where they are wanted.
    done : bool
        Whether the server said that the answer is over.
    """

    sent_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    finish_reason: str | None = None
    refused: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    logprobs: list[dict[str, Any]] | None = None
    prompt_logprobs: list[Any] | None = None
    gaps: list[float] | None = None
    done: bool = False
    thoughts: Thoughts = field(default_factory=Thoughts)
    calls: dict[int, Call] = field(default_factory=dict)

    def token(self, text: str) -> None:
        """Something was generated; ``text`` may be empty."""
        self._made(self.thoughts.answer(text))

    def thought(self, text: str) -> None:
        """A piece of reasoning, which a server tells of apart."""
        self._made(self.thoughts.reasoning(text))

    def called(self, place: int, name: str | None, arguments: str | None) -> None:
        """A piece of the tool's call at this place: its name, or some of its arguments' JSON."""
        call = self.calls.setdefault(place, Call())
        call.name = name or call.name
        call.arguments += arguments or ""
        self._made("")

    def _made(self, text: str) -> None:
        now = time.monotonic()
        if self.first_at and self.gaps is not None:
            self.gaps.append(now - self.last_at)
        self.last_at = now
        self.first_at = self.first_at or now
        self.tokens += 1
        if text:
            self.pieces.append(text)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Wire(Protocol):
    """A server's own words: requests out of rows, answers out of streams."""

    def request(self, row: Mapping[str, Any], model: str) -> Request:
        """A row's request."""

    def headers(self, key: str | None) -> dict[str, str]:
        """What authenticates it."""

    def event(self, name: str, value: dict[str, Any], answer: Answer) -> None:
        """Take one event of a stream."""

    def whole(self, value: dict[str, Any], answer: Answer) -> None:
        """Take an answer that came in one piece."""


class _Bounded:
    """As much of a response as the reader of events needs, with an end to its patience."""

    def __init__(self, response: httpx.Response) -> None:
        self.headers = response.headers
        self._response = response

    async def aiter_text(self) -> AsyncIterator[str]:
        seen = 0
        async for text in self._response.aiter_text():
            seen += len(text)
            if seen > MOST_CHARACTERS:
                raise Failure(f"it sent more than {MOST_CHARACTERS:,} characters for one answer")
            yield text


async def exchange(
    server: Server,
    wire: Wire,
    request: Request,
    answer: Answer,
    heard: Callable[[Answer], None],
) -> None:
    """Send a request and read its answer; ``heard`` is called after each event of a stream.

    Raises
    ------
    Failure
        For everything that is no answer.
    """
    content = json.dumps(request.body, separators=(",", ":"), ensure_ascii=False).encode()
    answer.sent_at = time.monotonic()
    try:
        async with server.client.stream(
            "POST",
            server.root + request.path if request.above else request.path,
            content=content,
            headers={"content-type": "application/json", "accept": "text/event-stream"},
        ) as response:
            if response.status_code != 200:
                raise from_response(response, await _beginning(response))
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            if kind == "text/event-stream":
                await _stream(response, wire, answer, heard)
            elif kind == "application/json":
                _whole(await response.aread(), wire, answer)
            else:
                raise Failure(f"it answers with {kind or 'no content type'!r}: is this an API?")
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        raise from_exception(error) from None
    _complete(answer)


async def _beginning(response: httpx.Response, most: int = 65_536) -> bytes:
    """The first bytes of an error's body."""
    found = bytearray()
    async for data in response.aiter_bytes():
        found += data
        if len(found) >= most:
            break
    return bytes(found[:most])


async def _stream(
    response: httpx.Response, wire: Wire, answer: Answer, heard: Callable[[Answer], None]
) -> None:
    events = EventSource(cast(httpx.Response, _Bounded(response))).aiter_sse()
    async for event in events:
        if event.data == "[DONE]":
            answer.done = True
        elif event.data:
            wire.event(event.event, _object(event.data), answer)
            heard(answer)
        if answer.done:
            break
    # A connection is kept for the next request only if its response was read to the end.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in events:
                pass


def _whole(content: bytes, wire: Wire, answer: Answer) -> None:
    value = _object(content)
    failure = from_body(value)
    if failure is not None:
        raise failure
    # It came in one piece: when its first token was made cannot be known.
    wire.whole(value, answer)
    answer.done = True


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Failure(f"it sent what is no JSON: {text[:80]!r}", again=True) from None
    if not isinstance(value, dict):
        raise Failure(f"it sent JSON that is no object: {text[:80]!r}", again=True)
    return value


def _complete(answer: Answer) -> None:
    if answer.refused is not None:
        raise Failure(answer.refused)
    if answer.finish_reason is None:
        what = "an answer without a choice" if answer.done else "a stream that ends too early"
        raise Failure(f"it sent {what}", again=True)
    answer.last_at = answer.last_at or time.monotonic()


def fields(answer: Answer) -> dict[str, Any]:
    """What a finished row has of its answer: times in seconds, unknown left out."""
    closing = answer.thoughts.end() if answer.finish_reason != "length" else ""
    found: dict[str, Any] = {
        "output": answer.text + closing,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
        "cached_tokens": answer.cached_tokens,
        "logprobs": answer.logprobs,
        "prompt_logprobs": answer.prompt_logprobs,
        "latency_s": answer.last_at - answer.sent_at if answer.last_at else None,
    }
    if answer.calls:
        found.update(_calls(answer))
    if answer.first_at:
        found["ttft_s"] = answer.first_at - answer.sent_at
        found["itl_s"] = answer.gaps
        if answer.output_tokens is not None and answer.output_tokens > 1:
            found["tpot_s"] = (answer.last_at - answer.first_at) / (answer.output_tokens - 1)
    return {name: value for name, value in found.items() if value is not None}


def _calls(answer: Answer) -> dict[str, Any]:
    """The tools' calls; of one whose arguments are no JSON, why."""
    calls, found = [], {}
    for _, call in sorted(answer.calls.items()):
        try:
            calls.append({"name": call.name, "arguments": dict(json.loads(call.arguments or "{}"))})
        except (ValueError, TypeError):
            cut = answer.finish_reason == "length"
            why = "it was cut at max_new_tokens" if cut else f"{call.arguments!r:.200} is no JSON"
            found["error"] = f"the call of the tool {call.name!r} cannot be read: {why}"
    return {**found, "tool_calls": calls} if calls else found
