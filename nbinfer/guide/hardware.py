"""What a benchmark reads from the machine: energy, and the bandwidth of its memory."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from pathlib import Path

from .. import gpu

__all__ = ["EnergyMeter", "bandwidth_bytes_per_s", "rapl_zones"]

POWERCAP = Path("/sys/class/powercap")
COPY_BYTES = 64 * 2**20  # for each thread: beyond the caches of most machines
COPY_S = 0.4


def rapl_zones(root: Path = POWERCAP) -> dict[Path, int]:
    """The counters of the processors' packages that may be read, with the value that each wraps at.

    RAPL by Linux's powercap (Documentation/power/powercap): ``energy_uj`` of the zones called
    ``package-N``, in microjoules. Most systems let only root read it.
    """
    found = {}
    for zone in sorted(root.glob("*-rapl:*")) if root.is_dir() else ():
        with contextlib.suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package-"):
                int((zone / "energy_uj").read_text())
                found[zone / "energy_uj"] = int((zone / "max_energy_range_uj").read_text())
    return found


class EnergyMeter:
    """Energy of the processors' packages and of the GPUs over a stretch of time.

    The whole machine's, whoever computed: on a busy machine it says little.

    Attributes
    ----------
    source : str
        ``"RAPL"``, ``"NVML"``, both, or ``""`` where the machine tells nothing.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = rapl_zones(root)
        self._gpus = dict(gpu.energy_mj())
        names = ("RAPL" if self._zones else "", "NVML" if self._gpus else "")
        self.source = " + ".join(filter(None, names))
        self._began: dict[Path, int] = {}

    def start(self) -> None:
        """Begin to count."""
        self._began = {path: int(path.read_text()) for path in self._zones}
        self._gpus = dict(gpu.energy_mj())

    def joules(self) -> float | None:
        """Since ``start``; ``None`` where the machine tells nothing.

        A counter that is below its beginning has wrapped, once: they take half an hour and more.
        """
        if not self.source:
            return None
        total = 0.0
        for path, most in self._zones.items():
            used = int(path.read_text()) - self._began[path]
            total += (used if used >= 0 else used + most) / 1e6
        now = dict(gpu.energy_mj())
        if now.keys() != self._gpus.keys():
            return None
        return total + sum((now[index] - before) / 1e3 for index, before in self._gpus.items())


@functools.cache
def bandwidth_bytes_per_s(threads: int) -> float:
    """The memory's bandwidth by a short copy, as STREAM counts it: bytes read and written.

    J. McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers",
    1995. As many threads as an engine uses copy a piece of their own; the fastest round counts.
    """
    import numpy as np

    pairs = [(np.ones(COPY_BYTES // 8), np.zeros(COPY_BYTES // 8)) for _ in range(max(1, threads))]
    best, until = 0.0, time.monotonic() + COPY_S
    while not best or time.monotonic() < until:
        workers = [threading.Thread(target=np.copyto, args=(b, a)) for a, b in pairs]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, 2 * COPY_BYTES * len(pairs) / (time.perf_counter() - began))
    return best
