"""Bytes of KV cache, as each engine keeps it."""

from __future__ import annotations

from .. import gguf
from ..checks import shown
from ..errors import ConfigurationError
from .shapes import Shape

__all__ = ["KV_DTYPES", "kv_bits", "kv_bytes"]

# Bits of a stored value; llama.cpp's blocks carry a scale. By llama.cpp's names and vLLM's.
KV_DTYPES = {
    "fp32": 32.0,
    "fp16": 16.0,
    "bf16": 16.0,
    "fp8": 8.0,
    **{
        name.casefold(): 8 * size / elements
        for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL")
        for elements, size in (gguf.block(name),)
    },
}
_ALSO = {"float32": "fp32", "f32": "fp32", "float16": "fp16", "f16": "fp16", "bfloat16": "bf16"}
_ALSO |= {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
# Tokens of a block: vLLM's default on a GPU (CacheConfig.block_size), and on a CPU
# (platforms/cpu.py). llama.cpp pads its cells to 256 (llama-context.cpp, llama-kv-cache-iswa.cpp).
VLLM_BLOCK, VLLM_CPU_BLOCK, LLAMACPP_PAD = 16, 128, 256
# Tokens of a step that nbinfer asks of vLLM on a CPU, and vLLM of itself on a GPU.
VLLM_STEP, VLLM_CPU_STEP = 8192, 512
LLAMACPP_BATCH = 256  # nbinfer's n_batch
NATIVE_CHUNK = 512  # tokens of a row in one pass: worker/backends/native.py


def kv_bits(name: str) -> float:
    """Bits of one stored value.

    Raises
    ------
    ConfigurationError
        For a type that no engine's cache has.
    """
    plain = name.strip().casefold() if isinstance(name, str) else ""
    plain = _ALSO.get(plain, plain)
    if plain not in KV_DTYPES:
        raise ConfigurationError(
            f"no KV cache is of type {shown(name)}", hint=f"there are: {', '.join(KV_DTYPES)}"
        )
    return KV_DTYPES[plain]


def kv_bytes(
    shape: Shape,
    engine: str,
    context: int,
    batch: int,
    bits: float,
    *,
    parallel: int = 1,
    gpu: bool = False,
) -> int:
    """Bytes of KV cache for ``batch`` requests of ``context`` tokens, on each device.

    A token takes ``(head_dim + value_dim) * kv_heads`` values in each layer: keys and values of
    grouped queries (Ainslie et al. 2023, arXiv:2305.13245). DeepSeek's MLA keeps ``kv_lora_rank +
    qk_rope_head_dim`` instead (DeepSeek-V2, arXiv:2405.04434, section 2.1.2), with every engine:
    Transformers too caches the latents (5.24, ``modeling_deepseek_v3.py``). A
    layer with a sliding window keeps no more than its window:

    - ``native``: ``window - 1`` tokens and a chunk, of which those of the window are a view
      (Transformers, ``cache_utils.DynamicSlidingWindowLayer``);
    - ``vllm``: ``window - 1`` and one step's tokens, in whole blocks and one more
      (``v1/kv_cache_interface.SlidingWindowSpec``); each layer has one block beside those of the
      requests (``v1/core/block_pool.py``, the null block);
    - ``llamacpp``: ``window`` for each slot and one batch, padded to 256, where the layers
      alternate (``llama-kv-cache-iswa.cpp``), else every token. There each slot also keeps copies
      of its window, from which a prompt that begins alike goes on (``server-context.cpp``,
      ``create_checkpoint``): one at the prompt's end, and one a batch before it.

    Tensor parallelism divides the heads; a device has one at least, and MLA's vector is kept by
    each (vLLM, ``ModelConfig.get_num_kv_heads``).
    """
    if engine == "llamacpp":
        full, short = _llamacpp_cells(shape, context, batch)
    elif engine == "native":
        held = context if shape.window is None else shape.window - 1 + NATIVE_CHUNK
        full, short = batch * context, batch * min(context, held)
    else:
        full, short = _vllm_cells(shape, context, batch, gpu=gpu)
    values = _values(shape, parallel)
    cells = full * (shape.layers - shape.windowed) + short * shape.windowed
    return int(cells * values * bits / 8)


def _values(shape: Shape, parallel: int) -> int:
    """Values that a token takes in a layer."""
    if shape.latent is not None:
        return shape.latent
    return max(1, shape.kv_heads // parallel) * (shape.head_dim + shape.value_dim)


def _llamacpp_cells(shape: Shape, context: int, batch: int) -> tuple[int, int]:
    # One cache for all slots, with the slack of a batch: what nbinfer asks llama.cpp for.
    full = _padded(batch * context + LLAMACPP_BATCH, LLAMACPP_PAD)
    if not 0 < shape.windowed < shape.layers or shape.window is None:
        return full, full
    short = shape.window * batch + LLAMACPP_BATCH
    ends = (context, max(0, context - LLAMACPP_BATCH))
    copies = batch * sum(min(shape.window, end) for end in ends)
    return full, _padded(min(full, short), LLAMACPP_PAD) + copies


def _vllm_cells(shape: Shape, context: int, batch: int, *, gpu: bool) -> tuple[int, int]:
    block, step = (VLLM_BLOCK, VLLM_STEP) if gpu else (VLLM_CPU_BLOCK, VLLM_CPU_STEP)
    whole = _padded(context, block)
    full = batch * whole + block
    if shape.window is None:
        return full, full
    short = _padded(min(shape.window - 1 + step, context), block) + block
    return full, batch * min(short, whole) + block


def _padded(count: int, to: int) -> int:
    return -(-count // to) * to
