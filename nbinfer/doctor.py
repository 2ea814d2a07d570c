"""What is installed here, what would work, and what to do about the rest."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import __version__, environments, models, settings
from .checks import Address
from .engines import registry
from .engines.remote import RemoteEngine
from .errors import NbinferError
from .measure import machine
from .recipes import RECIPES

__all__ = ["report"]


def report() -> tuple[list[str], bool]:
    """Lines to print, and whether everything that the main job needs is there."""
    checks = [*_machine(), *_home(), *_engines(), *_recipes(), *_model()]
    lines = [f"nbinfer {__version__}"]
    for good, text, advice in checks:
        lines.append(f"{'ok  ' if good else 'FAIL'} {text}")
        if advice and not good:
            lines.append(f"     {advice}")
    return lines, all(good for good, _, _ in checks)


Check = tuple[bool, str, str]


def _machine() -> Iterator[Check]:
    facts = machine()
    size = int(str(facts["memory_bytes"])) / 1e9
    yield (
        True,
        f"machine: {facts['cpu']}, {facts['cores']} cores, {size:.0f} GB, {facts['system']}",
        "",
    )
    budget = settings.current().budget_bytes() / 1e9
    yield True, f"memory budget for resident engines: {budget:.1f} GB", ""


def _home() -> Iterator[Check]:
    home = settings.home()
    advice = "set NBINFER_HOME to a folder that can be written"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        yield False, f"NBINFER_HOME {home}: {error.strerror}", advice
        return
    free = shutil.disk_usage(home).free / 1e9
    yield free > 0.3, f"NBINFER_HOME {home}: writable, {free:.0f} GB free", "free some space there"
    shared = Path("/dev/shm")
    if shared.exists() and not os.access(shared, os.W_OK):
        yield False, "/dev/shm is not writable", "vLLM's workers need it"


def _engines() -> Iterator[Check]:
    """Those of the base install; the others are ``_recipes``."""
    for spec in registry.specs():
        if "server" in spec.capabilities.features:
            yield _server(spec)
            continue
        if spec.name in RECIPES:
            continue
        try:
            version = importlib.metadata.version(spec.library)
        except importlib.metadata.PackageNotFoundError:
            yield (
                False,
                f"engine {spec.name}: {spec.library} is not installed",
                f"pip install {spec.library}",
            )
        else:
            yield True, f"engine {spec.name}: {spec.library} {version} ({spec.summary})", ""


def _server(spec: registry.EngineSpec) -> Check:
    """Where an engine that is a server would be looked for; nothing is asked of it."""
    engine = registry.engine_class(spec.name)()
    assert isinstance(engine, RemoteEngine)
    try:
        place = ", ".join(Address(url).masked for url in engine.urls)
    except NbinferError as error:
        return True, f"engine {spec.name}: {error.message}; {error.hint}", ""
    key = ""
    if engine.key_variable:
        there = os.environ.get(engine.key_variable)
        key = f", {engine.key_variable} is {'set' if there else 'not set'}"
    return True, f"engine {spec.name}: {place}{key} ({spec.summary})", ""


def _recipes() -> Iterator[Check]:
    managed = {one.name: one for one in environments.installed()}
    for name, recipe in RECIPES.items():
        try:
            python = environments.available(name)
        except NbinferError as error:
            yield False, f"{name}: {error.message}", error.hint or ""
            continue
        if python is None:  # nobody needs all of them
            text = f"{name}: not installed; to have it, run nbinfer install {name}"
        else:
            text = f"{name}: {python}"
            made = managed.get(name)
            if made is not None and python == made.python:
                text += f" ({made.size_bytes / 1e6:,.0f} MB)"
                if not made.is_for(recipe, made.extras):
                    advice = f"made by an older recipe: nbinfer install {name} makes it anew"
                    yield False, text, advice
                    continue
        yield True, f"{text} ({recipe.summary})", ""


def _model() -> Iterator[Check]:
    for name, embedded in models.EMBEDDED.items():
        path = settings.home() / "models" / f"{name}.gguf"
        if path.is_file() and path.stat().st_size == embedded.size:
            yield True, f"model {name}: {path}", ""
            continue
        try:
            models.resolve(name)
        except NbinferError as error:
            yield False, f"model {name}: {error.message}", error.hint or ""
        else:
            yield True, f"model {name}: fetched to {path}", ""
