"""How a parameter of one engine is said to another: the table behind ``%migrate``.

A parameter is a path: a field of ``ModelParams``, ``model_kwargs.NAME``, ``generation_params.NAME``
or ``remote_params.NAME``. What the registry says that the target takes is kept; for the rest there
is a rule here, or it is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..engines import registry
from ..engines.llamacpp_options import OPTIONS

__all__ = ["Change", "change"]

LOCAL = ("native", "vllm", "llamacpp")
KEPT, RENAMED, APPROXIMATED, LOST = "kept", "renamed", "approximated", "lost"


@dataclass(frozen=True)
class Change:
    """What becomes of one parameter.

    Attributes
    ----------
    status : str
        ``"kept"``, ``"renamed"`` (the same under another name), ``"approximated"`` (nearly the
        same) or ``"lost"``.
    becomes : dict
        What the target is told: values by path; empty where it is told nothing.
    why : str
        For whatever is not simply kept.
    """

    parameter: str
    value: Any
    status: str
    becomes: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


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
    if "server" in registry.spec(target).capabilities.features:
        return _to_server(path, value, known, target)
    rule = _RULES.get((known, target)) or _RULES.get((known, "*"))
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


# ----------------------------------------------------------------------------- rules

Rule = Callable[[str, Any], Change]


def _to(status: str, why: str, **becomes: Any) -> Rule:
    """A rule of one outcome for every value that is set; ``model_kwargs__x`` names a path."""
    told = {name.replace("__", "."): value for name, value in becomes.items()}

    def rule(path: str, value: Any) -> Change:
        if value is False or value is None:
            return Change(path, value, KEPT, {}, "off there too, unless it is asked")
        return Change(path, value, status, told, why)

    return rule


def _layers_to_device(path: str, value: Any) -> Change:
    if value == 0:
        return Change(path, value, RENAMED, {"device_map": "cpu"}, "no layer on a GPU")
    if value == -1:
        return Change(path, value, RENAMED, {"device_map": "auto"}, "all layers on the GPU")
    why = "Transformers places layers by memory, not by their number"
    return Change(path, value, APPROXIMATED, {"device_map": "auto"}, why)


def _layers_to_vllm(path: str, value: Any) -> Change:
    if value == -1:
        return Change(path, value, KEPT, {}, "vllm has all layers on the GPU anyway")
    what = "on the CPU with its CPU build" if value == 0 else "all on the GPU"
    return Change(path, value, LOST, {}, f"vllm splits no layers between devices: it runs {what}")


def _device_to_layers(path: str, value: Any) -> Change:
    if value == "cpu":
        return Change(path, value, RENAMED, {"model_kwargs.n_gpu_layers": 0})
    if isinstance(value, str) and value != "disk":
        why = "all layers on the GPU, where the build has one"
        return Change(path, value, RENAMED, {"model_kwargs.n_gpu_layers": -1}, why)
    return Change(path, value, LOST, {}, "llamacpp takes a number of layers: n_gpu_layers")


def _device_to_vllm(path: str, value: Any) -> Change:
    if value in ("auto", "cuda", "cuda:0"):
        return Change(path, value, KEPT, {}, "vllm has all layers on the GPU anyway")
    return Change(
        path, value, LOST, {}, "vllm places a model itself; tensor_parallel_size splits it"
    )


def _attention(path: str, value: Any) -> Change:
    on = str(value).startswith("flash")
    if on:
        return Change(path, value, RENAMED, {"model_kwargs.flash_attn": True})
    why = "llama.cpp has its own attention, with flash_attn or without"
    return Change(path, value, APPROXIMATED, {"model_kwargs.flash_attn": False}, why)


def _flash(path: str, value: Any) -> Change:
    if value:
        why = "it needs the package flash-attn and a GPU"
        return Change(path, value, RENAMED, {"attn_implementation": "flash_attention_2"}, why)
    return Change(path, value, RENAMED, {"attn_implementation": "sdpa"})


def _vllm_quantization(target: str) -> Rule:
    def rule(path: str, value: Any) -> Change:
        if value == "bitsandbytes" and target == "native":
            return Change(path, value, RENAMED, {"model_kwargs.load_in_4bit": True})
        if target == "native":
            why = "Transformers reads it from the checkpoint, where that is quantized so"
            return Change(path, value, APPROXIMATED, {}, why)
        return Change(path, value, LOST, {}, "a GGUF is quantized beforehand: name one, as :Q4_K_M")

    return rule


def _cache_type(path: str, value: Any) -> Change:
    if value in ("q8_0", "q4_0"):
        why = "vllm's 8-bit cache is fp8; on a GPU"
        return Change(path, value, APPROXIMATED, {"model_kwargs.kv_cache_dtype": "fp8"}, why)
    return Change(path, value, KEPT, {}, "vllm's cache has the model's precision")


def _kv_dtype(path: str, value: Any) -> Change:
    if str(value).startswith("fp8"):
        becomes = {f"model_kwargs.cache_type_{part}": "q8_0" for part in "kv"}
        return Change(path, value, APPROXIMATED, becomes, "llama.cpp's 8-bit cache is q8_0")
    return Change(
        path, value, LOST, {}, "llama.cpp's cache is f16, or cache_type_k and cache_type_v"
    )


def _speculative(path: str, value: Any) -> Change:
    config = value if isinstance(value, Mapping) else {}
    names = {"model": "assistant_model", "num_speculative_tokens": "num_assistant_tokens"}
    becomes = {f"model_kwargs.{names[k]}": v for k, v in config.items() if k in names}
    if "model" in config and _takes("native", "model_kwargs.assistant_model"):
        return Change(path, value, RENAMED, becomes)
    return Change(path, value, LOST, {}, "native guesses ahead with an assistant model alone")


def _prefix_cache(path: str, value: Any) -> Change:
    if value:
        return Change(path, value, KEPT, {}, "llama.cpp caches prefixes anyway")
    return Change(path, value, LOST, {}, "llama.cpp caches prefixes always")


_GGUF_4BIT = "a GGUF is quantized beforehand: name a 4-bit one, as org/name:Q4_K_M"
_GGUF_8BIT = "a GGUF is quantized beforehand: name an 8-bit one, as org/name:Q8_0"
_GGUF_TYPE = "a GGUF has its own precision: name an F16 or BF16 one"
_NO_CODE = "a GGUF brings no code that could be run"
_NO_FIELD = "llamacpp reads the tokenizer from the GGUF"
_ON_GPU = "vllm quantizes to 4 bits with bitsandbytes too, on a GPU alone"
_FP8 = "vllm has no 8 bits of bitsandbytes: fp8 takes as much, on a GPU alone"

_RULES: Mapping[tuple[str, str], Rule] = {
    ("model_kwargs.load_in_4bit", "vllm"): _to(
        RENAMED, _ON_GPU, model_kwargs__quantization="bitsandbytes"
    ),
    ("model_kwargs.load_in_4bit", "llamacpp"): _to(APPROXIMATED, _GGUF_4BIT),
    ("model_kwargs.load_in_8bit", "vllm"): _to(
        APPROXIMATED, _FP8, model_kwargs__quantization="fp8"
    ),
    ("model_kwargs.load_in_8bit", "llamacpp"): _to(APPROXIMATED, _GGUF_8BIT),
    ("model_kwargs.quantization", "native"): _vllm_quantization("native"),
    ("model_kwargs.quantization", "llamacpp"): _vllm_quantization("llamacpp"),
    ("model_kwargs.n_gpu_layers", "native"): _layers_to_device,
    ("model_kwargs.n_gpu_layers", "vllm"): _layers_to_vllm,
    ("device_map", "llamacpp"): _device_to_layers,
    ("device_map", "vllm"): _device_to_vllm,
    ("attn_implementation", "llamacpp"): _attention,
    ("model_kwargs.flash_attn", "native"): _flash,
    ("model_kwargs.cache_type_k", "vllm"): _cache_type,
    ("model_kwargs.cache_type_v", "vllm"): _cache_type,
    ("model_kwargs.kv_cache_dtype", "llamacpp"): _kv_dtype,
    ("model_kwargs.speculative_config", "native"): _speculative,
    ("model_kwargs.enable_prefix_caching", "llamacpp"): _prefix_cache,
    ("torch_dtype_str", "llamacpp"): _to(APPROXIMATED, _GGUF_TYPE),
    ("trust_remote_code", "llamacpp"): _to(LOST, _NO_CODE),
    ("tokenizer_name", "llamacpp"): _to(LOST, _NO_FIELD),
    ("model_kwargs.binding", "*"): _to(LOST, "a choice among bindings of llama.cpp"),
}
