"""What the framework costs for each row: the echo engine, which has no model.

    python benchmarks/overhead.py

From ``infer()`` to the finished frame, with the engine loaded: prompts, protocol, both pipes, the
worker's queue, rows and frame. The growth of the kernel's memory is beside what the frame itself
holds.
"""

from __future__ import annotations

import gc
import time

import psutil
from common import median, table

import nbinfer
from nbinfer import EchoInferenceEngine, ModelParams
from nbinfer.measure import PeakSampler


def main() -> None:
    engine = EchoInferenceEngine(ModelParams(model_kwargs={"slots": 64})).load()
    pid = psutil.Process().pid
    engine.infer(["warm up"] * 100, progress=False)
    rows = []
    for count in (1_000, 10_000, 100_000):
        prompts = ["one two three"] * count
        took, peak, held = [], 0, 0
        for _ in range(3):
            gc.collect()
            before = psutil.Process().memory_info().rss
            with PeakSampler(pid) as sampler:
                started = time.perf_counter()
                frame = engine.infer(prompts, progress=False)
                took.append(time.perf_counter() - started)
            peak = max(peak, sampler.peak_bytes - before)
            held = int(frame.memory_usage(deep=True).sum())
            del frame
        rows.append(
            (
                f"{count:,}",
                f"{median(took) / count * 1e6:.1f}",
                f"{held / 1e6:.1f}",
                f"{peak / 1e6:.0f}",
            )
        )
    print(table(rows, ("rows", "µs a row, median of 3", "frame, MB", "kernel's growth, MB")))
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
