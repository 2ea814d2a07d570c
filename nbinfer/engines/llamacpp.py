"""llama.cpp: GGUF models on CPU, Metal or GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import adapters, environments, gguf, models, projector, settings
from ..config import GenerationParams, ModelParams, RemoteParams
from ..recipes import ACCELERATED
from ..repack import beside_file
from .llamacpp_adapters import AdapterEngine, read_header
from .llamacpp_options import BINDINGS, CACHE_TYPES, OPTIONS, check_options
from .local import physical_cores
from .registry import Capabilities

__all__ = ["LlamaCppInferenceEngine"]

DEFAULT_CONTEXT = 4096
MOST_SLOTS = 16
# Cells of the KV cache shared by all slots, where the user does not say: eight chats of a
# thousand tokens. Rows that need more run fewer at a time.
SHARED_TOKENS = 8192
# Beside weights and cache: Python, the library and llama.cpp's compute buffers, measured on
# SmolLM2-135M. Only the eviction estimate uses it; what rows report is measured.
OVERHEAD_BYTES = 150_000_000


class LlamaCppInferenceEngine(AdapterEngine):
    """llama.cpp's server core in a worker process, with continuous batching.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the embedded model, a ``.gguf`` file, a hub id of GGUF files
        (``org/name:Q4_K_M``) or an alias. ``model_kwargs``: ``n_ctx``
        (tokens of prompt and answer together, for *each* request; default the model's own
        context, at most 4,096), ``n_gpu_layers`` (default: all, where the build sees a GPU),
        ``n_threads`` (default: physical cores), ``n_parallel`` (requests batched at once,
        default 16; rows that do not fit the cache together wait), ``kv_tokens`` (cells of the
        KV cache that all requests share), ``n_batch`` (256: small, so that a cancel is heard
        soon),
        ``cache_type_k``/``cache_type_v``, ``flash_attn``, ``use_mmap`` (default: unless more
        than a quarter of the weights is copied at load, as on a CPU those of Q4_0 and Q4_K are:
        mapped, they would be there twice), ``use_mlock``,
        ``main_gpu``, ``split_mode`` (``"none"``, ``"layer"``, ``"row"``, ``"tensor"``),
        ``tensor_split`` (each device's share), ``cache_ram_mib``, ``rope_freq_base``,
        ``rope_freq_scale``; with the other binding, ``Llama``'s own parameters.
        ``mmproj``: the projector of a model that reads images; default an ``mmproj*.gguf``
        beside it, ``False`` for none. ``draft_model`` (a name, as of a model): a small model
        whose guesses, ``draft_min`` to ``draft_max`` tokens at a time, this one checks; or
        ``spec_type``, guesses out of the text itself (``"ngram-simple"``, ``"ngram-map-k"``,
        ``"ngram-map-k4v"``, ``"ngram-mod"``, ``"ngram-cache"``; with the other binding
        ``"prompt-lookup"``), by what followed the last ``ngram_size`` tokens before.
        ``adapters``, ``adapter_model``: LoRA folders as PEFT writes them, or GGUF adapters.
    generation_params : GenerationParams, optional
        Defaults for every call.
    binding : str, optional
        ``"xllamacpp"`` (continuous batching; in the base install) or ``"llama-cpp-python"``
        (one request at a time; ``%engine install llama-cpp-python``). Default: the first of
        the two that is there. The same as ``model_kwargs["binding"]``.

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
    model_options = ("binding", *OPTIONS["xllamacpp"])

    def __init__(
        self,
        model_params: ModelParams | str | None = None,
        *,
        generation_params: GenerationParams | None = None,
        remote_params: RemoteParams | None = None,
        binding: str | None = None,
    ) -> None:
        if isinstance(model_params, str | None):
            model_params = ModelParams(model_params) if model_params else ModelParams()
        if binding is not None and isinstance(model_params, ModelParams):
            options = {**model_params.model_kwargs, "binding": binding}
            model_params = replace(model_params, model_kwargs=options)
        asked = getattr(model_params, "model_kwargs", {}).get("binding")
        self.binding = _default_binding() if asked is None else asked
        check_options(self.binding, getattr(model_params, "model_kwargs", {}))
        self.backend = BINDINGS[self.binding]
        self.recipe = "" if self.binding == "xllamacpp" else self.binding
        super().__init__(
            model_params, generation_params=generation_params, remote_params=remote_params
        )

    @property
    def capabilities(self) -> Capabilities:
        able = super().capabilities
        if self.binding == "xllamacpp":
            return able
        # The high-level Llama takes one request at a time, and reads no calls out of an answer.
        return replace(
            able,
            generation=able.generation - {"ignore_eos"},
            model=able.model - {"chat_template_kwargs"},
            tool_choice=able.tool_choice - {"auto"},
            features=able.features - {"continuous_batching"},
        )

    def _recipe(self) -> str:
        """A build for GPUs comes first, where the user has installed one."""
        for name in ACCELERATED if self.binding == "xllamacpp" else ():
            if environments.available(name) is not None:
                return name
        return self.recipe

    def _device(self, recipe: str) -> str:
        return "gpu" if recipe in ACCELERATED else "cpu"

    # --------------------------------------------------------------------- loading

    def _prepare_with(
        self, files: Sequence[str], progress: Callable[[str], None]
    ) -> tuple[dict[str, Any], int]:
        params, options = self.model_params, dict(self.model_params.model_kwargs)
        options.pop("binding", None)
        model = self._resolve(progress, "gguf")
        header = read_header(model.path)
        n_ctx = self._context(options, header)
        per_token = _cache_bytes(header, options)
        slots, kv_tokens = 1, n_ctx
        if self.binding == "xllamacpp":
            slots, kv_tokens = _capacity(options, n_ctx, per_token)
        size = model.size_bytes + kv_tokens * per_token + OVERHEAD_BYTES
        locked = options.get("use_mlock")  # what is mapped is
        if self._device(self._recipe()) == "cpu" and not locked:
            options["use_mmap"], beside = _mapping(header, options.get("use_mmap"))
            size += beside
        message = {
            "path": str(model.path),
            "options": options,
            "n_ctx": n_ctx,
            "slots": slots,
            "kv_tokens": kv_tokens,
            "n_threads": options.pop("n_threads", None) or physical_cores(),
            "adapters": [
                # A broken model is left to the library, which says what is wrong with it.
                {"source": f, "path": str(adapters.gguf_for(f, header, progress)) if header else f}
                for f in files
            ],
            "chat_template": params.chat_template,
            "own_template": header.get("tokenizer.chat_template", ""),
            "facts": model.to_dict(),
        }
        found = projector.find(options.pop("mmproj", None), model.path, header)
        if found is not None:
            message.update(mmproj=str(found.path), image_tokens=found.image_tokens)
            size += found.size_bytes
        if options.get("draft_model") is not None:
            draft = self._draft(options.pop("draft_model"), progress)
            message["draft"] = str(draft.path)
            size += draft.size_bytes + kv_tokens * _cache_bytes(read_header(draft.path), options)
        return message, size

    def _draft(self, name: str, progress: Callable[[str], None]) -> models.ResolvedModel:
        """The small model whose guesses the other one checks."""
        return models.resolve(name, forms=("gguf",), engine=self.name, progress=progress)

    def _context(self, options: Mapping[str, Any], header: dict[str, Any]) -> int:
        asked = options.get("n_ctx") or self.model_params.model_max_length
        if asked:
            return int(asked)
        return min(gguf.context_length(header) or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _default_binding() -> str:
    """xllamacpp, unless only the other binding is importable here."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "llama-cpp-python"
    return "xllamacpp"


def _cache_bytes(header: dict[str, Any], options: Mapping[str, Any]) -> int:
    """Bytes of KV cache for one token, for the cache types asked."""
    f16 = gguf.kv_bytes_per_token(header) or 131_072  # of an 8B model with GQA, where unknown
    width = sum(CACHE_TYPES[options.get(k, "f16")] for k in ("cache_type_k", "cache_type_v"))
    return int(f16 * width / 4)


def _mapping(header: dict[str, Any], asked: bool | None) -> tuple[bool, int]:
    """Whether the file is mapped, and the bytes of its weights that are held beside it."""
    tensors = header.get("tensors", ())
    return beside_file(
        ((name, sizes, gguf.type_name(kind)) for name, sizes, kind, _ in tensors), asked
    )


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
