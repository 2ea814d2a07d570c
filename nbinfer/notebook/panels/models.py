"""The models that can be chosen without typing: where each was found, and what it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ... import hubcache, recent, server_records, settings
from ...embedded import EMBEDDED
from ...engines import registry
from ...errors import NbinferError
from ...residents import pool
from ..completion import model_paths
from ..engine_rows import short

__all__ = ["Found", "found"]

MOST_OF_A_KIND = 30


@dataclass(frozen=True)
class Found:
    """A model, and where it was found.

    Attributes
    ----------
    kind : str
        ``"embedded"``, ``"recent"``, ``"alias"``, ``"here"``, ``"hub's cache"``, ``"server"`` or
        ``"hub"``.
    engine : str
        What it goes with; ``""`` where that is open.
    url : str
        A server's address.
    """

    kind: str
    model: str
    engine: str = ""
    url: str = ""

    @property
    def label(self) -> str:
        """It in one line, for a list."""
        parts = [self.kind, short(self.model), self.engine, self.url]
        return " · ".join(filter(None, parts))


def found(typed: str = "") -> list[Found]:
    """What there is on this machine; of files and folders those below what is typed."""
    each: dict[str, list[Found]] = {}
    for one in _every(typed):
        kind = each.setdefault(one.kind, [])
        if one not in kind and len(kind) < MOST_OF_A_KIND:
            kind.append(one)
    return [one for kind in each.values() for one in kind]


def _every(typed: str) -> Iterator[Found]:
    yield from (Found("embedded", name) for name in EMBEDDED)
    for server in server_records.servers():
        yield Found("server", server.model, server.client, server.url)
    for resident in reversed(pool.residents()):
        yield Found("recent", resident.plan.model, resident.plan.engine)
    for engine, model in recent.models():
        if engine in registry.names():
            yield Found("recent", model, engine)
    with contextlib.suppress(NbinferError):  # broken settings are told elsewhere
        yield from (Found("alias", name) for name in sorted(settings.aliases()))
    yield from (Found("here", path) for path in model_paths(typed))
    yield from (Found("hub's cache", name) for name in hubcache.cached_repositories())
