"""llama.cpp: GGUF models on CPU, Metal or GPU."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from .. import adapters, environments, gguf, models, settings
from ..config import GenerationParams, ModelParams, RemoteParams
from ..errors import ConfigurationError, LoadError
from ..local_run import LocalRun
from ..notices import notify
from ..recipes import ACCELERATED
from ..records import RowRequest
from ..residents import Plan, Resident, pool
from .llamacpp_options import BINDINGS, CACHE_TYPES, OPTIONS, check_options
from .local import LocalEngine, physical_cores
from .registry import Capabilities

__all__ = ["LlamaCppInferenceEngine"]

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
        ``main_gpu``, ``cache_ram_mib``, ``rope_freq_base``, ``rope_freq_scale``; with the
        other binding, ``Llama``'s own parameters.
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
        return replace(
            able,
            model=able.model - {"chat_template_kwargs"},
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

    # ------------------------------------------------------------------- adapters

    def _adapters(self) -> dict[str, str]:
        """Adapters by name; ``adapter_model`` is ``default``."""
        declared = dict(self.model_params.adapters or {})
        single = self.model_params.adapter_model
        found = {"default": single, **declared} if single is not None else declared
        return {name: str(Path(path).expanduser().absolute()) for name, path in found.items()}

    def _params(self, given: GenerationParams | None) -> GenerationParams:
        params = super()._params(given)
        if params.adapter is None and self.model_params.adapter_model is not None:
            return replace(params, adapter="default")
        if params.adapter is not None and params.adapter not in self._adapters():
            declared = ", ".join(map(repr, self._adapters())) or "none"
            raise ConfigurationError(
                f"adapter {params.adapter!r} is not among this engine's",
                hint=f"declared: {declared}; ModelParams(adapters={{name: path}}) declares one",
            )
        return params

    def _row_params(self, params: GenerationParams) -> dict[str, Any]:
        values = super()._row_params(params)
        if params.adapter is not None:
            values["adapter"] = self._adapters()[params.adapter]
        return values

    def plan(self) -> Plan:
        """What has to be resident: one llama.cpp, with all the adapters that were asked for.

        llama.cpp takes adapters when it loads its model, and none later. So one that has more
        serves a request with fewer, and one that lacks any is loaded anew with both its own and
        the new ones: who goes back and forth between two loads twice, not each time.
        """
        wanted = {path: adapters.stamp(path) for path in self._adapters().values()}
        together = dict(wanted)
        for kin in self._kin():
            loaded = dict(json.loads(kin.plan.key[-1]))
            if wanted.items() <= loaded.items():
                return self._plan(loaded)
            for path, mark in loaded.items():
                if mark is not None and adapters.stamp(path) == mark:
                    together.setdefault(path, mark)
        return self._plan(together)

    def _plan(self, files: Mapping[str, str | None]) -> Plan:
        plan = super().plan()
        listed = json.dumps(sorted(files.items()))
        prepare = functools.partial(self._prepare, files=list(files))
        return replace(plan, key=(*self._family(), listed), prepare=prepare)

    def _family(self) -> tuple[str, ...]:
        """What residents have in common that differ in their adapters alone."""
        params = self.model_params.to_dict()
        params.update(adapters=None, adapter_model=None)
        return self.name, self.backend, json.dumps(params, sort_keys=True)

    def _kin(self) -> list[Resident]:
        family = self._family()
        return [
            r
            for r in pool.residents()
            if r.plan.key[:-1] == family and r.state in ("loading", "ready")
        ]

    def _make_way(self) -> None:
        """Unload the same model with fewer adapters: two of it are not needed."""
        plan = self.plan()
        for kin in self._kin():
            if kin.plan.key != plan.key and kin.state == "ready" and not kin.busy:
                notify(f"loading {kin.label} anew, with the adapter that is asked for")
                pool.unload(kin)

    def load(self) -> Self:
        self._make_way()
        return super().load()

    def _open_run(self, requests: Sequence[RowRequest], **options: Any) -> LocalRun:
        self._make_way()
        return super()._open_run(requests, **options)

    # --------------------------------------------------------------------- loading

    def _prepare(
        self, progress: Callable[[str], None], files: Sequence[str] | None = None
    ) -> tuple[dict[str, Any], int]:
        params, options = self.model_params, dict(self.model_params.model_kwargs)
        options.pop("binding", None)
        model = self._resolve(progress, "gguf")
        header = _header(model)
        if files is None:
            files = list(self._adapters().values())
        n_ctx = self._context(options, header)
        per_token = _cache_bytes(header, options)
        slots, kv_tokens = 1, n_ctx
        if self.binding == "xllamacpp":
            slots, kv_tokens = _capacity(options, n_ctx, per_token)
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
            "facts": model.to_dict(),
        }
        return message, model.size_bytes + kv_tokens * per_token + OVERHEAD_BYTES

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
