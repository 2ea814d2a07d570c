"""Clouds: requests and answers held against the vendors' own published types.

Their SDKs are test dependencies for their pydantic models alone; no request leaves the machine.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import openai.types.chat as openai_types
import openai.types.chat.completion_create_params as openai_params
import pydantic
import pytest
from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from anthropic.types.message_create_params import MessageCreateParamsStreaming

import nbinfer
from nbinfer import (
    AnthropicInferenceEngine,
    Conversation,
    GenerationParams,
    ImagePart,
    Message,
    ModelParams,
    OpenAIInferenceEngine,
    RemoteParams,
    Role,
    ServerError,
    TextPart,
    UnsupportedParameter,
)

from .apiserver import Server, chunk, events, stream

KEY = "sk-ant-planted-551"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}},
    "required": ["colour"],
    "additionalProperties": False,
}
CHAT = Conversation(
    [
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, [TextPart("What is this?"), ImagePart(PNG)]),
        Message(Role.ASSISTANT, "A dot."),
        Message(Role.USER, "Which colour?"),
    ]
)

COLOUR_OF = {
    "type": "function",
    "function": {
        "name": "colour_of",
        "description": "The colour of a thing.",
        "parameters": {
            "type": "object",
            "properties": {"thing": {"type": "string"}},
            "required": ["thing"],
        },
    },
}
# What is asked, and Anthropic's word for it.
CHOICES = {
    "auto": {"type": "auto"},
    "none": {"type": "none"},
    "required": {"type": "any"},
    "colour_of": {"type": "tool", "name": "colour_of"},
}
TOOL_CHAT = Conversation(
    [
        Message(Role.USER, "Which colours?"),
        Message(
            Role.ASSISTANT,
            tool_calls=[
                {"name": "colour_of", "arguments": {"thing": "dot"}},
                {"name": "colour_of", "arguments": {"thing": "sky"}},
            ],
        ),
        Message(Role.TOOL, "red"),
        Message(Role.TOOL, "blue"),
    ]
)


def strictly(kind, value):
    """Hold a value against a vendor's type; a field that the type does not have fails."""
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        kind.model_validate(value)
        return
    adapter = pydantic.TypeAdapter(pydantic.with_config(pydantic.ConfigDict(extra="forbid"))(kind))
    adapter.validate_python(value)


@pytest.fixture
def server(clean, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Server() as server:
        yield server
        nbinfer.shutdown()


def made(engine, server, **params):
    return engine("m", remote_params=RemoteParams(api_url=server.url, **params))


def anthropic_events(text="The colour is red.", **end):
    usage = {"input_tokens": 10, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 2}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 1},
    }
    start = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    pieces = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        for word in text.partition(" ")
        if word
    ]
    delta = {"stop_reason": "end_turn", "stop_sequence": None, **end}
    return [
        {"type": "message_start", "message": message},
        start,
        {"type": "ping"},
        *pieces,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 6}},
        {"type": "message_stop"},
    ]


def answers(*given):
    async def script(call):
        for event in given:
            await call.event(event, name=event["type"])
        await call.end()

    return script


# ------------------------------------------------------------------------- Anthropic


def test_the_events_of_these_tests_are_anthropics():
    kind = pydantic.TypeAdapter(RawMessageStreamEvent)
    for event in anthropic_events():
        if event["type"] != "ping":
            kind.validate_python(event)


