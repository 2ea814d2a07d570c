"""Which answers of a file are this run's: keys, fingerprints, and what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import GenerationParams, ModelParams
from .errors import ConfigurationError
from .records import RowRequest

__all__ = ["Asked", "keys", "other_prompt"]


class Asked:
    """What a run asks, for comparison with what a file's answers were asked.

    Parameters
    ----------
    engine : str
        The engine's name.
    model_params, generation_params
        Its parameters; secrets are masked in both.
    """

    def __init__(
        self, engine: str, model_params: ModelParams, generation_params: GenerationParams
    ) -> None:
        self.meta: dict[str, Any] = {
            "engine": engine,
            "model_params": model_params.to_dict(),
            "generation_params": generation_params.to_dict(),
        }
        # Of the fields that were changed alone, so that one which a later version adds leaves
        # old files valid. A default that changes is seen in meta, which has all fields.
        changed = [p.to_dict(changed_only=True) for p in (model_params, generation_params)]
        self._base = hashlib.sha256(_canonical([engine, *changed]))

    def fingerprint(self, request: RowRequest) -> str:
        """SHA-256 over canonical JSON of the model, the parameters and what is sent."""
        mine = self._base.copy()
        mine.update(_canonical(request.body))
        return mine.hexdigest()

    def check(self, place: Path, known: Mapping[str, Any]) -> None:
        """Refuse a file whose engine, model or parameters are others, by their names."""
        differ: list[tuple[str, Any, Any]] = []
        if known["engine"] != self.meta["engine"]:
            differ.append(("engine", known["engine"], self.meta["engine"]))
        defaults = {"model_params": ModelParams(), "generation_params": GenerationParams()}
        for part, default in defaults.items():
            now = self.meta[part]
            then = {**default.to_dict(), **known[part]}  # a field may be newer than the file
            differ += [(n, then.get(n), now.get(n)) for n in now if then.get(n) != now.get(n)]
        if differ:
            was = ", ".join(f"{name}={before!r:.80}" for name, before, _ in differ)
            is_now = ", ".join(f"{name}={after!r:.80}" for name, _, after in differ)
            raise ConfigurationError(
                f"{place} was written with {was}, and this run has {is_now}",
                hint="run with the same, or name another file",
            )


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def keys(requests: Sequence[RowRequest]) -> dict[int, str]:
    """Each prompt's key: the ids, if they are plain and unique, or else the positions."""
    ids = {request.index: request.id for request in requests}
    own = all(type(i) in (int, str) for i in ids.values()) and len(set(ids.values())) == len(ids)
    return {index: json.dumps(identity if own else index) for index, identity in ids.items()}


def other_prompt(place: Path, key: str, before: str, now: str) -> ConfigurationError:
    """The error for a file whose row of this key answers another prompt."""
    what = f"was {before!r:.80} and is {now!r:.80}"
    if before == now:
        what = f"({now!r:.80}) had another system message or other turns before it"
    return ConfigurationError(
        f"{place} was written from other prompts: that of id {key} {what}",
        hint="pass the same prompts, more at the end if you like, or name another file",
    )
