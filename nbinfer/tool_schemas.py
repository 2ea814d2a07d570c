"""From a Python function to the schema by which a model knows it as a tool."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .errors import ConfigurationError

__all__ = ["function_schema"]

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def function_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function, as OpenAI's API takes it.

    Parameters
    ----------
    function : callable
        Its parameters need type hints: ``str``, ``int``, ``float``, ``bool``, ``None``, lists,
        dictionaries, unions, ``Literal``, ``Enum``, or classes with ``model_json_schema()``.
        Its docstring describes it; a numpy or Google style section describes its parameters.

    Returns
    -------
    dict
        ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Raises
    ------
    ConfigurationError
        For a parameter without a type hint, of a type that JSON has not, or without a name
        (``*args``, ``**kwargs``).
    """
    name = getattr(function, "__name__", "")
    try:
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
    except (NameError, TypeError, ValueError) as error:
        raise ConfigurationError(f"no schema of {name or function!r:.80}: {error}") from None
    summary, described = _docstring(inspect.getdoc(function) or "", [p.name for p in parameters])
    properties, required = {}, []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigurationError(
                f"the tool {name!r} takes {parameter}: each of its parameters needs a name"
            )
        if parameter.name not in hints:
            raise ConfigurationError(
                f"the tool {name!r}: its parameter {parameter.name!r} has no type hint",
                hint=f"write def {name}({parameter.name}: str, ...)",
            )
        schema = _schema(hints[parameter.name], f"{name}({parameter.name})")
        if described.get(parameter.name):
            schema["description"] = described[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": summary,
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """A type hint as a JSON Schema."""
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if hasattr(hint, "model_json_schema"):
        return dict(hint.model_json_schema())
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _schema(arguments[0], where)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(a, where) for a in arguments]}
    kind = origin or hint
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        values = _schema(arguments[1], where) if len(arguments) == 2 else {}
        return {"type": "object", "additionalProperties": values or True}
    if inspect.isclass(kind) and issubclass(kind, Sequence | set | frozenset):
        return {"type": "array", **({"items": _schema(arguments[0], where)} if arguments else {})}
    raise ConfigurationError(f"{where}: JSON has no type for {hint!r:.80}")


# A section's head: numpy's (with its underline) or Google's.
_SECTION = re.compile(r"^(\w[\w ]*?)(?:\n-{3,}|:)[ \t]*$", re.MULTILINE)


def _docstring(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """What stands before the first section, and what is said of each parameter."""
    heads = list(_SECTION.finditer(text))
    summary = text[: heads[0].start()] if heads else text
    described: dict[str, str] = {}
    for place, head in enumerate(heads):
        if head[1].lower() in ("parameters", "args", "arguments"):
            end = heads[place + 1].start() if place + 1 < len(heads) else len(text)
            described = _parameters(text[head.end() : end], names)
    return summary.strip(), described


def _parameters(section: str, names: Sequence[str]) -> dict[str, str]:
    """``name : type`` or ``name (type): text``, and the deeper lines below each."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in section.splitlines():
        head = re.match(r"\s*(\w+)\s*(?:\([^)]*\))?\s*(:|$)(.*)", line)
        if head and head[1] in names and head[1] not in found:
            # After "name :" numpy has the type, after "name:" Google has the text.
            said = "" if re.match(r"\s*\w+ :", line) else head[3]
            current = found[head[1]] = [said]
        else:
            current.append(line)
    return {name: " ".join(" ".join(lines).split()) for name, lines in found.items()}
