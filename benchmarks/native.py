"""Output tokens a second: nbinfer's native engine against Transformers' own ``generate``.

    python benchmarks/native.py [--repeats 5]

16 chat prompts of 64 tokens in one batch of 16: all of like length, and of 8 to 512 tokens mixed.
Both models are resident in processes of their own and asked in turn, so that a machine whose speed
drifts slows both; the ratio is the median of the rounds'. The first round is not counted. Then the
memory of an idle kernel with two engines, and what is left after ``unload``.
"""

from __future__ import annotations

import argparse
import random

import psutil
from common import PROMPTS, RawEngine, median, table

import nbinfer
from nbinfer import (
    GenerationParams,
    LlamaCppInferenceEngine,
    ModelParams,
    NativeTextInferenceEngine,
    environments,
)
from nbinfer.engines.local import physical_cores

TOKENS = 64
LENGTHS = (8, 500, 16, 400, 30, 300, 60, 200, 100, 150, 8, 480, 20, 350, 50, 120)
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs")


def mixed() -> list[str]:
    choose = random.Random(1)
    return [
        f"Tell me about {n}: " + " ".join(choose.choice(WORDS) for _ in range(length))
        for n, length in enumerate(LENGTHS)
    ]


def tree_bytes() -> int:
    me = psutil.Process()
    return sum(p.memory_full_info().pss for p in [me, *me.children(recursive=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    engine = NativeTextInferenceEngine(ModelParams(model_kwargs={"batch_size": 16})).load()
    assert engine.resident is not None
    folder = engine.resident.model_facts["path"]
    python = environments.python_for("native")
    raw = RawEngine(python, "transformers", folder, physical_cores())
    params = GenerationParams(max_new_tokens=TOKENS)
    rows = []
    for name, prompts in (("alike", PROMPTS), ("8 to 512 tokens", mixed())):
        theirs, ours = [], []
        for round_ in range(repeats + 1):
            done = raw.ask(prompts=prompts, batch=16, max_tokens=TOKENS)
            facts = engine.infer(prompts, params, progress=False).attrs["nbinfer"]
            if round_:
                theirs.append(done["tokens"] / done["seconds"])
                ours.append(facts["output_tokens"] / facts["wall_s"])
        ratio = median([b / a for a, b in zip(theirs, ours, strict=True)])
        rows.append((name, f"{median(theirs):.1f}", f"{median(ours):.1f}", f"{ratio:.3f}"))
    raw.close()
    print(table(rows, ("prompts", "generate, tok/s", "nbinfer, tok/s", "ratio")))
    engine.unload()
    before = tree_bytes()
    pair = [LlamaCppInferenceEngine().load(), NativeTextInferenceEngine().load()]
    both = tree_bytes()
    nbinfer.shutdown()
    after = tree_bytes()
    del pair
    memory = [("kernel alone", before), ("both engines resident", both), ("after unload", after)]
    print(table([(n, f"{b / 1e6:.0f}") for n, b in memory], ("memory", "MB")))


if __name__ == "__main__":
    main()
