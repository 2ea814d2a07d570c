"""A text of Python that is edited where its syntax tree says, and what its imports stand for."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

from . import oumi

__all__ = ["Finding", "Names", "Source", "dotted_path", "is_oumi", "is_ours"]


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


class Names:
    """What the imports of a text stand for."""

    def __init__(self, tree: ast.Module) -> None:
        self.of_oumi = False
        self.ours: dict[str, str] = {}  # a name here: the class that it is
        self.added: set[str] = set()  # names that the new text uses
        self.last: ast.ImportFrom | None = None
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
                self.of_oumi |= node.module != "nbinfer"
                for alias in node.names:
                    if alias.name in oumi.CLASSES or node.module == "nbinfer":
                        self.ours[alias.asname or alias.name] = alias.name
                        self.last = node
            elif isinstance(node, ast.Import):
                self.of_oumi |= any(is_oumi(alias.name) for alias in node.names)

    def of(self, function: ast.expr) -> str | None:
        """The class that a call makes, if it is one of ours."""
        if isinstance(function, ast.Name):
            return self.ours.get(function.id)
        if isinstance(function, ast.Attribute) and function.attr in oumi.CLASSES:
            return function.attr if is_ours(dotted_path(function.value)) else None
        return None


def is_oumi(module: str) -> bool:
    return any(module == known or module.startswith(known + ".") for known in oumi.MODULES)


def is_ours(module: str) -> bool:
    return module == "nbinfer" or is_oumi(module)


def dotted_path(node: ast.expr) -> str:
    """``a.b.c`` of an attribute; ``""`` for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted_path(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
