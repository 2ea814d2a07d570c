"""anthropic: the Messages API."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..remote.batch_apis import AnthropicBatches
from ..remote.exchange import Answer, Request
from ..remote.failures import from_body
from .remote import RemoteEngine

__all__ = ["AnthropicInferenceEngine", "AnthropicWire"]

VERSION = "2023-06-01"
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}


class AnthropicWire:
    """Requests and streams of Anthropic's Messages API."""

    def __init__(self, extra_body: Mapping[str, Any] | None = None) -> None:
        self._extra = dict(extra_body or {})

    def headers(self, key: str | None) -> dict[str, str]:
        return {"anthropic-version": VERSION, **({"x-api-key": key} if key else {})}

    def request(self, row: Mapping[str, Any], model: str) -> Request:
        params, messages = row["params"], row["messages"]
        system = [_text(m["content"]) for m in messages if m["role"] == "system"]
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": params["max_new_tokens"],
            "messages": _messages(messages),
            "stream": True,
        }
        if system:
            body["system"] = "\n\n".join(system)
        if params.get("stop_strings"):
            body["stop_sequences"] = list(params["stop_strings"])
        if params.get("guided_decoding"):
            form = {"type": "json_schema", "schema": params["guided_decoding"]["json"]}
            body["output_config"] = {"format": form}
        if params.get("tools"):
            body.update(_tools(params["tools"], params["tool_choice"]))
        body.update(self._extra)
        return Request("/messages", body)

    def event(self, name: str, value: dict[str, Any], answer: Answer) -> None:
        kind = value.get("type", name)
        if kind == "error":
            failure = from_body(value)
            assert failure is not None
            raise failure
        if kind == "message_start":
            self._usage(value["message"].get("usage") or {}, answer)
        elif kind == "content_block_start":
            block = value.get("content_block") or {}
            if block.get("type") == "tool_use":
                answer.called(value["index"], block["name"], None)
        elif kind == "content_block_delta":
            self._delta(value, answer)
        elif kind == "message_delta":
            self._finish(value.get("delta") or {}, answer)
            self._usage(value.get("usage") or {}, answer)
        elif kind == "message_stop":
            answer.done = True

    @staticmethod
    def _delta(value: Mapping[str, Any], answer: Answer) -> None:
        delta = value["delta"]
        if delta.get("type") == "text_delta":
            answer.token(delta["text"])
        elif delta.get("type") == "thinking_delta":
            answer.thought(delta["thinking"])
        elif delta.get("type") == "input_json_delta":
            answer.called(value["index"], None, delta["partial_json"])

    def whole(self, value: dict[str, Any], answer: Answer) -> None:
        for place, block in enumerate(value.get("content") or ()):
            kind = block.get("type")
            if kind == "text":
                answer.token(block["text"])
            elif kind == "thinking":
                answer.thought(block["thinking"])
            elif kind == "tool_use":
                answer.called(place, block["name"], json.dumps(block["input"]))
        answer.first_at = 0.0  # when its first token was made cannot be known
        self._finish(value, answer)
        self._usage(value.get("usage") or {}, answer)

    def _finish(self, value: Mapping[str, Any], answer: Answer) -> None:
        reason = value.get("stop_reason")
        if reason == "refusal":
            answer.refused = "the model refused to answer"
        elif reason:
            answer.finish_reason = _FINISH.get(reason, "stop")

    def _usage(self, usage: Mapping[str, Any], answer: Answer) -> None:
        """Anthropic counts tokens that the cache held, or that went into it, apart."""
        if usage.get("input_tokens") is not None:
            cached = usage.get("cache_read_input_tokens")
            written = usage.get("cache_creation_input_tokens") or 0
            answer.cached_tokens = cached
            answer.prompt_tokens = usage["input_tokens"] + (cached or 0) + written
        if usage.get("output_tokens") is not None:
            answer.output_tokens = usage["output_tokens"]


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(p["text"] for p in content)


def _messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation's turns; the results of calls stand in one of the user's."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "system":
            continue
        turn = _message(message)
        if message["role"] == "tool" and turns and turns[-1].get("role") == "tool":
            turns[-1]["content"] += turn["content"]
        else:
            turns.append(turn)
    return [{**t, "role": "user" if t["role"] == "tool" else t["role"]} for t in turns]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [_part(part) for part in content]
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
        return {"role": "tool", "content": [{**result, "content": content}]}
    if message.get("tool_calls"):
        said = [{"type": "text", "text": content}] if content else []
        content = [*said, *map(_use, message["tool_calls"])]
    return {"role": message["role"], "content": content}


def _use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.loads(function["arguments"])
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}


def _tools(tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
    """Tools, and which is called, in Anthropic's words."""
    kinds = {"auto": "auto", "none": "none", "required": "any"}
    wanted = {"type": kinds[choice]} if choice in kinds else {"type": "tool", "name": choice}
    return {"tools": [_tool(tool["function"]) for tool in tools], "tool_choice": wanted}


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    tool = {"name": function["name"], "input_schema": {"type": "object", **function["parameters"]}}
    for name in ("description", "strict"):
        if function.get(name) is not None:
            tool[name] = function[name]
    return tool


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    url = part["image_url"]["url"]
    data = re.fullmatch(r"data:([\w/+.-]+);base64,(.*)", url, re.DOTALL)
    if data is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    source = {"type": "base64", "media_type": data[1], "data": data[2]}
    return {"type": "image", "source": source}


class AnthropicInferenceEngine(RemoteEngine):
    """Anthropic's Messages API.

    Parameters
    ----------
    model_params : ModelParams or str
        ``model_name``: such as ``"claude-sonnet-4-5"``. There is no default that Anthropic
        serves.
    remote_params : RemoteParams, optional
        The key is in ``ANTHROPIC_API_KEY`` unless it is given, the address in
        ``ANTHROPIC_BASE_URL`` where it is not Anthropic's own.
    generation_params : GenerationParams, optional
        Defaults for every call. The API has no temperature, ``top_p`` or seed: the model
        samples in its own way, and equal prompts may have different answers. What it thinks
        counts as output tokens and is no part of the answer.

    Raises
    ------
    ConfigurationError
        For names, types and values that cannot be right.

    Examples
    --------
    >>> engine = AnthropicInferenceEngine(ModelParams("claude-sonnet-4-5"))
    """

    name = "anthropic"
    default_url = "https://api.anthropic.com"
    url_variable = "ANTHROPIC_BASE_URL"
    key_variable = "ANTHROPIC_API_KEY"

    def wire(self) -> AnthropicWire:
        return AnthropicWire(self.remote_params.extra_body)

    def _batches(self) -> AnthropicBatches:
        return AnthropicBatches()
