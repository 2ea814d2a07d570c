"""From guided output to Python values: the ``parsed`` column."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import GenerationParams
    from .frame import Row

__all__ = ["parse"]


def parse(row: Row, params: GenerationParams) -> Row:
    """Fill ``row.parsed`` where a JSON Schema guided the answer.

    With a pydantic model the value is an instance of it. An answer that does not parse (cut
    at ``max_new_tokens``, most often) leaves ``parsed`` empty and says why in ``error``.
    """
    guided = params.guided_decoding
    if guided is None or guided.json is None or row.finish_reason not in ("stop", "length"):
        return row
    try:
        value: Any = json.loads(row.output or "")
        model = guided.model_class
        row.parsed = model.model_validate(value) if model is not None else value
    except ValueError as error:  # pydantic's ValidationError is one too
        why = "it was cut at max_new_tokens" if row.finish_reason == "length" else str(error)
        row.error = f"the answer does not fit the schema: {why}"
    return row
