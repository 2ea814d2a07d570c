"""Which engine, model and address a magic's options mean."""

from __future__ import annotations

import argparse

from .. import selection
from ..config import parse_value
from ..engines import registry
from ..errors import ConfigurationError

__all__ = ["chosen"]


def chosen(name: str | None, options: argparse.Namespace) -> selection.Selection:
    """Engine, model and address of a command."""
    engine = name or selection.current().engine
    remote = _settings(_own(engine, options.remote))
    urls = [u.removeprefix(f"{engine}=") for u in options.url if _is_for(engine, u)]
    if "api_key" in remote:
        raise ConfigurationError(
            "a key that is written into a cell is saved with the notebook",
            hint="-r api_key_env_varname=NAME names the variable that holds it",
        )
    if urls:
        remote["api_url"] = urls if len(urls) > 1 else urls[0]
    kwargs = _settings(_own(engine, options.kwarg))
    return selection.for_engine(name, options.model, kwargs, remote)


def _own(engine: str, texts: list[str]) -> list[str]:
    """Of ``KEY=VALUE`` and ``ENGINE:KEY=VALUE``, what is for this engine."""
    own = []
    for text in texts:
        prefix, colon, rest = text.partition(":")
        if not colon or prefix not in registry.names(hidden=True):
            own.append(text)
        elif prefix == engine:
            own.append(rest)
    return own


def _is_for(engine: str, text: str) -> bool:
    """Whether ``VALUE`` or ``ENGINE=VALUE`` is for this engine."""
    prefix, sign, _ = text.partition("=")
    return not sign or prefix == engine or prefix not in registry.names(hidden=True)


def _settings(texts: list[str]) -> dict[str, object]:
    """``KEY=VALUE`` words as a dict; values are Python literals or else text."""
    values: dict[str, object] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise ConfigurationError(f"{text!r:.80} is not KEY=VALUE")
        values[name] = parse_value(value)
    return values
