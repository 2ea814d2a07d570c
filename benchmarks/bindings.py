"""llama.cpp's two bindings against each other, and llama-cpp-python against its own raw loop.

    python benchmarks/bindings.py [--repeats 5]

16 chat prompts of 64 tokens. All are resident in processes of their own and asked in turn; ratios
are medians of the rounds', the first of which is not counted.
"""

from __future__ import annotations

import argparse

from common import PROMPTS, RawEngine, median, table

import nbinfer
from nbinfer import GenerationParams, LlamaCppInferenceEngine, ModelParams, environments, models
from nbinfer.engines.local import physical_cores

TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    path = str(models.resolve("smollm2-135m").path)
    python = environments.python_for("llama-cpp-python")
    raw = RawEngine(python, "llama_cpp", path, physical_cores())
    params = GenerationParams(max_new_tokens=TOKENS)
    model = ModelParams(model_max_length=2048)
    engines = {
        binding: LlamaCppInferenceEngine(model, binding=binding).load()
        for binding in ("llama-cpp-python", "xllamacpp")
    }
    found: dict[str, list[float]] = {"raw Llama": [], **{name: [] for name in engines}}
    for round_ in range(repeats + 1):
        done = raw.ask(prompts=PROMPTS, max_tokens=TOKENS)
        speeds = {"raw Llama": done["tokens"] / done["seconds"]}
        for name, engine in engines.items():
            facts = engine.infer(PROMPTS, params, progress=False).attrs["nbinfer"]
            speeds[name] = facts["output_tokens"] / facts["wall_s"]
        if round_:
            for name, speed in speeds.items():
                found[name].append(speed)
    raw.close()
    nbinfer.shutdown()

    def ratio(name: str, other: str) -> str:
        return f"{median([a / b for a, b in zip(found[name], found[other], strict=True)]):.3f}"

    rows = [
        ("raw Llama", f"{median(found['raw Llama']):.1f}", ""),
        (
            "nbinfer, llama-cpp-python",
            f"{median(found['llama-cpp-python']):.1f}",
            ratio("llama-cpp-python", "raw Llama"),
        ),
        ("nbinfer, xllamacpp", f"{median(found['xllamacpp']):.1f}", ""),
        ("xllamacpp over llama-cpp-python", "", ratio("xllamacpp", "llama-cpp-python")),
    ]
    print(table(rows, ("", "tok/s", "ratio")))


if __name__ == "__main__":
    main()
