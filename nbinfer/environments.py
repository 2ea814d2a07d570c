"""Python environments for engines whose library is not in the kernel's own.

An environment is made by uv from a recipe, beside its place, checked, and then renamed into
it: it is there whole or not at all. The kernel never imports from one; a worker is started
with its interpreter.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import env_build, env_changes, packages, settings
from .errors import DownloadError, EngineNotInstalled
from .packages import Progress
from .recipes import RECIPES, Recipe, recipe

__all__ = [
    "Environment",
    "available",
    "find",
    "folder",
    "in_kernel",
    "install",
    "installed",
    "python_for",
    "uninstall",
]

_MANIFEST = "nbinfer.json"


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
    extras: tuple[str, ...] = ()


def folder(name: str) -> Path:
    """Where a recipe's environment is or would be. Nothing is made."""
    return settings.home() / "envs" / name


def python_for(name: str) -> str:
    """The interpreter that has a recipe's modules.

    In this order: the user's own choice (``NBINFER_PYTHON_<NAME>`` or
    ``[tool.nbinfer.python]``), the kernel's where it finds every module, the managed
    environment's. Nothing is imported or started for the answer.

    Parameters
    ----------
    name : str
        A key of ``RECIPES``.

    Raises
    ------
    ConfigurationError
        For another name, or a chosen interpreter that is no executable file.
    EngineNotInstalled
        If it is nowhere.
    """
    wanted = recipe(name)
    chosen = settings.python_of(name)
    if chosen is not None:
        return chosen
    if in_kernel(wanted):
        return sys.executable
    found = _read(name)
    if found is not None:
        return found.python
    raise EngineNotInstalled(
        f"{name} is not installed", hint=f"run %engine install {name} (or: nbinfer install {name})"
    )


def available(name: str) -> str | None:
    """The same as :func:`python_for`, and ``None`` where it is not installed."""
    try:
        return python_for(name)
    except EngineNotInstalled:
        return None


def in_kernel(wanted: Recipe) -> bool:
    """Whether the kernel's own Python finds every module of a recipe, without importing one."""
    if wanted.apart:
        return False
    for module in wanted.modules:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return False
        # A folder of that name in the working directory has no origin: it is no library.
        if spec is None or spec.origin is None:
            return False
    return True


def find(name: str) -> Environment | None:
    """The managed environment of this name, if it is complete."""
    return _read(name)


def installed() -> list[Environment]:
    """The managed environments that are complete, by name."""
    found = (_read(name) for name in sorted(RECIPES))
    return [one for one in found if one is not None]


def uninstall(name: str) -> int:
    """Remove a managed environment; returns the bytes that came back.

    Files that uv's cache shares take no space of their own and are not counted.

    Parameters
    ----------
    name : str
        A key of ``RECIPES``.

    Raises
    ------
    ConfigurationError
        For a name that is no recipe.
    DownloadError
        If its files cannot be removed.
    """
    recipe(name)
    target = folder(name)
    if not target.parent.is_dir():
        return 0
    try:
        with packages.locked(_lock(target), f"waiting for {name}", lambda _: None):
            _clear(target)
            if not target.exists():
                return 0
            freed = _size(target, own=True)
            # Out of its place first, so that a removal cut short leaves nothing half there.
            doomed = Path(tempfile.mkdtemp(prefix=f".{name}-install-", dir=target.parent))
            target.replace(doomed / "old")
            shutil.rmtree(doomed)
    except OSError as error:
        raise DownloadError(f"{target} cannot be removed: {error.strerror or error}") from error
    return freed


