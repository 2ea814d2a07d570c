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
}
