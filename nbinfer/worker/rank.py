"""One more rank of a tensor-parallel model, in the session of the worker that starts it.

By path, like a worker: ``rank.py PARENT RANK SIZE FOLDER``. What it does comes over its input.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys


def main():
    # As in server.py: not beyond these lines.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = importlib.import_module("worker.__main__")
    sys.path.pop(0)
    parent, rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    start.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is cancelled, rank 0 says
    start.adopt_package()
    ranks = importlib.import_module("nbinfer.worker.backends._ranks")
    ranks.follow(rank, size, folder, sys.stdin.buffer)


if __name__ == "__main__":
    main()
