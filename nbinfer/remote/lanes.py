"""Connections without a queue: what hundreds of requests at once cost the client.

httpx's pool looks at every connection and every request whenever one begins or ends, which at
256 at once is most of a client's time. Here each request of HTTP/1.1 takes a pool that nobody
else uses, the one last given back first, so its work does not grow with the number of requests.
Over HTTP/2, where many requests share a connection, all of them take one pool.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from typing import cast

import httpx

__all__ = ["Lanes"]


class Lanes(httpx.AsyncBaseTransport):
    """A transport of transports.

    Parameters
    ----------
    context : ssl.SSLContext
        For all of them: making one takes longer than a request.
    keepalive_s : float
        How long an unused connection is kept, in seconds.
    """

    def __init__(self, context: ssl.SSLContext, keepalive_s: float) -> None:
        self._context = context
        self._limits = httpx.Limits(keepalive_expiry=keepalive_s)
        self._all: list[httpx.AsyncHTTPTransport] = []
        self._idle: list[httpx.AsyncHTTPTransport] = []
        self._shared: httpx.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        lane = self._shared or (self._idle.pop() if self._idle else self._new())
        try:
            response = await lane.handle_async_request(request)
        except BaseException:
            self.give_back(lane)  # its pool has let go of the connection that failed
            raise
        if response.extensions.get("http_version") == b"HTTP/2":
            self._shared = lane
        stream = cast(httpx.AsyncByteStream, response.stream)
        response.stream = _Stream(stream, self, lane)
        return response

    def _new(self) -> httpx.AsyncHTTPTransport:
        lane = httpx.AsyncHTTPTransport(verify=self._context, http2=True, limits=self._limits)
        self._all.append(lane)
        return lane

    def give_back(self, lane: httpx.AsyncHTTPTransport) -> None:
        """A request has ended: the lane is free for another."""
        if lane is not self._shared:
            self._idle.append(lane)

    async def aclose(self) -> None:
        for lane in self._all:
            await lane.aclose()


class _Stream(httpx.AsyncByteStream):
    """A response's bytes; when it is closed its lane is free."""

    def __init__(
        self, stream: httpx.AsyncByteStream, lanes: Lanes, lane: httpx.AsyncHTTPTransport
    ) -> None:
        self._stream = stream
        self._lanes = lanes
        self._lane: httpx.AsyncHTTPTransport | None = lane

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream.__aiter__()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            lane, self._lane = self._lane, None
            if lane is not None:
                self._lanes.give_back(lane)
