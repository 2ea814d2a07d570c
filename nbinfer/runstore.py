"""The facts of this kernel's runs, by run id, and the last run's rows.

``df.infer.summary()`` needs a run's wall time and throughput; a frame's attributes are lost
in ``concat`` and ``merge``, the column ``run_id`` is not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["clear", "last", "recall", "remember", "set_last"]

KEPT = 256

_lock = threading.Lock()
_facts: OrderedDict[str, dict[str, Any]] = OrderedDict()
_last: pd.DataFrame | None = None


def remember(facts: Mapping[str, Any]) -> None:
    """Keep a run's facts; the oldest of more than 256 are dropped."""
    with _lock:
        _facts[facts["run_id"]] = dict(facts)
        _facts.move_to_end(facts["run_id"])
        while len(_facts) > KEPT:
            _facts.popitem(last=False)


def recall(run_id: str) -> dict[str, Any] | None:
    """A run's facts, or ``None`` if it was another kernel's or is long past."""
    with _lock:
        found = _facts.get(run_id)
        return dict(found) if found is not None else None


def set_last(frame: pd.DataFrame) -> None:
    """Keep the rows of the run that has just ended."""
    global _last
    with _lock:
        _last = frame


def last() -> pd.DataFrame | None:
    """The rows of the last run, also of one that was interrupted or crashed.

    Returns
    -------
    pandas.DataFrame or None
        ``None`` if nothing ran yet.
    """
    return _last


def clear() -> None:
    """Forget everything."""
    global _last
    with _lock:
        _facts.clear()
        _last = None
