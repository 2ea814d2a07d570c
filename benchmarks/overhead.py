"""What the framework costs for each row: the echo engine, which has no model.

    python benchmarks/overhead.py [--repeats 3] [--folder FOLDER]

From ``infer()`` to the finished frame, with the engine loaded: prompts, protocol, both pipes, the
worker's queue, rows and frame. The peak of the kernel's own resident size is told as growth over
what it was before, without what the frame itself holds. The same rows are then kept in a file
(``output_path``), on the disk of FOLDER, and resumed from it.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import threading
import time
from pathlib import Path

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


def stored(engine: EchoInferenceEngine, prompts: list[str], folder: str | None) -> list[float]:
    """Seconds of a run that is kept in a new file, and of one that finds all rows there."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        took = []
        for _ in range(2):
            started = time.perf_counter()
            engine.infer(prompts, progress=False, output_path=Path(place) / "rows.db")
            took.append(time.perf_counter() - started)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="by default the one for temporary files")
    options = parser.parse_args()
    repeats = options.repeats
    engine = EchoInferenceEngine(ModelParams(model_kwargs={"slots": 64})).load()
    engine.infer(["warm up"] * 100, progress=False)
    rows = []
    for count in (1_000, 10_000, 100_000):
        prompts = ["one two three"] * count
        took, kept, peak, held = [], [], 0, 0
        for _ in range(repeats):
            with Growth() as growth:
                started = time.perf_counter()
                frame = engine.infer(prompts, progress=False)
                took.append(time.perf_counter() - started)
            held = int(frame.memory_usage(deep=True).sum())
            peak = max(peak, growth.bytes - held)
            del frame
            kept.append(stored(engine, prompts, options.folder))
        rows.append(
            (
                f"{count:,}",
                *(
                    f"{median(list(seconds)) / count * 1e6:.1f}"
                    for seconds in (took, *zip(*kept, strict=True))
                ),
                f"{held / 1e6:.1f}",
                f"{peak / 1e6:.0f}",
            )
        )
    columns = ("rows", "µs a row, median", "kept in a file", "resumed")
    print(table(rows, (*columns, "frame, MB", "kernel's growth beside it, MB")))
    nbinfer.shutdown()


if __name__ == "__main__":
    main()
