"""The cache of the hub's client, read without the client: completion asks it at every Tab."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from . import wholefile

__all__ = ["COMMIT", "cache_folder", "cached_repositories", "remember", "snapshot", "storage"]

COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_folder() -> Path:
    """Where the hub's client keeps what it fetched; the variables are the client's own."""
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not given:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        given = str(Path(os.environ.get("HF_HOME") or Path(base, "huggingface"), "hub"))
    path = Path(os.path.expandvars(given))
    with contextlib.suppress(RuntimeError):
        path = path.expanduser()
    return path.absolute()


def cached_repositories(most: int = 200) -> list[str]:
    """Hub ids of which the cache holds something, in order; nothing is imported for it."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(cache_folder()):
            kind, _, rest = entry.name.partition("--")
            if kind == "models" and rest.count("--") == 1:
                found.append(rest.replace("--", "/"))
    return sorted(found)[:most]


def storage(repo: str) -> Path:
    """The cache's folder of a repository."""
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def snapshot(repo: str, commit: str) -> Path:
    """The cache's folder of a repository's files at a commit."""
    return storage(repo) / "snapshots" / commit


def remember(repo: str, revision: str | None, commit: str) -> None:
    """Write which commit a branch was: files are fetched by commit, offline one asks by branch."""
    revision = revision or "main"
    ref = storage(repo) / "refs" / revision
    with contextlib.suppress(OSError):
        if COMMIT.fullmatch(revision) or (ref.is_file() and ref.read_bytes() == commit.encode()):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        wholefile.write(ref, commit)