def test_anthropics_request_and_answer(server):
    server.script = answers(*anthropic_events())
    params = GenerationParams(
        max_new_tokens=32, stop_strings=["END"], guided_decoding={"json": SCHEMA}
    )
    frame = made(AnthropicInferenceEngine, server).infer(CHAT, params)
    (call,) = server.calls
    strictly(MessageCreateParamsStreaming, call.body)
    assert call.path == "/v1/messages"
    assert call.headers["x-api-key"] == KEY
    assert call.headers["anthropic-version"] == "2023-06-01"
    assert call.body["system"] == "Be brief."
    assert [m["role"] for m in call.body["messages"]] == ["user", "assistant", "user"]
    source = call.body["messages"][0]["content"][1]["source"]
    assert source == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(PNG).decode(),
    }
    row = frame.loc[0]
    assert row["output"] == "The colour is red."
    assert row["finish_reason"] == "stop"
    assert row["prompt_tokens"] == 42
    assert row["cached_tokens"] == 30
    assert row["output_tokens"] == 6
    assert row["ttft_s"] > 0


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [("max_tokens", "length"), ("stop_sequence", "stop"), ("refusal", "error")],
)
def test_how_anthropic_ends(server, stop_reason, finish_reason):
    server.script = answers(*anthropic_events(stop_reason=stop_reason))
    frame = made(AnthropicInferenceEngine, server).infer("x")
    assert frame["finish_reason"][0] == finish_reason


def test_anthropic_overloaded_in_mid_stream_is_sent_again(server):
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    async def script(call):
        given = anthropic_events()
        await answers(*([*given[:4], error] if call.number == 0 else given))(call)

    server.script = script
    engine = made(AnthropicInferenceEngine, server, retry_backoff_base_s=0.01)
    assert engine.infer("x")["output"][0] == "The colour is red."
    assert len(server.calls) == 2


def test_what_anthropic_thinks_is_no_part_of_the_answer(server):
    given = anthropic_events()
    delta = {"type": "thinking_delta", "thinking": "hmm"}
    thought = {"type": "content_block_delta", "index": 0, "delta": delta}
    server.script = answers(*given[:2], thought, *given[2:])
    row = made(AnthropicInferenceEngine, server).infer("x").loc[0]
    assert (row["output"], row["reasoning"]) == ("The colour is red.", "hmm")


def test_anthropics_tools(server):
    block = {"type": "tool_use", "id": "toolu_1", "name": "colour_of", "input": {}}
    start = {"type": "content_block_start", "index": 1, "content_block": block}
    pieces = [
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": text},
        }
        for text in ("", '{"thing": ', '"dot"}')
    ]
    given = anthropic_events(stop_reason="tool_use")
    kind = pydantic.TypeAdapter(RawMessageStreamEvent)
    for event in (start, *pieces):
        kind.validate_python(event)
    server.script = answers(*given[:-2], start, *pieces, *given[-2:])
    engine = made(AnthropicInferenceEngine, server)
    for choice, wanted in CHOICES.items():
        row = engine.infer(TOOL_CHAT, GenerationParams(tools=[COLOUR_OF], tool_choice=choice)).loc[
            0
        ]
        body = server.calls[-1].body
        strictly(MessageCreateParamsStreaming, body)
        assert body["tool_choice"] == wanted
    assert row["tool_calls"] == [{"name": "colour_of", "arguments": {"thing": "dot"}}]
    assert row["finish_reason"] == "tool_calls"
    assert row["output"] == "The colour is red."
    asked, called, results = body["messages"]
    assert (asked["role"], called["role"], results["role"]) == ("user", "assistant", "user")
    ids = [block["id"] for block in called["content"]]
    assert [block["tool_use_id"] for block in results["content"]] == ids
    assert called["content"][0]["input"] == {"thing": "dot"}
    assert body["tools"][0]["input_schema"]["required"] == ["thing"]


@pytest.mark.parametrize("name", ["temperature", "top_p", "seed", "top_k"])
def test_anthropic_has_no_sampling_parameters(server, name):
    value = {"temperature": 0.5, "top_p": 0.5, "seed": 1, "top_k": 4}[name]
    with pytest.raises(UnsupportedParameter, match=f"anthropic cannot honour {name}="):
        made(AnthropicInferenceEngine, server).infer("x", GenerationParams(**{name: value}))
    with pytest.raises(UnsupportedParameter, match="raw=True"):
        made(AnthropicInferenceEngine, server).infer("x", GenerationParams(raw=True))


