"""The servers behind one engine: connections kept warm, work shared, failures outlived."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..checks import Address, Secret
from ..config import RemoteParams
from ..errors import ConfigurationError
from ..measure import Seen
from .failures import Failure, backoff, from_exception
from .lanes import Lanes
from .loop import loop
from .pace import Bucket, Pace

__all__ = ["Server", "Service", "base_url", "is_loopback", "shared"]

# How soon a server that is not there is given up when a run begins.
FIRST_CONNECT_S = 1.5
KEEPALIVE_S = 120.0
_ENDPOINTS = ("/chat/completions", "/completions", "/messages", "/generate", "/models")


def base_url(address: str) -> str:
    """The address that requests' paths are added to: ``http://host:8000/v1``.

    Taken with and without ``/v1``, with and without a slash at its end, and with the path of
    an endpoint. A path that has a version in it (``/v1beta/openai``) is taken as it is.
    """
    url = httpx.URL(address.strip())
    path = url.path.rstrip("/")
    for endpoint in _ENDPOINTS:
        path = path.removesuffix(endpoint)
    if not any(part[:1] == "v" and part[1:2].isdigit() for part in path.split("/")):
        path += "/v1"
    return str(url.copy_with(path=path, query=None, fragment=None))


def is_loopback(address: str) -> bool:
    """Whether an address is of this machine: no proxy of the environment's leads there."""
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


@dataclass(eq=False)
class Server:
    """One address.

    Attributes
    ----------
    shown : str
        Its address as messages show it: without its password.
    paused_until : float
        ``time.monotonic()`` before which it asked for no request.
    up : bool
        Whether the last connection was made.
    given_up : bool
        Whether every attempt to connect again has failed.
    """

    url: str
    client: httpx.AsyncClient
    under_way: int = 0
    paused_until: float = 0.0
    up: bool = True
    given_up: bool = False
    answered: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        return Address(self.url.removesuffix("/v1")).masked

    @property
    def root(self) -> str:
        """Its address without the version: where ``/metrics`` and ``/version`` are."""
        return self.url.removesuffix("/v1")


