"""Parameters that another engine takes in another form: the rules of ``%migrate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["APPROXIMATED", "KEPT", "LOST", "RENAMED", "RULES", "Change"]

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
    if "model" in config:
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
_ONE_CONFIG = (
    "vllm takes all of it in one: speculative_config={'model': ..., 'num_speculative_tokens': N}, "
    "or 'method': 'ngram' without a model"
)
_ON_GPU = "vllm quantizes to 4 bits with bitsandbytes too, on a GPU alone"
_FP8 = "vllm has no 8 bits of bitsandbytes: fp8 takes as much, on a GPU alone"

RULES: Mapping[tuple[str, str], Rule] = {
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
    **{
        (f"model_kwargs.{name}", "vllm"): _to(APPROXIMATED, _ONE_CONFIG)
        for name in (
            *("assistant_model", "num_assistant_tokens", "prompt_lookup_num_tokens"),
            *("draft_model", "draft_max"),
        )
    },
    ("torch_dtype_str", "llamacpp"): _to(APPROXIMATED, _GGUF_TYPE),
    ("trust_remote_code", "llamacpp"): _to(LOST, _NO_CODE),
    ("tokenizer_name", "llamacpp"): _to(LOST, _NO_FIELD),
    ("model_kwargs.binding", "*"): _to(LOST, "a choice among bindings of llama.cpp"),
}
