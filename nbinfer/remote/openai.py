"""The API that most servers speak: chat completions, and completions for raw prompts.

Written against OpenAI's reference; vLLM, SGLang and llama.cpp add to it in their own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..tools import CHOICES
from .exchange import Answer, Request
from .failures import from_body

__all__ = ["NEUTRAL", "OpenAIWire", "plain_fields"]

# Values that change nothing. They are not sent to a server that may not know the parameter.
NEUTRAL = {
    "top_p": 1.0,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}
_DEFAULTS = {**NEUTRAL, "skip_special_tokens": True, "ignore_eos": False}
_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "stop"}


def plain_fields(params: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Parameters that are sent under their own names, where they say something."""
    return {
        name: params[name]
        for name in names
        if params.get(name) is not None and params[name] != _DEFAULTS.get(name)
    }


class OpenAIWire:
    """Requests and streams of an OpenAI-compatible server.

    Parameters
    ----------
    extra_body : mapping, optional
        Added to each request's body as it is.
    """

    # Sent under their own names, where they are not what the server does anyway.
    sampling: tuple[str, ...] = (
        *("top_p", "seed", "frequency_penalty", "presence_penalty"),
        *("top_k", "min_p", "repetition_penalty", "stop_token_ids", "skip_special_tokens"),
        "ignore_eos",
    )
    limit = "max_tokens"
    # Sent where a row says nothing: what else would be the server's own, or its model's.
    explicit: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, extra_body: Mapping[str, Any] | None = None) -> None:
        self._extra = dict(extra_body or {})

    def headers(self, key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    # ------------------------------------------------------------------- requests

    def request(self, row: Mapping[str, Any], model: str) -> Request:
        params = row["params"]
        body: dict[str, Any] = {
            "model": params.get("adapter") or model,
            self.limit: params["max_new_tokens"],
            "temperature": params["temperature"],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.explicit,
            **plain_fields(params, *self.sampling),
        }
        if params.get("stop_strings"):
            body["stop"] = list(params["stop_strings"])
        if params.get("logit_bias"):
            body["logit_bias"] = {str(k): v for k, v in params["logit_bias"].items()}
        chat = "messages" in row
        if chat:
            body["messages"] = row["messages"]
        else:
            body["prompt"] = row["prompt"]
        if params.get("logprobs") is not None:
            top = params["logprobs"]
            body.update({"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top})
        if params.get("guided_decoding"):
            body.update(self.guided(params["guided_decoding"]))
        if params.get("tools"):
            body.update(self.tools(params["tools"], params["tool_choice"]))
        self.adapt(body, params)
        body.update(self._extra)
        return Request("/chat/completions" if chat else "/completions", body)

    def guided(self, guided: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON Schema, as OpenAI takes it. The capabilities let nothing else through."""
        schema = guided["json"]
        form = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
        return {"response_format": {"type": "json_schema", "json_schema": form}}

    def tools(self, tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
        """Tools, and which is called. A name is the one tool that must be called: servers such
        as llama.cpp's take no names, and say nothing.
        """
        if choice in CHOICES:
            return {"tools": list(tools), "tool_choice": choice}
        named = [tool for tool in tools if tool["function"]["name"] == choice]
        return {"tools": named, "tool_choice": "required"}

    def adapt(self, body: dict[str, Any], params: Mapping[str, Any]) -> None:
        """What a server has beyond OpenAI's reference."""

    # -------------------------------------------------------------------- answers

    def event(self, name: str, value: dict[str, Any], answer: Answer) -> None:  # noqa: ARG002
        failure = from_body(value)
        if failure is not None:
            raise failure
        for choice in value.get("choices") or ():
            if answer.finish_reason is None:  # what comes after the end was sent twice
                self._choice(choice, choice.get("delta") or choice, answer)
        self._usage(value, answer)

    def whole(self, value: dict[str, Any], answer: Answer) -> None:
        for choice in (value.get("choices") or ())[:1]:
            message = choice.get("message") or choice
            self._choice(choice, message, answer)
            answer.first_at = 0.0
        if value.get("prompt_logprobs") is not None:
            answer.prompt_logprobs = value["prompt_logprobs"]
        self._usage(value, answer)

    def _choice(
        self, choice: Mapping[str, Any], message: Mapping[str, Any], answer: Answer
    ) -> None:
        text = message.get("content") or message.get("text") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            answer.thought(reasoning)
        if text:
            answer.token(text if isinstance(text, str) else "")
        for place, call in enumerate(message.get("tool_calls") or ()):
            function = call.get("function") or {}
            answer.called(call.get("index", place), function.get("name"), function.get("arguments"))
        if choice.get("logprobs"):
            answer.logprobs = [*(answer.logprobs or ()), *self.logprobs(choice)]
        if message.get("refusal"):
            answer.refused = f"the model refused: {message['refusal']}"[:600]
        reason = choice.get("finish_reason")
        if reason == "content_filter":
            answer.refused = "the server's content filter ended the answer"
        elif reason:
            answer.finish_reason = _FINISH.get(reason, "stop")

    def logprobs(self, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Log-probabilities of the new tokens: of a chat, or of a completion."""
        given = choice["logprobs"]
        if "content" in given:
            return [_chat_logprob(token) for token in given["content"] or ()]
        tops = given.get("top_logprobs") or [None] * len(given["tokens"])
        return [
            {
                "token": token,
                "id": None,
                "logprob": logprob,
                "top": [_entry(t, p) for t, p in (top or {}).items()],
            }
            for token, logprob, top in zip(
                given["tokens"], given["token_logprobs"], tops, strict=False
            )
        ]

    def _usage(self, value: Mapping[str, Any], answer: Answer) -> None:
        usage = value.get("usage")
        if not usage:
            return
        answer.prompt_tokens = usage.get("prompt_tokens")
        answer.output_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        answer.cached_tokens = details.get("cached_tokens")


def _chat_logprob(token: Mapping[str, Any]) -> dict[str, Any]:
    top = [_entry(t["token"], t["logprob"]) for t in token.get("top_logprobs") or ()]
    return {**_entry(token["token"], token["logprob"]), "top": top}


def _entry(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "id": None, "logprob": logprob}


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI takes it as strict: every object closed, every property required."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = set(schema.get("properties") or ())
        if schema.get("additionalProperties") is not False or names != set(
            schema.get("required") or ()
        ):
            return False
    return all(map(_is_strict, schema.values()))
