"""Which cell is running, where the front end says so."""

from __future__ import annotations

from typing import Any

from IPython.core.getipython import get_ipython

__all__ = ["current"]


def current() -> tuple[str, str]:
    """The cell's id, the same each time that it runs, and this run's; empty where unknown."""
    shell: Any = get_ipython()
    try:
        parent = shell.get_parent()
        cell = parent["metadata"].get("cellId") or parent["metadata"].get("cell_id") or ""
        return str(cell), str(parent["header"]["msg_id"])
    except (AttributeError, KeyError, TypeError):
        return "", ""
