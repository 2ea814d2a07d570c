"""A call of a tool, as the assistant's messages hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigurationError

__all__ = ["ToolCall"]


@dataclass(frozen=True)
class ToolCall:
    """A tool that the assistant called.

    Parameters
    ----------
    name : str
        The tool's name.
    arguments : mapping
        By parameter; JSON's own types.
    id : str, optional
        By which a result names its call. A conversation numbers those that have none.

    Raises
    ------
    ConfigurationError
        For a name that is no text, or arguments that are no mapping or not JSON.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None

    def __post_init__(self) -> None:
        try:
            if not isinstance(self.name, str) or not self.name:
                raise TypeError
            arguments = dict(self.arguments)
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError):
            raise ConfigurationError(
                "a tool's call needs a name and arguments that are a mapping of JSON's types, "
                f"got {self.name!r:.80} and {self.arguments!r:.80}"
            ) from None
        object.__setattr__(self, "arguments", arguments)

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's API takes it; the arguments are JSON text."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments, ensure_ascii=False)}
        return {"id": self.id, "type": "function", "function": function}

    @classmethod
    def from_dict(cls, value: Any) -> ToolCall:
        """Of ``{"name", "arguments"}``, as a row has them, or of OpenAI's form."""
        if isinstance(value, cls):
            return value
        try:
            inner = value.get("function", value)
            arguments = inner["arguments"]
            if isinstance(arguments, str):
                arguments = json.loads(arguments or "{}")
            return cls(inner["name"], arguments, value.get("id"))
        except (AttributeError, TypeError, KeyError, json.JSONDecodeError):
            raise ConfigurationError(
                f"a tool's call needs 'name' and 'arguments', got {value!r:.80}"
            ) from None
