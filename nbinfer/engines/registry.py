"""The engines by name: what each is and can do, without importing any of them."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from .base import InferenceEngine

__all__ = ["Capabilities", "EngineSpec", "engine_class", "names", "spec", "specs", "supporting"]

# What every engine of ours has.
COMMON = frozenset({"max_new_tokens", "temperature", "seed", "n", "raw", "separate_reasoning"})
SAMPLING = frozenset({"top_p", "top_k", "min_p", "repetition_penalty", "logit_bias"})
PENALTIES = frozenset({"frequency_penalty", "presence_penalty"})
STOPS = frozenset({"stop_strings", "stop_token_ids"})
TOOLS = frozenset({"tools", "tool_choice"})
# What native, vLLM and SGLang have in common.
FULL = frozenset(
    {
        *(*COMMON, *SAMPLING, *PENALTIES, *STOPS, *TOOLS),
        *("logprobs", "skip_special_tokens", "guided_decoding", "ignore_eos"),
    }
)
GUIDED = frozenset({"json", "regex", "choice", "grammar"})
CALLS = frozenset({"auto", "none", "required", "named"})
# What every server has: nothing is loaded here, and many rows are under way at once.
SERVER = frozenset({"streaming", "continuous_batching", "server", "tools", "reasoning"})


@dataclass(frozen=True)
class Capabilities:
    """What an engine honours.

    Attributes
    ----------
    generation : frozenset of str
        Fields of ``GenerationParams``.
    model : frozenset of str
        Fields of ``ModelParams`` beyond ``model_name`` and ``model_kwargs``.
    guided_decoding : frozenset of str
        ``"json"``, ``"regex"``, ``"choice"``, ``"grammar"``.
    tool_choice : frozenset of str
        ``"auto"``, ``"none"``, ``"required"``, ``"named"``.
    features : frozenset of str
        ``"streaming"``, ``"continuous_batching"``, ``"prefix_caching"``, ``"vision"``, ...
    """

    generation: frozenset[str] = COMMON
    model: frozenset[str] = frozenset()
    guided_decoding: frozenset[str] = frozenset()
    tool_choice: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class EngineSpec:
    """An engine that can be named.

    Attributes
    ----------
    path : str
        ``module:class`` inside ``nbinfer.engines``.
    library : str
        The distribution that must be installed, ``""`` for none.
    hidden : bool
        Whether it is left out of lists and completion (``echo`` is for tests).
    asks : str
        The name by which ``nbinfer.serve`` starts a server that it asks, ``""`` for none.
    """

    name: str
    path: str
    summary: str
    library: str = ""
    hidden: bool = False
    asks: str = ""
    capabilities: Capabilities = field(default_factory=Capabilities)


_SPECS = {
    spec.name: spec
    for spec in (
        EngineSpec(
            "llamacpp",
            "llamacpp:LlamaCppInferenceEngine",
            "llama.cpp in-process: GGUF models on CPU, Metal or GPU",
            library="xllamacpp",
            capabilities=Capabilities(
                generation=COMMON
                | SAMPLING
                | PENALTIES
                | TOOLS
                | {"stop_strings", "logprobs", "guided_decoding", "adapter", "ignore_eos"},
                model=frozenset(
                    {
                        "adapter_model",
                        "adapters",
                        "chat_template",
                        "chat_template_kwargs",
                        "model_max_length",
                        "model_revision",
                    }
                ),
                guided_decoding=frozenset({"json", "choice", "grammar"}),
                tool_choice=CALLS,
                features=frozenset(
                    {
                        "streaming",
                        "continuous_batching",
                        "prefix_caching",
                        "cpu",
                        "gguf",
                        "adapters",
                        "vision",
                        "speculative",
                        "quantization",
                        "tools",
                        "reasoning",
                    }
                ),
            ),
        ),
        EngineSpec(
            "native",
            "native:NativeTextInferenceEngine",
            "Hugging Face Transformers: every model, for prototypes and debugging",
            library="transformers",
            capabilities=Capabilities(
                generation=FULL | {"num_beams", "adapter"},
                model=frozenset(
                    {
                        "adapter_model",
                        "adapters",
                        "model_revision",
                        "tokenizer_name",
                        "tokenizer_kwargs",
                        "model_max_length",
                        "trust_remote_code",
                        "torch_dtype_str",
                        "compile",
                        "chat_template",
                        "chat_template_kwargs",
                        "attn_implementation",
                        "processor_kwargs",
                        "device_map",
                    }
                ),
                guided_decoding=GUIDED,
                tool_choice=CALLS,
                features=frozenset(
                    {
                        *("streaming", "continuous_batching", "prefix_caching", "cpu"),
                        *("gguf", "safetensors", "quantization", "adapters", "speculative"),
                        *("exec", "tools", "reasoning", "tensor_parallel", "vision"),
                    }
                ),
            ),
        ),
        EngineSpec(
            "vllm",
            "vllm:VLLMInferenceEngine",
            "vLLM: continuous batching and paged KV cache, for throughput",
            library="vllm",
            capabilities=Capabilities(
                generation=FULL | {"adapter"},
                model=frozenset(
                    {
                        "adapter_model",
                        "adapters",
                        "model_revision",
                        "tokenizer_name",
                        "model_max_length",
                        "trust_remote_code",
                        "torch_dtype_str",
                        "compile",
                        "chat_template",
                        "chat_template_kwargs",
                        "processor_kwargs",
                    }
                ),
                guided_decoding=GUIDED,
                tool_choice=CALLS,
                features=frozenset(
                    {
                        "streaming",
                        "continuous_batching",
                        "prefix_caching",
                        "cpu",
                        "safetensors",
                        "quantization",
                        "adapters",
                        "vision",
                        "tools",
                        "reasoning",
                        "tensor_parallel",
                        "speculative",
                    }
                ),
            ),
        ),
        EngineSpec(
            "remote-vllm",
            "remote_vllm:RemoteVLLMInferenceEngine",
            "a vLLM server: one model for many clients",
            asks="vllm",
            capabilities=Capabilities(
                generation=FULL | {"adapter", "prompt_logprobs", "priority"},
                model=frozenset({"adapter_model", "adapters", "chat_template_kwargs"}),
                guided_decoding=GUIDED,
                tool_choice=CALLS,
                features=SERVER | {"prefix_caching", "adapters", "vision"},
            ),
        ),
        EngineSpec(
            "sglang",
            "sglang:SGLangInferenceEngine",
            "an SGLang server: RadixAttention and structured outputs",
            asks="sglang",
            capabilities=Capabilities(
                generation=FULL | {"adapter", "prompt_logprobs", "priority"},
                model=frozenset({"adapter_model", "adapters"}),
                guided_decoding=GUIDED,
                tool_choice=CALLS,
                features=SERVER | {"prefix_caching", "adapters", "vision"},
            ),
        ),
        EngineSpec(
            "openai",
            "openai:OpenAIInferenceEngine",
            "OpenAI's API",
            capabilities=Capabilities(
                generation=COMMON - {"raw"}
                | PENALTIES
                | TOOLS
                | {"top_p", "logit_bias", "stop_strings", "logprobs", "guided_decoding"},
                guided_decoding=frozenset({"json"}),
                tool_choice=CALLS,
                features=SERVER | {"prefix_caching", "vision", "batch"},
            ),
        ),
        EngineSpec(
            "anthropic",
            "anthropic:AnthropicInferenceEngine",
            "Anthropic's Messages API",
            capabilities=Capabilities(
                generation=TOOLS
                | {"max_new_tokens", "n", "stop_strings", "guided_decoding", "separate_reasoning"},
                guided_decoding=frozenset({"json"}),
                tool_choice=CALLS,
                features=SERVER | {"prefix_caching", "vision", "batch"},
            ),
        ),
        EngineSpec(
            "openai-compatible",
            "openai:OpenAICompatibleInferenceEngine",
            "any server that speaks OpenAI's API: llama.cpp's, Ollama, a gateway",
            asks="llamacpp",
            capabilities=Capabilities(
                generation=COMMON
                | SAMPLING
                | PENALTIES
                | TOOLS
                | {"stop_strings", "logprobs", "guided_decoding", "ignore_eos"},
                guided_decoding=frozenset({"json"}),
                tool_choice=CALLS,
                features=SERVER | {"vision"},
            ),
        ),
        EngineSpec(
            "echo",
            "echo:EchoInferenceEngine",
            "answers with the prompt: for tests and for learning the magics",
            hidden=True,
            capabilities=Capabilities(
                generation=COMMON | TOOLS | {"ignore_eos"},
                tool_choice=CALLS - {"auto"},
                features=frozenset({"streaming", "cpu", "exec", "reasoning"}),
            ),
        ),
    )
}


def names(*, hidden: bool = False) -> list[str]:
    """Engine names, in order of the table above."""
    return [s.name for s in _SPECS.values() if hidden or not s.hidden]


def specs(*, hidden: bool = False) -> list[EngineSpec]:
    """Engine specs, in order of the table above."""
    return [s for s in _SPECS.values() if hidden or not s.hidden]


def spec(name: str) -> EngineSpec:
    """The engine of this name.

    Raises
    ------
    ConfigurationError
        For another name, with the nearest one.
    """
    found = _SPECS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, names(), 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"no engine is called {name!r}", hint=f"{guess}Engines: {', '.join(names())}"
        )
    return found


def engine_class(name: str) -> type[InferenceEngine]:
    """Import an engine's public class. Its library is not imported in this process."""
    module, _, attribute = spec(name).path.partition(":")
    found: type[InferenceEngine] = getattr(
        importlib.import_module(f"nbinfer.engines.{module}"), attribute
    )
    return found


def supporting(parameter: str, *, of: str = "generation") -> tuple[str, ...]:
    """Names of the engines whose capabilities list a parameter."""
    return tuple(s.name for s in specs() if parameter in getattr(s.capabilities, of))
