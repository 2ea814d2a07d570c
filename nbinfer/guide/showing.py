"""What a probe says and asks with: rows without an error, and the word that nothing was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config import GenerationParams

if TYPE_CHECKING:
    import pandas as pd

    from ..engines.base import InferenceEngine

__all__ = ["TOKENS", "Unproven", "need", "row", "rows"]

TOKENS = 16  # of an answer that is compared with another


class Unproven(Exception):
    """The engine did not show it; the text says what it showed."""


def need(true: Any, otherwise: str) -> None:
    """Go on only if it is true."""
    if not true:
        raise Unproven(otherwise)


def rows(engine: InferenceEngine, prompts: Any, **params: Any) -> pd.DataFrame:
    """Rows without an error."""
    frame = engine.infer(prompts, GenerationParams(**params), progress=False)
    wrong = frame["error"].dropna()
    need(wrong.empty, f"a row failed: {wrong.iloc[0] if len(wrong) else ''}")
    return frame


def row(engine: InferenceEngine, prompt: Any, **params: Any) -> Any:
    """The one row of one prompt."""
    return rows(engine, prompt, **params).iloc[0]
