"""Output tokens a second: nbinfer's llamacpp engine against raw xllamacpp.

    python benchmarks/throughput.py [--repeats 5]

16 chat prompts of 64 tokens, on all physical cores. Raw xllamacpp runs in processes of its own,
called from as many threads as it has slots. All are resident and asked in turn, never at once, so
that a machine whose speed drifts slows all of them; ratios are medians of the rounds', the first of
which is not counted.
"""

from __future__ import annotations

import argparse

from common import PROMPTS, Raw, median, table

import nbinfer
from nbinfer import GenerationParams, LlamaCppInferenceEngine, ModelParams, models
from nbinfer.engines.local import physical_cores

TOKENS = 64
RAW = [(4, 256), (8, 256), (16, 256), (16, 2048)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    path = str(models.resolve("smollm2-135m").path)
    servers = {
        f"raw, {slots} slots, batch {batch}": Raw(
            path, n_parallel=slots, n_ctx=16 * 1024, n_batch=batch, n_threads=physical_cores()
        )
        for slots, batch in RAW
    }
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 1024})).load()
    params = GenerationParams(max_new_tokens=TOKENS)
    found: dict[str, list[float]] = {name: [] for name in [*servers, "nbinfer"]}
    for round_ in range(repeats + 1):
        speeds = {}
        for name, server in servers.items():
            done = server.ask(prompts=PROMPTS, max_tokens=TOKENS)
            speeds[name] = done["tokens"] / done["seconds"]
        facts = engine.infer(PROMPTS, params, progress=False).attrs["nbinfer"]
        speeds["nbinfer"] = facts["output_tokens"] / facts["wall_s"]
        for name, speed in speeds.items():
            if round_:
                found[name].append(speed)
    best = max(servers, key=lambda name: median(found[name]))
    rows = []
    for name, speeds_ in found.items():
        ratio = median([a / b for a, b in zip(speeds_, found[best], strict=True)])
        rows.append((name, f"{median(speeds_):.1f}", f"{ratio:.3f}"))
    print(table(rows, ("", "tok/s", f"against {best}")))
    for server in servers.values():
        server.close()
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
