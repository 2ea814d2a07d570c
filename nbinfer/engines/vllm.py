"""vllm: vLLM on this machine, in an environment that it need not share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from .. import gpu, models, settings
from ..config import GenerationParams, ModelParams
from ..errors import ConfigurationError, NbinferError
from ..local_run import LocalRun
from ..notices import notify
from ..records import RowRequest
from ..resident import Plan
from ..residents import pool
from .adapters import PeftAdapters, adapter_config
from .local import check_counts, physical_cores
from .parallel import check_tensor_parallel

__all__ = ["VLLMInferenceEngine"]

# Beside weights and cache, where a model's folder does not tell its vocabulary: three processes,
# each with Python, torch and a tokenizer. Only the eviction estimate uses it; what rows report
# is measured.
OVERHEAD_BYTES = 2_500_000_000
RANK_BYTES = 700_000_000  # another rank's Python and torch
# What vLLM's speculative_config calls a model and is none.
_NO_MODELS = ("ngram", "[ngram]", "ngram_gpu", "suffix")
# A guess of the KV cache on a CPU, where only the worker can read the model's shape.
USUAL_CACHE_BYTES = 1_000_000_000
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class VLLMInferenceEngine(PeftAdapters):
    """vLLM's ``AsyncLLM`` in a worker process: continuous batching, paged KV cache, LoRA.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the embedded model, a folder of safetensors, a hub id or an alias.
        ``model_max_length``: most tokens of prompt and answer; default the model's own, or
        what the KV cache holds where that is less. ``torch_dtype_str``: default the
        checkpoint's own on a CPU and vLLM's choice on a GPU. ``adapters``, ``adapter_model``:
        LoRA folders; others may come later, without a new load. ``compile``: compile the
        model on a CPU too (minutes; on a GPU it is vLLM's default).
        ``model_kwargs``: any argument of vLLM's ``AsyncEngineArgs``
        (``gpu_memory_utilization``, ``tensor_parallel_size``, ``quantization``,
        ``max_num_seqs``, ``enforce_eager``, ``enable_prefix_caching``, ...), and ``n_threads``
        on a CPU (default: physical cores), which the ranks of ``tensor_parallel_size`` share.
        ``speculative_config``: vLLM's own mapping, such as ``{"method": "ngram",
        "num_speculative_tokens": 4, "prompt_lookup_max": 3}`` or ``{"model": DRAFT,
        "num_speculative_tokens": 4}``, where ``DRAFT`` is a model as ``model_name`` takes it.
        ``tool_call_parser``: vLLM's name of the form in which the model calls tools freely, such
        as ``"hermes"``.
    generation_params : GenerationParams, optional
        Defaults for every call.

    Raises
    ------
    ConfigurationError
        For an impossible option. A name that vLLM does not know is refused by ``load()``,
        with the nearest one.

    Notes
    -----
    Without a GPU the KV cache holds 16,384 tokens, or one full context where that is more, in at
    most a quarter of the memory that is free within the budget; ``kv_cache_memory_bytes`` sets
    it. On a GPU vLLM's share is what the budget of the device leaves
    (``gpu_memory_utilization`` sets it), not vLLM's own 92 % of the device.

    Examples
    --------
    >>> engine = VLLMInferenceEngine(ModelParams("smollm2-135m"))
    """

    name = "vllm"
    backend = "vllm"
    recipe = "vllm"
    most: ClassVar[Mapping[str, float]] = {"temperature": 2.0}
    computes_on_gpu = True
    model_options = (
        "gpu_memory_utilization",
        "tensor_parallel_size",
        "quantization",
        "max_num_seqs",
        "max_num_batched_tokens",
        "enforce_eager",
        "enable_prefix_caching",
        "kv_cache_memory_bytes",
        "kv_cache_dtype",
        "max_lora_rank",
        "speculative_config",
        "limit_mm_per_prompt",
        "n_threads",
        "tool_call_parser",
    )

    def _check_model(self, params: ModelParams) -> None:
        super()._check_model(params)
        _check_options(params.model_kwargs)

    def _check_generation(self, params: GenerationParams) -> None:
        super()._check_generation(params)
        free = params.tools is not None and params.tool_choice == "auto"
        if free and "tool_call_parser" not in self.model_params.model_kwargs:
            raise ConfigurationError(
                "vllm reads the calls of tool_choice='auto' with the parser of the model's form",
                hint="name it: model_kwargs={'tool_call_parser': 'hermes'}, or -k "
                "tool_call_parser=hermes; or force a call by tool_choice='required' or a name",
            )
        if not self.model_params.model_kwargs.get("speculative_config"):
            return
        for name in ("min_p", "logit_bias"):
            if getattr(params, name):
                raise ConfigurationError(
                    f"vLLM takes no {name} with speculative decoding",
                    hint=f"leave out {name}, or load without model_kwargs['speculative_config']",
                )

    # ------------------------------------------------------------------- adapters

    def _adapter_facts(self, path: str) -> dict[str, Any]:
        return {"rank": _adapter_rank(path)}

    def plan(self) -> Plan:
        """What has to be resident: one vLLM serves a model with and without adapters.

        vLLM adds an adapter to a running engine, but only to one that was loaded for LoRA. So
        adapters are no part of the key, LoRA is, and what is loaded with it also serves
        requests without.
        """
        lora = self._plan(lora=True)
        if self._adapters or pool.find(lora.key) is not None:
            return lora
        return self._plan(lora=False)

    def _make_way(self) -> None:
        """Unload what was loaded without LoRA, where LoRA is wanted: two would not fit."""
        found = pool.find(self._plan(lora=False).key) if self._adapters else None
        if found is not None and not found.busy:
            notify(f"loading {found.label} anew, with LoRA")
            pool.unload(found)

    def load(self) -> Self:
        self._make_way()
        return super().load()

    def _open_run(self, requests: Sequence[RowRequest], **options: Any) -> LocalRun:
        self._make_way()
        return super()._open_run(requests, **options)

    def _plan(self, *, lora: bool) -> Plan:
        plan = super().plan()
        params = self.model_params.to_dict()
        params.update(adapters=None, adapter_model=None, lora=lora)
        key = (self.name, self.backend, json.dumps(params, sort_keys=True))
        return dataclasses.replace(plan, key=key)

    # --------------------------------------------------------------------- loading

    def _prepare(self, progress: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        params = self.model_params
        options = dict(params.model_kwargs)
        model = self._resolve(progress, "safetensors")
        ranks = options.get("tensor_parallel_size") or 1
        if options.get("distributed_executor_backend") != "ray":  # whose machines are others
            check_tensor_parallel(model, ranks, repeats_kv=True)
        draft = self._draft(options, progress)
        options.setdefault("enable_lora", bool(self._adapters))
        if options["enable_lora"]:
            needed = [_adapter_rank(path) for path in self._adapters.values()]
            options.setdefault("max_lora_rank", max([16, *needed]))
            options.setdefault("max_loras", max(4, len(needed)))
        if params.processor_kwargs:
            options.setdefault("mm_processor_kwargs", dict(params.processor_kwargs))
        most = self._most_cache_bytes(model)
        message = {
            **self._transformers_message(model),
            "options": options,
            "n_threads": options.pop("n_threads", None) or physical_cores(),
            "tool_call_parser": options.pop("tool_call_parser", None),
            "most_cache_bytes": most,
            "device_share": gpu.share(pool.pids(), ranks),
        }
        size = model.size_bytes
        if draft is not None:
            size += draft.size_bytes
            message["draft"] = {
                "path": str(draft.path),
                "derive_from": draft.derived_from,
                "mark": {"sha256": draft.sha256},
            }
        cache = options.get("kv_cache_memory_bytes") or min(most, USUAL_CACHE_BYTES)
        return message, size + cache + _overhead_bytes(model) + (ranks - 1) * RANK_BYTES

    def _draft(
        self, options: dict[str, Any], progress: Callable[[str], None]
    ) -> models.ResolvedModel | None:
        """The draft model of ``speculative_config``, by any name that a model may have."""
        config = options.get("speculative_config") or {}
        name = config.get("model")
        if name is None or name in _NO_MODELS:
            return None
        found = models.resolve(
            name,
            forms=("safetensors",),
            engine=self.name,
            revision=config.get("revision"),
            progress=progress,
        )
        rest = {k: v for k, v in config.items() if k != "revision"}
        options["speculative_config"] = {**rest, "model": str(found.path)}
        return found

    @staticmethod
    def _most_cache_bytes(model: models.ResolvedModel) -> int:
        """What the KV cache of a CPU may take: a quarter of what is free within the budget."""
        import psutil

        held = sum(r.idle_bytes or 0 for r in pool.residents())
        budget = max(0, settings.current().budget_bytes() - held)
        return max(0, min(psutil.virtual_memory().available, budget) - model.size_bytes) // 4


def _overhead_bytes(model: models.ResolvedModel) -> int:
    """What it takes beside weights and cache, as ``%memory`` has it: most of it goes by vocabulary.

    The gigabytes on the host are about the same where a GPU computes.
    """
    from ..guide import costs, estimates, sources

    if not (model.path / "config.json").is_file():  # derived from another file when it is loaded
        return OVERHEAD_BYTES
    try:
        found = sources.describe(str(model.path))
        made = estimates.estimate(found, "vllm", found.precision or "fp32", costs.Job(1, 1))
    except NbinferError:  # a model that the guide does not know
        return OVERHEAD_BYTES
    return made.overhead


def _adapter_rank(path: str) -> int:
    """What a LoRA adapter needs as ``max_lora_rank``, by its folder's ``adapter_config.json``."""
    rank = adapter_config(path, "vllm").get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= LORA_RANKS[-1]:
        raise ConfigurationError(
            f"the adapter at {path!r} has rank {rank!r:.80}; vllm takes 1 to {LORA_RANKS[-1]}"
        )
    return min(r for r in LORA_RANKS if r >= rank)


