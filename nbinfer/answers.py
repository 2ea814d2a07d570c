"""What an answer's text holds: reasoning, calls of tools, values that fit a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .reasoning import separate
from .structured import parse
from .tools import read_calls

if TYPE_CHECKING:
    from .frame import Row
    from .generation import GenerationParams

__all__ = ["read"]


def read(row: Row, params: GenerationParams) -> Row:
    """Fill the columns that are read from the text, each with what the one before it left."""
    return parse(read_calls(separate(row, params), params), params)
