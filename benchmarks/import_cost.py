"""What ``import nbinfer`` and ``%load_ext nbinfer`` cost over bare IPython.

    python benchmarks/import_cost.py [--repeats 10]

Fresh processes in turn, whole-process wall time, medians of the differences.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from common import median, table

START = (
    "from IPython.core.interactiveshell import InteractiveShell; "
    "shell = InteractiveShell.instance(); "
)
CODES = {
    "bare IPython": START,
    "import nbinfer": START + "import nbinfer",
    "%load_ext nbinfer": START + "shell.run_line_magic('load_ext', 'nbinfer')",
}


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    found: dict[str, list[float]] = {name: [] for name in CODES}
    for round_ in range(repeats + 1):
        for name, code in CODES.items():
            took = seconds(code)
            if round_:
                found[name].append(took)
    bare = found["bare IPython"]
    rows = [
        (
            name,
            f"{median(took) * 1e3:.0f}",
            f"{median([t - b for t, b in zip(took, bare, strict=True)]) * 1e3:.0f}",
        )
        for name, took in found.items()
    ]
    print(table(rows, ("", "ms, median", "over bare IPython")))


if __name__ == "__main__":
    main()
