"""Do engines with the same weights say the same? Prints docs/parity.md.

    python benchmarks/parity.py > docs/parity.md

Fifty prompts, greedily, 32 tokens each: Transformers and vLLM on the same float32 weights, the two
bindings of llama.cpp on the same Q4_1 file.
"""

from __future__ import annotations

import datetime

import nbinfer
from nbinfer import (
    LlamaCppInferenceEngine,
    ModelParams,
    NativeTextInferenceEngine,
    VLLMInferenceEngine,
)
from nbinfer.guide import proofs
from nbinfer.guide.parity import PROMPTS, Parity, parity

HEAD = """# Parity

Do engines with the same weights say the same? Fifty prompts, answered greedily with 32 tokens at
most by smollm2-135m; a difference is explained where an engine held both tokens for about as
likely (the gap of their log-probabilities). That each engine's rows are its raw library's own,
token for token, is held by `tests/engines/test_equality.py`. This page is generated
(`python benchmarks/parity.py > docs/parity.md`), never edited.
"""


def section(names: tuple[str, str], found: Parity) -> str:
    lines = [
        f"## `{names[0]}` and `{names[1]}`",
        "",
        f"{found.alike:,} of {found.tokens:,} tokens ({found.share:.1%}) before any difference; "
        f"{len(PROMPTS) - len(found.partings)} of {len(PROMPTS)} answers are the same.",
    ]
    if found.partings:
        lines += ["", "| prompt | token | chosen | gap | gap |", "|---|---|---|---|---|"]
    for parting in found.partings:
        gaps = " | ".join("–" if gap is None else f"{gap:.4f}" for gap in parting.gaps)
        first, second = (f"`{token!r}`" for token in parting.tokens)
        lines.append(f"| {parting.prompt} | {parting.place} | {first}, {second} | {gaps} |")
    return "\n".join(lines)


def main() -> None:
    versions = [proofs.installed_version(name) for name in ("native", "vllm", "llamacpp")]
    print(HEAD)
    print(f"{', '.join(v for v in versions if v)}, {datetime.datetime.now(datetime.UTC).date()}.\n")
    model = ModelParams("smollm2-135m", model_max_length=2048)
    pairs = {
        ("native", "vllm"): [NativeTextInferenceEngine(model), VLLMInferenceEngine(model)],
        ("llamacpp", "llamacpp -k binding=llama-cpp-python"): [
            LlamaCppInferenceEngine(model, binding="xllamacpp"),
            LlamaCppInferenceEngine(model, binding="llama-cpp-python"),
        ],
    }
    parts = []
    for names, engines in pairs.items():
        parts.append(section(names, parity(engines)))
        nbinfer.shutdown()
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
