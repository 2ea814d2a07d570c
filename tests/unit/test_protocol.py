"""The frames between kernel and worker."""

from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbinfer.worker import protocol
from nbinfer.worker.protocol import ProtocolError, StreamClosed

TEXT = st.text(st.characters())  # every code point, lone surrogates included
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.dictionaries(TEXT, VALUES, max_size=4)


@given(st.lists(MESSAGES, max_size=4))
def test_what_is_packed_is_read_again_in_order(messages):
    stream = io.BytesIO(b"".join(map(protocol.pack, messages)))
    for message in messages:
        assert protocol.read(stream) == message
    with pytest.raises(StreamClosed):
        protocol.read(stream)


@pytest.mark.parametrize(
    "text",
    [
        "\ud800",
        "a\udfffb",
        "nul \0 inside",
        "🙂👩‍👩‍👧",
        "\u2028\u2029\x1b[31m",
        "",
        "x" * 20_000_000,
    ],
    ids=["high", "low", "nul", "emoji", "controls", "empty", "big"],
)
def test_odd_texts_survive(text):
    frame = protocol.pack({"text": text})
    assert frame[4:].isascii()
    assert protocol.read(io.BytesIO(frame)) == {"text": text}


@given(MESSAGES, st.data())
def test_a_stream_cut_anywhere_is_closed(message, data):
    frame = protocol.pack(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(StreamClosed):
        protocol.read(io.BytesIO(frame[:cut]))


def _frame(body: bytes) -> io.BytesIO:
    return io.BytesIO(struct.pack(">I", len(body)) + body)


@given(st.binary(max_size=60))
def test_garbage_is_no_message(body):
    try:
        valid = isinstance(json.loads(body), dict)
    except ValueError:
        valid = False
    if valid:
        assert isinstance(protocol.read(_frame(body)), dict)
    else:
        with pytest.raises(ProtocolError):
            protocol.read(_frame(body))


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"", b"{", b"\xff\xfe", b"{} {}"])
def test_only_an_object_is_a_message(body):
    with pytest.raises(ProtocolError):
        protocol.read(_frame(body))


def test_deep_nesting_is_no_message():
    with pytest.raises(ProtocolError):
        protocol.read(_frame(b"[" * 1_000_000))


def test_a_length_over_the_limit_is_refused_before_anything_is_read():
    stream = io.BytesIO(struct.pack(">I", protocol.MAX_FRAME + 1) + b"rest")
    with pytest.raises(ProtocolError, match=str(protocol.MAX_FRAME + 1)):
        protocol.read(stream)
    assert stream.read() == b"rest"


def test_a_message_over_the_limit_is_not_packed(monkeypatch):
    monkeypatch.setattr(protocol, "MAX_FRAME", 100)
    assert protocol.pack({"a": "x" * 80})
    with pytest.raises(ProtocolError, match="over the limit"):
        protocol.pack({"a": "x" * 100})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_no_json_are_not_packed(value):
    with pytest.raises(ValueError, match="JSON compliant"):
        protocol.pack({"a": value})
