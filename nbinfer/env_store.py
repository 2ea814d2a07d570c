"""Managed environments on disk: where they are, what each says of itself, how one is replaced."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import packages, settings
from .env_changes import canonical
from .recipes import Recipe

__all__ = [
    "Environment",
    "clear",
    "folder",
    "lock",
    "put_in_place",
    "python_in",
    "read",
    "remove",
    "runs",
    "site_packages",
    "size",
    "workplace",
    "write",
]

_MANIFEST = "nbinfer.json"
_OLD = "old"


@dataclass(frozen=True)
class Environment:
    """A managed environment.

    Attributes
    ----------
    name : str
        Its recipe.
    path : pathlib.Path
        Its folder.
    python : str
        Its interpreter.
    versions : dict of str to str
        Every distribution in it.
    size_bytes : int
        Its files together. What they share with uv's cache is counted too.
    created : str
        When, ISO 8601 in UTC.
    requirements : tuple of str
        The recipe's when it was made.
    shims : str
        The digest of the stand-ins that are on its path, ``""`` without any.
    extras : tuple of str
        What was installed beside them.
    """

    name: str
    path: Path
    python: str
    versions: dict[str, str]
    size_bytes: int
    created: str
    requirements: tuple[str, ...] = ()
    shims: str = ""
    extras: tuple[str, ...] = ()

    def is_for(self, wanted: Recipe, extras: Sequence[str]) -> bool:
        """Whether it was made of what a recipe and extras ask for."""
        made = (self.requirements, self.shims, self.extras)
        return made == (wanted.requirements, wanted.shims_digest, tuple(extras))


def folder(name: str) -> Path:
    """Where a recipe's environment is or would be. Nothing is made."""
    return settings.home() / "envs" / name


def read(name: str) -> Environment | None:
    """The environment in its place, if it is complete: cheap, and nothing is started."""
    path = folder(name)
    python = python_in(path)
    try:
        facts = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        if not python.is_file() or not os.access(python, os.X_OK):
            return None  # its base interpreter is gone
        return Environment(
            name,
            path,
            str(python),
            dict(facts["versions"]),
            int(facts["size_bytes"]),
            str(facts["created"]),
            tuple(facts["requirements"]),
            str(facts.get("shims", "")),
            tuple(facts.get("extras", ())),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(wanted: Recipe, made: Path, extras: Sequence[str]) -> None:
    """Write down what an environment is, in its folder: with this it is complete."""
    manifest = {
        "recipe": wanted.name,
        "requirements": list(wanted.requirements),
        "shims": wanted.shims_digest,
        "extras": list(extras),
        "python_version": platform.python_version(),
        "versions": _versions(made),
        "size_bytes": size(made),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    (made / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def workplace(target: Path) -> Path:
    """A new folder for an installation, which :func:`clear` removes when it was cut short."""
    # Beside the target: a rename is atomic within one file system alone.
    return Path(tempfile.mkdtemp(prefix=f".{target.name}-install-", dir=target.parent))


def put_in_place(made: Path, target: Path, work: Path) -> None:
    """Rename an environment into its place; what was there comes back if that fails."""
    old = work / _OLD
    try:
        if target.exists():
            target.replace(old)
        made.replace(target)
    except BaseException:
        _bring_back(old, target)
        raise


def remove(target: Path) -> int:
    """Remove an environment; returns the bytes that came back."""
    freed = size(target, own=True)
    # Out of its place first, so that a removal cut short leaves nothing half there; under a
    # name of its own, or it would be brought back.
    doomed = workplace(target)
    target.replace(doomed / "removed")
    shutil.rmtree(doomed)
    return freed


def clear(target: Path) -> None:
    """Undo what a killed process left of an installation. Its lock is held."""
    for left in target.parent.glob(f".{target.name}-install-*"):
        _bring_back(left / _OLD, target)
        packages.remove_leftover(left)


def _bring_back(old: Path, target: Path) -> None:
    if old.is_dir() and not target.exists():
        old.replace(target)


def lock(target: Path) -> Path:
    """The file that processes lock which change an environment."""
    return target.parent / f".{target.name}.lock"


def python_in(path: Path) -> Path:
    """The interpreter of the environment in a folder."""
    return path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def runs(python: str) -> bool:
    """Whether an interpreter starts at all."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([python, "-I", "-c", ""], capture_output=True, timeout=30)
        return done.returncode == 0
    return False


def site_packages(path: Path) -> Path:
    """Where the packages of the environment in a folder are."""
    return [*path.glob("lib/python*/site-packages"), *path.glob("Lib/site-packages")][0]


def _versions(path: Path) -> dict[str, str]:
    found = importlib.metadata.distributions(path=[str(site_packages(path))])
    return dict(sorted((canonical(d.metadata["Name"]), d.version) for d in found))


def size(path: Path, *, own: bool = False) -> int:
    """Bytes of the files; ``own`` leaves out those that are also elsewhere (uv's cache)."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                found = (Path(parent) / name).lstat()
                total += 0 if own and found.st_nlink > 1 else found.st_size
    return total
