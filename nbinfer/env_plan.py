"""What an installation would hold, from uv's own resolution. Nothing is installed for it."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from . import env_build, packages
from .packages import Progress
from .recipes import Recipe

__all__ = ["Resolved", "resolve"]


@dataclass(frozen=True)
class Resolved:
    """The distributions of an environment that is not there yet.

    Attributes
    ----------
    versions : dict of str to str
        By distribution; ``""`` where only building it would tell.
    sizes : dict of str to int
        Bytes of the file to fetch, where the index tells; of several that fit, the largest.
    """

    versions: dict[str, str]
    sizes: dict[str, int]


def resolve(wanted: Recipe, extras: Sequence[str], say: Progress) -> Resolved:
    """Ask uv what an installation would be. Nothing is left behind.

    Raises
    ------
    DownloadError
        If it could not be: no index is reachable, versions exclude each other, ...
    """
    with tempfile.TemporaryDirectory(prefix="nbinfer-") as name:
        folder = Path(name)
        options, requirements, _ = env_build.asked(wanted, folder / "env", extras, say)
        listed, lock = folder / "requirements.in", folder / "pylock.toml"
        listed.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        uv = packages.uv_binary(f"{wanted.name} cannot be installed")
        command = [uv, "pip", "compile", "--no-progress", "--python", sys.executable, *options]
        command += ["--format", "pylock.toml", "--output-file", str(lock), str(listed)]
        tell = env_build.teller(f"resolving {wanted.name}", time.monotonic(), say, "asking")
        status, output = packages.run(command, tell, env=env_build.environment(wanted))
        if status:
            raise env_build.failed(wanted, output)
        found = tomllib.loads(lock.read_text(encoding="utf-8")).get("packages", [])
    sizes = {package["name"]: _bytes(package) for package in found}
    return Resolved(
        {package["name"]: package.get("version", "") for package in found},
        {name: size for name, size in sizes.items() if size is not None},
    )


def _bytes(package: Mapping[str, Any]) -> int | None:
    files = package.get("wheels") or [package[k] for k in ("archive", "sdist") if k in package]
    known = [size for size in map(_file_bytes, files) if size is not None]
    return max(known, default=None)


def _file_bytes(file: Mapping[str, Any]) -> int | None:
    address = urlsplit(file.get("url", ""))
    if "size" not in file and address.scheme == "file":
        with contextlib.suppress(OSError):
            return Path(url2pathname(address.path)).stat().st_size
    size = file.get("size")
    return int(size) if size is not None else None
