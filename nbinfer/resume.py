"""Going on from a file: what a run asks, and which answers of the file are therefore its own.

A row's key is its id and its sample, and beside it stands a fingerprint of what was asked. So
equal prompts stay rows of their own, and an answer to another question is never taken for one's
own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import GenerationParams, ModelParams
from .errors import ConfigurationError
from .records import Record, RowRequest

if TYPE_CHECKING:
    from .engines.base import InferenceEngine
    from .rowstore import RowStore
    from .run import Run

__all__ = ["Asked", "Unstored", "keys", "opened", "other_prompt"]


class Unstored:
    """The rows of a run without ``output_path``: they are in memory alone."""

    resumed = 0

    def __init__(self, requests: Sequence[RowRequest]) -> None:
        self.left = requests

    def records(self, run: Run) -> Generator[Record, None, None]:
        """The run's records, as they are."""
        return run.records()


@contextlib.contextmanager
def opened(
    path: str | os.PathLike[str] | None,
    requests: Sequence[RowRequest],
    *,
    engine: InferenceEngine,
    params: GenerationParams,
    run_id: str,
) -> Iterator[RowStore | Unstored]:
    """Where a run's rows are kept: a file, locked until the block ends, or memory alone.

    Raises
    ------
    ConfigurationError
        For a place that cannot be written, a file that is not ours or of another run, and one
        that another run is writing to. It is left as it is.
    """
    if path is None:
        yield Unstored(requests)
        return
    # Not before it is needed: a Python that was built without SQLite runs all the rest.
    from . import rowfile
    from .rowstore import RowStore

    place = rowfile.checked(path)
    with rowfile.locked(place):
        with rowfile.told(place, "written"):
            asked = Asked(engine.name, engine.model_params, params, engine.asked_beyond)
            store = RowStore(place, requests, asked, run_id)
        with contextlib.closing(store):
            yield store


class Asked:
    """What a run asks, for comparison with what a file's answers were asked.

    Parameters
    ----------
    engine : str
        The engine's name.
    model_params, generation_params
        Its parameters; secrets are masked in both.
    beyond : mapping, default {}
        What else changes an answer, by the name of its field.
    """

    def __init__(
        self,
        engine: str,
        model_params: ModelParams,
        generation_params: GenerationParams,
        beyond: Mapping[str, Any] | None = None,
    ) -> None:
        self.meta: dict[str, Any] = {
            "engine": engine,
            "model_params": model_params.to_dict(),
            "generation_params": generation_params.to_dict(),
            "beyond": dict(beyond or {}),
        }
        # Of the fields that were changed alone, so that one which a later version adds leaves
        # old files valid. A default that changes is seen in meta, which has all fields.
        changed = [p.to_dict(changed_only=True) for p in (model_params, generation_params)]
        self._base = hashlib.sha256(_canonical([engine, *changed, *([beyond] if beyond else [])]))

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
        then, now = known.get("beyond", {}), self.meta["beyond"]
        differ += [
            (n, then.get(n), now.get(n)) for n in {**then, **now} if then.get(n) != now.get(n)
        ]
        if differ:
            was = ", ".join(f"{name}={before!r:.200}" for name, before, _ in differ)
            is_now = ", ".join(f"{name}={after!r:.200}" for name, _, after in differ)
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
