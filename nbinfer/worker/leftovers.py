"""Shared memory that outlives whoever made it: vLLM's queues hold a quarter of a gigabyte each.

Python names a block of shared memory in ``/dev/shm``, and it is memory until the name is removed.
A process that is killed removes none. What a session has mapped is read before it is killed, and
removed when it is gone. Standard library only: workers import it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

PLACE = "/dev/shm/"
# As multiprocessing, torch, NCCL and vLLM name theirs; whatever else is mapped is somebody else's.
NAMES = ("psm_", "sem.mp-", "torch_", "nccl-", "vllm_dist_")


def held(pids: Iterable[int]) -> set[str]:
    """Paths of the named shared memory that any of some processes has mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            for line in maps:
                path = line.rstrip("\n").partition(PLACE)[2].removesuffix(" (deleted)")
                if path.startswith(NAMES) and "/" not in path:
                    found.add(PLACE + path)
    return found


def remove(paths: Iterable[str]) -> None:
    """Remove names whose processes are gone."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
