"""llama.cpp: GGUF models on CPU, Metal or GPU."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import gguf, models, settings
from ..config import GenerationParams, ModelParams, RemoteParams
from ..errors import ConfigurationError, LoadError, ModelNotFound
from .local import LocalEngine, physical_cores

__all__ = ["LlamaCppInferenceEngine"]

# model_kwargs, with the type each must have. The names are llama-cpp-python's, where it has
# one, because that is what people's notebooks say.
OPTIONS: Mapping[str, tuple[type, ...]] = {
    "n_ctx": (int,),
    "n_gpu_layers": (int,),
    "n_threads": (int,),
    "n_threads_batch": (int,),
    "n_batch": (int,),
    "n_ubatch": (int,),
    "n_parallel": (int,),
    "kv_tokens": (int,),
    "flash_attn": (bool,),
    "cache_type_k": (str,),
    "cache_type_v": (str,),
    "cache_ram_mib": (int,),
    "use_mmap": (bool,),
    "use_mlock": (bool,),
    "main_gpu": (int,),
    "rope_freq_base": (float, int),
    "rope_freq_scale": (float, int),
}
AT_LEAST_ONE = {
    "n_ctx",
    "n_threads",
    "n_threads_batch",
    "n_batch",
    "n_ubatch",
    "n_parallel",
    "kv_tokens",
}
CACHE_TYPES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}

DEFAULT_CONTEXT = 4096
MOST_SLOTS = 8
# Cells of the KV cache shared by all slots, where the user does not say: eight chats of a
# thousand tokens. Rows that need more run fewer at a time.
SHARED_TOKENS = 8192
# Beside weights and cache: Python, the library and llama.cpp's compute buffers, measured on
# SmolLM2-135M. Only the eviction estimate uses it; what rows report is measured.
OVERHEAD_BYTES = 150_000_000


class LlamaCppInferenceEngine(LocalEngine):
    """llama.cpp's server core in a worker process, with continuous batching.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the embedded model, a ``.gguf`` file, a hub id of GGUF files
        (``org/name:Q4_K_M``) or an alias. ``model_kwargs``: ``n_ctx``
        (tokens of prompt and answer together, for *each* request; default the model's own
        context, at most 4,096), ``n_gpu_layers`` (default: all, where the build sees a GPU),
        ``n_threads`` (default: physical cores), ``n_parallel`` (requests batched at once,
        default up to 8, fewer where memory is short), ``kv_tokens`` (cells of the KV cache
        that all requests share), ``n_batch`` (256: small, so that a cancel is heard soon),
        ``cache_type_k``/``cache_type_v``, ``flash_attn``, ``use_mmap``, ``use_mlock``,
        ``main_gpu``, ``cache_ram_mib``, ``rope_freq_base``, ``rope_freq_scale``.
    generation_params : GenerationParams, optional
        Defaults for every call.

    Raises
    ------
    ConfigurationError
        For an unknown or impossible option.

    Examples
    --------
    >>> engine = LlamaCppInferenceEngine(
    ...     ModelParams(model_name="model.gguf", model_kwargs={"n_gpu_layers": 0, "n_ctx": 2048})
    ... )
    """

    name = "llamacpp"
    backend = "xllamacpp"

    def __init__(
        self,
        model_params: ModelParams | str | None = None,
        *,
        generation_params: GenerationParams | None = None,
        remote_params: RemoteParams | None = None,
    ) -> None:
        super().__init__(
            model_params, generation_params=generation_params, remote_params=remote_params
        )
        _check_options(self.model_params.model_kwargs)

    def _params(self, given: GenerationParams | None) -> GenerationParams:
        params = super()._params(given)
        names = [name for name, _ in self._adapters()]
        if params.adapter is None and self.model_params.adapter_model is not None:
            return replace(params, adapter=names[0])
        if params.adapter is not None and params.adapter not in names:
            declared = ", ".join(map(repr, names)) or "none"
            raise ConfigurationError(
                f"adapter {params.adapter!r} was not declared when the model was loaded",
                hint=f"declared: {declared}; ModelParams(adapters={{name: path}}) declares one",
            )
        return params

    def _row_params(self, params: GenerationParams) -> dict[str, Any]:
        values = super()._row_params(params)
        if self.model_params.chat_template_kwargs:
            values["chat_template_kwargs"] = dict(self.model_params.chat_template_kwargs)
        return values

    def _adapters(self) -> list[tuple[str, str]]:
        declared = dict(self.model_params.adapters or {})
        single = self.model_params.adapter_model
        if single is not None:
            return [("default", str(single)), *declared.items()]
        return list(declared.items())

    def _prepare(self, progress: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        params, options = self.model_params, dict(self.model_params.model_kwargs)
        model = models.resolve(
            params.model_name,
            forms=("gguf",),
            engine=self.name,
            revision=params.model_revision,
            progress=progress,
        )
        adapters = [{"name": n, "path": str(Path(p).expanduser())} for n, p in self._adapters()]
        for adapter in adapters:
            if not Path(adapter["path"]).is_file():
                raise ModelNotFound(f"no adapter file at {adapter['path']!r}")
        header = _header(model)
        n_ctx = self._context(options, header)
        per_token = _cache_bytes(header, options)
        slots, kv_tokens = _capacity(options, n_ctx, per_token)
        message = {
            "path": str(model.path),
            "options": options,
            "n_ctx": n_ctx,
            "slots": slots,
            "kv_tokens": kv_tokens,
            "n_threads": options.get("n_threads") or physical_cores(),
            "adapters": adapters,
            "chat_template": params.chat_template,
            "facts": model.to_dict(),
        }
        return message, model.size_bytes + kv_tokens * per_token + OVERHEAD_BYTES

    def _context(self, options: Mapping[str, Any], header: dict[str, Any]) -> int:
        asked = options.get("n_ctx") or self.model_params.model_max_length
        if asked:
            return int(asked)
        return min(gguf.context_length(header) or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _header(model: models.ResolvedModel) -> dict[str, Any]:
    """The file's header; a broken file is left to the library, which words it best."""
    try:
        return gguf.read_header(model.path)
    except gguf.GGUFError:
        return {}
    except OSError as error:
        raise LoadError(f"{str(model.path)!r} cannot be read: {error.strerror}") from None


