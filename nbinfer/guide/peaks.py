"""What models took when they ran on this machine, kept under ``NBINFER_HOME``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from .. import packages, settings, wholefile

__all__ = ["measured", "remember"]

_MOST = 1000  # entries; the oldest go first


def remember(facts: Mapping[str, Any]) -> None:
    """Keep a run's peak, if it is known and higher than what is kept of the same model.

    ``facts`` are a run's, as in ``df.attrs["nbinfer"]``. A home that cannot be written, or is
    damaged, costs nothing but the memory of it.
    """
    peak, precision = facts.get("peak_memory_bytes"), _precision(facts)
    if not isinstance(peak, int) or peak <= 0 or facts.get("engine") == "echo":
        return
    key = f"{facts.get('engine')} {facts.get('model')} {precision}"
    if _read().get(key, 0) >= peak:
        return
    path = settings.home() / "peaks.json"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with packages.locked(path.with_name(".peaks.lock"), "", lambda _: None):
            kept = _read()
            kept.pop(key, None)
            kept[key] = peak
            last = dict(list(kept.items())[-_MOST:])
            wholefile.write(path, json.dumps(last, indent=0))


def measured(engine: str, model: str, precision: str) -> int | None:
    """The highest peak in bytes of a model on an engine here, ``None`` if it has not run."""
    return _read().get(f"{engine} {model} {precision}")


def _precision(facts: Mapping[str, Any]) -> str:
    from .quantization import check

    model = facts.get("model_facts") or {}
    name = str(model.get("precision") or "")
    with contextlib.suppress(Exception):
        return check(name.partition(" ")[0])
    return name


def _read() -> dict[str, int]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((settings.home() / "peaks.json").read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {k: v for k, v in found.items() if type(v) is int and v > 0}
    return {}
