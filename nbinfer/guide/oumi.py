"""Oumi's names and ours: classes, fields of its parameters, engines of its configurations."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CLASSES", "ENGINES", "FIELDS", "LOST", "MODULES"]

# Where Oumi has what nbinfer has under the same name.
MODULES = ("oumi.inference", "oumi.core.configs", "oumi.core.types", "oumi.core.inference")
CLASSES = frozenset(
    {
        *("ModelParams", "GenerationParams", "RemoteParams", "GuidedDecodingParams"),
        *("Conversation", "Message", "Role"),
        *("VLLMInferenceEngine", "NativeTextInferenceEngine", "LlamaCppInferenceEngine"),
        *("RemoteVLLMInferenceEngine", "SGLangInferenceEngine"),
        *("OpenAIInferenceEngine", "AnthropicInferenceEngine"),
    }
)
# ``engine:`` of an inference configuration.
ENGINES: Mapping[str, str] = {
    "NATIVE": "native",
    "VLLM": "vllm",
    "LLAMACPP": "llamacpp",
    "REMOTE_VLLM": "remote-vllm",
    "SGLANG": "sglang",
    "OPENAI": "openai",
    "ANTHROPIC": "anthropic",
    "REMOTE": "openai-compatible",
}
# Fields that have another name here.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "RemoteParams": {
        "connection_timeout": "read_timeout_s",
        "requests_per_min": "requests_per_minute",
    },
    "GenerationParams": {"stop": "stop_strings"},
}
# Fields that have no counterpart, and why.
_TRAINING = "nbinfer only infers"
LOST: Mapping[str, Mapping[str, str]] = {
    "ModelParams": {
        "load_pretrained_weights": "weights are always the model's own",
        "tokenizer_pad_token": "padding is the engine's own affair",
        "enable_liger_kernel": _TRAINING,
        "shard_for_eval": "model_kwargs={'tensor_parallel_size': N} splits a model",
        "freeze_layers": _TRAINING,
        "peft_hf_name": _TRAINING,
    },
    "GenerationParams": {
        "batch_size": "engine.infer(..., batch_size=N) says it; by default the engine chooses",
        "exclude_prompt_from_response": "a row's output never has the prompt",
        "use_cache": "the KV cache is always used",
        "use_sampling": "temperature=0 is greedy, any other samples",
    },
    "RemoteParams": {
        "politeness_policy": "requests_per_minute=N is the limit here",
        "batch_completion_window": "a batch's window is a day",
        "input_token_limit": "tokens_per_minute=N limits prompts and answers together",
        "output_token_limit": "tokens_per_minute=N limits prompts and answers together",
        "use_adaptive_concurrency": "it adapts by itself unless num_workers is set",
    },
}
