"""What a plain ``%%infer`` uses: the engine and model last chosen."""

from __future__ import annotations

from dataclasses import dataclass

from . import settings
from .config import ModelParams
from .engines import registry

__all__ = ["Selection", "current", "for_engine", "reset", "use"]


@dataclass(frozen=True)
class Selection:
    """An engine's name, and the model that it loads."""

    engine: str
    model: ModelParams


_chosen: Selection | None = None


def current() -> Selection:
    """The engine and model of the next plain ``%%infer``."""
    if _chosen is not None:
        return _chosen
    defaults = settings.current()
    return Selection(defaults.default_engine, ModelParams(defaults.default_model))


def for_engine(
    engine: str | None, model: str | None = None, model_kwargs: dict[str, object] | None = None
) -> Selection:
    """The selection for what a command names, the chosen one where it names nothing."""
    chosen = current()
    name = engine or chosen.engine
    registry.spec(name)
    if model is None and not model_kwargs and name == chosen.engine:
        return chosen
    named = model or (
        chosen.model.model_name if name == chosen.engine else settings.current().default_model
    )
    return Selection(name, ModelParams(named, model_kwargs=model_kwargs or {}))


def use(selection: Selection) -> Selection:
    """Choose what a plain ``%%infer`` uses from now on."""
    global _chosen
    _chosen = selection
    return selection


def reset() -> None:
    """Go back to the settings' defaults."""
    global _chosen
    _chosen = None
