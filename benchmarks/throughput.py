"""Output tokens a second: nbinfer's llamacpp engine against raw xllamacpp.

    python benchmarks/throughput.py [--repeats 3]

16 chat prompts of 64 tokens, on all physical cores. Raw xllamacpp runs in a process of its own,
called from as many threads as it has slots, with 4, 8 and 16 slots, and with nbinfer's batch of 256
tokens and llama.cpp's own of 2,048. One engine is loaded at a time; rounds alternate, so that a
machine whose speed drifts slows all of them. The first round of each is not counted.
"""

from __future__ import annotations

import argparse

from common import PROMPTS, Raw, median, table

import nbinfer
from nbinfer import GenerationParams, LlamaCppInferenceEngine, ModelParams, models
from nbinfer.engines.local import physical_cores as _threads

TOKENS = 64
RAW = [(4, 256), (8, 256), (8, 2048), (16, 256), (16, 2048)]


def ours() -> float:
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 1024}))
    params = GenerationParams(max_new_tokens=TOKENS)
    with engine:
        engine.infer("Hello", GenerationParams(max_new_tokens=2))
        frame = engine.infer(PROMPTS, params, progress=False)
        facts = frame.attrs["nbinfer"]
        return facts["output_tokens"] / facts["wall_s"]


def raw(slots: int, n_batch: int) -> float:
    path = str(models.resolve("smollm2-135m").path)
    server = Raw(path, n_parallel=slots, n_ctx=16 * 1024, n_batch=n_batch, n_threads=_threads())
    try:
        server.ask(prompts=["Hello"], max_tokens=2)
        done = server.ask(prompts=PROMPTS, max_tokens=TOKENS)
        return done["tokens"] / done["seconds"]
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    found: dict[str, list[float]] = {}
    for round_ in range(repeats + 1):
        speeds = {f"raw, {s} slots, batch {b}": raw(s, b) for s, b in RAW}
        speeds["nbinfer"] = ours()
        for name, speed in speeds.items():
            if round_:
                found.setdefault(name, []).append(speed)
    best = max((n for n in found if n != "nbinfer"), key=lambda n: median(found[n]))
    # Round by round against the configuration that is best by its median.
    rows = []
    for name, speeds_ in found.items():
        ratio = median([a / b for a, b in zip(speeds_, found[best], strict=True)])
        rows.append((name, f"{median(speeds_):.1f}", f"{ratio:.3f}"))
    print(table(rows, ("", "tok/s", f"against {best}")))
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
