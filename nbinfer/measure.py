"""Memory of an engine's process tree, seen from outside.

PSS (proportional set size) counts each page once however many processes map it, so the
workers of a tree can be added up. Where the system has no PSS, USS stands in. What the tree
holds on GPUs is added where rows and tables tell its memory, and not where the budget of the
machine's own memory is kept.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from . import gpu

__all__ = ["PeakSampler", "Seen", "machine", "process_bytes", "seen", "tree", "tree_bytes"]


def process_bytes(pid: int) -> int:
    """Memory of one process in bytes, 0 if it is gone."""
    with contextlib.suppress(OSError, ValueError):
        return _told(pid, "smaps_rollup", b"Pss:")  # 0 for a zombie: nothing is mapped any more
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_full_info().uss)
    return 0


def _told(pid: int, file: str, field: bytes) -> int:
    """A size that Linux tells of a process, in bytes, 0 where it does not; ``OSError`` if gone."""
    for line in Path(f"/proc/{pid}/{file}").read_bytes().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _resident(pid: int) -> int:
    """Resident size of one process in bytes: no PSS, but a hundred times cheaper to ask for."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _forget_highest(pid: int) -> bool:
    """Have Linux begin anew with the highest resident size of a process; whether it does."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_bytes(b"5")  # proc_pid_clear_refs(5)
        return True
    return False


def _highest(pid: int) -> int:
    """The highest resident size of a process since then, in bytes, 0 if it is gone."""
    with contextlib.suppress(OSError, ValueError):
        return _told(pid, "status", b"VmHWM:")
    return 0


def tree(pid: int) -> list[int]:
    """The process and all its descendants, those that are alive."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    return []


def tree_bytes(pid: int) -> int:
    """The machine's memory of a process tree in bytes, 0 if it is gone."""
    return sum(map(process_bytes, tree(pid)))


@dataclass
class Seen:
    """What a process tree held when it was last read in full.

    PSS of an engine with gigabytes takes tens of milliseconds, which a short cell would pay for:
    it is read again only where the resident size, which is cheap, has moved.

    Attributes
    ----------
    resident : int
        Resident sizes together, in bytes.
    memory : int
        ``tree_bytes`` at that time.
    device : int or None
        What it held on GPUs, ``None`` where that is unknown.
    """

    resident: int = 0
    memory: int = 0
    device: int | None = 0

    def read(self, pids: list[int]) -> None:
        """Read all sizes."""
        self.resident = sum(map(_resident, pids))
        self.memory = sum(map(process_bytes, pids))
        self.read_device(pids)

    def read_device(self, pids: list[int]) -> None:
        """Read what it holds on GPUs: cheap, and nothing where there is none."""
        self.device = gpu.process_tree_device_bytes(pids)

    @property
    def known(self) -> int:
        """Bytes that are known of."""
        return self.memory + (self.device or 0)

    @property
    def total(self) -> int | None:
        """Memory in bytes, ``None`` where a part of it is unknown."""
        return None if self.device is None else self.known


def seen(pid: int) -> Seen:
    """Read a process tree in full."""
    found = Seen()
    found.read(tree(pid))
    return found


class PeakSampler:
    """The highest memory of a process tree while the block runs.

    Sizes are read every 0.1 s, or less often where reading costs more than a twentieth of the
    time (large models have many mappings). PSS takes milliseconds, in which the engine's threads
    wait for a core, so it is read again only when the resident size has moved by 1 MB; the
    tree's members are looked up once a second. Shorter peaks are Linux's to tell: where the tree
    is one process, what its highest resident size is above the one last read is added. Of
    several, a peak shorter than 0.1 s can be missed, and of memory on GPUs.

    Parameters
    ----------
    pid : int
        The tree's root.
    known : Seen, optional
        What was last read of it, which is brought up to date.

    Attributes
    ----------
    peak_bytes : int
        Highest value seen, in bytes, with what GPUs hold; 0 if the tree was never seen alive,
        or a part of it is unknown.
    """

    def __init__(self, pid: int, known: Seen | None = None) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._known = known or Seen()
        self._marked = False
        self.peak_bytes = self._known.total or 0
        self._unknown = self._known.device is None
        self._pids: list[int] = []
        self._pids_due = 0.0
        self._thread = threading.Thread(target=self._sample, name="nbinfer-memory", daemon=True)

    def _sample(self) -> None:
        # Not at once: the first moments of a run are its time to first token.
        cost = 0.0
        while not self._stop.wait(max(0.1, 20 * cost)):
            cost = self._look()

    def _look(self, *, last: bool = False) -> float:
        started = time.perf_counter()
        if started >= self._pids_due:
            self._pids, self._pids_due = tree(self._pid), started + 1.0
        moved = sum(map(_resident, self._pids)) - self._known.resident
        # What shrank is read at the end alone: it is no peak, but the next run's beginning.
        if moved > 1_000_000 or (last and moved < -1_000_000):
            self._known.read(self._pids)
        else:
            self._known.read_device(self._pids)
        self._unknown |= self._known.device is None
        above = self._above() if last else 0
        self.peak_bytes = 0 if self._unknown else max(self.peak_bytes, self._known.known + above)
        return time.perf_counter() - started

    def _above(self) -> int:
        """What the highest resident size is above the one that was last read."""
        if not self._marked or len(self._pids) != 1:
            return 0
        above = _highest(self._pids[0]) - self._known.resident
        return above if above > 1_000_000 else 0

    def __enter__(self) -> PeakSampler:
        self._marked = _forget_highest(self._pid)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look(last=True)


def machine() -> dict[str, object]:
    """What a reader of the numbers must know about the machine; JSON types."""
    import platform

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "threads": psutil.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