def install(
    name: str,
    *,
    progress: Progress | None = None,
    reinstall: bool = False,
    upgrade: bool = False,
    extras: Sequence[str] = (),
) -> Environment:
    """Make a recipe's environment with uv, unless it is there already.

    Several processes may ask at once: one installs and the others wait for it. What a killed
    installation left is removed by the next. An environment that is made anew takes the old
    one's place when it is whole, and not before.

    Parameters
    ----------
    name : str
        A key of ``RECIPES``: ``"vllm"``, ``"native"``, ``"llama-cpp-python"``, ...
    progress : callable, optional
        Called about twice a second with a line: the phase and the seconds it took. An
        exception from it ends the installation, and nothing is left.
    reinstall : bool, default False
        Make it anew although it is there.
    upgrade : bool, default False
        Make it anew where the index has newer versions that the recipe allows.
    extras : sequence of str, default ()
        Requirements to install beside the recipe's; they are kept from then on.

    Returns
    -------
    Environment
        What is there now.

    Raises
    ------
    ConfigurationError
        For a name that is no recipe, or extras that would overwrite an engine's library.
    DownloadError
        If no index is reachable, the disk is full, no compiler is there for what must be
        compiled, or what was installed cannot be imported. Nothing is put in place then.
    """
    wanted, target = recipe(name), folder(name)
    say = progress or (lambda _: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that installs {name}"
        with packages.locked(_lock(target), waiting, say):
            _clear(target)
            found = _read(name)
            wished = tuple(dict.fromkeys([*(found.extras if found else ()), *extras]))
            serves = found is not None and not reinstall and _serves(found, wanted, wished)
            if found is not None and serves and not (upgrade and _newer(found, wanted, say)):
                return found
            if wished:
                env_changes.refuse_overwriting(name, wished, env_build.resolve(wanted, wished, say))
            return _make(wanted, target, say, wished)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise env_build.disk_full(name) from error
        raise DownloadError(
            f"{name} cannot be stored in {target.parent}: {error.strerror or error}",
            hint="Set NBINFER_HOME to a folder that can be written.",
        ) from error


# ------------------------------------------------------------------------ making one


def _serves(found: Environment, wanted: Recipe, extras: tuple[str, ...]) -> bool:
    same = found.requirements == wanted.requirements and found.extras == extras
    return same and _runs(found.python)


def _newer(found: Environment, wanted: Recipe, say: Progress) -> bool:
    resolved = env_build.resolve(wanted, found.extras, say)
    return bool(env_changes.newer(found.versions, resolved))


def _make(wanted: Recipe, target: Path, say: Progress, extras: tuple[str, ...]) -> Environment:
    # Beside the target: a rename is atomic within one file system alone.
    work = Path(tempfile.mkdtemp(prefix=f".{wanted.name}-install-", dir=target.parent))
    try:
        made = work / "env"
        began = time.monotonic()
        env_build.fill(wanted, made, began, say, extras)
        env_build.verify(wanted, made, began, say)
        manifest = {
            "recipe": wanted.name,
            "requirements": list(wanted.requirements),
            "extras": list(extras),
            "python_version": platform.python_version(),
            "versions": _versions(made),
            "size_bytes": _size(made),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        (made / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if target.exists():
            target.replace(work / "old")
        made.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = _read(wanted.name)
    assert found is not None
    return found


# --------------------------------------------------------------------- what is there


def _read(name: str) -> Environment | None:
    """The environment in its place, if it is complete: cheap, and nothing is started."""
    path = folder(name)
    python = env_build.python_in(path)
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
            tuple(facts.get("extras", ())),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _runs(python: str) -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([python, "-I", "-c", ""], capture_output=True, timeout=30)
        return done.returncode == 0
    return False


def _lock(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _clear(target: Path) -> None:
    for left in target.parent.glob(f".{target.name}-install-*"):
        packages.remove_leftover(left)


def _versions(path: Path) -> dict[str, str]:
    places = [*path.glob("lib/python*/site-packages"), *path.glob("Lib/site-packages")]
    found = importlib.metadata.distributions(path=[str(p) for p in places])
    return dict(sorted((env_changes.canonical(d.metadata["Name"]), d.version) for d in found))


def _size(path: Path, *, own: bool = False) -> int:
    """Bytes of the files; ``own`` leaves out those that are also elsewhere (uv's cache)."""
    total = 0
    for parent, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                found = (Path(parent) / name).lstat()
                total += 0 if own and found.st_nlink > 1 else found.st_size
    return total
