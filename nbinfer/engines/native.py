"""native: Hugging Face Transformers, for prototypes, debugging and every model there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import models, settings
from ..config import GenerationParams, ModelParams
from ..errors import ConfigurationError
from .adapters import PeftAdapters
from .local import check_counts, physical_cores
from .parallel import check_tensor_parallel

__all__ = ["NativeTextInferenceEngine"]

# A beam search follows the model's own probabilities.
NOT_WITH_BEAMS = (
    *("temperature", "logprobs", "seed", "logit_bias", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty", "guided_decoding", "tools"),
)
# Beside the weights: Python, torch and Transformers, measured. Only the eviction estimate
# uses it; what rows report is measured.
OVERHEAD_BYTES = 600_000_000
# Options that need the model in one process.
_WHOLE = (
    "load_in_4bit",
    "load_in_8bit",
    "quantization_config",
    "assistant_model",
    "prompt_lookup_num_tokens",
    "offload_folder",
)


class NativeTextInferenceEngine(PeftAdapters):
    """Transformers in a worker process: rows that join, LoRA, beams, quantization, debugging.

    Parameters
    ----------
    model_params : ModelParams or str, optional
        ``model_name``: the embedded model, a folder, a hub id or a ``.gguf`` file (which is
        dequantized). ``model_max_length``: most tokens of prompt and answer (default: the
        model's own). ``torch_dtype_str``: default ``"auto"``, the checkpoint's own.
        ``adapters``, ``adapter_model``: LoRA folders as PEFT writes them, which join the
        running model. ``device_map``: where the weights go, ``"disk"`` among the places.
        ``model_kwargs``: ``batch_size`` (most rows of a run in a batch; default 32 on a CPU
        and 64 elsewhere, fewer where memory is short), ``batching`` (``"continuous"``: rows
        join the running batch, the default wherever the model's cache allows it;
        ``"static"``: each run has batches of its own), ``tensor_parallel_size`` (how many
        processes, on GPUs one for each, share the model's layers: it divides the attention
        heads; rows run in static batches), ``prefix_cache_tokens`` (how many tokens
        of earlier rows are kept for rows that begin alike; default 8,192 and in 8 bits 0),
        ``assistant_model`` (a name as ``model_name``: a small model that guesses tokens for the
        large one) with ``num_assistant_tokens``, or ``prompt_lookup_num_tokens`` (guesses out
        of the prompt), ``n_threads`` (default: physical cores), ``load_in_4bit``,
        ``load_in_8bit`` and ``bnb_…`` (bitsandbytes), ``quantization_config``,
        ``offload_folder``, and whatever else ``from_pretrained`` takes.
    generation_params : GenerationParams, optional
        Defaults for every call.

    Raises
    ------
    ConfigurationError
        For an impossible option.

    Notes
    -----
    A model of images and text reads the images of a conversation.

    ``%%engine_exec native`` runs code beside the model.

    An assistant speeds up a row that is alone; it never changes an answer. Rows of a list decode
    together, and rows with a grammar, penalties or ``logprobs`` decode plainly.

    Examples
    --------
    >>> engine = NativeTextInferenceEngine(
    ...     ModelParams("smollm2-135m", model_kwargs={"load_in_4bit": True})
    ... )
    """

    name = "native"
    backend = "native"
    recipe = "native"
    computes_on_gpu = True
    model_options = (
        "batch_size",
        "batching",
        "tensor_parallel_size",
        "prefix_cache_tokens",
        "assistant_model",
        "num_assistant_tokens",
        "prompt_lookup_num_tokens",
        "offload_folder",
        "n_threads",
        "load_in_4bit",
        "load_in_8bit",
        "quantization_config",
        "bnb_4bit_quant_type",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_use_double_quant",
    )

    def _check_model(self, params: ModelParams) -> None:
        super()._check_model(params)
        _check_options(params.model_kwargs)
        _check_split(params)

    def _check_generation(self, params: GenerationParams) -> None:
        super()._check_generation(params)
        if params.num_beams > 1:
            changed = params.to_dict(changed_only=True)
            for name in (n for n in NOT_WITH_BEAMS if n in changed):
                if name != "tools" or params.tool_choice != "none":
                    raise ConfigurationError(
                        f"num_beams={params.num_beams} is a search: it takes no {name}="
                        f"{getattr(params, name)!r}",
                        hint=f"leave out {name}, or num_beams",
                    )

    def _prepare(self, progress: Callable[[str], None]) -> tuple[dict[str, Any], int]:
        params = self.model_params
        options = dict(params.model_kwargs)
        ranks = options.get("tensor_parallel_size") or 1
        forms = ("safetensors", "gguf") if ranks == 1 else ("safetensors",)
        model = self._resolve(progress, *forms)
        check_tensor_parallel(model, ranks, repeats_kv=False)
        message = {
            **self._transformers_message(model),
            "options": options,
            "n_threads": options.pop("n_threads", None) or physical_cores(),
            "cache_bytes": settings.current().budget_bytes() // 4,
            "tokenizer_kwargs": dict(params.tokenizer_kwargs),
            "processor_kwargs": dict(params.processor_kwargs),
            "attn_implementation": params.attn_implementation,
            "device_map": params.device_map,
        }
        needed = self._weights(model, options) + ranks * OVERHEAD_BYTES
        name = options.pop("assistant_model", None)
        if name is not None:
            small = self._assistant(str(name), progress)
            message["assistant"] = self._place(small)
            needed += self._weights(small, {})
        return message, needed

    def _assistant(self, name: str, progress: Callable[[str], None]) -> models.ResolvedModel:
        return models.resolve(
            name, forms=("safetensors", "gguf"), engine=self.name, progress=progress
        )

    def _weights(self, model: models.ResolvedModel, options: Mapping[str, Any]) -> int:
        """About what the loaded weights take, from the file's size."""
        size = float(model.size_bytes)
        if model.format == "gguf":
            size *= 4 * 8 / 5  # about five bits a weight become float32
        if options.get("load_in_4bit"):
            size /= 4
        elif options.get("load_in_8bit"):
            size /= 2
        return int(size)


def _check_split(params: ModelParams) -> None:
    """Refuse what a model that is split over ranks cannot have."""
    options = params.model_kwargs
    if (options.get("tensor_parallel_size") or 1) == 1:
        return
    given = {
        "adapters": params.adapters or params.adapter_model,
        "compile": params.compile,
        "device_map": params.device_map,
        **{f"model_kwargs[{name!r}]": options.get(name) for name in _WHOLE},
    }
    for name, value in given.items():
        if value:
            raise ConfigurationError(
                f"native splits no model with {name} over ranks",
                hint="leave out one of the two" + (": vllm has both" if name == "adapters" else ""),
            )
    if options.get("batching") == "continuous":
        raise ConfigurationError(
            "rows do not join the running batch of a model that is split over ranks",
            hint="leave out model_kwargs['batching']",
        )


def _check_options(options: Mapping[str, Any]) -> None:
    check_counts(
        options,
        "batch_size",
        "n_threads",
        "num_assistant_tokens",
        "prompt_lookup_num_tokens",
        "tensor_parallel_size",
    )
    _check_batching(options)
    _check_assistant(options)
    for name in ("load_in_4bit", "load_in_8bit"):
        if not isinstance(options.get(name, False), bool):
            raise ConfigurationError(
                f"model_kwargs[{name!r}] must be True or False, not {options[name]!r:.80}"
            )
    if options.get("load_in_4bit") and options.get("load_in_8bit"):
        raise ConfigurationError("load_in_4bit and load_in_8bit exclude each other")
    if "n_ctx" in options:
        raise ConfigurationError(
            "native has no model_kwargs['n_ctx']", hint="use ModelParams(model_max_length=...)"
        )


def _check_batching(options: Mapping[str, Any]) -> None:
    batching = options.get("batching", "continuous")
    if batching not in ("continuous", "static"):
        raise ConfigurationError(
            f"model_kwargs['batching'] must be 'continuous' or 'static', not {batching!r:.80}"
        )
    kept = options.get("prefix_cache_tokens", 0)
    if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
        raise ConfigurationError(
            "model_kwargs['prefix_cache_tokens'] must be an integer of at least 0, "
            f"not {kept!r:.80}"
        )
    if kept and batching == "static":
        raise ConfigurationError(
            "static batches keep no prefixes",
            hint="leave out model_kwargs['batching'] or 'prefix_cache_tokens'",
        )


def _check_assistant(options: Mapping[str, Any]) -> None:
    name, lookup = options.get("assistant_model"), options.get("prompt_lookup_num_tokens")
    if name is not None and (not isinstance(name, str | Path) or not str(name).strip()):
        raise ConfigurationError(
            f"model_kwargs['assistant_model'] must be a model's name or path, not {name!r:.80}"
        )
    if name is not None and lookup is not None:
        raise ConfigurationError(
            "assistant_model and prompt_lookup_num_tokens exclude each other",
            hint="tokens are guessed by a model or out of the prompt",
        )
    if options.get("num_assistant_tokens") is not None and name is None:
        raise ConfigurationError(
            "num_assistant_tokens is how many tokens an assistant_model guesses",
            hint="name one, or use prompt_lookup_num_tokens, which needs no model",
        )