def _cache_bytes(header: dict[str, Any], options: Mapping[str, Any]) -> int:
    """Bytes of KV cache for one token, for the cache types asked."""
    f16 = gguf.kv_bytes_per_token(header) or 131_072  # of an 8B model with GQA, where unknown
    width = sum(CACHE_TYPES[options.get(k, "f16")] for k in ("cache_type_k", "cache_type_v"))
    return int(f16 * width / 4)


def _capacity(options: Mapping[str, Any], n_ctx: int, per_token: int) -> tuple[int, int]:
    """How many slots, and how many tokens of KV cache they share.

    The cache takes at most a quarter of the memory budget unless the user asks for more; it
    always holds one full context, or no request could use what ``n_ctx`` promises.
    """
    affordable = settings.current().budget_bytes() // 4 // max(per_token, 1)
    tokens = options.get("kv_tokens") or min(max(SHARED_TOKENS, n_ctx), affordable)
    tokens = max(tokens, n_ctx)
    slots = options.get("n_parallel")
    if slots:
        tokens = max(tokens, min(slots * n_ctx, options.get("kv_tokens") or SHARED_TOKENS))
    return slots or MOST_SLOTS, tokens


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        kinds = OPTIONS.get(name)
        if kinds is None:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"llamacpp has no model_kwargs[{name!r}]",
                hint=f"{guess}It takes: {', '.join(OPTIONS)}",
            )
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(k.__name__ for k in kinds)
            raise ConfigurationError(
                f"model_kwargs[{name!r}] must be {expected}, not {value!r:.80}"
            )
        if name in AT_LEAST_ONE and isinstance(value, int) and value < 1:
            raise ConfigurationError(f"model_kwargs[{name!r}] must be at least 1, not {value!r}")
        if name in ("cache_type_k", "cache_type_v") and value not in CACHE_TYPES:
            raise ConfigurationError(
                f"model_kwargs[{name!r}] must be one of {', '.join(CACHE_TYPES)}, not {value!r:.80}"
            )
