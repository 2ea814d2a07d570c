"""Whatever a server does: the row says so, the others go on, nothing waits for ever."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import ssl
import threading
import time

import pytest
import trustme

import nbinfer
from nbinfer import (
    ConfigurationError,
    OpenAICompatibleInferenceEngine,
    RemoteParams,
    ServerError,
    ServerUnreachable,
)
from nbinfer.remote import failures
from nbinfer.remote.failures import retry_after

from .apiserver import Server, chunk, echo, events, plain

FAST = {"retry_backoff_base_s": 0.01, "retry_backoff_max_s": 0.05}


def made(server, **params):
    given = {**FAST, **params}
    return OpenAICompatibleInferenceEngine(
        "m", remote_params=RemoteParams(api_url=server.url, **given)
    )


@pytest.fixture
def server(clean):
    with Server() as server:
        yield server
        nbinfer.shutdown()


def status(code, message="no", **headers):
    async def script(call):
        await call.error(code, message, **headers)

    return script


def sends(*pieces, end=True):
    async def script(call):
        for piece in pieces:
            await call.event(piece)
        if end:
            await call.end()
        else:
            call.drop()

    return script


async def resets(call):
    await call.event(chunk("half an ans"))
    call.drop()


async def resets_at_once(call):
    call.drop()


async def stalls(call):
    await call.event(chunk("half"))
    await asyncio.sleep(30)


async def html(call):
    await call.send(200, b"<html>a login page</html>", "text/html; charset=utf-8")


async def broken_json(call):
    await call.send(200, b'{"choices": [', "application/json")


async def error_in_a_good_status(call):
    await call.json({"error": {"message": "engine overloaded", "type": "overloaded_error"}})


async def redirects(call):
    await call.send(307, b"", location="https://elsewhere.example/v1?token=secret")


async def two_hundred_megabytes(call):
    call.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ")
    for _ in range(200):
        call.raw(b"x" * 1_000_000)
        await call.writer.drain()


RETRIED = {
    "429": status(429),
    "500": status(500),
    "502": status(502),
    "503": status(503),
    "529": status(529),
    "408": status(408),
    "reset in mid-stream": resets,
    "reset at once": resets_at_once,
    "cut stream": sends(chunk("half"), end=True),
    "cut JSON in a stream": sends('{"choices": [{"del'),
    "no object in a stream": sends("[1, 2]"),
    "cut JSON": broken_json,
    "no choice": sends("[DONE]"),
    "an empty choice": sends(chunk(), "[DONE]"),
    "error body in a 200": error_in_a_good_status,
    "error in a stream": sends(chunk("a"), {"error": {"message": "died", "code": 500}}),
}
FINAL = {
    "400": (status(400, "too long"), "400: too long"),
    "401": (status(401, "no key"), "401: no key"),
    "404": (status(404, "no model"), "404: no model"),
    "422": (status(422), "422"),
    "501": (status(501), "501"),
    "wrong content type": (html, "it answers with 'text/html'"),
    "redirect": (redirects, "redirects to 'https://elsewhere.example/v1'"),
    "refusal": (
        sends({"choices": [{"index": 0, "delta": {"refusal": "I will not"}}]}, chunk("", "stop")),
        "the model refused: I will not",
    ),
    "content filter": (sends(chunk("a", "content_filter")), "content filter"),
    "a huge line": (two_hundred_megabytes, "more than 64,000,000 characters"),
}


@pytest.mark.parametrize("script", RETRIED.values(), ids=RETRIED)
def test_what_may_pass_is_sent_again(server, script):
    server.script = plain(script, echo)
    frame = made(server).infer("hello there")
    assert frame["output"].tolist() == ["hello there"]
    assert frame["error"].isna().all()
    assert len(server.calls) == 2
    assert frame.attrs["nbinfer"]["engine_facts"]["retries"] == 1


@pytest.mark.parametrize("script", RETRIED.values(), ids=RETRIED)
def test_what_does_not_pass_is_that_rows_error_and_the_others_go_on(server, script):
    async def some(call):
        await (script(call) if call.text == "bad" else echo(call))

    server.script = some
    frame = made(server, max_retries=2).infer(["good", "bad", "better"])
    assert frame["output"].tolist()[::2] == ["good", "better"]
    assert frame["finish_reason"].tolist() == ["stop", "error", "stop"]
    assert "(after 3 attempts)" in frame["error"][1]
    assert server.url in frame["error"][1]
    assert sum(call.text == "bad" for call in server.calls) == 3


@pytest.mark.parametrize(("script", "said"), FINAL.values(), ids=FINAL)
def test_what_cannot_pass_is_not_sent_again(server, script, said):
    async def some(call):
        await (script(call) if call.text == "bad" else echo(call))

    server.script = some
    frame = made(server).infer(["bad", "good"])
    assert said in frame["error"][0]
    assert "secret" not in frame["error"][0]
    assert frame["output"][1] == "good"
    assert sum(call.text == "bad" for call in server.calls) == 1


def test_no_credit_is_not_busy(server):
    async def spent(call):
        await call.json({"error": {"message": "pay", "code": "insufficient_quota"}}, 429)

    server.script = spent
    assert "429: pay" in made(server).infer("x")["error"][0]
    assert len(server.calls) == 1


def test_a_stream_that_stalls_is_given_up(server):
    server.script = plain(stalls, echo)
    began = time.monotonic()
    assert made(server, read_timeout_s=0.3).infer("x")["output"][0] == "x"
    assert time.monotonic() - began < 3
    server.script = stalls
    error = made(server, read_timeout_s=0.3, max_retries=0).infer("x")["error"][0]
    assert "it sent nothing for read_timeout_s" in error


def test_what_was_shown_is_not_taken_back(server):
    server.script = plain(resets, echo)
    stream = made(server).stream("x")
    assert list(stream) == ["half an ans"]
    assert "the connection was lost" in stream.result["error"][0]
    assert stream.result["output"][0] == "half an ans"
    assert len(server.calls) == 1


def test_an_ending_that_comes_twice_is_one_ending(server):
    good = events("one two")
    finish, usage = good[-3], good[-2]
    server.script = sends(
        *good[:-3], finish, finish, chunk(" two"), usage, usage, "[DONE]", "[DONE]"
    )
    row = made(server).infer("x").loc[0]
    assert row["output"] == "one two"
    assert row["output_tokens"] == 2


def test_events_that_are_cut_anywhere_and_comments(server):
    async def dribbles(call):
        call.began.append("stream")
        call.raw(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        text = ": keep-alive\r\n\r\n" + "".join(
            f"data: {e if isinstance(e, str) else json.dumps(e, ensure_ascii=False)}\r\n\r\n"
            for e in events("grün 🚀 ende")
        )
        for byte in text.encode():  # characters of several bytes are cut too
            call.piece(bytes([byte]))
            await call.writer.drain()
        await call.end()

    server.script = dribbles
    assert made(server).infer("x")["output"][0] == "grün 🚀 ende"


# -------------------------------------------------------------------------- patience


def test_retry_after_is_obeyed_by_all_requests(server):
    times = []

    async def script(call):
        times.append(time.monotonic())
        await (call.error(429, retry_after="1") if len(times) == 1 else echo(call))

    server.script = script
    frame = made(server, num_workers=1).infer(["a", "b", "c"])
    assert frame["error"].isna().all()
    assert times[1] - times[0] >= 1.0


def test_retry_after_as_a_date_and_in_milliseconds():
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    date = email.utils.format_datetime(email.utils.localtime()).replace("-0000", "GMT")
    assert retry_after({"retry-after": date}) == pytest.approx(0, abs=2)
    soon = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert retry_after({"retry-after": soon}) == pytest.approx(30, abs=2)
    for wrong in ("", "soon", "-3", "1e9x"):
        assert retry_after({"retry-after": wrong}) is None


def test_waits_grow_and_differ():
    for attempt, ceiling in ((1, 0.5), (2, 1.0), (4, 4.0), (20, 30.0)):
        waits = {failures.backoff(attempt, 0.5, 30.0) for _ in range(50)}
        assert len(waits) > 1
        assert all(ceiling / 2 <= wait <= ceiling for wait in waits)


def test_a_burst_of_503_is_outlived(server):
    async def burst(call):
        await (call.error(503) if call.number < 40 else echo(call))

    server.script = burst
    engine = made(server, max_retries=8, retry_backoff_max_s=0.3)
    assert engine.infer([f"p{i}" for i in range(50)])["error"].isna().all()


def test_a_server_that_restarts_during_a_run(server):
    async def script(call):
        if call.number == 30:
            threading.Thread(target=restart).start()
            await asyncio.sleep(5)
        await asyncio.sleep(0.01)
        await echo(call)

    def restart():
        server.stop()
        time.sleep(0.7)
        server.start()

    server.script = script
    prompts = [f"p{i}" for i in range(200)]
    params = {"retry_backoff_base_s": 0.3, "retry_backoff_max_s": 2.0, "max_retries": 10}
    frame = made(server, **params).infer(prompts)
    assert frame["error"].isna().all()
    assert frame["output"].tolist() == prompts


def test_a_server_that_is_gone_for_good_ends_the_run_and_rows_are_kept(server):
    async def script(call):
        if call.number == 20:
            threading.Thread(target=server.stop).start()
            await asyncio.sleep(5)
        await asyncio.sleep(0.01)
        await echo(call)

    server.script = script
    began = time.monotonic()
    with pytest.raises(ServerUnreachable, match="answers no more") as caught:
        made(server, num_workers=4).infer([f"p{i}" for i in range(500)])
    assert time.monotonic() - began < 10
    frame = caught.value.frame
    assert len(frame) == 500
    assert 15 <= (frame["finish_reason"] == "stop").sum() < 40
    assert frame["error"].notna().sum() > 450
    server.start()
    server.script = echo
    assert made(server, num_workers=4).infer("again")["output"][0] == "again"


def test_of_many_rows_none_is_lost(server):
    frame = made(server).infer([f"p{i}" for i in range(3000)])
    assert frame["output"].tolist() == [f"p{i}" for i in range(3000)]


# ------------------------------------------------------------------------ certificates


def with_certificate(authority, **options):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", **options).configure_cert(context)
    return Server(tls=context)


def test_a_certificate_must_be_trusted_and_in_date(clean, tmp_path):
    authority = trustme.CA()
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))
    with with_certificate(authority) as server:
        with pytest.raises(ServerError, match="not trusted: unable to get local issuer"):
            made(server).infer("x")
        assert made(server, verify=str(trusted)).infer("x")["output"][0] == "x"
        assert made(server, verify=False).infer("y")["output"][0] == "y"
        nbinfer.shutdown()
    past = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)
    with with_certificate(authority, not_after=past) as server:
        with pytest.raises(ServerError, match="certificate has expired"):
            made(server, verify=str(trusted)).infer("x")
        nbinfer.shutdown()


def test_a_file_of_authorities_that_is_none(clean, tmp_path):
    engine = OpenAICompatibleInferenceEngine(
        "m", remote_params=RemoteParams(api_url="https://127.0.0.1:1", verify=str(tmp_path / "no"))
    )
    with pytest.raises(ConfigurationError, match="verify"):
        engine.infer("x")
