"""Which file llama.cpp loads for a LoRA adapter: a GGUF file, or what a PEFT folder became.

A folder is converted once for a model's shape and kept under ``NBINFER_HOME``, by the content
of its files: the same adapter trained anew is converted anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import gguf, lora_gguf, settings
from .checks import shown
from .errors import ConfigurationError, ModelNotFound, NbinferError
from .peft import CONFIG, WEIGHTS, PeftAdapter

__all__ = ["gguf_for", "stamp"]

# Of what is written: a change in how adapters are converted makes all of them anew.
_VERSION = 1
_KEPT_S = 30 * 86_400


def stamp(path: str) -> str | None:
    """What tells an adapter from the one that stood there before; ``None`` where there is none.

    Size and time of change of its files, which cost nothing to read.
    """
    place = Path(path)
    files = [place / CONFIG, place / WEIGHTS] if place.is_dir() else [place]
    try:
        facts = [file.stat() for file in files]
    except OSError:
        return None
    return "-".join(f"{fact.st_size:x}.{fact.st_mtime_ns:x}" for fact in facts)


def gguf_for(path: str, base: dict[str, Any], say: Callable[[str], None]) -> Path:
    """The GGUF file of an adapter for a model, converted where it must be.

    Parameters
    ----------
    path : str
        A folder as PEFT writes it, or a GGUF adapter.
    base : dict
        The header of the model's GGUF file.
    say : callable
        Told that it is being converted.

    Raises
    ------
    ModelNotFound
        Where there is no adapter.
    ConfigurationError
        Where it is of another kind, or for another model.
    NbinferError
        Where what it becomes cannot be stored.
    """
    place = Path(path)
    if place.is_dir():
        return _converted(place, base, say)
    if not place.is_file():
        raise ModelNotFound(
            f"no adapter at {path!r}",
            hint=f"give a folder as PEFT writes it, with {CONFIG} and {WEIGHTS}, or a GGUF file",
        )
    try:
        header = gguf.read_header(place)
    except (gguf.GGUFError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"the adapter at {path!r} cannot be read: {reason}",
            hint=f"give a folder as PEFT writes it, with {CONFIG} and {WEIGHTS}, or a GGUF file",
        ) from None
    lora_gguf.check_gguf(place, header, base)
    return place


def _converted(folder: Path, base: dict[str, Any], say: Callable[[str], None]) -> Path:
    adapter = PeftAdapter(folder)
    kept = settings.home() / "adapters"
    path = kept / f"{folder.name[:80]}-{_digest(adapter, base)[:24]}.gguf"
    if path.is_file():
        with contextlib.suppress(OSError):
            os.utime(path)
        return path
    say(f"converting the adapter {shown(folder.name)} to GGUF")
    part = None
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _drop_old(kept)
        handle, part = tempfile.mkstemp(prefix=".part-", suffix=".gguf", dir=kept)
        os.close(handle)
        lora_gguf.write(adapter, base, Path(part))
        Path(part).replace(path)
    except ValueError as error:
        if isinstance(error, NbinferError):
            raise
        raise adapter.refusal(f"{WEIGHTS}: {error}") from None
    except OSError as error:
        raise NbinferError(
            f"the adapter at {str(folder)!r} could not be converted: {error.strerror or error} "
            f"({str(kept)!r})"
        ) from None
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)
    return path


def _digest(adapter: PeftAdapter, base: dict[str, Any]) -> str:
    """Of the adapter's content, and of what the conversion reads of the model."""
    digest = hashlib.sha256(f"{_VERSION}".encode())
    for name in (CONFIG, WEIGHTS):
        with (adapter.folder / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    heads = {k: v for k, v in base.items() if ".attention.head_count" in k}
    shapes = sorted((name, *shape) for name, shape, _, _ in base["tensors"])
    facts = [base.get("general.architecture"), heads, shapes]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()


def _drop_old(kept: Path) -> None:
    """What nobody has used for a month, and what a killed conversion left for a day."""
    for path in kept.glob("*.gguf"):
        age = _KEPT_S if not path.name.startswith(".part-") else 86_400
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
