"""What the worker process adds to the time to first token.

    python benchmarks/ttft.py [--repeats 30]

A short prompt whose prefix is cached, so that the engine's own share is small: raw xllamacpp, timed
in its own process from the call to the first piece, against nbinfer, timed in the kernel from
``engine.stream()`` to the first piece. In turn, medians.
"""

from __future__ import annotations

import argparse
import time

from common import Raw, median, table

import nbinfer
from nbinfer import GenerationParams, LlamaCppInferenceEngine, ModelParams, models
from nbinfer.engines.local import physical_cores

PROMPT = "Name a colour."
# llama.cpp's threads spin on for some milliseconds after an answer: not into the other's time.
REST_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 1024})).load()
    path = str(models.resolve("smollm2-135m").path)
    server = Raw(path, n_parallel=8, n_ctx=8192, n_batch=256, n_threads=physical_cores())
    params = GenerationParams(max_new_tokens=4)
    raw, ours, inside = [], [], []
    for round_ in range(repeats + 2):
        time.sleep(REST_S)
        baseline = server.ask(prompt=PROMPT)["seconds"]
        time.sleep(REST_S)
        started = time.perf_counter()
        stream = engine.stream(PROMPT, params)
        next(stream)
        first = time.perf_counter() - started
        list(stream)
        if round_ >= 2:
            raw.append(baseline)
            ours.append(first)
            inside.append(float(stream.result["ttft_s"][0]))
    server.close()
    nbinfer.shutdown()
    rows = [
        ("raw xllamacpp", f"{median(raw) * 1e3:.2f}"),
        ("nbinfer, in the worker (the column ttft_s)", f"{median(inside) * 1e3:.2f}"),
        ("nbinfer, in the kernel", f"{median(ours) * 1e3:.2f}"),
        (
            "added by the worker",
            f"{median([o - i for o, i in zip(ours, inside, strict=True)]) * 1e3:.2f}",
        ),
        ("added over raw", f"{median([o - r for o, r in zip(ours, raw, strict=True)]) * 1e3:.2f}"),
    ]
    print(table(rows, ("time to first token", "ms, median")))


if __name__ == "__main__":
    main()