def _check_options(options: Mapping[str, Any]) -> None:
    """What can be told without vLLM; unknown names are refused by the worker, which has it."""
    check_counts(
        options, "n_threads", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"
    )
    share = options.get("gpu_memory_utilization")
    if share is not None and (
        isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1
    ):
        raise ConfigurationError(
            f"model_kwargs['gpu_memory_utilization'] must be in (0, 1], not {share!r:.80}"
        )
    drafts = options.get("speculative_config")
    if drafts is not None and not isinstance(drafts, Mapping):
        raise ConfigurationError(
            f"model_kwargs['speculative_config'] must be a mapping, not {drafts!r:.80}",
            hint="such as {'method': 'ngram', 'num_speculative_tokens': 4, 'prompt_lookup_max': 3}",
        )
    own = {
        "model": "ModelParams(model_name=...)",
        "max_model_len": "ModelParams(model_max_length=...)",
        "n_ctx": "ModelParams(model_max_length=...)",
        "dtype": "ModelParams(torch_dtype_str=...)",
        "trust_remote_code": "ModelParams(trust_remote_code=...)",
        "tokenizer": "ModelParams(tokenizer_name=...)",
        "revision": "ModelParams(model_revision=...)",
    }
    for name in options:
        if name in own:
            raise ConfigurationError(f"vllm has no model_kwargs[{name!r}]", hint=f"use {own[name]}")
