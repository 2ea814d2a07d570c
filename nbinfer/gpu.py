"""Memory of NVIDIA GPUs, by process, through NVML: what ``nvidia-smi`` reads.

Where there is no driver that is found out once, and where no process of ours has opened a GPU
NVML is not asked at all.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import settings
from .notices import notify

__all__ = [
    "Device",
    "devices",
    "energy_mj",
    "fraction_left",
    "process_tree_device_bytes",
    "share",
    "visible",
]

# The number that Linux gives to the first namespace of process ids: no container.
_FIRST_NAMESPACE = "pid:[4026531836]"
# A library's CUDA context, which it makes before it looks at what is free.
CONTEXT_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Device:
    """A GPU and its memory in bytes, whoever uses it. ``index`` is the driver's own."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    used_bytes: int


def devices() -> list[Device]:
    """The GPUs of this machine; none where there is no driver."""
    library = _nvml()
    found = []
    for index, handle in _handles(library):
        with contextlib.suppress(library.NVMLError):
            memory = library.nvmlDeviceGetMemoryInfo(handle)
            uuid, name = library.nvmlDeviceGetUUID(handle), library.nvmlDeviceGetName(handle)
            found.append(Device(index, uuid, name, memory.total, memory.free, memory.used))
    return found


def visible() -> list[Device]:
    """The GPUs that CUDA gives to a process of ours, in its order: ``CUDA_VISIBLE_DEVICES``."""
    every = devices()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return every
    found = []
    for word in map(str.strip, wanted.split(",")):
        same = [d for d in every if word and (word == str(d.index) or d.uuid.startswith(word))]
        if not same:
            break  # as CUDA does: what comes after one that is not there is not seen
        found.append(same[0])
    return found


def process_tree_device_bytes(pids: Iterable[int], index: int | None = None) -> int | None:
    """Memory of the GPUs that processes hold.

    Parameters
    ----------
    pids : iterable of int
        The processes.
    index : int, optional
        Of this GPU alone; by default of all.

    Returns
    -------
    int or None
        Bytes; 0 where none of them uses a GPU, ``None`` where the driver does not tell.
    """
    ours = {pid for pid in pids if _opened_a_device(pid)} if _has_driver() else set()
    library = _nvml() if ours else None
    if library is None:
        return 0
    total, told, asked = 0, False, True
    for place, handle in _handles(library):
        if index not in (None, place):
            continue
        try:
            used = _by_process(library, handle)
        except library.NVMLError:
            asked = False
            continue
        for pid in ours & used.keys():
            told = True
            held = used[pid]
            if held is None:
                return _unknown()
            total += held
    # In a container the driver may name processes by the machine's numbers: none is then found.
    return total if asked and (told or _in_first_namespace()) else _unknown()


def energy_mj() -> list[tuple[int, int]]:
    """What each GPU that tells it has used since its driver was loaded: index and millijoules."""
    library = _nvml()
    found = []
    for index, handle in _handles(library):
        with contextlib.suppress(library.NVMLError):
            found.append((index, int(library.nvmlDeviceGetTotalEnergyConsumption(handle))))
    return found


def fraction_left(total: int, free: int, budget: int, held: int) -> float:
    """What a new engine may take of a GPU, as a part of the whole between 0 and 1.

    The budget without what our other engines hold, and never more than what is free; all in
    bytes. Rounded down to a thousandth, so that it is never more.
    """
    left = min(budget - held, free - CONTEXT_BYTES)
    return math.floor(1000 * max(0, left) / total) / 1000


def share(others: Iterable[int], count: int = 1) -> float | None:
    """What a new engine may take of each of the first GPUs that it sees.

    Parameters
    ----------
    others : iterable of int
        The processes of our other engines.
    count : int, default 1
        How many GPUs it uses.

    Returns
    -------
    float or None
        Above 0, at most 1; ``None`` where there is no GPU. Where nothing is left it is 0.001: the
        engine's own message then says what it lacks.
    """
    found, others = visible()[:count], list(others)
    if not found:
        return None
    now = settings.current()
    parts = []
    for one in found:
        held = process_tree_device_bytes(others, one.index) or 0
        budget = now.device_budget_bytes(one.total_bytes)
        parts.append(fraction_left(one.total_bytes, one.free_bytes, budget, held))
    return max(0.001, min(parts))


# -------------------------------------------------------------------------------- NVML


@functools.cache
def _has_driver() -> bool:
    """Whether there may be a driver: nothing is imported for the answer."""
    if sys.platform != "linux":
        return sys.platform != "darwin"
    return any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg"))


@functools.cache
def _nvml() -> Any:
    """NVML's binding, ready to be asked, or ``None``: tried once."""
    if not _has_driver():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _handles(library: Any) -> Iterator[tuple[int, Any]]:
    """Every GPU that answers, with its index."""
    if library is None:
        return
    count = 0
    with contextlib.suppress(library.NVMLError):
        count = library.nvmlDeviceGetCount()
    for index in range(count):
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
        except library.NVMLError:
            continue  # it fell off the bus, or may not be used by us
        yield index, handle


def _by_process(library: Any, handle: Any) -> dict[int, int | None]:
    """Bytes that each process holds of a GPU; ``None`` where they are not told."""
    held: dict[int, int | None] = {}
    graphics = library.nvmlDeviceGetGraphicsRunningProcesses(handle)
    # One that computes and draws is in both lists, with the same number.
    for one in (*graphics, *library.nvmlDeviceGetComputeRunningProcesses(handle)):
        held[one.pid] = one.usedGpuMemory
    return held


def _opened_a_device(pid: int) -> bool:
    """Whether a process has a GPU open; ``True`` where that cannot be seen."""
    if sys.platform != "linux":
        return True
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                if str(link.readlink()).startswith(("/dev/nvidia", "/dev/dxg")):
                    return True
    except PermissionError:
        return True
    except OSError:  # it has ended
        pass
    return False


def _in_first_namespace() -> bool:
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _FIRST_NAMESPACE
    except OSError:
        return True


@functools.cache
def _unknown() -> None:
    """Say once that the memory on a GPU is not known."""
    notify(
        "the driver does not tell which process holds how much of the GPU's memory, so the memory "
        "of engines that use it is unknown; in a container, --pid=host helps"
    )
