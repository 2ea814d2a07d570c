"""HTTP/2, where the server has it: many requests on one connection, by a real server of it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest
import trustme
from hypercorn.asyncio import serve
from hypercorn.config import Config

import nbinfer
from nbinfer import OpenAICompatibleInferenceEngine, RemoteParams

from ..conftest import eventually
from .apiserver import events


class App:
    """An ASGI application that answers with the prompt."""

    def __init__(self) -> None:
        self.versions: set[str] = set()
        self.connections: set[object] = set()
        self.most = self.now = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        self.versions.add(scope["http_version"])
        self.connections.add(tuple(scope["client"]))
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == "/v1/models":
            pieces, kind = [json.dumps({"data": [{"id": "m"}]})], b"application/json"
        else:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.02)
            asked = json.loads(body)["messages"][-1]["content"]
            texts = [e if isinstance(e, str) else json.dumps(e) for e in events(asked)]
            pieces, kind = [f"data: {text}\n\n" for text in texts], b"text/event-stream"
            self.now -= 1
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def server(tmp_path, unused_port):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    config = Config()
    config.bind = [f"127.0.0.1:{unused_port}"]
    config.certfile, config.keyfile = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    config.loglevel = "CRITICAL"
    app, loop, ended = App(), asyncio.new_event_loop(), asyncio.Event()
    running = threading.Thread(
        target=lambda: loop.run_until_complete(serve(app, config, shutdown_trigger=ended.wait))
    )
    running.start()
    assert eventually(lambda: listening(unused_port), 30)
    yield app, f"https://127.0.0.1:{unused_port}", str(tmp_path / "authority.pem")
    loop.call_soon_threadsafe(ended.set)
    running.join()
    loop.close()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_many_requests_share_a_connection(clean, server):
    app, url, authority = server
    params = RemoteParams(api_url=url, verify=authority, num_workers=50, max_retries=5)
    engine = OpenAICompatibleInferenceEngine("m", remote_params=params)
    frame = engine.infer([f"p {i}" for i in range(300)])
    assert frame["error"].isna().all(), frame["error"].dropna().iloc[0]
    assert frame["output"].tolist() == [f"p {i}" for i in range(300)]
    assert app.versions == {"2"}
    assert app.most > 5
    assert len(app.connections) < 25, len(app.connections)  # HTTP/1.1 would take all 50
    assert frame.attrs["nbinfer"]["engine_facts"]["http"] == "HTTP/2"
    nbinfer.shutdown()
