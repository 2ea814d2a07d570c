"""Which engines' libraries are installed, and where: the table behind ``%engine installed``."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import environments, settings
from .engines import registry
from .recipes import RECIPES, Recipe, recipe

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["installed", "libraries"]


def installed() -> pd.DataFrame:
    """The engines' libraries and where each is, one row each.

    What ``%engine installed`` and ``nbinfer installed`` show.

    Returns
    -------
    pandas.DataFrame
        ``name, where, version, python, size_bytes, created``. ``where`` is ``"base"`` (part of
        nbinfer's own install), ``"kernel"`` (the kernel's own environment), ``"managed"`` (made
        by ``%engine install``), ``"own"`` (a Python that you named) or ``"not installed"``.
        ``size_bytes`` is the environment's, with what it shares with uv's cache; ``created`` is
        ISO 8601 in UTC. Unknown is NA.
    """
    import pandas as pd

    rows = [_row(name) for name in (*_base(), *RECIPES)]
    kinds = {"size_bytes": "Int64"}
    names = ("name", "where", "version", "python", "size_bytes", "created")
    frame = pd.DataFrame(
        {n: pd.Series([row.get(n) for row in rows], dtype=kinds.get(n, "str")) for n in names}
    )
    total = sum(row.get("size_bytes") or 0 for row in rows)
    frame.attrs["nbinfer"] = {"table": f"installed · {total / 1e9:.1f} GB in {settings.home()}"}
    return frame


def _base() -> list[str]:
    return [spec.name for spec in registry.specs() if spec.library and spec.name not in RECIPES]


def _row(name: str) -> dict[str, Any]:
    if name not in RECIPES:
        library = registry.spec(name).library
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = f"{library} {importlib.metadata.version(library)}"
            return {"name": name, "where": "base", "version": version, "python": sys.executable}
        return {"name": name, "where": "not installed"}
    wanted = recipe(name)
    chosen, found = settings.python_of(name), environments.find(name)
    if chosen is not None:
        return {"name": name, "where": "own", "python": chosen}
    if environments.in_kernel(wanted):
        there = libraries(wanted, _in_kernel(wanted)) or None
        return {"name": name, "where": "kernel", "version": there, "python": sys.executable}
    if found is None:
        return {"name": name, "where": "not installed"}
    return {
        "name": name,
        "where": "managed",
        "version": libraries(wanted, found.versions),
        "python": found.python,
        "size_bytes": found.size_bytes,
        "created": found.created,
    }


def _in_kernel(wanted: Recipe) -> dict[str, str]:
    found = {}
    for name in _first(wanted):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def libraries(wanted: Recipe, versions: Mapping[str, str]) -> str:
    """Names and versions of what a recipe asks for by name."""
    first = _first(wanted)
    return ", ".join(f"{n} {v}" for n, v in sorted(versions.items(), reverse=True) if n in first)


def _first(wanted: Recipe) -> set[str]:
    return {m.replace("_", "-") for m in wanted.modules} | {
        r.partition("==")[0] for r in wanted.requirements
    }
