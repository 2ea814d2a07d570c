"""What ``%engine install`` and ``nbinfer install`` do and say."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from pathlib import Path

from . import environments, interrupts
from .engines import registry
from .errors import DownloadError, RunInterrupted
from .progress import Reporter
from .recipes import RECIPES, Recipe, recipe
from .records import Stage
from .residents import pool

__all__ = ["installable", "run_install", "run_uninstall"]


def installable() -> list[str]:
    """The names that can be installed."""
    return list(RECIPES)


def run_install(name: str, reporter: Reporter, *, reinstall: bool = False) -> list[str]:
    """Install, show the progress with a reporter, and return the lines to print.

    Raises
    ------
    ConfigurationError, DownloadError
        As :func:`nbinfer.environments.install` does.
    RunInterrupted
        If the user stopped it; nothing is left then.
    """
    if name not in RECIPES and name in registry.names():
        return [_in_base_install(name)]
    wanted = recipe(name)
    if environments.in_kernel(wanted) and not reinstall:
        return [
            f"{name} is in the kernel's own environment already ({sys.executable}); "
            "--reinstall makes a managed one all the same"
        ]
    lines = _unload(name) if reinstall else []
    began = time.monotonic()
    with interrupts.guard() as guard, reporter as report:

        def say(line: str) -> None:
            if guard.take():
                raise RunInterrupted(f"the installation of {name} was stopped; nothing is left")
            # A reporter shows a clock of its own.
            report(Stage(line.rpartition(" · ")[0] or line))

        found = environments.install(name, progress=say, reinstall=reinstall)
    new = time.monotonic() - began
    return [*lines, f"{name} is installed: {_contents(wanted, found)}, {new:.0f} s"]


def run_uninstall(name: str) -> list[str]:
    """Uninstall, after unloading what runs there; returns the lines to print."""
    if name not in RECIPES and name in registry.names():
        return [f"{name} is part of nbinfer's own install; there is nothing to remove"]
    recipe(name)
    lines = _unload(name)
    if not environments.folder(name).exists():
        return [*lines, f"{name} has no managed environment"]
    freed = environments.uninstall(name)
    shared = "" if freed > 50e6 else " (uv's cache has the rest: uv cache clean)"
    return [*lines, f"{name} is uninstalled: {freed / 1e6:,.0f} MB came back{shared}"]


def _unload(name: str) -> list[str]:
    """Unload the engines that run in a managed environment."""
    place = environments.folder(name)
    lines = []
    for resident in pool.residents():
        if resident.python and place in Path(resident.python).parents:
            freed = pool.unload(resident)
            lines.append(f"{resident.label} is unloaded: {freed / 1e6:,.0f} MB came back")
    return lines


def _in_base_install(name: str) -> str:
    library = registry.spec(name).library
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        raise DownloadError(
            f"{name} is part of nbinfer's own install, but {library} is missing",
            hint=f"pip install {library}",
        ) from None
    return f"{name} is part of nbinfer's own install: {library} {version}"


def _contents(wanted: Recipe, found: environments.Environment) -> str:
    first = {m.replace("_", "-") for m in wanted.modules} | {
        r.partition("==")[0] for r in wanted.requirements
    }
    told = [f"{n} {v}" for n, v in sorted(found.versions.items(), reverse=True) if n in first]
    size = found.size_bytes
    return ", ".join([*told, f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.0f} MB"])
