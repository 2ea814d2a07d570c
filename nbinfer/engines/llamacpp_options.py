"""What ``model_kwargs`` may hold for llama.cpp, by binding."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError

__all__ = ["BINDINGS", "CACHE_TYPES", "OPTIONS", "check_options"]

# Binding: its module of nbinfer.worker.backends.
BINDINGS = {"xllamacpp": "xllamacpp", "llama-cpp-python": "llama_cpp_python"}

Options = Mapping[str, tuple[type, ...]]
# model_kwargs, with the type each must have. The names are llama-cpp-python's, where it has
# one, because that is what people's notebooks say.
_SHARED: Options = {
    "n_ctx": (int,),
    "n_gpu_layers": (int,),
    "n_threads": (int,),
    "n_threads_batch": (int,),
    "n_batch": (int,),
    "n_ubatch": (int,),
    "flash_attn": (bool,),
    "cache_type_k": (str,),
    "cache_type_v": (str,),
    "use_mmap": (bool,),
    "use_mlock": (bool,),
    "main_gpu": (int,),
    "split_mode": (str, int),
    "tensor_split": (list, tuple),
    "mmproj": (str, bool),
    "spec_type": (str,),
    "draft_max": (int,),
    "ngram_size": (int,),
    "rope_freq_base": (float, int),
    "rope_freq_scale": (float, int),
}
_NUMBER = (float, int)
OPTIONS: Mapping[str, Options] = {
    "xllamacpp": {
        **_SHARED,
        "n_parallel": (int,),
        "kv_tokens": (int,),
        "cache_ram_mib": (int,),
        "draft_model": (str,),
        "draft_min": (int,),
    },
    # The parameters of llama-cpp-python's Llama that are data.
    "llama-cpp-python": {
        **_SHARED,
        "kv_overrides": (dict,),
        "seed": (int,),
        "rope_scaling_type": (int,),
        "pooling_type": (int,),
        "attention_type": (int,),
        "yarn_ext_factor": _NUMBER,
        "yarn_attn_factor": _NUMBER,
        "yarn_beta_fast": _NUMBER,
        "yarn_beta_slow": _NUMBER,
        "yarn_orig_ctx": (int,),
        "offload_kqv": (bool,),
        "op_offload": (bool,),
        "swa_full": (bool,),
        "no_perf": (bool,),
        "last_n_tokens_size": (int,),
        "lora_scale": _NUMBER,
        "numa": (bool, int),
        "chat_format": (str,),
        "logits_all": (bool,),
    },
}
AT_LEAST_ONE = {
    "n_ctx",
    "n_threads",
    "n_threads_batch",
    "n_batch",
    "n_ubatch",
    "n_parallel",
    "kv_tokens",
    "draft_max",
    "ngram_size",
}
SPLIT_MODES = ("none", "layer", "row", "tensor")  # in the order of llama.cpp's enum
# How answers are guessed ahead without a draft model, by llama-server's names.
_NGRAMS = ("ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-mod", "ngram-cache")
SPEC_TYPES: Mapping[str, tuple[str, ...]] = {
    "xllamacpp": _NGRAMS,
    "llama-cpp-python": ("prompt-lookup",),
}
CACHE_TYPES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


def check_options(binding: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that the binding does not have, or a value that cannot be right.

    Raises
    ------
    ConfigurationError
        With the name, the value, and what is taken.
    """
    if binding not in OPTIONS:
        raise ConfigurationError(
            f"llamacpp has no binding {binding!r:.80}", hint=f"Bindings: {', '.join(OPTIONS)}"
        )
    for name, value in options.items():
        if name != "binding":
            _check_option(binding, name, value)
    _check_split(options)
    _check_speculation(binding, options)


def _check_split(options: Mapping[str, Any]) -> None:
    mode = options.get("split_mode")
    if mode is not None and mode not in (*SPLIT_MODES, *range(len(SPLIT_MODES))):
        raise ConfigurationError(
            f"model_kwargs['split_mode'] must be one of {', '.join(SPLIT_MODES)}, not {mode!r:.80}"
        )
    for share in options.get("tensor_split") or ():
        if isinstance(share, bool) or not isinstance(share, int | float) or not share >= 0:
            raise ConfigurationError(
                "model_kwargs['tensor_split'] must hold each device's share, numbers of at least "
                f"0, not {share!r:.80}"
            )


def _check_speculation(binding: str, options: Mapping[str, Any]) -> None:
    kind, draft = options.get("spec_type"), options.get("draft_model")
    kinds = SPEC_TYPES[binding]
    if kind is not None and kind not in kinds:
        raise ConfigurationError(
            f"model_kwargs['spec_type'] must be one of {', '.join(kinds)}, not {kind!r:.80}",
            hint="a draft model is given by model_kwargs['draft_model']"
            if binding == "xllamacpp"
            else "binding='xllamacpp' has draft models and other kinds",
        )
    if kind is not None and draft is not None:
        raise ConfigurationError(
            "model_kwargs has both spec_type and draft_model", hint="give one of them"
        )
    takes = {
        "draft_max": draft is not None or kind not in (None, "ngram-cache"),
        "draft_min": draft is not None or kind == "ngram-mod",
        "ngram_size": kind not in (None, "ngram-cache"),
    }
    for name, taken in takes.items():
        if options.get(name) is not None and not taken:
            what = f"spec_type={kind!r} has none" if kind else "nothing is guessed ahead"
            raise ConfigurationError(
                f"model_kwargs[{name!r}]={options[name]!r:.80}, but {what}",
                hint=f"give draft_model or spec_type (one of {', '.join(kinds)})"
                if not kind
                else None,
            )
    least, most = options.get("draft_min"), options.get("draft_max")
    if least is not None and (least < 0 or (most is not None and least > most)):
        raise ConfigurationError(
            f"model_kwargs['draft_min'] must be from 0 to draft_max, not {least!r}"
        )


def _check_option(binding: str, name: str, value: Any) -> None:
    known = OPTIONS[binding]
    kinds = known.get(name)
    if kinds is None:
        others = [other for other, table in OPTIONS.items() if name in table]
        near = difflib.get_close_matches(name, known, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        guess = f"binding={others[0]!r} has it. " if others else guess
        raise ConfigurationError(
            f"llamacpp has no model_kwargs[{name!r}]"
            + (f" with binding={binding!r}" if others else ""),
            hint=f"{guess}It takes: {', '.join(['binding', *known])}",
        )
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(k.__name__ for k in kinds)
        raise ConfigurationError(f"model_kwargs[{name!r}] must be {expected}, not {value!r:.80}")
    if name in AT_LEAST_ONE and isinstance(value, int) and value < 1:
        raise ConfigurationError(f"model_kwargs[{name!r}] must be at least 1, not {value!r}")
    if name in ("cache_type_k", "cache_type_v") and value not in CACHE_TYPES:
        raise ConfigurationError(
            f"model_kwargs[{name!r}] must be one of {', '.join(CACHE_TYPES)}, not {value!r:.80}"
        )