class Service:
    """One engine's servers. Made anywhere, used in the loop alone.

    Parameters
    ----------
    urls : sequence of str
        Their addresses.
    params : RemoteParams
        Timeouts, limits, retries.
    headers : dict
        Sent with every request; what authenticates is among them.
    """

    def __init__(self, urls: list[str], params: RemoteParams, headers: dict[str, str]) -> None:
        self.urls = [base_url(url) for url in urls]
        self.params = params
        self._headers = {name: Secret(value) for name, value in headers.items()}
        self.servers: list[Server] = []
        self.pace = Pace(params.num_workers, len(urls))
        self.requests = Bucket(params.requests_per_minute)
        self.tokens = Bucket(params.tokens_per_minute)
        self.known = False  # whether the servers were asked what they can do
        self.seen: Seen | None = None  # memory of a server that is ours
        self._changed: asyncio.Event | None = None
        self._reconnecting: set[asyncio.Task[None]] = set()

    @property
    def lost(self) -> bool:
        """Whether every server was given up."""
        return all(server.given_up for server in self.servers)

    @property
    def label(self) -> str:
        """Its addresses, for messages."""
        return ", ".join(Address(url.removesuffix("/v1")).masked for url in self.urls)

    def open(self) -> None:
        """Make the clients, once."""
        if not self.servers:
            self._changed = asyncio.Event()
            self.servers = [Server(url, self._client(url)) for url in self.urls]

    def _client(self, url: str) -> httpx.AsyncClient:
        params = self.params
        context = _context(url, params.verify)
        return httpx.AsyncClient(
            base_url=url,
            headers={"user-agent": "nbinfer", **self._headers, **params.headers},
            http2=True,
            transport=Lanes(context, KEEPALIVE_S),
            verify=context,
            proxy=params.proxy,
            trust_env=not is_loopback(url),
            timeout=httpx.Timeout(
                params.read_timeout_s, connect=params.connection_timeout_s, pool=None
            ),
            follow_redirects=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        for task in self._reconnecting:
            task.cancel()
        servers, self.servers, self.known = self.servers, [], False
        for server in servers:
            await server.client.aclose()

    def scrubbed(self, text: str) -> str:
        """A server's words without our secrets in them."""
        secrets = [*self._headers.values(), *self.params.headers.values()]
        for secret in secrets:
            for word in (secret, secret.removeprefix("Bearer ")):
                if len(word) > 3:
                    text = text.replace(word, "***")
        return text

    # ------------------------------------------------------------------ one request

    @contextlib.asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[Server]:
        """A place on the server with the least to do, when the limits allow it.

        Parameters
        ----------
        tokens : int
            What the request may use, at most.

        Raises
        ------
        Failure
            With ``down`` where no server is left.
        """
        await self.requests.take()
        await self.tokens.take(tokens)
        await self.pace.enter()
        try:
            server = await self._least_loaded()
            server.under_way += 1
            try:
                yield server
            finally:
                server.under_way -= 1
        finally:
            self.pace.leave()

    async def _least_loaded(self) -> Server:
        assert self._changed is not None
        while True:
            now = time.monotonic()
            ready = [s for s in self.servers if s.up and s.paused_until <= now]
            if ready:
                return min(ready, key=lambda s: (s.under_way, s.answered))
            if self.lost:
                raise Failure(f"no server answers: {self.label}", down=True)
            resume = [s.paused_until for s in self.servers if s.up]
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(resume) - now if resume else None)

    def heeds(self, server: Server, failure: Failure) -> None:
        """Take what a failure says of a server: wait, slow down, or connect again."""
        if failure.busy:
            self.pace.busy()
        if failure.wait_s is not None and failure.busy:
            server.paused_until = max(server.paused_until, time.monotonic() + failure.wait_s)
        if failure.down and server.up:
            server.up = False
            self.known = False
            task = asyncio.get_running_loop().create_task(self._reconnect(server))
            self._reconnecting.add(task)
            task.add_done_callback(self._reconnecting.discard)

    async def _reconnect(self, server: Server) -> None:
        """Try ``max_retries`` times, for all rows together, whether a server is back."""
        assert self._changed is not None
        params = self.params
        for attempt in range(1, params.max_retries + 1):
            await asyncio.sleep(
                backoff(attempt, params.retry_backoff_base_s, params.retry_backoff_max_s)
            )
            try:
                response = await server.client.get("/models")
                if response.status_code not in (502, 503, 504):  # some answer so while they load
                    server.up = True
                    break
            except (httpx.HTTPError, OSError) as error:
                if not from_exception(error).again:
                    break
        server.given_up = not server.up
        self._changed.set()

    def begin(self) -> None:
        """A new run: servers that were given up are tried again."""
        for server in self.servers:
            if server.given_up:
                server.up, server.given_up = True, False


_services: dict[str, Service] = {}


def shared(urls: list[str], params: RemoteParams, headers: dict[str, str]) -> Service:
    """The service for these servers, made where there is none yet.

    One key, one set of limits, one set of connections: engines and cells share them.
    """
    own = {**headers, **params.headers}
    key = json.dumps([urls, params.to_dict(), sorted(own.items())], sort_keys=True)
    # Not the key itself: it holds what authenticates us.
    digest = hashlib.sha256(key.encode()).hexdigest()
    return _services.setdefault(digest, Service(urls, params, headers))


async def _close_all() -> None:
    while _services:
        await _services.popitem()[1].close()


loop.closers.append(_close_all)


def _context(url: str, verify: bool | str) -> ssl.SSLContext:
    """How certificates are checked; without TLS an empty one, which takes no time to make."""
    if not url.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if isinstance(verify, bool):
        return httpx.create_ssl_context(verify=verify)
    try:
        return ssl.create_default_context(cafile=verify)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"verify={verify!r:.200} is no file of certificate authorities: {error}",
            hint="give a file in PEM format",
        ) from None
