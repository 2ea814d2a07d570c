"""Small files that others read meanwhile: written as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["write"]


def write(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a text beside its place, then put it there.

    Parameters
    ----------
    path : Path
        In a folder that is there.
    text : str
        Written as UTF-8.
    mode : int, default 0o666
        Of a file that is not there yet, less what the user's umask takes; ``0o600`` where it is
        for this user alone.

    Raises
    ------
    OSError
        When it cannot be written; what was there is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
