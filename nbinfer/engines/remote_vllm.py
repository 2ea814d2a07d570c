"""remote-vllm: a vLLM server, with what vLLM has beyond OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..remote.exchange import Answer
from ..remote.openai import NEUTRAL, OpenAIWire, plain_fields
from ..remote.service import Server
from ..tools import call_schema
from .server_adapters import AdapterServer

__all__ = ["RemoteVLLMInferenceEngine", "VLLMWire"]

_KINDS = ("json", "regex", "choice", "grammar")


class VLLMWire(OpenAIWire):
    """vLLM's own fields: structured outputs, priority, log-probabilities of the prompt."""

    # Else vLLM takes what the model's generation_config.json says.
    explicit: ClassVar[Mapping[str, Any]] = {**NEUTRAL, "top_k": 0}

    def __init__(
        self,
        extra_body: Mapping[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(extra_body)
        self._template = dict(chat_template_kwargs or {})

    def guided(self, guided: Mapping[str, Any]) -> dict[str, Any]:
        wanted = {kind: guided[kind] for kind in _KINDS if guided.get(kind) is not None}
        return {"structured_outputs": wanted}

    def tools(self, tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
        """A forced call by structured outputs: vLLM's own way needs a ``--tool-call-parser``."""
        schema = call_schema(tools, choice)
        if schema is None:
            return super().tools(tools, choice)
        return {"tools": list(tools), "tool_choice": "none", **self.guided({"json": schema})}

    def adapt(self, body: dict[str, Any], params: Mapping[str, Any]) -> None:
        body.update(plain_fields(params, "prompt_logprobs"))
        if params.get("priority"):
            body["priority"] = params["priority"]
        if params.get("logprobs") is not None:
            body["return_token_ids"] = True
        if params.get("prompt_logprobs") is not None:
            body["stream"] = False  # vLLM gives them in one piece alone
            del body["stream_options"]
        if self._template and "messages" in body:
            body["chat_template_kwargs"] = self._template

    def logprobs(self, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = super().logprobs(choice)
        for entry, token in zip(found, choice.get("token_ids") or (), strict=False):
            entry["id"] = token
        return found

    def whole(self, value: dict[str, Any], answer: Answer) -> None:
        super().whole(value, answer)
        for choice in value.get("choices") or ():  # of a completion they are the choice's
            given = choice.get("prompt_logprobs") or value.get("prompt_logprobs")
            if given is not None:
                answer.prompt_logprobs = [_prompt_token(token) for token in given]


def _prompt_token(given: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """One token of the prompt: its candidates, likeliest first; the first token has none."""
    if given is None:
        return None
    ranked = sorted(given.items(), key=lambda item: item[1].get("rank") or 0)
    return [
        {"token": found.get("decoded_token"), "id": int(token), "logprob": found.get("logprob")}
        for token, found in ranked
    ]


class RemoteVLLMInferenceEngine(AdapterServer):
    """A vLLM server, wherever it runs: the same rows as ``vllm``, over HTTP.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the name under which it is served (``--served-model-name``).
        ``adapters``: LoRA folders *on the server* by the name that a request asks for; one that
        is not served yet is loaded there, where the server was started with
        ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``. ``adapter_model``: one for every request.
        How the server loads its model is its own affair: such parameters are announced as left
        to it.
    remote_params : RemoteParams, optional
        ``api_url``: default a server that ``%engine serve vllm`` has started, else
        ``http://localhost:8000``.
    generation_params : GenerationParams, optional
        Defaults for every call.

    Raises
    ------
    ConfigurationError
        For names, types and values that cannot be right. The server is asked by ``load()`` or
        the first ``infer()``.

    Notes
    -----
    ``cached_tokens`` is filled where the server was started with
    ``--enable-prompt-tokens-details``, as ``%engine serve vllm`` does.

    Examples
    --------
    >>> engine = RemoteVLLMInferenceEngine(
    ...     ModelParams("meta-llama/Llama-3.1-8B-Instruct"),
    ...     remote_params=RemoteParams(api_url="http://your-server:8000"),
    ... )
    """

    name = "remote-vllm"
    default_url = "http://localhost:8000"
    library = "vllm"
    most: ClassVar[Mapping[str, float]] = {"temperature": 2.0}

    def wire(self) -> VLLMWire:
        return VLLMWire(self.remote_params.extra_body, self.model_params.chat_template_kwargs)

    def _adapter_address(self, server: Server) -> str:  # noqa: ARG002
        return "/load_lora_adapter"

    def _adapter_hint(self, name: str) -> str:
        return (
            "Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, or with "
            f"--lora-modules {name}=FOLDER."
        )
