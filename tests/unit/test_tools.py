"""Tools: schemas checked and made, conversations with calls, calls read out of answers."""

from __future__ import annotations

import enum
import json
from typing import Any, Literal

import jsonschema
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    Conversation,
    GenerationParams,
    LlamaCppInferenceEngine,
    Message,
    ModelParams,
    RemoteParams,
    ToolCall,
    UnsupportedParameter,
    VLLMInferenceEngine,
)
from nbinfer.engines import registry
from nbinfer.tool_schemas import function_schema
from nbinfer.tools import call_schema
from nbinfer.worker.backends._toolform import for_template, with_objects

from .apiserver import Server, chunk
from .conftest import echo

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def forecast(city: str, days: int = 1, unit: Unit = Unit.C, near: list[str] | None = None) -> str:
    """Say what the weather will be.

    It may be wrong.

    Parameters
    ----------
    city : str
        Its name, in
        English.
    days : int, default 1
        How many.

    Returns
    -------
    str
        The days: one a line.
    """
    return city


def google(a: float, kind: Literal["x", "y"], more: dict[str, int]) -> None:
    """Do it.

    Args:
        a: the first
        kind (str): which
    """


# ------------------------------------------------------------------ schemas of functions


def test_a_function_is_a_tool():
    assert function_schema(forecast) == {
        "type": "function",
        "function": {
            "name": "forecast",
            "description": "Say what the weather will be.\n\nIt may be wrong.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name, in English."},
                    "days": {"type": "integer", "description": "How many."},
                    "unit": {"enum": ["celsius", "fahrenheit"]},
                    "near": {
                        "anyOf": [
                            {"type": "array", "items": {"type": "string"}},
                            {"type": "null"},
                        ]
                    },
                },
                "required": ["city"],
            },
        },
    }


def test_googles_docstrings_too():
    function = function_schema(google)["function"]
    assert function["description"] == "Do it."
    assert function["parameters"]["properties"] == {
        "a": {"type": "number", "description": "the first"},
        "kind": {"enum": ["x", "y"], "description": "which"},
        "more": {"type": "object", "additionalProperties": {"type": "integer"}},
    }
    assert function["parameters"]["required"] == ["a", "kind", "more"]


def test_functions_that_make_no_schema():
    with pytest.raises(ConfigurationError, match="parameter 'x' has no type hint"):
        GenerationParams(tools=[lambda x: x])

    def many(*words: str) -> None: ...

    with pytest.raises(ConfigurationError, match="needs a name"):
        GenerationParams(tools=[many])

    def strange(x: complex) -> None: ...

    with pytest.raises(ConfigurationError, match=r"strange\(x\): JSON has no type"):
        GenerationParams(tools=[strange])


# ------------------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "tools is empty"),
        (7, "tools must be a list"),
        ([7], r"tools\[0\] must be a schema or a Python function"),
        ([{"name": "weather"}], r"tools\[0\] must be \{'type': 'function'"),
        ([named("a b")], "1 to 64 letters"),
        ([named("a", schema={})], "has no field 'schema'"),
        ([named("a", description=1)], "its description must be text"),
        ([named("a", parameters={"type": "string"})], "a JSON Schema of an object"),
        ([named("a", parameters={"x": object()})], "is not JSON"),
        ([WEATHER, WEATHER], "two tools are called 'weather'"),
    ],
)
def test_what_is_no_tool(given, words):
    with pytest.raises(ConfigurationError, match=words):
        GenerationParams(tools=given)


def test_choices_are_checked():
    with pytest.raises(ConfigurationError, match="needs tools"):
        GenerationParams(tool_choice="required")
    with pytest.raises(ConfigurationError) as caught:
        GenerationParams(tools=[WEATHER], tool_choice="wether")
    assert "did you mean 'weather'?" in caught.value.hint
    for more in ({"raw": True}, {"guided_decoding": {"choice": ["a"]}}):
        with pytest.raises(ConfigurationError, match="exclude each other"):
            GenerationParams(tools=[WEATHER], **more)


def test_params_with_tools_go_through_json():
    params = GenerationParams(tools=[forecast, WEATHER], tool_choice="weather")
    assert GenerationParams(**json.loads(json.dumps(params.to_dict()))) == params


def test_who_cannot_choose_freely_says_who_can():
    engine = LlamaCppInferenceEngine(binding="llama-cpp-python")
    with pytest.raises(UnsupportedParameter, match="'auto'; engines that can") as caught:
        engine.infer("x", GenerationParams(tools=[WEATHER]))
    assert {"llamacpp", "native", "vllm", "openai"} <= set(caught.value.engines)
    with pytest.raises(ConfigurationError, match="the parser of the model's form") as told:
        VLLMInferenceEngine().infer("x", GenerationParams(tools=[WEATHER]))
    assert "-k tool_call_parser=hermes" in told.value.hint


