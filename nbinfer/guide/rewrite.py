"""Python that imports Oumi, or names an engine of ours, rewritten in place.

The syntax tree only says where things are; what is replaced are spans of the text, so that
comments, quotes and blank lines stay as they are.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import GenerationParams, ModelParams, RemoteParams
from ..engines import registry
from . import oumi
from .correspondence import LOST, Change, change
from .migrate import URL

__all__ = ["FIELDS", "Finding", "Source", "rewrite"]

FIELDS = {
    cls.__name__: frozenset(cls.__dataclass_fields__)
    for cls in (ModelParams, GenerationParams, RemoteParams)
}
_MAGIC = re.compile(rb"^(\s*)[%!?]", re.M)


@dataclass(frozen=True)
class Finding:
    """Something that a reader has to know of a line."""

    line: int
    what: str


class Source:
    """A text in bytes, as the tree counts, with edits that are made at the end."""

    def __init__(self, text: str) -> None:
        self.data = text.encode("utf-8")
        self._starts = [0, *(m.end() for m in re.finditer(rb"\n", self.data))]
        self._edits: list[tuple[int, int, bytes]] = []
        self.findings: list[Finding] = []

    def at(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def span(self, node: Any) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def replace(self, start: int, end: int, text: str) -> None:
        for number, (s, e, before) in enumerate(self._edits):
            if s < start == end < e and not before:  # an insertion where an item was removed
                moved = text if self.data[e - 1 : e] != b"\n" else text.lstrip("\n") + "\n"
                self._edits[number] = (s, e, moved.encode("utf-8"))
                return
            if s < end and start < e:  # a place that was reached before: the first edit counts
                return
        self._edits.append((start, end, text.encode("utf-8")))

    def tell(self, node: Any, what: str) -> None:
        self.findings.append(Finding(node.lineno, what))

    def result(self) -> str:
        data = self.data
        for start, end, text in sorted(self._edits, key=lambda e: e[:2], reverse=True):
            data = data[:start] + text + data[end:]
        return data.decode("utf-8")

    def remove_item(self, start: int, end: int) -> None:
        """An argument or entry, with its comma, and its line where it stands alone there."""
        data = self.data
        while end < len(data) and data[end : end + 1] in b" \t":
            end += 1
        if data[end : end + 1] == b",":
            end += 1
            while data[end : end + 1] in (b" ", b"\t"):
                end += 1
        else:  # the last one: the comma before it goes
            for number, (s, e, text) in enumerate(self._edits):
                if e == start and not text:  # the one before is gone too: the two are one
                    start = s
                    del self._edits[number]
                    break
            before = len(data[:start].rstrip())
            if data[before - 1 : before] == b",":
                self.replace(before - 1, end, "")
                return
        line = data.rfind(b"\n", 0, start) + 1
        if not data[line:start].strip() and data[end : end + 1] == b"\n":
            start, end = line, end + 1
        self.replace(start, end, "")


def rewrite(text: str, source: str | None = None, target: str | None = None) -> Source:
    """Rewrite Python, which may be a notebook's cell.

    Parameters
    ----------
    text : str
        The code. Lines of IPython's (``%magic``, ``!command``) are left alone.
    source, target : str, optional
        Engines: where the first is made, the second is made instead.

    Raises
    ------
    SyntaxError
        For what is no Python.
    """
    found = Source(text)
    # A magic's line is a comment to the parser, of the same length.
    tree = ast.parse(_MAGIC.sub(rb"\1#", found.data))
    names = _Names(tree)
    _imports(found, tree, source, target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _dotted(found, node, names)
        elif isinstance(node, ast.Call):
            _call(found, node, names, source, target)
    _remote_import(found, names)
    return found


class _Names:
    """What the imports of a text stand for."""

    def __init__(self, tree: ast.Module) -> None:
        self.of_oumi = False
        self.ours: dict[str, str] = {}  # a name here: the class that it is
        self.added: set[str] = set()  # names that the new text uses
        self.last: ast.ImportFrom | None = None
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
                self.of_oumi |= node.module != "nbinfer"
                for alias in node.names:
                    if alias.name in oumi.CLASSES or node.module == "nbinfer":
                        self.ours[alias.asname or alias.name] = alias.name
                        self.last = node
            elif isinstance(node, ast.Import):
                self.of_oumi |= any(_is_oumi(alias.name) for alias in node.names)

    def of(self, function: ast.expr) -> str | None:
        """The class that a call makes, if it is one of ours."""
        if isinstance(function, ast.Name):
            return self.ours.get(function.id)
        if isinstance(function, ast.Attribute) and function.attr in oumi.CLASSES:
            return function.attr if _is_ours(_path(function.value)) else None
        return None


def _is_oumi(module: str) -> bool:
    return any(module == known or module.startswith(known + ".") for known in oumi.MODULES)


def _is_ours(module: str) -> bool:
    return module == "nbinfer" or _is_oumi(module)


def _path(node: ast.expr) -> str:
    """``a.b.c`` of an attribute; ``""`` for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


