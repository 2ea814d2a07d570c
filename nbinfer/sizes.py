"""Sizes in bytes, as a user writes them: ``"7GB"``, ``"512MiB"``, ``"50%"``."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from .checks import integer, shown
from .errors import ConfigurationError

__all__ = ["machine_bytes", "of_machine", "parse_size", "part", "share_or_size"]

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str | float) -> int:
    """A size in bytes.

    Parameters
    ----------
    text : str, int or float
        ``"7GB"`` and ``"7G"`` (powers of 1000), ``"512 MiB"`` (powers of 1024), or a plain
        number of bytes.

    Raises
    ------
    ConfigurationError
        For anything else, a negative or an infinite size.
    """
    wrong = ConfigurationError(
        f"{shown(text)} is no size", hint='a size is like "7GB", "512MiB" or a number of bytes'
    )
    if isinstance(text, int | float) and not isinstance(text, bool):
        if not 0 <= text < 2**63:  # false for NaN too
            raise wrong
        return int(text)
    if not isinstance(text, str):
        raise wrong
    match = re.fullmatch(
        r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([kmgtp]?)(i?)b?\s*", text, re.IGNORECASE
    )
    if match is None or (match[3] and not match[2]):
        raise wrong
    size = float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[match[2].lower()]
    if size >= 2**63:
        raise wrong
    return int(size)


def machine_bytes() -> int:
    """The machine's memory, or the control group's limit where that is lower."""
    import psutil

    total = int(psutil.virtual_memory().total)
    for path in _limit_files():
        with contextlib.suppress(OSError, ValueError):  # "max" is no number, and no limit
            total = min(total, int(path.read_text()) or total)
    return total


def _limit_files() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, group = line.split(":", 2)
            within = Path(group.lstrip("/"))
            for place in (within, *within.parents):
                if not kinds:
                    files.append(root / place / "memory.max")
                elif "memory" in kinds.split(","):
                    files.append(root / "memory" / place / "memory.limit_in_bytes")
    return files


def share_or_size(value: Any) -> str | int:
    """``"80%"`` as it is and a size above 0 in bytes, for a check; ``ValueError`` if neither."""
    if isinstance(value, str) and value.strip().endswith("%"):
        share = float(value.strip().removesuffix("%"))
        if not 0 < share <= 100:
            raise ValueError
        return f"{share:g}%"
    try:
        size = parse_size(value)
    except ConfigurationError:
        raise ValueError from None  # the check's own message names the setting
    return int(integer(1).convert(size))


def part(value: str | int, total: int) -> int:
    """Bytes of what :func:`share_or_size` gave, of so many."""
    if isinstance(value, str):
        return int(total * (float(value.removesuffix("%")) / 100))
    return value


def of_machine(value: Any) -> int:
    """A size above 0, or a share of the machine's memory, in bytes."""
    wanted = share_or_size(value)
    return part(wanted, machine_bytes()) if isinstance(wanted, str) else wanted