def test_the_schema_of_a_forced_call():
    other = named("now", parameters={"type": "object", "properties": {}})
    tools = GenerationParams(tools=[WEATHER, other]).tools
    one, either = call_schema(tools, "weather"), call_schema(tools, "required")
    for schema in (one, either):
        jsonschema.validate(CALL, schema)
        for wrong in (
            {"name": "weather", "arguments": {"days": 2}},
            {"name": "rain", "arguments": {"city": "Rome"}},
            {**CALL, "more": 1},
        ):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)
    jsonschema.validate({"name": "now", "arguments": {}}, either)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "now", "arguments": {}}, one)
    assert call_schema(tools, "auto") is None


def test_definitions_of_a_tool_are_found_from_the_root():
    place = {"$ref": "#/$defs/Place"}
    parameters = {
        "type": "object",
        "properties": {"at": place},
        "required": ["at"],
        "$defs": {"Place": {"type": "object", "required": ["x"]}},
    }
    schema = call_schema(GenerationParams(tools=[named("go", parameters=parameters)]).tools, "go")
    jsonschema.validate({"name": "go", "arguments": {"at": {"x": 1}}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "go", "arguments": {"at": {}}}, schema)


# ----------------------------------------------------------------------- conversations


def test_a_conversation_with_calls():
    talk = Conversation(
        [
            Message("user", "Weather in Rome and Paris?"),
            Message("assistant", "", tool_calls=[CALL, ToolCall("weather", {"city": "Paris"})]),
            Message("tool", "sunny"),
            Message("tool", "rain"),
        ]
    )
    _, asked, first, second = talk.to_list()
    assert asked["content"] == ""
    assert [c["id"] for c in asked["tool_calls"]] == ["call00000", "call00001"]
    function = asked["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", CALL["arguments"])
    assert (first["tool_call_id"], second["tool_call_id"]) == ("call00000", "call00001")
    assert Conversation(talk.to_list()).to_list() == talk.to_list()


def test_openais_form_of_a_call_is_taken():
    call = {"id": "abc", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    talk = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "2"},
    ]
    said, result = Conversation(talk).messages
    assert said.tool_calls == (ToolCall("f", {"a": 1}, "abc"),)
    assert result.tool_call_id == "abc"


def test_calls_that_cannot_be():
    with pytest.raises(ConfigurationError, match="answers no call of id 'b'"):
        Conversation(
            [
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "x", "tool_call_id": "b"},
            ]
        )
    with pytest.raises(ConfigurationError, match="of the role 'assistant', not 'user'"):
        Message("user", "x", tool_calls=[CALL])
    with pytest.raises(ConfigurationError, match="needs 'name' and 'arguments'"):
        Message("assistant", "", tool_calls=[{"name": "f"}])
    with pytest.raises(ConfigurationError, match="mapping of JSON's types"):
        ToolCall("f", {"a": object()})


