"""Calls that make our parameters and engines, as the other library or engine takes them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from ..config import GenerationParams, ModelParams, RemoteParams
from ..engines import registry
from . import oumi
from .correspondence import change
from .migrate import URL
from .rules import LOST, Change
from .source import Names, Source

__all__ = ["FIELDS", "rewrite_call"]

FIELDS = {
    cls.__name__: frozenset(cls.__dataclass_fields__)
    for cls in (ModelParams, GenerationParams, RemoteParams)
}


def rewrite_call(
    found: Source, node: ast.Call, names: Names, source: str | None, target: str | None
) -> None:
    made = names.of(node.func)
    if made in FIELDS and names.of_oumi:
        _oumi_fields(found, node, made)
    if names.of_oumi and isinstance(node.func, ast.Attribute) and node.func.attr == "infer":
        _infer(found, node)
    if source is None or target is None or made != registry.engine_class(source).__name__:
        return
    _rename(found, node.func, made, registry.engine_class(target).__name__)
    for argument in [*node.args, *(k.value for k in node.keywords)]:
        if isinstance(argument, ast.Call) and names.of(argument.func) in FIELDS:
            _switch(found, argument, str(names.of(argument.func)), source, target)
        elif isinstance(argument, ast.Name):
            found.tell(argument, f"{argument.id} is made elsewhere: check it with %migrate")
    _where(found, node, names, target)


def _rename(found: Source, function: ast.expr, old: str, new: str) -> None:
    start, end = found.span(function)
    if found.data[start:end].endswith(old.encode()):  # not one that is imported under another name
        found.replace(end - len(old), end, new)


def _where(found: Source, node: ast.Call, names: Names, target: str) -> None:
    """A server has an address, and an engine of this machine has none."""
    given = [k for k in node.keywords if k.arg == "remote_params"]
    server = "server" in registry.spec(target).capabilities.features
    if given and not server:
        start, end = _keyword_span(found, given[0])
        found.remove_item(start, end)
        found.tell(given[0].value, f"remote_params is lost: {target} runs on this machine")
    if server and not given and target not in ("openai", "anthropic"):
        names.added.add("RemoteParams")
        found.tell(node, f"the address {URL} is an example: put the server's own")
        _append(found, node, [f'remote_params=RemoteParams(api_url="{URL}")'])


def _append(found: Source, node: ast.Call, texts: Sequence[str]) -> None:
    """Arguments after the last one, on lines of their own where that has one."""
    _, end = found.span(node)
    close = end - 1
    arguments = [*node.args, *(k.value for k in node.keywords)]
    if not arguments:
        found.replace(close, close, ", ".join(texts))
        return
    last = max(arguments, key=lambda a: (a.end_lineno or 0, a.end_col_offset or 0))
    _, place = found.span(last)
    rest = found.data[place:close]
    comma = rest.lstrip().startswith(b",")
    if b"\n" in rest:
        indent = " " * _indent(found, last)
        after = place + rest.index(b",") + 1 if comma else place
        lines = "".join(f"\n{indent}{text}," for text in texts)
        found.replace(after, after, ("" if comma else ",") + lines)
    else:
        found.replace(close, close, f"{'' if comma else ','} {', '.join(texts)}")


def _indent(found: Source, node: ast.expr) -> int:
    line = found.data[found.at(node.lineno, 0) :]
    return len(line) - len(line.lstrip(b" "))


def _keyword_span(found: Source, keyword: ast.keyword) -> tuple[int, int]:
    return found.span(keyword)


def _oumi_fields(found: Source, node: ast.Call, made: str) -> None:
    for keyword in node.keywords:
        name = keyword.arg
        if name is None or name in FIELDS[made]:
            continue
        start, end = found.span(keyword)
        renamed = oumi.FIELDS.get(made, {}).get(name)
        if renamed is not None:
            found.replace(start, start + len(name), renamed)
            continue
        why = oumi.LOST.get(made, {}).get(name, "nbinfer has no such field")
        found.tell(keyword.value, f"{made}.{name}={ast.unparse(keyword.value)} is lost: {why}")
        found.remove_item(start, end)


def _infer(found: Source, node: ast.Call) -> None:
    """``infer(input=...)`` as ``infer(prompts=...)``; what comes back is another thing."""
    found.tell(
        node, "infer() gives a DataFrame; nbinfer.conversations(df) makes conversations of it"
    )
    for keyword in node.keywords:
        if keyword.arg == "input":
            start, _ = found.span(keyword)
            found.replace(start, start + len("input"), "prompts")
        elif keyword.arg == "inference_config":
            found.tell(keyword.value, "inference_config is lost: pass its GenerationParams")


def _switch(found: Source, node: ast.Call, made: str, source: str, target: str) -> None:
    """The fields of one parameter class, as the target takes them."""
    place = {"GenerationParams": "generation_params.", "RemoteParams": "remote_params."}
    moved: list[Change] = []
    kwargs: ast.Dict | None = None
    for keyword in node.keywords:
        if keyword.arg == "model_kwargs" and isinstance(keyword.value, ast.Dict):
            kwargs = keyword.value
            moved += _entries(found, kwargs, source, target)
        elif keyword.arg is not None:
            outcome = _judged(
                found, keyword.value, place.get(made, "") + keyword.arg, source, target
            )
            if outcome is not None and not _renamed_in_place(
                found, keyword, place.get(made, ""), outcome
            ):
                found.remove_item(*found.span(keyword))
                moved.append(outcome)
    _add(found, node, kwargs, moved)


def _entries(found: Source, kwargs: ast.Dict, source: str, target: str) -> list[Change]:
    moved: list[Change] = []
    for key, value in zip(kwargs.keys, kwargs.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            continue
        outcome = _judged(found, value, f"model_kwargs.{key.value}", source, target)
        if outcome is None:
            continue
        ((path, new),) = list(outcome.becomes.items())[:1] or [("", None)]
        if len(outcome.becomes) == 1 and path.startswith("model_kwargs.") and new == outcome.value:
            start, end = found.span(key)
            quote = found.data[start : start + 1].decode()
            found.replace(start, end, f"{quote}{path.partition('.')[2]}{quote}")
        else:
            found.remove_item(found.span(key)[0], found.span(value)[1])
            moved.append(outcome)
    return moved


def _judged(found: Source, value: ast.expr, path: str, source: str, target: str) -> Change | None:
    """What becomes of a field; ``None`` where it stays as it is written."""
    try:
        literal = ast.literal_eval(value)
    except ValueError:
        literal = Ellipsis  # a name or a call: what it is cannot be known here
    outcome = change(path, literal, source, target)
    if outcome.status in ("approximated", LOST):
        found.tell(value, f"{path}={ast.unparse(value)} is {outcome.status}: {outcome.why}")
    if outcome.becomes == {path: literal}:
        return None
    if path == "model_name":
        return None  # told; which file it is only the reader can say
    return outcome


def _renamed_in_place(found: Source, keyword: ast.keyword, place: str, outcome: Change) -> bool:
    if len(outcome.becomes) != 1:
        return False
    ((path, value),) = outcome.becomes.items()
    if "." in path.removeprefix(place) or value != outcome.value:
        return False
    start, _ = found.span(keyword)
    found.replace(start, start + len(keyword.arg or ""), path.removeprefix(place))
    return True


def _add(found: Source, node: ast.Call, kwargs: ast.Dict | None, moved: Sequence[Change]) -> None:
    """What was moved goes to the end of where it belongs."""
    fields: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for outcome in moved:
        for path, value in outcome.becomes.items():
            place, dot, name = path.partition(".")
            if value is Ellipsis:
                continue
            (entries if dot and place == "model_kwargs" else fields)[name or place] = value
    if entries and kwargs is not None:
        _, end = found.span(kwargs)
        text = ", ".join(f'"{name}": {_written(value)}' for name, value in entries.items())
        inner = found.data[found.span(kwargs)[0] + 1 : end - 1].rstrip()
        comma = "" if not inner or inner.endswith(b",") else ", "
        found.replace(end - 1, end - 1, f"{comma}{text}")
    elif entries:
        fields["model_kwargs"] = entries
    if fields:
        _append(found, node, [f"{name}={_written(value)}" for name, value in fields.items()])


def _written(value: Any) -> str:
    """As most people's formatter writes it."""
    text = repr(value)
    return text.replace("'", '"') if '"' not in text and "\\" not in text else text
