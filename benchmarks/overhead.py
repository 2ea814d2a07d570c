"""What the framework costs for each row: the echo engine, which has no model.

    python benchmarks/overhead.py [--repeats 3]

From ``infer()`` to the finished frame, with the engine loaded: prompts, protocol, both pipes, the
worker's queue, rows and frame. The peak of the kernel's own resident size is told as growth over
what it was before, without what the frame itself holds.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time

import psutil
from common import median, table

import nbinfer
from nbinfer import EchoInferenceEngine, ModelParams


class Growth:
    """How far this process's resident size rises in the block; its workers do not count."""

    def __enter__(self) -> Growth:
        gc.collect()
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.bytes = max(self._peak, self._process.memory_info().rss) - self._before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    engine = EchoInferenceEngine(ModelParams(model_kwargs={"slots": 64})).load()
    engine.infer(["warm up"] * 100, progress=False)
    rows = []
    for count in (1_000, 10_000, 100_000):
        prompts = ["one two three"] * count
        took, peak, held = [], 0, 0
        for _ in range(repeats):
            with Growth() as growth:
                started = time.perf_counter()
                frame = engine.infer(prompts, progress=False)
                took.append(time.perf_counter() - started)
            held = int(frame.memory_usage(deep=True).sum())
            peak = max(peak, growth.bytes - held)
            del frame
        rows.append(
            (
                f"{count:,}",
                f"{median(took) / count * 1e6:.1f}",
                f"{held / 1e6:.1f}",
                f"{peak / 1e6:.0f}",
            )
        )
    print(table(rows, ("rows", "µs a row, median", "frame, MB", "kernel's growth beside it, MB")))
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
