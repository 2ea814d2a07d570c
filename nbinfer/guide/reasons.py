"""Why a feature is not to be had of an engine, or not on this machine, and where that is said."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REASONS", "Reason"]


@dataclass(frozen=True)
class Reason:
    """``state`` is ``"unsupported"`` or ``"gpu"``; ``source`` is an address or a library's file."""

    text: str
    source: str
    state: str = "unsupported"


_NO_EMBEDDINGS = Reason("nbinfer has no call for embeddings yet", "docs/features.md")

REASONS: dict[tuple[str, str], Reason] = {
    **{
        ("embeddings", engine): _NO_EMBEDDINGS
        for engine in ("vllm", "native", "llamacpp", "remote-vllm", "sglang")
    },
    ("tensor_parallel", "llamacpp"): Reason(
        "split_mode shares a model among GPUs, and llama.cpp has one device on a CPU; "
        "tests/engines/test_llamacpp.py proves it where there are two",
        "https://github.com/ggml-org/llama.cpp/blob/master/docs/multi-gpu.md",
        "gpu",
    ),
    ("beam_search", "llamacpp"): Reason(
        "llama.cpp has removed its beam search",
        "https://github.com/ggml-org/llama.cpp/pull/7736",
    ),
    ("beam_search", "vllm"): Reason(
        "vLLM searches beams outside of its engine, a whole answer at a time; nbinfer streams rows "
        "through the engine and does not call it",
        "vllm/entrypoints/generate/beam_search/online.py",
    ),
    ("beam_search", "remote-vllm"): Reason(
        "vLLM's server has use_beam_search, which does not stream; nbinfer does not send it",
        "vllm/entrypoints/openai/chat_completion/protocol.py",
    ),
    ("beam_search", "sglang"): Reason(
        "SGLang's server has beam_width; nbinfer does not send it",
        "sglang/srt/beam_search/beam_group.py",
    ),
    **{
        ("gguf", engine): Reason(
            "vLLM 0.32 has no loader of GGUF files among its formats",
            "vllm/model_executor/layers/quantization",
        )
        for engine in ("vllm", "remote-vllm")
    },
    ("gguf", "sglang"): Reason(
        "SGLang dequantizes GGUF on CUDA, MUSA and NPU alone, and nbinfer serves it safetensors",
        "sglang/srt/layers/quantization/gguf.py",
    ),
    ("quantization_4bit", "sglang"): Reason(
        "on a CPU SGLang's four bits need Intel AMX, and bitsandbytes is copied to a GPU; "
        "tests/engines/test_sglang_gpu.py proves it there",
        "sglang/srt/layers/quantization/auto_round.py",
        "gpu",
    ),
    ("quantization_8bit", "sglang"): Reason(
        "on a CPU SGLang's eight bits need Intel AMX or Arm; tests/engines/test_sglang_gpu.py "
        "proves it on a GPU",
        "sglang/srt/layers/quantization/w8a8_int8.py",
        "gpu",
    ),
    ("speculative", "sglang"): Reason(
        "SGLang verifies drafts by sgl_kernel, which is built for GPUs; "
        "tests/engines/test_sglang_gpu.py proves it there",
        "sglang/kernels/ops/speculative/reconstruct_tree.py",
        "gpu",
    ),
    ("seeds", "sglang"): Reason(
        "a seed is heeded with --enable-deterministic-inference alone, whose attention backends "
        "are for GPUs; nbinfer refuses it otherwise; tests/engines/test_sglang_gpu.py proves it",
        "sglang/srt/arg_groups/overrides.py",
        "gpu",
    ),
}
