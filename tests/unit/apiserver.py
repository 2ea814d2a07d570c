"""A scripted server on loopback: it answers as a test tells it, faults included.

What it does not cover: a real server's timing, HTTP/2, real models. ``tests/engines`` has those.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["Call", "Server", "chunk", "echo", "events", "plain", "stream"]


@dataclass
class Call:
    """One request, and the connection that its answer goes to."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    writer: asyncio.StreamWriter
    number: int = 0
    began: list[str] = field(default_factory=list)
    raw_body: bytes = b""

    @property
    def text(self) -> str:
        """What the user said."""
        return (
            self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]
        )

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def send(
        self, status: int, body: bytes, kind: str = "application/json", **headers: str
    ) -> None:
        """A whole response."""
        lines = [f"HTTP/1.1 {status} Said", f"content-type: {kind}", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()

    async def json(self, value: Any, status: int = 200, **headers) -> None:
        await self.send(status, json.dumps(value).encode(), **headers)

    async def error(self, status: int, message: str = "no", **headers) -> None:
        await self.json({"error": {"message": message, "code": status}}, status, **headers)

    async def event(self, value: Any, name: str = "") -> None:
        """One event of a stream, which begins with the first."""
        if not self.began:
            self.began.append("stream")
            self.raw(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                b"transfer-encoding: chunked\r\n\r\n"
            )
        text = value if isinstance(value, str) else json.dumps(value)
        data = (f"event: {name}\n" if name else "") + f"data: {text}\n\n"
        self.piece(data.encode())
        await self.writer.drain()

    def piece(self, data: bytes) -> None:
        self.raw(b"%x\r\n" % len(data) + data + b"\r\n")

    async def end(self) -> None:
        self.raw(b"0\r\n\r\n")
        await self.writer.drain()

    def drop(self) -> None:
        """Reset the connection, as a server that dies does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


def chunk(text: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """A piece of a chat's stream."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        **more,
    }


def events(text: str, tokens: int | None = None) -> list[Any]:
    """A good answer's events, one word each."""
    words = [w if i == 0 else f" {w}" for i, w in enumerate(text.split(" "))]
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": len(words) if tokens is None else tokens,
        "total_tokens": 5 + len(words),
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    ending = [chunk(reason="stop"), {**chunk(), "choices": [], "usage": usage}, "[DONE]"]
    return [chunk(""), *map(chunk, words), *ending]


async def stream(call: Call, text: str, pause_s: float = 0.0) -> None:
    """A good answer."""
    for event in events(text):
        await call.event(event)
        if pause_s:
            await asyncio.sleep(pause_s)
    await call.end()


async def echo(call: Call) -> None:
    """Answer with the prompt."""
    await stream(call, call.text)


def plain(*scripts: Script) -> Script:
    """The scripts in turn, the last for ever; one is used up by each request."""
    left = list(scripts)

    async def script(call: Call) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(call)

    return script


class Server:
    """The server, in a thread of its own.

    Parameters
    ----------
    script : coroutine function
        Answers a request for an answer.
    models : list of str or None
        What ``/v1/models`` lists; ``None``: it answers 404.
    others : mapping of str to coroutine function, optional
        Answers of other paths.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        models: list[str] | None = ("m",),
        owner: str = "test",
        others: dict[str, Script] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self.models = models
        self.owner = owner
        self.others = others or {}
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.connections = 0
        self._now = 0
        self._tls = tls
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._do(self._start())

    def stop(self) -> None:
        """Close the port and every connection."""
        self._do(self._stop())

    def _do(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", self.port, backlog=1024, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        # Python 3.11 loses the sockets that it has accepted and not yet given to us, if the server
        # is closed under it: no more are taken first, and those get their turns.
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # what was aborted is closed in the loop's next turns

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._server.is_serving():  # it came while the server was being stopped
            writer.transport.abort()
            return
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the server stops
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        pairs = (line.partition(": ") for line in head[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        is_json = headers.get("content-type", "") == "application/json"
        call = Call(method, path, headers, json.loads(body) if is_json else None, writer)
        call.raw_body = body
        if path in self.others:
            await self.others[path](call)
        elif path.endswith("/models"):
            await self._models(call)
        elif method != "POST":
            await call.error(404)
        else:
            call.number = len(self.calls)
            self.calls.append(call)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            try:
                await self.script(call)
            finally:
                self._now -= 1

    async def _models(self, call: Call) -> None:
        if self.models is None:
            await call.error(404)
            return
        data = [{"id": name, "object": "model", "owned_by": self.owner} for name in self.models]
        await call.json({"object": "list", "data": data})
