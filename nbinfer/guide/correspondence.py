"""How a parameter of one engine is said to another: the table behind ``%migrate``.

A parameter is a path: a field of ``ModelParams``, ``model_kwargs.NAME``, ``generation_params.NAME``
or ``remote_params.NAME``. What the registry says that the target takes is kept; for the rest there
is a rule here, or it is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engines import registry
from ..engines.llamacpp_options import OPTIONS
from .rules import APPROXIMATED, KEPT, LOST, RENAMED, RULES, Change

__all__ = ["change"]

LOCAL = ("native", "vllm", "llamacpp")
# One meaning, and its name on each engine.
_SAME = (
    {"native": "model_max_length", "vllm": "model_max_length", "llamacpp": "model_kwargs.n_ctx"},
    dict.fromkeys(LOCAL, "model_kwargs.n_threads"),
    {
        "native": "model_kwargs.batch_size",
        "vllm": "model_kwargs.max_num_seqs",
        "llamacpp": "model_kwargs.n_parallel",
    },
    dict.fromkeys(("native", "vllm"), "model_kwargs.tensor_parallel_size"),
    {"native": "model_kwargs.assistant_model", "llamacpp": "model_kwargs.draft_model"},
    {"native": "model_kwargs.num_assistant_tokens", "llamacpp": "model_kwargs.draft_max"},
)
# Other spellings that people use for a field of ours.
_SPELLED = {
    ("vllm", "model_kwargs.max_model_len"): "model_max_length",
    ("vllm", "model_kwargs.dtype"): "torch_dtype_str",
    ("vllm", "model_kwargs.trust_remote_code"): "trust_remote_code",
    ("native", "model_kwargs.n_ctx"): "model_max_length",
    ("native", "model_kwargs.torch_dtype"): "torch_dtype_str",
    ("native", "model_kwargs.attn_implementation"): "attn_implementation",
    ("native", "model_kwargs.device_map"): "device_map",
    ("llamacpp", "model_max_length"): "model_kwargs.n_ctx",
}
# How a server is told the same when it is started, by its library.
_FLAGS = {
    "remote-vllm": {
        "model_max_length": "--max-model-len",
        "model_kwargs.n_ctx": "--max-model-len",
        "torch_dtype_str": "--dtype",
        "trust_remote_code": "--trust-remote-code",
        "model_revision": "--revision",
        "tokenizer_name": "--tokenizer",
        "chat_template": "--chat-template",
        "model_kwargs.batch_size": "--max-num-seqs",
        "model_kwargs.n_parallel": "--max-num-seqs",
        "model_kwargs.load_in_4bit": "--quantization bitsandbytes, instead of",
        "adapters": "--enable-lora --lora-modules NAME=FOLDER, for",
        "adapter_model": "--enable-lora --lora-modules NAME=FOLDER, for",
    },
    "sglang": {
        "model_max_length": "--context-length",
        "model_kwargs.n_ctx": "--context-length",
        "torch_dtype_str": "--dtype",
        "trust_remote_code": "--trust-remote-code",
        "model_revision": "--revision",
        "tokenizer_name": "--tokenizer-path",
        "chat_template": "--chat-template",
        "model_kwargs.batch_size": "--max-running-requests",
        "model_kwargs.n_parallel": "--max-running-requests",
        "model_kwargs.max_num_seqs": "--max-running-requests",
        "model_kwargs.tensor_parallel_size": "--tp-size",
        "model_kwargs.gpu_memory_utilization": "--mem-fraction-static",
        "adapters": "--lora-paths NAME=FOLDER, for",
        "adapter_model": "--lora-paths NAME=FOLDER, for",
    },
}


def change(path: str, value: Any, source: str, target: str) -> Change:
    """What a parameter of ``source`` becomes on ``target``."""
    if path == "model_name":
        return _model(value, target)
    place, _, name = path.partition(".")
    if place == "generation_params":
        return _generation(path, name, value, target)
    if place == "remote_params":
        return _remote(path, value, target)
    known = _SPELLED.get((source, path), path)
    if known in ("adapter_model", "adapters") and target != "llamacpp" and _has_gguf(value):
        why = "a GGUF adapter is llama.cpp's: name the PEFT folder that it was made from"
        return Change(path, value, LOST, {}, why)
    if "server" in registry.spec(target).capabilities.features:
        return _to_server(path, value, known, target)
    rule = RULES.get((known, target)) or RULES.get((known, "*"))
    if rule is not None:
        return rule(path, value)
    for names in _SAME:
        if known == names.get(source) and target in names and _takes(target, names[target]):
            status = KEPT if names[target] == path else RENAMED
            return Change(path, value, status, {names[target]: value})
    if _takes(target, known):
        if known == path:
            return Change(path, value, KEPT, {path: value})
        return Change(path, value, RENAMED, {known: value})
    return Change(path, value, LOST, {}, _why_lost(path, known, target))


def _has_gguf(adapters: Any) -> bool:
    named = adapters.values() if isinstance(adapters, Mapping) else [adapters]
    return any(str(path).lower().endswith(".gguf") for path in named)


def _takes(engine: str, path: str) -> bool:
    """Whether an engine on this machine knows a parameter under this name."""
    capabilities = registry.spec(engine).capabilities
    _, dot, name = path.partition(".")
    if not dot:
        return path in capabilities.model
    if engine == "llamacpp":
        return name in OPTIONS["xllamacpp"]
    return name in registry.engine_class(engine).model_options


def _why_lost(path: str, known: str, target: str) -> str:
    able = [e for e in registry.supporting(known, of="model") if e != target]
    if able:
        return f"{target} has no such parameter; {', '.join(able)} have"
    return f"{target} has no counterpart of {path} that is known"


# ---------------------------------------------------------------------------- models


def _model(value: str, target: str) -> Change:
    """A name, by the form of file that it means."""
    features = registry.spec(target).capabilities.features
    name = str(value)
    if "server" in features:
        return Change("model_name", value, KEPT, {"model_name": value}, "as the server calls it")
    gguf = name.lower().endswith(".gguf") or ":" in name.rpartition("/")[2]
    if gguf and "gguf" not in features and "safetensors" in features:
        why = f"{target} loads safetensors: name the folder or hub id that the GGUF was made from"
        return Change("model_name", value, LOST, {}, why)
    if gguf and target == "native":
        why = "the GGUF is dequantized: more memory, the same weights"
        return Change("model_name", value, APPROXIMATED, {"model_name": value}, why)
    if not gguf and "/" in name and "gguf" in features and "safetensors" not in features:
        why = f"{target} loads GGUF: name a .gguf file made from it, or a hub id as org/name:Q4_K_M"
        return Change("model_name", value, LOST, {}, why)
    return Change("model_name", value, KEPT, {"model_name": value})


def _generation(path: str, name: str, value: Any, target: str) -> Change:
    capabilities = registry.spec(target).capabilities
    if name not in capabilities.generation:
        able = [e for e in registry.supporting(name) if e != target]
        who = f"engines that can: {', '.join(able)}" if able else "no engine can"
        return Change(path, value, LOST, {}, f"{target} cannot honour it; {who}")
    if name == "guided_decoding" and value is not None:
        kind = next(iter(value), "") if isinstance(value, Mapping) else ""
        if kind and kind not in capabilities.guided_decoding:
            who = ", ".join(registry.supporting(kind, of="guided_decoding"))
            why = f"{target} is not guided by {kind}; engines that are: {who}"
            return Change(path, value, LOST, {}, why)
        if kind == "grammar":
            why = "grammars are in the engine's own notation (GBNF, EBNF or Lark): check it"
            return Change(path, value, APPROXIMATED, {path: value}, why)
    if name == "seed":
        why = "repeatable there, but not the same draws: each engine has its own generator"
        return Change(path, value, APPROXIMATED, {path: value}, why)
    return Change(path, value, KEPT, {path: value})


def _remote(path: str, value: Any, target: str) -> Change:
    if "server" in registry.spec(target).capabilities.features:
        return Change(path, value, KEPT, {path: value})
    return Change(
        path, value, LOST, {}, f"{target} runs on this machine: there is no server to ask"
    )


def _to_server(path: str, value: Any, known: str, target: str) -> Change:
    """What a server is told when it is started is no request's business."""
    capabilities = registry.spec(target).capabilities
    if known in capabilities.model:
        why = "a folder on the server" if known.startswith("adapter") else ""
        return Change(path, value, KEPT, {known: value}, why)
    flags = _FLAGS.get(target, {})
    flag = flags.get(known) or flags.get(path)
    if flag is None and target == "remote-vllm" and path.startswith("model_kwargs."):
        flag = "--" + path.partition(".")[2].replace("_", "-")
        if not _takes("vllm", path) or path == "model_kwargs.n_threads":
            flag = None
    if target in ("openai", "anthropic"):
        return Change(path, value, LOST, {}, f"{target} loads its models itself")
    told = f"start it with {flag} {value}" if flag else "it was started with its own"
    return Change(path, value, LOST, {}, f"left to the server: {told}")
