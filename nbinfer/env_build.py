"""Filling an environment's folder with uv, and checking that its modules can be imported."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import packages, settings
from .env_store import python_in, site_packages
from .errors import DownloadError
from .packages import Progress
from .recipes import SHIMS, Recipe
from .torch_build import torch_build

__all__ = [
    "asked",
    "built_wheels",
    "disk_full",
    "environment",
    "failed",
    "fill",
    "teller",
    "uv_install",
    "verify",
]

_IMPORT_S = 300.0
_IMPORT = (
    "import importlib, sys\n"
    "for name in sys.argv[1:]:\n"
    "    print('importing', name, file=sys.stderr, flush=True)\n"
    "    importlib.import_module(name)\n"
)


def fill(
    wanted: Recipe, made: Path, began: float, say: Progress, extras: Sequence[str] = ()
) -> None:
    """Make an environment in a folder and install a recipe and more into it."""
    install, note = uv_install(wanted, made, extras, lambda line: say(f"{line} · 0 s"))
    prefix = f"installing {wanted.name}{f' ({note})' if note else ''}"
    env = environment(wanted)
    for command in (uv_venv(wanted, made), install):
        tell = teller(prefix, began, say, "resolving" if command is install else "preparing")
        status, output = packages.run(command, tell, env=env)
        if status:
            raise failed(wanted, output)
    if wanted.config_settings:
        _keep_built(wanted, install[0], built_wheels(wanted), began)
    if wanted.shims:
        _put_shims(wanted.shims, site_packages(made))


def uv_venv(wanted: Recipe, made: Path) -> list[str]:
    """The command that makes an empty environment."""
    uv = packages.uv_binary(f"{wanted.name} cannot be installed")
    return [uv, "venv", "--relocatable", "--no-project", "--python", sys.executable, str(made)]


def uv_install(
    wanted: Recipe, made: Path, extras: Sequence[str], say: Progress
) -> tuple[list[str], str]:
    """The command that fills it, and what is said of it.

    Raises
    ------
    DownloadError
        For a recipe that is not for this platform.
    """
    options, requirements, note = asked(wanted, made, extras, say)
    uv = packages.uv_binary(f"{wanted.name} cannot be installed")
    install = [uv, "pip", "install", "--no-progress", "--python", str(python_in(made))]
    return [*install, *options, *requirements], note


def asked(
    wanted: Recipe, made: Path, extras: Sequence[str], say: Progress
) -> tuple[list[str], list[str], str]:
    """Options for uv, requirements, and what the user should know of them."""
    name = wanted.name
    if wanted.unavailable:
        variable = settings.python_variable(name)
        raise DownloadError(
            f"{name} cannot be installed here: {wanted.unavailable}",
            hint=f"Make an environment yourself and set {variable} to its Python.",
        )
    requirements, note = [*wanted.requirements, *extras], wanted.minutes
    # uv takes what lies in a folder before what an index has, and PyPI's build of the library
    # may lie there. An index of the recipe's own is asked first, whatever the user's strategy.
    own = ["--index", wanted.index, "--index-strategy", "first-index"]
    options = own if wanted.index else packages.find_links()
    if wanted.torch:
        pin = next((r for r in requirements if r.startswith("torch")), "torch")
        say(f"installing {name}: choosing torch's build")
        build = torch_build(pin)
        options += build.arguments
        requirements += [build.constraint] if build.constraint else []
        note = build.note or note
    for setting in wanted.config_settings:
        options += ["--config-settings-package", setting]
    if wanted.overrides:
        listed = made.with_name("overrides.txt")
        listed.write_text("\n".join(wanted.overrides) + "\n", encoding="utf-8")
        options += ["--overrides", str(listed)]
    kept = built_wheels(wanted)
    if kept.is_dir():
        options += ["--find-links", str(kept)]
    return options, requirements, note


def environment(wanted: Recipe) -> dict[str, str]:
    """The environment for uv when it works for a recipe."""
    env = packages.environment()
    # The environment that is meant is the one named, whatever the shell has activated.
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", *wanted.without_variables):
        env.pop(name, None)
    if wanted.index:
        env.pop("UV_FIND_LINKS", None)
    return env


def built_wheels(wanted: Recipe) -> Path:
    """Where wheels are kept that a recipe's own settings made, by those settings.

    uv keeps them too, but forgets them with an index that forbids it to remember the source:
    minutes of compiling are worth a copy.
    """
    key = hashlib.sha256("\n".join(wanted.config_settings).encode()).hexdigest()[:16]
    return settings.home() / "wheels" / key


def _keep_built(wanted: Recipe, uv: str, folder: Path, began: float) -> None:
    """Copy what uv has built since ``began`` out of its cache."""
    asked = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=False)
    since = time.time() - (time.monotonic() - began)
    for setting in wanted.config_settings:
        name = setting.partition(":")[0].replace("-", "_")
        found = Path(asked.stdout.strip()).glob(f"sdists-v*/pypi/*/*/*/*/{name}-*.whl")
        with contextlib.suppress(OSError):
            newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
            if newest is None or newest.stat().st_mtime < since:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f".{newest.name}.part"
            shutil.copyfile(newest, part)
            part.replace(folder / newest.name)


def _put_shims(names: Sequence[str], site: Path) -> None:
    """Put folders of stand-ins on an environment's path, and have their hooks run at each start.

    By a .pth file: the folder then comes after site-packages, so that the real ones win, and no
    sitecustomize of a distribution's Python comes before the hooks.
    """
    hooks = []
    for name in names:
        hooks += sorted(path.stem for path in (SHIMS / name).glob("nbinfer_*.py"))
        shutil.copytree(
            SHIMS / name,
            site / "nbinfer_shims",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    lines = ["nbinfer_shims", *(f"import {hook}" for hook in hooks)]
    (site / "nbinfer_shims.pth").write_text("\n".join(lines) + "\n", "ascii")


def teller(prefix: str, began: float, say: Progress, first: str) -> Callable[[float, str], None]:
    """What turns uv's words into lines of progress."""

    def tell(_: float, output: str) -> None:
        say(f"{prefix}: {_phase(output) or first} · {time.monotonic() - began:.0f} s")

    return tell


