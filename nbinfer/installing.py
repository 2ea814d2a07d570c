"""What ``%engine install`` and ``nbinfer install`` do and say."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import env_plan, environments, interrupts, packages, settings
from .engines import registry
from .env_changes import changed, check_extras, newer, refuse_overwriting
from .env_plan import Resolved
from .env_table import libraries
from .errors import DownloadError, RunInterrupted
from .notebook.text import format_bytes
from .progress import Reporter
from .recipes import ACCELERATED, RECIPES, Recipe, recipe
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
    check_extras(extras)
    elsewhere = _elsewhere(wanted)
    if elsewhere and not reinstall:
        return [f"{name} is {elsewhere}; --reinstall makes a managed environment all the same"]
    before = environments.find(name)
    with interrupts.guard() as guard, reporter as report:
        say = _stoppable(name, guard, report)
        wished = tuple(dict.fromkeys([*(before.extras if before else ()), *extras]))
        if dry_run or upgrade or extras:
            planned = env_plan.resolve(wanted, wished, say)
            refuse_overwriting(name, wished, planned.versions)
            told = _told(wanted, before, planned, wished, dry_run=dry_run)
            if told and (dry_run or not reinstall):
                return told
        anew = reinstall or upgrade
        # What is replaced must not run.
        lines = [] if not anew and before and before.is_for(wanted, wished) else _unload(name)
        began = time.monotonic()
        found = environments.install(name, progress=say, reinstall=anew, extras=extras)
    spent = time.monotonic() - began
    lines.append(f"{name} is installed: {_contents(wanted, found)}, {spent:.0f} s")
    if elsewhere:
        lines.append(f"it is not used as long as {name} is {elsewhere}")
    return [*lines, *(changed(before.versions, found.versions) if before else ())]


def _stoppable(name: str, guard: interrupts.Guard, report: Reporter) -> packages.Progress:
    """What shows a line of progress, and ends the work where the user has asked for that."""

    def say(line: str) -> None:
        if guard.take():
            raise RunInterrupted(f"the installation of {name} was stopped; nothing is left")
        # A reporter shows a clock of its own.
        report(Stage(line.rpartition(" · ")[0] or line))

    return say


def _elsewhere(wanted: Recipe) -> str:
    """Where a library is that comes before a managed environment, in words; ``""`` for nowhere."""
    chosen = settings.python_of(wanted.name)
    if chosen is not None:
        return f"taken from the Python that you have chosen for it already ({chosen})"
    if environments.in_kernel(wanted):
        return f"in the kernel's own environment already ({sys.executable})"
    return ""


def _for_this_machine(name: str) -> str:
    """The build of llama.cpp for the GPU that is here; other names are what they are."""
    vendor = gpu_vendor() if name == "llamacpp" else ""
    return {"nvidia": "llamacpp-cuda", "amd": "llamacpp-rocm"}.get(vendor, name)


_LARGE = 10_000_000


def _told(
    wanted: Recipe,
    before: environments.Environment | None,
    planned: Resolved,
    wished: Sequence[str],
    *,
    dry_run: bool,
) -> list[str]:
    """What is said in place of installing: of a dry run, or that there is nothing newer."""
    name, versions = wanted.name, planned.versions
    if before is None:
        return _first_time(name, planned) if dry_run else []
    different = newer(before.versions, versions)
    current = before.is_for(wanted, wished)
    if not dry_run:
        newest = f"{name} is the newest that its recipe allows: {_contents(wanted, before)}"
        return [newest] if current and not different else []
    if not different:
        return [f"{name} is installed, and nothing would change"]
    how = "--upgrade would change" if current else "this would change"
    total = _to_fetch(planned, list(different))
    return [f"{name} is installed; {how}, {total}:"] + [
        f"  {n} {before.versions.get(n, 'none')} → {v or '?'}" for n, v in sorted(different.items())
    ]


def _first_time(name: str, planned: Resolved) -> list[str]:
    large = {n: format_bytes(s) for n, s in planned.sizes.items() if s >= _LARGE}
    listed = [
        f"{n} {v}".rstrip() + (f" ({large[n]})" if n in large else "")
        for n, v in sorted(planned.versions.items())
    ]
    total = _to_fetch(planned, list(planned.versions))
    return [f"{name} would be installed, packages: {len(listed)}, {total}", ", ".join(listed)]


def _to_fetch(planned: Resolved, names: list[str]) -> str:
    """Bytes that would be fetched, of the sizes that the index tells."""
    known = [planned.sizes[n] for n in names if n in planned.sizes]
    unknown = len(names) - len(known)
    told = f"{format_bytes(sum(known))} to fetch, less what uv's cache has"
    return told + (f", and {unknown} of unknown size" if unknown else "")


def run_uninstall(name: str) -> list[str]:
    """Uninstall, after unloading what runs there; returns the lines to print."""
    if name not in RECIPES and name in registry.names():
        line = f"{name} is part of nbinfer's own install; there is nothing to remove"
        builds = [n for n in ACCELERATED if name == "llamacpp" and environments.find(n)]
        return [line, *(f"its build for GPUs is removed by %engine uninstall {n}" for n in builds)]
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
    told = [libraries(wanted, found.versions), *(f"with {one}" for one in found.extras)]
    return ", ".join([*told, format_bytes(found.size_bytes)])
