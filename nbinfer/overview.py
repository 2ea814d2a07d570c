"""What is resident: the table behind ``%engine``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .residents import describe, pool

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "engines"]

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
}


def engines() -> pd.DataFrame:
    """What is resident in this kernel, one row each.

    Returns
    -------
    pandas.DataFrame
        ``engine, model, state, pid, memory_bytes, peak_bytes, loaded_s, uptime_s, python``:
        memory of the whole process tree in bytes, times in seconds, NA where unknown.
        ``state`` is ``"loading"``, ``"ready"``, ``"busy"`` or ``"crashed"``.
    """
    import pandas as pd

    rows = [describe(resident) for resident in pool.residents()]
    columns = {
        name: pd.Series([row[name] for row in rows], dtype=kind) for name, kind in COLUMNS.items()
    }
    frame = pd.DataFrame(columns)
    frame.attrs["nbinfer"] = {"table": "engines" if rows else "nothing is loaded"}
    return frame