def _phase(output: str) -> str:
    """What uv is at, from the last telling line of its words."""
    for line in reversed(output.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word in ("Building", "Downloading"):
            return f"{word.lower()} {rest}"
        if word in ("Resolved", "Downloaded", "Built"):
            return "fetching packages"
        if word in ("Prepared", "Installed"):
            return "putting files in place"
    return ""


def verify(wanted: Recipe, made: Path, began: float, say: Progress) -> None:
    """Import the recipe's modules with the environment's Python; raise if one fails."""
    what = f"installing {wanted.name}: checking that {' and '.join(wanted.modules)} can be imported"
    command = [str(python_in(made)), "-I", "-c", _IMPORT, *wanted.modules, *wanted.checked]

    def tell(_: float, __: str) -> None:
        say(f"{what} · {time.monotonic() - began:.0f} s")

    # Compiled now, it is imported twice as fast from then on, and vLLM imports it three times.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    status, output = packages.run(command, tell, env=env, limit_s=_IMPORT_S)
    if status:
        tried = re.findall(r"^importing (\S+)$", output, re.M)
        module = tried[-1] if tried else "nothing"
        how = f"after {_IMPORT_S:.0f} s it was still at it" if status == 124 else f"exit {status}"
        raise DownloadError(
            f"{wanted.name} was installed, but {module} cannot be imported there ({how}):\n"
            f"{packages.said(output)}",
            hint="It was removed again. A library that the system lacks is named above; else "
            "uv's cache may be damaged: uv cache clean",
        )


def failed(wanted: Recipe, output: str) -> DownloadError:
    """The error for uv's words, with what to do about it."""
    name, cause = wanted.name, packages.cause(output)
    if cause == "disk":
        return disk_full(name)
    variable = settings.python_variable(name)
    own = f"Or make an environment yourself and set {variable} to its Python."
    reach = "No package index could be reached. Check the network and pip's or uv's index settings"
    hints = {
        "compiler": "It needs a C++ compiler: apt install build-essential (Debian, Ubuntu), "
        "xcode-select --install (macOS).",
        "index": f"{reach}, or set PIP_FIND_LINKS to a folder that holds the wheels.",
        "torch": "That build of torch is on PyTorch's own CPU index alone. Let it be reached, or "
        "put the wheel into a folder and set PIP_FIND_LINKS to it.",
        "unknown": "The package index does not have it for this Python and platform. "
        "PIP_FIND_LINKS may name a folder with wheels.",
    }
    if wanted.index:
        hints["index"] = f"Its wheels are at {wanted.index} alone. {own}"
        hints["unknown"] = f"{wanted.index} has it for other Pythons or platforms. {own}"
    return DownloadError(
        f"{name} could not be installed ({', '.join(wanted.requirements)} with uv):\n"
        f"{packages.said(output, 12)}",
        hint=hints.get(cause, own),
    )


def disk_full(name: str) -> DownloadError:
    """The error for a disk without room."""
    return DownloadError(
        f"not enough disk space to install {name} in {settings.home() / 'envs'}",
        hint="Free some there and in uv's cache (uv cache prune), or set NBINFER_HOME to a "
        "folder on another disk.",
    )