# --------------------------------------------------------------------------- imports


def _imports(found: Source, tree: ast.Module, source: str | None, target: str | None) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            _import_from(found, node, source, target)
        elif isinstance(node, ast.Import) and any(_is_oumi(a.name) for a in node.names):
            _import(found, node)


def _import_from(
    found: Source, node: ast.ImportFrom, source: str | None, target: str | None
) -> None:
    """The module's name alone is replaced where all names are ours; else they are parted."""
    module = node.module or ""
    strange = [a for a in node.names if module != "nbinfer" and a.name not in oumi.CLASSES]
    for alias in strange:
        found.tell(node, f"{module}.{alias.name} has no counterpart in nbinfer")
    start, end = found.span(node)
    if strange and len(strange) < len(node.names):
        indent = " " * node.col_offset
        own = ", ".join(_spelled(a, source, target) for a in node.names if a not in strange)
        rest = ", ".join(map(ast.unparse, strange))
        line = f"from nbinfer import {own}\n{indent}from {module} import {rest}"
        found.replace(start, end, line)
        return
    if strange:
        return
    if module != "nbinfer":
        text = found.data[start:end]
        place = text.index(module.encode(), len(b"from"))
        found.replace(start + place, start + place + len(module), "nbinfer")
    for alias in node.names:
        spelled = _renamed(alias.name, source, target)
        if spelled != alias.name:
            begin, _ = found.span(alias)
            found.replace(begin, begin + len(alias.name), spelled)


def _spelled(alias: ast.alias, source: str | None, target: str | None) -> str:
    name = _renamed(alias.name, source, target)
    return f"{name} as {alias.asname}" if alias.asname else name


def _renamed(name: str, source: str | None, target: str | None) -> str:
    """An engine's class, where it is the one to be replaced."""
    if source is None or target is None or name != registry.engine_class(source).__name__:
        return name
    return registry.engine_class(target).__name__


def _import(found: Source, node: ast.Import) -> None:
    for alias in node.names:
        if _is_oumi(alias.name):
            begin, end = found.span(alias)
            # ``import nbinfer as x`` keeps the name by which the text knows it.
            found.replace(begin, end, "nbinfer" + (f" as {alias.asname}" if alias.asname else ""))


def _dotted(found: Source, node: ast.Attribute, names: _Names) -> None:
    """``oumi.inference.VLLMInferenceEngine`` as ``nbinfer.VLLMInferenceEngine``."""
    before = _path(node.value)
    if names.of_oumi and _is_oumi(before):
        if node.attr in oumi.CLASSES:
            start, end = found.span(node.value)
            found.replace(start, end, "nbinfer")
        elif not _is_oumi(f"{before}.{node.attr}"):
            found.tell(node, f"{before}.{node.attr} has no counterpart in nbinfer")


def _remote_import(found: Source, names: _Names) -> None:
    """``RemoteParams`` where the new text uses it and no import brings it."""
    missing = names.added - set(names.ours)
    if not missing:
        return
    if names.last is None:
        found.replace(0, 0, "".join(f"from nbinfer import {name}\n" for name in sorted(missing)))
        return
    _, end = found.span(names.last.names[-1])
    found.replace(end, end, "".join(f", {name}" for name in sorted(missing)))


# ----------------------------------------------------------------------------- calls


def _call(
    found: Source, node: ast.Call, names: _Names, source: str | None, target: str | None
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


def _where(found: Source, node: ast.Call, names: _Names, target: str) -> None:
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
