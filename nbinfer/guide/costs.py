"""What an engine takes beside weights and KV cache: activations, and the engine itself."""

from __future__ import annotations

from dataclasses import dataclass

from ..gpu import CONTEXT_BYTES
from .kvcache import LLAMACPP_BATCH, NATIVE_CHUNK, VLLM_CPU_STEP, VLLM_STEP, kv_bytes
from .shapes import Shape

__all__ = ["Job", "activations_bytes", "overhead_bytes"]

# Copies of a row's scores: float32, what the sampler makes of them, candidates to choose from.
SCORES = {"native": 6, "vllm": 3, "llamacpp": 5}
# Processes, libraries and heaps on a CPU: what ``benchmarks/memory.py`` finds of SmolLM2-135M
# beside all else that is counted here; native's is the middle of two kinds of CPU, 50 MB apart.
# On a GPU it is the CUDA context, an allowance.
OVERHEAD = {
    "llamacpp": 46_000_000,
    "native": 368_000_000,
    "vllm": 1_535_000_000,
}
# For each token of the vocabulary. llama.cpp's: its text and score (40 bytes), a node and a bucket
# of the map from texts (72), its text as a piece (32), by llama-vocab.cpp's types on 64 bits. What
# reading a tokenizer leaves on the heap in Python: SmolLM2 against SmolLM2 cut to 2,000 tokens;
# vLLM reads it in three processes.
TOKEN = {"llamacpp": 144, "native": 925, "vllm": 8660}
# What glibc's heap holds for activations that live, holes included; of SmolLM2-135M.
NATIVE_HOLES = 1.4


@dataclass(frozen=True)
class Job:
    """What is asked of a model: tokens of a request, requests at once, devices."""

    context: int
    batch: int
    parallel: int = 1
    gpu: bool = False


def activations_bytes(shape: Shape, engine: str, job: Job, width: int) -> int:
    """The largest tensors of one forward pass that live at once, in bytes on each device.

    Of a pass over ``t`` tokens a layer's MLP holds gate, up and their product, ``3 t
    intermediate``, beside the residual and its norm, ``4 t hidden``; its attention holds queries,
    keys and values and their rotated copies. Activations of a layer are freed before the next
    (inference keeps no graph: Korthikanti et al. 2022, arXiv:2205.05198, section 4 counts them
    for training). The scores of each row's last token are float32, in ``SCORES`` copies.

    - ``native``: rows times a chunk of at most 512 tokens, with the heap's holes, and the
      scores. Under the mask of a padded batch Transformers repeats keys and values for each
      query head (``integrations/sdpa_attention.repeat_kv``). Where no layer has a window, each
      row's keys and values are kept once more when the prompts are read, for rows that begin
      alike: then the activations are gone, and the larger of both counts.
    - ``vllm``: one step's tokens, whatever the batch (``max_num_batched_tokens``).
    - ``llamacpp``: one batch of 256 tokens, in float32, and its mask over all cells.
    """
    scores = SCORES[engine] * 4 * shape.vocab * job.batch
    if engine == "native":
        chunks = -(-job.context // NATIVE_CHUNK)
        rows = job.batch * -(-job.context // chunks)
        repeated = 2 * job.batch * job.context * shape.heads * shape.head_dim
        attention = repeated + rows * job.context
        body = max(_mlp(shape, rows), attention) + _projections(shape, rows)
        again = 0 if shape.windowed else kv_bytes(shape, engine, job.context, job.batch, 8 * width)
        return int(max(NATIVE_HOLES * body * width, again) / job.parallel + scores)
    if engine == "vllm":
        step = VLLM_STEP if job.gpu else VLLM_CPU_STEP
        rows = min(step, job.context * job.batch)
        return (_mlp(shape, rows) + _projections(shape, rows)) * width // job.parallel + scores
    rows = min(LLAMACPP_BATCH, job.context * job.batch)
    mask = 2 * rows * (job.context * job.batch + LLAMACPP_BATCH)
    return 4 * (_mlp(shape, rows) + _projections(shape, rows)) + mask + scores


def _mlp(shape: Shape, rows: int) -> int:
    inner = shape.intermediate
    if shape.experts:
        chosen = shape.config.get("num_experts_per_tok") or 2
        inner = chosen * (shape.config.get("moe_intermediate_size") or shape.intermediate)
    return rows * (3 * inner + 4 * shape.hidden)


def _projections(shape: Shape, rows: int) -> int:
    return rows * 2 * (shape.heads + 2 * shape.kv_heads) * shape.head_dim


def overhead_bytes(engine: str, shape: Shape, *, gpu: bool) -> int:
    """What an engine takes for itself: its processes on a CPU, a CUDA context on a GPU."""
    return CONTEXT_BYTES if gpu else OVERHEAD[engine] + TOKEN[engine] * shape.vocab
