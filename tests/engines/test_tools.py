"""Tools and reasoning on the real libraries: the same call of the same model on every engine."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from nbinfer import (
    Conversation,
    GenerationParams,
    LlamaCppInferenceEngine,
    Message,
    ModelParams,
    NativeTextInferenceEngine,
    UnsupportedParameter,
)

from .conftest import installed

pytestmark = pytest.mark.thorough("remote-vllm", "sglang")


def weather(city: Literal["Rome", "Paris"], days: int) -> str:
    """Say what the weather of a city will be."""
    return f"{city}: sunny"


def clock(zone: Literal["UTC"]) -> str:
    """Say what time it is."""
    return zone


TOOLS = [weather, clock]
ASK = "What will the weather be in Rome in the next 3 days?"


def test_a_named_tool_is_called(engine):
    params = GenerationParams(tools=TOOLS, tool_choice="weather", max_new_tokens=80)
    frame = engine.infer([ASK, "Paris?"], params)
    assert frame["error"].isna().all(), frame["error"].tolist()
    assert frame["finish_reason"].tolist() == ["tool_calls"] * 2
    for (call,), output in zip(frame["tool_calls"], frame["output"], strict=True):
        assert call["name"] == "weather"
        assert set(call["arguments"]) == {"city", "days"}
        assert call["arguments"]["city"] in ("Rome", "Paris")
        assert isinstance(call["arguments"]["days"], int)
        assert output == ""
    again = engine.infer([ASK, "Paris?"], params)
    assert again["tool_calls"].tolist() == frame["tool_calls"].tolist()


def test_one_of_the_tools_must_be_called(engine):
    params = GenerationParams(tools=TOOLS, tool_choice="required", max_new_tokens=80)
    row = engine.infer(ASK, params).loc[0]
    call = row["tool_calls"][0]
    wanted = {"weather": {"city", "days"}, "clock": {"zone"}}
    assert set(call["arguments"]) == wanted[call["name"]]
    assert row["finish_reason"] == "tool_calls"


def test_a_call_that_was_cut_says_so(engine):
    params = GenerationParams(tools=TOOLS, tool_choice="weather", max_new_tokens=3)
    row = engine.infer(ASK, params).loc[0]
    assert row["finish_reason"] == "length"
    assert row["tool_calls"] is None
    assert row["error"]


def test_the_model_is_told_of_tools_and_results(engine):
    """Whether its chat template knows them or not: each makes the prompt longer."""
    short = GenerationParams(max_new_tokens=4)
    forced = GenerationParams(tools=TOOLS, tool_choice="weather", max_new_tokens=80)
    alone = engine.infer(ASK, short)["prompt_tokens"][0]
    first = engine.infer(ASK, forced).loc[0]
    said = [Message("user", ASK), Message("assistant", tool_calls=first["tool_calls"])]
    talk = Conversation([*said, Message("tool", "Rome: sunny, 31 degrees")])
    last = engine.infer([talk], forced).loc[0]
    assert last["error"] is None or last["error"] != last["error"], last["error"]
    assert last["messages"][1]["tool_calls"][0]["function"]["name"] == "weather"
    if engine.name in ("remote-vllm", "sglang"):  # a server's template is its own affair
        assert last["prompt_tokens"] > first["prompt_tokens"]
        return
    assert first["prompt_tokens"] > alone + 40
    assert last["prompt_tokens"] > first["prompt_tokens"] + 8


def test_without_a_call_there_is_an_answer(engine):
    params = GenerationParams(tools=TOOLS, tool_choice="none", max_new_tokens=8)
    row = engine.infer("Say hello.", params).loc[0]
    assert row["tool_calls"] is None
    assert row["output"]
    assert row["finish_reason"] in ("stop", "length")


CALL = {"name": "weather", "arguments": {"city": "Rome", "days": 3}}
IN_HERMES = f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"
# The same question thrice, answered in the form of Hermes: a small model copies it.
COPY = [*[{"role": "user", "content": ASK}, {"role": "assistant", "content": IN_HERMES}] * 3]
COPY.append({"role": "user", "content": ASK})
HERMES = """{%- if tools %}<|im_start|>system
You may call one or more functions to assist with the user query.
You are provided with function signatures within <tools></tools> XML tags:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each function call, return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}{%- for message in messages %}{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}{%- if message.tool_calls %}{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{%- endfor %}{%- endif %}<|im_end|>
{% endif %}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_free_calls_are_read_or_refused(engine):
    """Never dropped in silence: this model has no form of its own for calls."""
    params = GenerationParams(tools=TOOLS, max_new_tokens=60)
    if engine.name == "vllm":  # it was loaded with the name of a parser
        row = engine.infer([COPY], params).loc[0]
        assert (row["tool_calls"], row["output"]) == ([CALL], "")
        assert row["finish_reason"] == "tool_calls"
        assert engine.infer("Say hello.", params)["tool_calls"].isna().all()
        return
    said = {"native": "response_template", "remote-vllm": "--tool-call-parser"}
    if getattr(engine, "binding", "") == "xllamacpp":
        said["llamacpp"] = "chat template knows no tools"
    if engine.name in said:  # which only the model's own process can tell
        assert said[engine.name] in engine.infer(ASK, params)["error"][0]
        return
    with pytest.raises(UnsupportedParameter, match=r"tool_choice='auto'|reads no calls") as caught:
        engine.infer(ASK, params)
    assert "llamacpp" in caught.value.engines


def test_llamacpp_reads_a_templates_own_form():
    engine = LlamaCppInferenceEngine(
        ModelParams("smollm2-135m", chat_template=HERMES, model_max_length=2048)
    )
    free = engine.infer([COPY], GenerationParams(tools=TOOLS, max_new_tokens=60)).loc[0]
    assert (free["tool_calls"], free["finish_reason"]) == ([CALL], "tool_calls")
    assert free["output"].strip() == ""
    params = GenerationParams(tools=TOOLS, tool_choice="clock", max_new_tokens=60)
    forced = engine.infer(ASK, params).loc[0]
    assert forced["tool_calls"] == [{"name": "clock", "arguments": {"zone": "UTC"}}]


@pytest.mark.needs("native")
def test_native_reads_calls_by_the_tokenizers_template():
    installed("native")
    call = {"open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True}
    template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {"close": "<|im_end|>"},
            "thinking": {"open": "<think>", "close": "</think>"},
            "tool_calls": {**call, "transform": {"type": "function", "function": "{content}"}},
        },
    }
    engine = NativeTextInferenceEngine(
        ModelParams(
            "smollm2-135m",
            model_max_length=2048,
            chat_template=HERMES,
            tokenizer_kwargs={"response_template": template},
        )
    )
    params = GenerationParams(tools=TOOLS, max_new_tokens=60)
    frame = engine.infer([COPY, "Say hello."], params)
    assert frame["tool_calls"][0] == [CALL]
    assert frame["finish_reason"][0] == "tool_calls"
    assert frame["output"][0] == ""
    assert frame["tool_calls"].isna()[1]
    assert frame["output"][1]
    engine.unload()


def test_reasoning_that_a_prompt_begins(engine):
    """A base model's prompt that ends with the tag: the answer goes on inside the block."""
    params = GenerationParams(max_new_tokens=12, raw=True)
    row = engine.infer("Q: 2 + 2?\n<think>", params).loc[0]
    left = engine.infer(
        "Q: 2 + 2?\n<think>", GenerationParams(**{**params.to_dict(), "separate_reasoning": False})
    ).loc[0]
    assert row["reasoning"]
    assert row["reasoning"] in left["output"]
    assert "reasoning" not in left.index
    assert row["output_tokens"] == left["output_tokens"]