def test_a_template_that_knows_no_tools_is_told_of_them_in_text():
    talk = Conversation(
        [
            Message("user", "Weather?"),
            Message("assistant", "", tool_calls=[CALL]),
            Message("tool", "sunny"),
        ]
    ).to_list()
    messages, tools = for_template(talk, [WEATHER], "{{ messages[0].content }}")
    assert tools is None
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert json.dumps(WEATHER) in messages[0]["content"]
    assert json.loads(messages[2]["content"]) == CALL
    assert "sunny" in messages[3]["content"]
    known = "{{ tools }}{{ message.tool_calls }}"
    assert for_template(talk, [WEATHER], known) == (talk, [WEATHER])
    arguments = with_objects(talk)[1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == CALL["arguments"]


# ------------------------------------------------------------------------------- rows


def test_a_forced_call_is_read(clean):
    params = GenerationParams(tools=[WEATHER], tool_choice="weather")
    row = echo().infer(json.dumps(CALL), params).loc[0]
    assert row["tool_calls"] == [CALL]
    assert row["finish_reason"] == "tool_calls"
    assert row["output"] == ""
    assert list(row.index)[-1] == "tool_calls"


def test_a_call_that_cannot_be_read_says_why(clean):
    params = GenerationParams(tools=[WEATHER], tool_choice="required", max_new_tokens=2)
    frame = echo().infer([json.dumps(CALL), '{"name": 7}'], params)
    assert frame["tool_calls"].tolist() == [None, None]
    assert frame["error"][0] == "the tool's call cannot be read: it was cut at max_new_tokens"
    assert frame["finish_reason"].tolist() == ["length", "stop"]
    assert frame["output"][0] == '{"name": "weather",'
    assert "cannot be read" in frame["error"][1]


def test_with_none_the_text_is_the_answer(clean):
    params = GenerationParams(tools=[WEATHER], tool_choice="none")
    row = echo().infer(json.dumps(CALL), params).loc[0]
    assert (row["tool_calls"], row["finish_reason"]) == (None, "stop")
    assert json.loads(row["output"]) == CALL


def test_rows_with_calls_are_kept_and_resumed(clean, tmp_path):
    path = tmp_path / "answers.db"
    params = GenerationParams(tools=[WEATHER], tool_choice="weather")
    first = echo().infer(json.dumps(CALL), params, output_path=path)
    again = echo().infer(json.dumps(CALL), params, output_path=path)
    for frame in (first, again, nbinfer.read_rows(path)):
        assert frame["tool_calls"].tolist() == [[CALL]]
        assert frame["finish_reason"].tolist() == ["tool_calls"]
    assert again.attrs["nbinfer"]["rows_resumed"] == 1


def test_the_magics_option(shell):
    shell.user_ns["mine"] = [forecast]
    shell.cell("%load_ext nbinfer")
    call = {"name": "forecast", "arguments": {"city": "Rome"}}
    said = shell.cell(
        f"%%infer -e echo --tools mine --set tool_choice=forecast --no-stream\n{json.dumps(call)}"
    )
    assert said.value["tool_calls"].tolist() == [[call]]


# ------------------------------------------------------------------------------ servers


def called(*pieces: dict[str, Any], reason: str = "tool_calls", text: str | None = None):
    async def script(call):
        if text:
            await call.event(chunk(text))
        for piece in pieces:
            event = chunk()
            event["choices"][0]["delta"] = {"tool_calls": [piece]}
            await call.event(event)
        await call.event(chunk(reason=reason))
        await call.event("[DONE]")
        await call.end()

    return script


PIECES = [
    {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"city": '}},
    {"index": 0, "function": {"arguments": '"Rome", "days": 2}'}},
    {"index": 1, "id": "b", "type": "function", "function": {"name": "now", "arguments": None}},
]


@pytest.fixture
def server(clean):
    with Server() as found:
        yield found
        nbinfer.shutdown()


def made(name, server):
    return registry.engine_class(name)("m", remote_params=RemoteParams(api_url=server.url))


def test_calls_of_a_server_come_in_pieces(server):
    server.script = called(*PIECES, text="Let me see.")
    row = made("openai-compatible", server).infer("x", GenerationParams(tools=[WEATHER])).loc[0]
    assert row["tool_calls"] == [CALL, {"name": "now", "arguments": {}}]
    assert row["output"] == "Let me see."
    assert row["finish_reason"] == "tool_calls"
    assert row["ttft_s"] > 0
    (call,) = server.calls
    assert call.body["tools"] == [WEATHER]
    assert call.body["tool_choice"] == "auto"


def test_a_servers_call_that_was_cut(server):
    server.script = called(*PIECES[:2], reason="length")
    row = made("openai-compatible", server).infer("x", GenerationParams(tools=[WEATHER])).loc[0]
    assert row["tool_calls"] is None
    assert row["finish_reason"] == "length"
    assert "'weather' cannot be read: it was cut at max_new_tokens" in row["error"]


def test_a_server_that_calls_nothing_though_it_must(server):
    params = GenerationParams(tools=[WEATHER], tool_choice="required")
    row = made("openai-compatible", server).infer("nothing", params).loc[0]
    assert "asked for a call, and there is none" in row["error"]
    assert row["output"] == "nothing"


@pytest.mark.parametrize("engine", ["openai-compatible", "remote-vllm", "sglang"])
def test_how_a_name_is_asked_of_a_server(server, engine):
    other = named("now", parameters={"type": "object", "properties": {}})

    async def script(call):
        if engine == "openai-compatible":
            await called(*PIECES[:3], reason="stop")(call)
            return
        for event in (chunk(json.dumps(CALL)), chunk(reason="stop"), "[DONE]"):
            await call.event(event)
        await call.end()

    server.script = script
    params = GenerationParams(tools=[WEATHER, other], tool_choice="weather")
    row = made(engine, server).infer("x", params).loc[0]
    assert row["tool_calls"] == [CALL]
    assert (row["finish_reason"], row["output"]) == ("tool_calls", "")
    body = server.calls[0].body
    schema = call_schema(params.tools, "weather")
    if engine == "openai-compatible":  # llama.cpp's server takes no names
        assert (body["tools"], body["tool_choice"]) == ([WEATHER], "required")
    elif engine == "remote-vllm":
        assert (body["tool_choice"], len(body["tools"])) == ("none", 2)
        assert body["structured_outputs"] == {"json": schema}
    else:
        assert (body["tool_choice"], len(body["tools"])) == ("auto", 2)
        assert body["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    ("engine", "owner"), [("sglang", "sglang"), ("openai-compatible", "llamacpp")]
)
def test_a_server_that_reads_no_calls_is_not_asked_for_them(server, engine, owner):
    async def info(call):
        await call.json({"tool_call_parser": None, "chat_template": "{{ messages }}"})

    server.owner = owner
    server.others = {"/server_info": info, "/props": info}
    with pytest.raises(UnsupportedParameter, match="reads no calls"):
        made(engine, server).infer("x", GenerationParams(tools=[WEATHER]))
    assert server.calls == []


def test_models_of_other_engines_are_not_needed_to_check():
    nbinfer.NativeTextInferenceEngine(
        ModelParams(), generation_params=GenerationParams(tools=[WEATHER], tool_choice="weather")
    )
    with pytest.raises(ConfigurationError, match="num_beams=2 is a search"):
        nbinfer.NativeTextInferenceEngine().infer(
            "x", GenerationParams(tools=[WEATHER], tool_choice="weather", num_beams=2)
        )
