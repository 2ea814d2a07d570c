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
from ..remote.openai import NEUTRAL, OpenAIWire, plain_fields
from ..remote.service import Server, Service
from ..tools import call_schema
from . import registry
from .server_adapters import AdapterServer

__all__ = ["SGLangInferenceEngine", "SGLangWire"]

# What ``/generate`` calls as we do.
_GENERATE = (
    *("top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"),
    *("stop_token_ids", "skip_special_tokens"),
)


class SGLangWire(OpenAIWire):
    """SGLang's own fields: regex, EBNF, and its ``/generate`` for log-probabilities of prompts."""

    # Else SGLang takes what the model's generation_config.json says.
    explicit: ClassVar[Mapping[str, Any]] = {**NEUTRAL, "top_k": -1}

    def request(self, row: Mapping[str, Any], model: str) -> Request:
        if row["params"].get("prompt_logprobs") is not None:
            return self._generate(row)
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
        if "response_format" in body and "prompt" in body:  # completions take it elsewhere
            body.update(_as_text({"response_format": body.pop("response_format")}))

    def whole(self, value: dict[str, Any], answer: Answer) -> None:
        if "meta_info" in value:
            _of_generate(value, answer)
        else:
            super().whole(value, answer)

    def _generate(self, row: Mapping[str, Any]) -> Request:
        """SGLang's own request: the only one that gives log-probabilities of the prompt."""
        params = row["params"]
        sampling: dict[str, Any] = {
            "max_new_tokens": params["max_new_tokens"],
            "temperature": params["temperature"],
            **self.explicit,
            **plain_fields(params, *_GENERATE),
        }
        if params.get("stop_strings"):
            sampling["stop"] = list(params["stop_strings"])
        if params.get("seed") is not None:
            sampling["sampling_seed"] = params["seed"]
        if params.get("logit_bias"):
            sampling["logit_bias"] = {str(k): v for k, v in params["logit_bias"].items()}
        if params.get("guided_decoding"):
            sampling.update(_as_text(self.guided(params["guided_decoding"])))
        body = {
            "text": row["prompt"],
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": max(params["prompt_logprobs"], params.get("logprobs") or 0),
            "return_text_in_logprobs": True,
            **plain_fields(params, "priority"),
            **({"lora_path": params["adapter"]} if params.get("adapter") else {}),
            **self._extra,
        }
        return Request("/generate", body, above=True)


def _as_text(guided: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON Schema as a text, where it is no chat's."""
    if "response_format" not in guided:
        return dict(guided)
    return {"json_schema": json.dumps(guided["response_format"]["json_schema"]["schema"])}


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
    given = zip(
        meta.get("output_token_logprobs") or (), meta.get("output_top_logprobs") or (), strict=False
    )
    answer.logprobs = [{**_entry(token), "top": [_entry(t) for t in top]} for token, top in given]


def _entry(given: Any) -> dict[str, Any]:
    logprob, token, text = (*given, None)[:3]
    return {"token": text, "id": token, "logprob": logprob}


class SGLangInferenceEngine(AdapterServer):
    """An SGLang server: RadixAttention's prefix cache and fast structured outputs.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the name under which it is served. ``adapters``: LoRA folders *on the
        server* by the name that a request asks for; one that is not served yet is loaded there,
        where the server was started with ``--enable-lora``. ``adapter_model``: one for every
        request. How the server loads its model is its own affair: such parameters are announced
        as left to it.
    remote_params : RemoteParams, optional
        ``api_url``: default a server that ``%engine serve sglang`` has started, else
        ``http://localhost:30000``.
    generation_params : GenerationParams, optional
        Defaults for every call. ``prompt_logprobs`` needs ``raw=True``: SGLang gives them by
        its own ``/generate``, which takes text.

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
    most: ClassVar[Mapping[str, float]] = {"repetition_penalty": 2.0}

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

    def _adapter_address(self, server: Server) -> str:
        return server.root + "/load_lora_adapter"  # beside /v1

    def _adapter_hint(self, name: str) -> str:
        return (
            "Start it with --enable-lora, --max-lora-rank and --lora-target-modules, or with "
            f"--lora-paths {name}=FOLDER."
        )

    def _check_generation(self, params: GenerationParams) -> None:
        super()._check_generation(params)
        if params.prompt_logprobs is not None and not params.raw:
            raise ConfigurationError(
                "sglang gives prompt_logprobs for raw prompts alone",
                hint="GenerationParams(raw=True, ...), or --raw; remote-vllm gives them for chats",
            )
