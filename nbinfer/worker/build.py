"""Run a builder of ``worker/backends`` with an engine's own Python, and end.

By path, like a worker: ``build.py MATERIAL FOLDER SOURCE``. ``SOURCE`` is JSON: where the
embedded model is, and as what.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main():
    # As in server.py: not beyond these lines.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = importlib.import_module("worker.__main__")
    sys.path.pop(0)
    start.adopt_package()
    name, folder, source = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    importlib.import_module(f"nbinfer.worker.backends._material_{name}").main(folder, source)


if __name__ == "__main__":
    main()