def test_an_answer_of_anthropic_in_one_piece(server):
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "whole", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    AnthropicMessage.model_validate(body)

    async def script(call):
        await call.json(body)

    server.script = script
    row = made(AnthropicInferenceEngine, server).infer("x").loc[0]
    assert (row["output"], row["prompt_tokens"], row["output_tokens"]) == ("whole", 3, 2)


# ---------------------------------------------------------------------------- OpenAI


def test_the_events_of_these_tests_are_openais():
    for event in events("one two")[:-1]:
        openai_types.ChatCompletionChunk.model_validate(event)


def test_the_wire_that_the_notebook_plays_is_openais():
    wire = Path(__file__).parents[2] / "notebooks" / "recorded" / "openai_chat.txt"
    *chunks, done = [e.removeprefix("data: ") for e in wire.read_text().split("\n\n") if e]
    assert done == "[DONE]"
    for text in chunks:
        openai_types.ChatCompletionChunk.model_validate_json(text)


def test_openais_request(server):
    params = GenerationParams(
        max_new_tokens=32,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop_strings=["END"],
        logit_bias={5: -1},
        frequency_penalty=0.5,
        presence_penalty=0.5,
        logprobs=2,
        guided_decoding={"json": SCHEMA},
    )

    async def script(call):
        await stream(call, json.dumps({"colour": "red"}))

    server.script = script
    frame = made(OpenAIInferenceEngine, server).infer(CHAT, params)
    assert frame["error"].isna().all()
    (call,) = server.calls
    strictly(openai_params.CompletionCreateParamsStreaming, call.body)
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert frame["parsed"][0] == {"colour": "red"}


def test_openais_tools(server):
    function = {"index": 0, "id": "a", "type": "function"}
    pieces = [
        {**function, "function": {"name": "colour_of", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"thing": "dot"}'}},
    ]
    given = []
    for piece in pieces:
        event = chunk()
        event["choices"][0]["delta"] = {"tool_calls": [piece]}
        given.append(event)
    given.append(chunk(reason="tool_calls"))
    for event in given:
        openai_types.ChatCompletionChunk.model_validate(event)

    async def script(call):
        for event in (*given, "[DONE]"):
            await call.event(event)
        await call.end()

    server.script = script
    engine = made(OpenAIInferenceEngine, server)
    for choice in CHOICES:
        params = GenerationParams(tools=[COLOUR_OF], tool_choice=choice)
        row = engine.infer(TOOL_CHAT, params).loc[0]
        strictly(openai_params.CompletionCreateParamsStreaming, server.calls[-1].body)
    named = {"type": "function", "function": {"name": "colour_of"}}
    assert server.calls[-1].body["tool_choice"] == named
    assert row["tool_calls"] == [{"name": "colour_of", "arguments": {"thing": "dot"}}]
    assert row["finish_reason"] == "tool_calls"


def test_openais_reasons_are_told(server):
    async def wrong(call):
        await call.json(
            {
                "error": {
                    "message": "Unsupported value: 'temperature' does not support 0",
                    "type": "invalid_request_error",
                    "param": "temperature",
                    "code": "unsupported_value",
                }
            },
            400,
        )

    server.script = wrong
    error = made(OpenAIInferenceEngine, server).infer("x")["error"][0]
    assert "400: Unsupported value: 'temperature'" in error


def test_a_cloud_without_a_key_says_which_variable_holds_it(clean, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as server:

        async def models(call):
            await call.error(401, "You didn't provide an API key")

        server.others["/v1/models"] = models
        engine = OpenAIInferenceEngine(
            ModelParams("m"), remote_params=RemoteParams(api_url=server.url)
        )
        with pytest.raises(ServerError, match="wants one") as caught:
            engine.load()
        assert "OPENAI_API_KEY" in caught.value.hint
        nbinfer.shutdown()
