"""A cell for another engine: its magic's options, or its Python."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from typing import TYPE_CHECKING, Any

from ..config import GenerationParams, parse_setting, parse_value
from ..engines import registry
from .correspondence import change
from .migrate import lost, migrate, option_word, shown_value
from .rewrite import Finding, rewrite

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["migrate_line", "rewritten_cell", "rewritten_magic", "show_rewritten"]

_MAGIC = re.compile(r"\s*%{1,2}(?:nbinfer\s+)?(infer|engine|compare)\b")
_INFER = re.compile(r"\s*%%(?:nbinfer\s+)?infer\b([^\n]*)")
_OF_A_CELL = ("model", "kwarg", "url", "remote", "set")  # options that both magics have
_SETTING = re.compile(r"""(?P<flag>-k|--kwarg|--set)(?P<gap>[ =])(?P<text>"[^"]*"|'[^']*'|\S+)""")


def rewritten_magic(text: str, source: str, target: str) -> tuple[str, list[str]]:
    """A cell, or a line, that begins with a magic of ours, rewritten for the target.

    Returns
    -------
    tuple of (str, list of str)
        The text, unchanged where it names another engine, and what a reader has to know.
    """
    line, newline, rest = text.partition("\n")
    if _MAGIC.match(line) is None:
        return text, []
    named = re.compile(
        rf"(?P<before>(?:-e|--engine)[ =]|[,\s])(?P<name>{re.escape(source)})(?=[\s,:=]|$)"
    )
    if named.search(line) is None:
        return text, []
    told: list[str] = []

    def setting(match: re.Match[str]) -> str:
        words = match.group("text").strip("\"'")
        prefix, colon, own = words.partition(":")
        if colon and prefix == source:
            words = own
        elif colon and prefix in registry.names(hidden=True):
            return match.group(0)
        name, sign, value = words.partition("=")
        if not sign:
            return match.group(0)
        place = "generation_params." if match.group("flag") == "--set" else "model_kwargs."
        outcome = change(place + name, parse_value(value), source, target)
        told.extend(lost([outcome]))
        parts = [_option(path, v, target, told) for path, v in outcome.becomes.items()]
        if outcome.becomes == {place + name: outcome.value} and words is not own:
            return match.group(0)
        return " ".join(filter(None, parts))

    line = _SETTING.sub(setting, line)
    line = named.sub(lambda m: m.group("before") + target, line)
    line = re.sub(r"  +", " ", line) if told else line
    return line.rstrip() + newline + rest if newline else line.rstrip(), told


def _option(path: str, value: Any, target: str, told: list[str]) -> str:
    place, dot, name = path.partition(".")
    if dot and place in ("model_kwargs", "generation_params"):
        flag = "-k" if place == "model_kwargs" else "--set"
        return f"{flag} {shlex.quote(f'{name}={option_word(value)}')}"
    if target == "llamacpp" and path == "model_max_length":
        return f"-k n_ctx={value}"
    told.append(f"{path}={shown_value(value)} has no option of a cell: make the engine in Python")
    return ""


def migrate_line(options: argparse.Namespace, cell: str | None = None) -> pd.DataFrame | None:
    """What ``%migrate`` and ``%%migrate`` do; the cell rewritten is printed.

    The table is of the line's parameters, and those that a ``%%infer`` cell has itself. Of a cell
    of Python there is none: what its parameters are is known when it runs.
    """
    from ..notebook.choosing import chosen

    if cell is not None:
        show_rewritten(cell, options.source, options.target)
        own = _own_options(cell, options.source)
        if own is None:
            return None
        both = {n: getattr(own, n) + getattr(options, n) for n in _OF_A_CELL}
        options = argparse.Namespace(**{**vars(options), **both})
    source = chosen(options.source, options)
    fields = dict(text.partition("=")[::2] for text in options.param)
    fields = {name: parse_value(value) for name, value in fields.items()}
    model = dataclasses.replace(source.model, **fields) if fields else source.model
    generation = GenerationParams(**dict(map(parse_setting, options.set)))
    return migrate(
        options.source,
        options.target,
        model,
        generation_params=generation,
        remote_params=source.remote,
    )


def _own_options(cell: str, source: str) -> argparse.Namespace | None:
    """The options of a ``%%infer`` cell of this engine; ``None`` of another cell."""
    from ..notebook.arguments import PARSERS

    match = _INFER.match(cell)
    options = PARSERS["infer"]().parse_line(match[1]) if match else None
    return options if options is not None and options.engine == source else None


def show_rewritten(cell: str, source: str | None, target: str | None) -> None:
    """Print a cell rewritten, and below it what a reader has to know."""
    text, findings = rewritten_cell(cell, source, target)
    print(text.rstrip("\n"))
    for one in findings:
        print(f"# line {one.line}: {one.what}")


def rewritten_cell(code: str, source: str | None, target: str | None) -> tuple[str, list[Finding]]:
    """A cell's code; one that is not Python is a magic's, or is left alone."""
    if code.lstrip().startswith("%%"):
        if source is None or target is None:
            return code, []
        after, lines = rewritten_magic(code, source, target)
        return after, [Finding(1, line) for line in lines]
    try:
        found = rewrite(code, source, target)
    except SyntaxError:
        return code, []
    text = found.result()
    findings = list(found.findings)
    if source is not None and target is not None and re.search(r"^%(?:infer|engine)\b", text, re.M):
        lines = []
        for line in text.splitlines(keepends=True):
            after, told = rewritten_magic(line, source, target)
            lines.append(after)
            findings += [Finding(len(lines), what) for what in told]
        text = "".join(lines)
    return text, findings
