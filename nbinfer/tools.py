"""Tools that a model may call: their schemas checked, its calls read.

A call that is forced (``tool_choice`` is ``"required"`` or a name) is the same on every engine
without an API of its own for it: a JSON object ``{"name": ..., "arguments": ...}``, held to by
guided decoding. What a model calls freely is read by the engine's own parser.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError
from .tool_schemas import function_schema

if TYPE_CHECKING:
    from .frame import Row
    from .generation import GenerationParams

__all__ = ["CHOICES", "call_schema", "check_choice", "checked_tools", "choice_kind", "read_calls"]

CHOICES = ("auto", "none", "required")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # as OpenAI and Anthropic take them


def checked_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Tools in OpenAI's form, out of schemas or Python functions.

    Raises
    ------
    ConfigurationError
        With the tool's place or name, and what is wrong with it.
    """
    if isinstance(value, Mapping) or callable(value):
        value = [value]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError
    tools = tuple(_tool(place, tool) for place, tool in enumerate(value))
    if not tools:
        raise ConfigurationError("tools is empty", hint="leave it out where there are none")
    names = [tool["function"]["name"] for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"two tools are called {twice!r}", hint="rename one")
    return tools


def _tool(place: int, value: Mapping[str, Any] | Callable[..., Any]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        if not callable(value):
            raise ConfigurationError(
                f"tools[{place}] must be a schema or a Python function, not {value!r:.80}"
            )
        value = function_schema(value)
    function = value.get("function")
    if value.get("type") != "function" or not isinstance(function, Mapping):
        raise ConfigurationError(
            f"tools[{place}] must be {{'type': 'function', 'function': {{...}}}}, got {value!r:.80}"
        )
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"tools[{place}]: its name must be 1 to 64 letters, digits, _ or -, got {name!r:.80}"
        )
    unknown = set(function) - {"name", "description", "parameters", "strict"}
    if unknown:
        raise ConfigurationError(
            f"the tool {name!r} has no field {sorted(map(str, unknown))[0]!r}",
            hint="it has: name, description, parameters, strict",
        )
    if not isinstance(function.get("description", ""), str):
        raise ConfigurationError(f"the tool {name!r}: its description must be text")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise ConfigurationError(
            f"the tool {name!r}: its parameters must be a JSON Schema of an object, "
            f"got {parameters!r:.80}"
        )
    try:
        plain = json.loads(json.dumps({**function, "parameters": parameters}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the tool {name!r} is not JSON: {error}") from None
    return {"type": "function", "function": plain}


def check_choice(tools: Sequence[Mapping[str, Any]] | None, choice: str) -> None:
    """Refuse a choice without tools, or of a tool that is not among them."""
    if tools is None:
        if choice != "auto":
            raise ConfigurationError(
                f"tool_choice={choice!r:.80} needs tools", hint="give GenerationParams(tools=[...])"
            )
        return
    names = [tool["function"]["name"] for tool in tools]
    if choice not in CHOICES and choice not in names:
        near = difflib.get_close_matches(choice, [*names, *CHOICES], 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"tool_choice={choice!r:.80} is no tool",
            hint=f"{guess}it takes auto, none, required or one of: {', '.join(names)}",
        )


def choice_kind(params: GenerationParams) -> str | None:
    """``"auto"``, ``"none"``, ``"required"`` or ``"named"``; ``None`` without tools."""
    if params.tools is None:
        return None
    return params.tool_choice if params.tool_choice in CHOICES else "named"


def call_schema(tools: Sequence[Mapping[str, Any]], choice: str) -> dict[str, Any] | None:
    """The JSON Schema of one forced call; ``None`` where the model is free."""
    if choice in ("auto", "none"):
        return None
    wanted = [t["function"] for t in tools if choice in ("required", t["function"]["name"])]
    forms = [
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": [function["name"]]},
                "arguments": {"type": "object", "properties": {}, **_inner(function)},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in wanted
    ]
    definitions = {k: v for f in wanted for k, v in f["parameters"].get("$defs", {}).items()}
    schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return {**schema, "$defs": definitions} if definitions else schema


def _inner(function: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's parameters without their definitions, whose references count from the root."""
    return {name: part for name, part in function["parameters"].items() if name != "$defs"}


def read_calls(row: Row, params: GenerationParams) -> Row:
    """Fill ``row.tool_calls``, and have ``finish_reason`` say so.

    What the engine's own parser has found is there already. A forced call is read from the text;
    one that cannot be read leaves the text as it is and says why in ``error``.
    """
    kind = choice_kind(params)
    if kind in (None, "none") or row.finish_reason not in ("stop", "length", "tool_calls"):
        return row
    if row.tool_calls is None and kind in ("required", "named"):
        _read_forced(row)
    if row.tool_calls and row.finish_reason == "stop":
        row.finish_reason = "tool_calls"
    if not row.tool_calls:
        row.tool_calls = None
        if kind in ("required", "named") and row.error is None:
            why = (
                "it was cut at max_new_tokens" if row.finish_reason == "length" else "there is none"
            )
            row.error = f"tool_choice={params.tool_choice!r} asked for a call, and {why}"
    return row


def _read_forced(row: Row) -> None:
    if not (row.output or "").lstrip().startswith("{"):
        return
    try:
        value = json.loads(row.output or "")
        row.tool_calls = [{"name": str(value["name"]), "arguments": dict(value["arguments"])}]
    except (ValueError, TypeError, KeyError) as error:
        why = "it was cut at max_new_tokens" if row.finish_reason == "length" else str(error)
        row.error = f"the tool's call cannot be read: {why}"
    else:
        row.output = ""
