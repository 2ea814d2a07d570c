"""The models that were loaded here last, whichever notebook did it: offered to be chosen again."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

from . import settings, wholefile

__all__ = ["models", "remember"]

MOST = 20
_lock = threading.Lock()


def _file() -> Path:
    return settings.home() / "recent.json"


def models() -> list[tuple[str, str]]:
    """Engine and model of each, the last first."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        return [(str(engine), str(model)) for engine, model in found][:MOST]
    return []


def remember(engine: str, model: str) -> None:
    """Put a model first. What cannot be written is not remembered: no load fails for it."""
    with _lock, contextlib.suppress(OSError, ValueError):
        before = models()
        now = [(engine, model), *(one for one in before if one != (engine, model))][:MOST]
        if now == before:
            return
        wholefile.write(_file(), json.dumps(now), mode=0o600)
