"""What ``%engine install`` and ``nbinfer install`` do and say."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import env_build, environments, interrupts
from .engines import registry
from .env_changes import changed, newer, refuse_overwriting
from .env_table import libraries
from .errors import DownloadError, RunInterrupted
from .progress import Reporter
from .recipes import RECIPES, Recipe, recipe
from .records import Stage
from .residents import pool
from .torch_build import gpu_vendor

__all__ = ["installable", "run_install", "run_uninstall"]


def installable() -> list[str]:
    """The names that can be installed."""
    return list(RECIPES)


def run_install(
    name: str,
    reporter: Reporter,
    *,
    reinstall: bool = False,
    upgrade: bool = False,
    dry_run: bool = False,
    extras: Sequence[str] = (),
) -> list[str]:
    """Install, show the progress with a reporter, and return the lines to print.

    Parameters
    ----------
    name : str
        A recipe's name, or ``"llamacpp"``: its build for this machine's GPU, if it has one.
    reporter : Reporter
        Shows the progress.
    dry_run : bool, default False
        Change nothing, and say what would be installed.
    reinstall, upgrade, extras
        As :func:`nbinfer.environments.install` takes them.

    Raises
    ------
    ConfigurationError, DownloadError
        As :func:`nbinfer.environments.install` does.
    RunInterrupted
        If the user stopped it; nothing is left then.
    """
    name = _for_this_machine(name)
    if name not in RECIPES and name in registry.names():
        return [_in_base_install(name)]
    wanted = recipe(name)
    if environments.in_kernel(wanted) and not (reinstall or upgrade or extras or dry_run):
        return [
            f"{name} is in the kernel's own environment already ({sys.executable}); "
            "--reinstall makes a managed one all the same"
        ]
    before = environments.find(name)
    with interrupts.guard() as guard, reporter as report:

        def say(line: str) -> None:
            if guard.take():
                raise RunInterrupted(f"the installation of {name} was stopped; nothing is left")
            # A reporter shows a clock of its own.
            report(Stage(line.rpartition(" · ")[0] or line))

        if dry_run:
            return _planned(wanted, before, env_build.resolve(wanted, extras, say), extras)
        if upgrade and before is not None:
            wished = (*before.extras, *extras)
            if not newer(before.versions, env_build.resolve(wanted, wished, say)):
                what = _contents(wanted, before)
                return [f"{name} is the newest that its recipe allows: {what}"]
        anew = reinstall or upgrade
        # What is replaced must not run; and what cannot be replaced, for its extras, is told first.
        if extras:
            refuse_overwriting(name, extras, env_build.resolve(wanted, extras, say))
        lines = _unload(name) if anew or extras else []
        began = time.monotonic()
        found = environments.install(name, progress=say, reinstall=anew, extras=extras)
    new = time.monotonic() - began
    lines.append(f"{name} is installed: {_contents(wanted, found)}, {new:.0f} s")
    return [*lines, *(changed(before.versions, found.versions) if before else ())]


def _for_this_machine(name: str) -> str:
    """The build of llama.cpp for the GPU that is here; other names are what they are."""
    vendor = gpu_vendor() if name == "llamacpp" else ""
    return {"nvidia": "llamacpp-cuda", "amd": "llamacpp-rocm"}.get(vendor, name)


def _planned(
    wanted: Recipe,
    before: environments.Environment | None,
    resolved: Mapping[str, str],
    extras: Sequence[str],
) -> list[str]:
    refuse_overwriting(wanted.name, extras, resolved)
    if before is None:
        listed = ", ".join(f"{n} {v}" for n, v in sorted(resolved.items()))
        return [f"{wanted.name} would be installed, {len(resolved)} packages: {listed}"]
    different = newer(before.versions, resolved)
    if not different:
        return [f"{wanted.name} is installed, and nothing would change"]
    return [f"{wanted.name} is installed; --upgrade would change:"] + [
        f"  {n} {before.versions.get(n, 'none')} → {v}" for n, v in sorted(different.items())
    ]


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
    size = found.size_bytes
    told = [libraries(wanted, found), *(f"with {one}" for one in found.extras)]
    return ", ".join([*told, f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.0f} MB"])
