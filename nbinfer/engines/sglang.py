"""sglang: an SGLang server, with what SGLang has beyond OpenAI's API."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..config import GenerationParams
from ..errors import ConfigurationError, UnsupportedParameter
from ..records import RowRequest
from ..remote.exchange import Answer, Request
from ..remote.openai import NEUTRAL, OpenAIWire
from ..remote.service import Service
from ..tools import call_schema
from . import registry
from .remote import RemoteEngine

__all__ = ["SGLangInferenceEngine", "SGLangWire"]


class SGLangWire(OpenAIWire):
    """SGLang's own fields: regex, EBNF, and its ``/generate`` for log-probabilities of prompts."""

    # Else SGLang takes what the model's generation_config.json says.
    explicit: ClassVar[Mapping[str, Any]] = {**NEUTRAL, "top_k": -1}

    def request(self, row: Mapping[str, Any], model: str) -> Request:
        if row["params"].get("prompt_logprobs") is not None:
            return _generate(row)
        return super().request(row, model)

    def guided(self, guided: Mapping[str, Any]) -> dict[str, Any]:
        if guided.get("json") is not None:
            form = {"name": "answer", "schema": guided["json"]}
            return {"response_format": {"type": "json_schema", "json_schema": form}}
        if guided.get("choice") is not None:
            return {"regex": "|".join(map(re.escape, guided["choice"]))}
        if guided.get("regex") is not None:
            return {"regex": guided["regex"]}
        return {"ebnf": guided["grammar"]}

    def tools(self, tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
        """A forced call by its schema: SGLang's own way needs a ``--tool-call-parser``."""
        schema = call_schema(tools, choice)
        if schema is None:
            return super().tools(tools, choice)
        # With "none" the chat template would not be told of the tools.
        return {"tools": list(tools), "tool_choice": "auto", **self.guided({"json": schema})}

    def adapt(self, body: dict[str, Any], params: Mapping[str, Any]) -> None:
        if params.get("adapter"):  # SGLang's own way; as a model's name it wants a prefix
            body["lora_path"] = params["adapter"]
        if params.get("priority"):
            body["priority"] = params["priority"]
        schema = body.get("response_format")
        if schema is not None and "prompt" in body:  # completions take it elsewhere
            del body["response_format"]
            body["json_schema"] = json.dumps(schema["json_schema"]["schema"])

    def whole(self, value: dict[str, Any], answer: Answer) -> None:
        if "meta_info" in value:
            _of_generate(value, answer)
        else:
            super().whole(value, answer)


def _generate(row: Mapping[str, Any]) -> Request:
    """SGLang's own request: the only one that gives log-probabilities of the prompt."""
    params = row["params"]
    sampling = {
        "max_new_tokens": params["max_new_tokens"],
        "temperature": params["temperature"],
        "stop": list(params.get("stop_strings") or ()) or None,
        "stop_token_ids": list(params.get("stop_token_ids") or ()) or None,
    }
    for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
        if params.get(name) is not None:
            sampling[name] = params[name]
    top = params["prompt_logprobs"]
    body = {
        "text": row["prompt"],
        "sampling_params": {k: v for k, v in sampling.items() if v is not None},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": top,
        "return_text_in_logprobs": True,
    }
    return Request("/generate", body, above=True)


def _of_generate(value: Mapping[str, Any], answer: Answer) -> None:
    meta = value["meta_info"]
    answer.pieces = [value["text"]]
    reason = (meta.get("finish_reason") or {}).get("type")
    answer.finish_reason = "length" if reason == "length" else "stop"
    answer.prompt_tokens = meta.get("prompt_tokens")
    answer.output_tokens = meta.get("completion_tokens")
    answer.cached_tokens = meta.get("cached_tokens")
    tops = meta.get("input_top_logprobs") or []
    answer.prompt_logprobs = [
        None
        if token[0] is None
        else [_entry(token), *(_entry(t) for t in (tops[i] if i < len(tops) else None) or ())]
        for i, token in enumerate(meta.get("input_token_logprobs") or ())
    ]


def _entry(given: Any) -> dict[str, Any]:
    logprob, token, text = (*given, None)[:3]
    return {"token": text, "id": token, "logprob": logprob}


class SGLangInferenceEngine(RemoteEngine):
    """An SGLang server: RadixAttention's prefix cache and fast structured outputs.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the name under which it is served.
    remote_params : RemoteParams, optional
        ``api_url``: default a server that ``%engine serve sglang`` has started, else
        ``http://localhost:30000``.
    generation_params : GenerationParams, optional
        Defaults for every call. ``prompt_logprobs`` needs ``raw=True``: SGLang gives them by
        its own ``/generate``, which takes text. ``adapter``: one that the server has.

    Raises
    ------
    ConfigurationError
        For names, types and values that cannot be right. The server is asked by ``load()`` or
        the first ``infer()``.

    Notes
    -----
    ``cached_tokens`` is filled where the server was started with ``--enable-cache-report``, as
    ``%engine serve sglang`` does.

    Examples
    --------
    >>> engine = SGLangInferenceEngine(
    ...     ModelParams("meta-llama/Llama-3.1-8B-Instruct"),
    ...     remote_params=RemoteParams(api_url="http://localhost:6864"),
    ... )
    """

    name = "sglang"
    default_url = "http://localhost:30000"
    library = "sglang"
    own_server = "sglang"

    def wire(self) -> SGLangWire:
        return SGLangWire(self.remote_params.extra_body)

    async def _ready(self, service: Service, requests: Sequence[RowRequest] = ()) -> None:
        await super()._ready(service, requests)
        seeded = any(r.params.get("seed") is not None for r in requests)
        for server in service.servers if seeded else ():
            if server.facts.get("deterministic") is False:
                raise UnsupportedParameter(
                    f"{server.shown} cannot honour seed: it samples anew whatever the seed is",
                    parameter="seed",
                    engine=self.name,
                    engines=registry.supporting("seed"),
                    hint="Start it with --enable-deterministic-inference, or leave out the seed.",
                )

        if any(r.params.get("tools") and r.params["tool_choice"] == "auto" for r in requests):
            self._check_reads_calls(
                service,
                "Start it with --tool-call-parser NAME (%engine serve sglang -k "
                "tool_call_parser=NAME), or force a call by tool_choice.",
            )

    def _check_generation(self, params: GenerationParams) -> None:
        super()._check_generation(params)
        if params.prompt_logprobs is not None and not params.raw:
            raise ConfigurationError(
                "sglang gives prompt_logprobs for raw prompts alone",
                hint="GenerationParams(raw=True, ...), or --raw; remote-vllm gives them for chats",
            )
