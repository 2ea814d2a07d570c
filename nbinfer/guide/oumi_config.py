"""An inference configuration of Oumi, in YAML, as Python that makes the same engine here."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from ..engines import registry
from ..errors import ConfigurationError
from . import oumi
from .rewrite_calls import FIELDS
from .source import Finding

__all__ = ["to_python"]

_SECTIONS = {
    "model": "ModelParams",
    "generation": "GenerationParams",
    "remote_params": "RemoteParams",
}
_NOT_OURS = {
    "input_path": "engine.infer(...) takes prompts or a DataFrame",
    "output_path": "engine.infer(..., output_path='answers.db') keeps rows in a file",
}


def to_python(path: Path, text: str, target: str | None = None) -> tuple[str, list[Finding]]:
    """Python for a configuration; ``""`` for YAML that is none.

    Comments are kept, each before or beside what it was about. Values are those that YAML 1.1
    means, as Oumi reads them.

    Parameters
    ----------
    path : Path
        For messages.
    text : str
        The configuration.
    target : str, optional
        The engine to make, in place of the configuration's own.

    Raises
    ------
    ConfigurationError
        For what is no YAML, or a configuration for an engine that nbinfer does not have.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        told = str(getattr(error, "problem", error))
        raise ConfigurationError(f"{str(path)!r} is no YAML: {told}") from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        return "", []
    if not {"engine", "generation"} & set(value) or "data" in value or "training" in value:
        return "", []  # a model, but of a training or an evaluation
    return _Writer(path, text, root, value, target).write()


class _Writer:
    """Goes through the YAML's nodes in their order, with the comments between them."""

    def __init__(self, path: Path, text: str, root: Any, value: Any, target: str | None) -> None:
        self._lines = text.splitlines()
        self._root, self._value = root, value
        self._told = 0  # lines whose comments are written
        self._findings: list[Finding] = []
        given = str(value.get("engine") or "NATIVE").upper()
        self._engine = target or oumi.ENGINES.get(given, "")
        if not self._engine:
            known = ", ".join(oumi.ENGINES)
            raise ConfigurationError(
                f"{str(path)!r} is for Oumi's engine {given}, which nbinfer does not have",
                hint=f"It has: {known}. --from NAME --to NAME makes another one.",
            )
        own = oumi.ENGINES.get(given)
        if target is not None and own != target:
            self._findings.append(
                Finding(1, f"{given} becomes {target}: %migrate says what changes with it")
            )

    def write(self) -> tuple[str, list[Finding]]:
        made = registry.engine_class(self._engine).__name__
        server = "server" in registry.spec(self._engine).capabilities.features
        names, bodies, loose = {made}, {}, []
        head = self._head()
        for key, node in self._root.value:
            name = key.value
            wanted = _SECTIONS.get(name)
            line = key.start_mark.line + 1
            if name == "remote_params" and not server and node.value:
                self._findings.append(
                    Finding(line, f"remote_params is lost: {self._engine} has none")
                )
                wanted = None
            if wanted is None or not isinstance(self._value[name], dict):
                loose += self._loose(name, key, node)
                continue
            before = self._comments(key.start_mark.line)
            body = self._section(wanted, node)
            names.add(wanted)
            bodies[name] = (before, body)
        rest = self._comments(len(self._lines))
        lines = [*head, f"from nbinfer import {', '.join(sorted(names))}", "", f"engine = {made}("]
        titles = {
            "model": "",
            "generation": "generation_params=",
            "remote_params": "remote_params=",
        }
        for name, title in titles.items():
            if name in bodies:
                before, body = bodies[name]
                lines += [f"    {c}" for c in before]
                lines += [f"    {title}{_SECTIONS[name]}(", *body, "    ),"]
        code = "\n".join([*lines, ")", *loose, *rest, ""])
        ast.parse(code)
        return code, self._findings

    def _head(self) -> list[str]:
        """The comments and blank lines that the file begins with."""
        first = self._root.value[0][0].start_mark.line
        found = [line.strip() for line in self._lines[:first]]
        self._told = first
        return [line if line.startswith("#") else "" for line in found]

    def _comments(self, until: int) -> list[str]:
        """Whole lines of comments before a line, that were not written yet."""
        found = [line.strip() for line in self._lines[self._told : until]]
        self._told = max(self._told, until)
        return [line for line in found if line.startswith("#")]

    def _beside(self, node: Any) -> str:
        """The comment behind a value, on its line."""
        line = self._lines[node.end_mark.line] if node.end_mark.line < len(self._lines) else ""
        found = re.match(r"\s+(#.*)$", line[node.end_mark.column :])
        return f"  {found.group(1)}" if found and node.end_mark.column else ""

    def _section(self, made: str, node: Any) -> list[str]:
        lines = []
        for key, value in node.value:
            lines += [f"        {c}" for c in self._comments(key.start_mark.line)]
            if not hasattr(value.value, "encode"):  # a mapping or a list: it has comments inside
                inside = self._lines[key.start_mark.line : value.end_mark.line]
                found = [re.search(r"(?:^|\s)(#.*)$", line) for line in inside]
                lines += [f"        {match.group(1)}" for match in found if match]
                self._told = max(self._told, value.end_mark.line)
            else:
                self._told = max(self._told, value.end_mark.line + 1)
            lines += self._field(made, key, value)
        return lines

    def _field(self, made: str, key: Any, node: Any) -> list[str]:
        import yaml

        name, beside = key.value, self._beside(node)
        value = yaml.SafeLoader("").construct_document(node)
        line = key.start_mark.line + 1
        spelled = oumi.FIELDS.get(made, {}).get(name, name)
        if spelled in FIELDS[made] and value is not None:
            return [f"        {spelled}={_literal(value)},{beside}"]
        if spelled in FIELDS[made]:
            return [f"        # {name}: null{beside}"]
        why = oumi.LOST.get(made, {}).get(name, "nbinfer has no such field")
        self._findings.append(Finding(line, f"{name}: {value!r:.80} is lost: {why}"))
        return [f"        # {name}: {value!r:.200} ({why}){beside}"]

    def _loose(self, name: str, key: Any, node: Any) -> list[str]:
        """What is no section: the engine's name, paths, and whatever nbinfer does not have."""
        line = key.start_mark.line
        before = self._comments(line)
        last = max(node.end_mark.line, line + (node.end_mark.line == line))
        text = [s.rstrip() for s in self._lines[line:last]]
        self._told = max(self._told, last)
        if name == "engine":
            return [*before, *([self._beside(node).strip()] if self._beside(node) else [])]
        if name != "remote_params":
            why = _NOT_OURS.get(name, "nbinfer has no such setting")
            self._findings.append(Finding(line + 1, f"{name} is lost: {why}"))
        return [*before, *(f"# {s}" for s in text if s)]


def _literal(value: Any) -> str:
    """As Python writes it, with double quotes."""
    text = repr(value)
    return text.replace("'", '"') if '"' not in text and "\\" not in text else text
