"""Python environments for engines whose library is not in the kernel's own.

An environment is made by uv from a recipe, beside its place, checked, and then renamed into
it: it is there whole or not at all. The kernel never imports from one; a worker is started
with its interpreter.
"""

from __future__ import annotations

import errno
import importlib.util
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import env_build, env_changes, env_plan, env_store, packages, settings
from .env_store import Environment, folder
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
    found = env_store.read(name)
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
    return env_store.read(name)


def installed() -> list[Environment]:
    """The managed environments that are complete, by name."""
    found = (env_store.read(name) for name in sorted(RECIPES))
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
        with packages.locked(env_store.lock(target), f"waiting for {name}", lambda _: None):
            env_store.clear(target)
            return env_store.remove(target) if target.exists() else 0
    except OSError as error:
        raise DownloadError(f"{target} cannot be removed: {error.strerror or error}") from error


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
    env_changes.check_extras(extras)
    say = progress or (lambda _: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another process that installs {name}"
        with packages.locked(env_store.lock(target), waiting, say):
            return _install(wanted, target, say, reinstall, upgrade, extras)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise env_build.disk_full(name) from error
        raise DownloadError(
            f"{name} cannot be stored in {target.parent}: {error.strerror or error}",
            hint="Set NBINFER_HOME to a folder that can be written.",
        ) from error


# ------------------------------------------------------------------------ making one


def _install(
    wanted: Recipe,
    target: Path,
    say: Progress,
    reinstall: bool,
    upgrade: bool,
    extras: Sequence[str],
) -> Environment:
    """The same, with the lock held."""
    env_store.clear(target)
    found = env_store.read(wanted.name)
    wished = tuple(dict.fromkeys([*(found.extras if found else ()), *extras]))
    if found is not None and not reinstall:
        serves = found.is_for(wanted, wished) and env_store.runs(found.python)
        if serves and not (upgrade and _newer(found, wanted, say)):
            return found
    if wished:
        planned = env_plan.resolve(wanted, wished, say).versions
        env_changes.refuse_overwriting(wanted.name, wished, planned)
    return _make(wanted, target, say, wished)


def _newer(found: Environment, wanted: Recipe, say: Progress) -> bool:
    resolved = env_plan.resolve(wanted, found.extras, say)
    return bool(env_changes.newer(found.versions, resolved.versions))


def _make(wanted: Recipe, target: Path, say: Progress, extras: tuple[str, ...]) -> Environment:
    work = env_store.workplace(target)
    try:
        made = work / "env"
        began = time.monotonic()
        env_build.fill(wanted, made, began, say, extras)
        env_build.verify(wanted, made, began, say)
        env_store.write(wanted, made, extras)
        env_store.put_in_place(made, target, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = env_store.read(wanted.name)
    assert found is not None
    return found
