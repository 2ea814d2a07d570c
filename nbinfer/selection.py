"""What a plain ``%%infer`` uses: the engine and model last chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import settings
from .config import ModelParams, RemoteParams
from .engines import registry
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .engines.base import InferenceEngine

__all__ = ["Selection", "current", "for_engine", "model_for", "reset", "use"]


@dataclass(frozen=True)
class Selection:
    """An engine's name, and the model that it loads.

    ``others`` are the ``engine=name`` given with it, for the engines that a later cell names;
    ``remote`` says where it is, of an engine that is a server.
    """

    engine: str
    model: ModelParams
    others: tuple[str, ...] = ()
    remote: RemoteParams | None = None

    def make(self) -> InferenceEngine:
        """The engine itself; nothing is loaded.

        Raises
        ------
        ConfigurationError, UnsupportedParameter
            For what the engine cannot be loaded with.
        """
        return registry.engine_class(self.engine)(self.model, remote_params=self.remote)


_chosen: Selection | None = None


def current() -> Selection:
    """The engine and model of the next plain ``%%infer``."""
    if _chosen is not None:
        return _chosen
    defaults = settings.current()
    return Selection(defaults.default_engine, ModelParams(defaults.default_model))


def model_for(engine: str, values: Sequence[str]) -> str | None:
    """The model that ``-m`` names for an engine.

    Parameters
    ----------
    engine : str
        Its name.
    values : sequence of str
        Names that hold for every engine, and ``engine=name`` that hold for one; the prefix
        must be an engine's name to the letter, so that a path may hold ``=``.

    Returns
    -------
    str or None
        ``None`` where nothing is said for this engine.

    Raises
    ------
    ConfigurationError
        For two names where one can hold, or none after the ``=``.
    """
    own: list[str] = []
    plain: list[str] = []
    for value in values:
        prefix, sign, name = value.partition("=")
        if not sign or prefix not in registry.names(hidden=True):
            plain.append(value)
        elif not name.strip():
            raise ConfigurationError(f"-m {value} names no model", hint=f"write {prefix}=MODEL")
        elif prefix == engine:
            own.append(name)
    for found in (own, plain):
        if len(set(found)) > 1:
            raise ConfigurationError(
                f"-m names {len(set(found))} models for {engine}: {', '.join(found)}",
                hint="give one, or one for each engine: -m ENGINE=MODEL",
            )
    return next(iter(own or plain), None)


def for_engine(
    engine: str | None,
    model: str | Sequence[str] | None = None,
    model_kwargs: dict[str, object] | None = None,
    remote: Mapping[str, Any] | None = None,
) -> Selection:
    """The selection for what a command names, the chosen one where it names nothing.

    ``model`` is what ``-m`` was given, as :func:`model_for` takes it; ``remote`` has fields of
    ``RemoteParams``, which come before those of the settings.
    """
    chosen = current()
    name = engine or chosen.engine
    registry.spec(name)
    where = chosen.remote if name == chosen.engine else None
    if remote:
        where = replace(where or settings.remote(name) or RemoteParams(), **remote)
    given = [model] if isinstance(model, str) else list(model or ())
    others = tuple(v for v in given if model_for("", [v]) is None) or chosen.others
    named = model_for(name, given)
    if named is None and not model_kwargs and name == chosen.engine:
        return Selection(name, chosen.model, others, where)
    if named is None and name == chosen.engine:
        named = chosen.model.model_name
    named = named or model_for(name, chosen.others) or settings.current().default_model
    return Selection(name, ModelParams(named, model_kwargs=model_kwargs or {}), others, where)


def use(selection: Selection) -> Selection:
    """Choose what a plain ``%%infer`` uses from now on.

    Raises
    ------
    ConfigurationError, UnsupportedParameter
        For what the engine cannot be loaded with; then nothing is changed.
    """
    global _chosen
    selection.make()
    _chosen = selection
    return selection


def reset() -> None:
    """Go back to the settings' defaults."""
    global _chosen
    _chosen = None
