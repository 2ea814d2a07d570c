"""openai and openai-compatible: OpenAI's own API, and whatever else speaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..records import RowRequest
from ..remote.batch_apis import OpenAIBatches
from ..remote.openai import OpenAIWire
from ..remote.service import Service
from ..tools import CHOICES
from .remote import RemoteEngine

__all__ = ["OpenAICompatibleInferenceEngine", "OpenAIInferenceEngine"]


class OpenAICompatibleInferenceEngine(RemoteEngine):
    """Any server that speaks OpenAI's chat completions: llama.cpp's, Ollama, a gateway, a cloud.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the name under which the server serves it.
    remote_params : RemoteParams
        ``api_url``: its address, with or without ``/v1``. Default: a server that
        ``%engine serve llamacpp`` has started.
    generation_params : GenerationParams, optional
        Defaults for every call. Parameters beyond OpenAI's reference (``top_k``, ``min_p``,
        ``repetition_penalty``) are sent only where they are set; a server that does not know
        one may drop it. Others go through ``RemoteParams(extra_body={...})``.

    Raises
    ------
    ConfigurationError
        For names, types and values that cannot be right. The server is asked by ``load()`` or
        the first ``infer()``.

    Examples
    --------
    >>> engine = OpenAICompatibleInferenceEngine(
    ...     ModelParams("gemma3"), remote_params=RemoteParams(api_url="http://localhost:11434")
    ... )
    """

    name = "openai-compatible"

    def wire(self) -> OpenAIWire:
        return OpenAIWire(self.remote_params.extra_body)

    async def _ready(self, service: Service, requests: Sequence[RowRequest] = ()) -> None:
        await super()._ready(service, requests)
        if any(r.params.get("tools") for r in requests):
            self._check_reads_calls(
                service, "Its model's chat template knows no tools, and llama.cpp drops them then."
            )


class OpenAIWireOfOpenAI(OpenAIWire):
    """OpenAI's own: newer models take ``max_completion_tokens`` alone."""

    sampling = ("top_p", "seed", "frequency_penalty", "presence_penalty")
    limit = "max_completion_tokens"

    def tools(self, tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any]:
        named: Any = {"type": "function", "function": {"name": choice}}
        return {"tools": list(tools), "tool_choice": choice if choice in CHOICES else named}


class OpenAIInferenceEngine(RemoteEngine):
    """OpenAI's API.

    Parameters
    ----------
    model_params : ModelParams or str
        ``model_name``: such as ``"gpt-5-mini"``. There is no default that OpenAI serves.
    remote_params : RemoteParams, optional
        The key is in ``OPENAI_API_KEY`` unless it is given, the address in
        ``OPENAI_BASE_URL`` where it is not OpenAI's own.
    generation_params : GenerationParams, optional
        Defaults for every call. Reasoning models take ``temperature=1.0`` alone; their hidden
        tokens count as output tokens.

    Raises
    ------
    ConfigurationError
        For names, types and values that cannot be right.

    Examples
    --------
    >>> engine = OpenAIInferenceEngine(ModelParams("gpt-5-mini"))
    """

    name = "openai"
    default_url = "https://api.openai.com/v1"
    url_variable = "OPENAI_BASE_URL"
    key_variable = "OPENAI_API_KEY"
    most: ClassVar[Mapping[str, float]] = {"temperature": 2.0}

    def wire(self) -> OpenAIWire:
        return OpenAIWireOfOpenAI(self.remote_params.extra_body)

    def _batches(self) -> OpenAIBatches:
        return OpenAIBatches()
