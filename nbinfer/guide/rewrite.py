"""Python that imports Oumi, or names an engine of ours, rewritten in place.

The syntax tree only says where things are; what is replaced are spans of the text, so that
comments, quotes and blank lines stay as they are.
"""

from __future__ import annotations

import ast
import re

from ..engines import registry
from . import oumi
from .rewrite_calls import rewrite_call
from .source import Finding, Names, Source, dotted_path, is_oumi, is_ours

__all__ = ["Finding", "rewrite"]

_MAGIC = re.compile(rb"^(\s*)[%!?]", re.M)


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
    names = Names(tree)
    _imports(found, tree, source, target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _dotted(found, node, names)
        elif isinstance(node, ast.Call):
            rewrite_call(found, node, names, source, target)
    _remote_import(found, names)
    return found


# --------------------------------------------------------------------------- imports


def _imports(found: Source, tree: ast.Module, source: str | None, target: str | None) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            _import_from(found, node, source, target)
        elif isinstance(node, ast.Import) and any(is_oumi(a.name) for a in node.names):
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
        if is_oumi(alias.name):
            begin, end = found.span(alias)
            # ``import nbinfer as x`` keeps the name by which the text knows it.
            found.replace(begin, end, "nbinfer" + (f" as {alias.asname}" if alias.asname else ""))


def _dotted(found: Source, node: ast.Attribute, names: Names) -> None:
    """``oumi.inference.VLLMInferenceEngine`` as ``nbinfer.VLLMInferenceEngine``."""
    before = dotted_path(node.value)
    if names.of_oumi and is_oumi(before):
        if node.attr in oumi.CLASSES:
            start, end = found.span(node.value)
            found.replace(start, end, "nbinfer")
        elif not is_oumi(f"{before}.{node.attr}"):
            found.tell(node, f"{before}.{node.attr} has no counterpart in nbinfer")


def _remote_import(found: Source, names: Names) -> None:
    """``RemoteParams`` where the new text uses it and no import brings it."""
    missing = names.added - set(names.ours)
    if not missing:
        return
    if names.last is None:
        found.replace(0, 0, "".join(f"from nbinfer import {name}\n" for name in sorted(missing)))
        return
    _, end = found.span(names.last.names[-1])
    found.replace(end, end, "".join(f", {name}" for name in sorted(missing)))
