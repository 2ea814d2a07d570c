"""What is resident: the table behind ``%engine``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import measure
from .resident import Resident
from .residents import pool
from .server_records import Server, servers

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "describe", "engines", "state_of"]

COLUMNS = {
    "engine": "str",
    "model": "str",
    "state": "str",
    "pid": "Int64",
    "memory_bytes": "Int64",
    "peak_bytes": "Int64",
    "loaded_s": "Float64",
    "uptime_s": "Float64",
    "python": "str",
    "address": "str",
}


def engines() -> pd.DataFrame:
    """What is resident in this kernel, and the servers that were started here, one row each.

    Returns
    -------
    pandas.DataFrame
        ``engine, model, state, pid, memory_bytes, peak_bytes, loaded_s, uptime_s, python,
        address``: memory of the whole process tree, GPUs included, in bytes, times in seconds,
        NA where unknown. ``state`` is ``"loading"``, ``"ready"``, ``"busy"`` or ``"crashed"``;
        of a server that was started from any notebook here it is ``"serving"``.
    """
    import pandas as pd

    rows = [describe(resident) for resident in pool.residents()]
    rows += [_serving(server) for server in servers()]
    columns = {
        name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()
    }
    frame = pd.DataFrame(columns)
    frame.attrs["nbinfer"] = {"table": "engines" if rows else "nothing is loaded"}
    return frame


def state_of(resident: Resident) -> str:
    """``"loading"``, ``"ready"``, ``"busy"`` or ``"crashed"``."""
    if resident.state != "ready":
        return resident.state
    if resident.worker is not None and not resident.worker.alive:
        return "crashed"
    return "busy" if resident.busy else "ready"


def describe(resident: Resident) -> Mapping[str, Any]:
    """One row of ``%engine``: times in seconds, memory in bytes, ``None`` where unknown."""
    worker = resident.worker
    alive = worker is not None and worker.alive
    now = measure.seen(worker.pid).total if worker is not None and alive else None
    peak = max(resident.peak_bytes, now or 0)
    return {
        "engine": resident.plan.engine,
        "model": resident.plan.model,
        "state": state_of(resident),
        "pid": worker.pid if worker is not None and alive else None,
        "memory_bytes": now,
        "peak_bytes": peak or None,
        "loaded_s": resident.loaded_s,
        "uptime_s": time.monotonic() - resident.ready_at if resident.ready_at and alive else None,
        "python": resident.report.get("python", resident.python) or None,
        "address": None,
    }


def _serving(server: Server) -> Mapping[str, Any]:
    return {
        "engine": server.engine,
        "model": server.model,
        "state": "serving",
        "pid": server.pid,
        "memory_bytes": server.memory()["memory_bytes"],
        "peak_bytes": None,
        "loaded_s": None,
        "uptime_s": time.time() - server.started,
        "python": server.python,
        "address": server.url,
    }
