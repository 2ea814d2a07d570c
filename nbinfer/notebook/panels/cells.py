"""What was done in the panel, as a cell that does the same.

A cell is written, then read as IPython and our own parser read it. Where it would not give the
same engine, model, parameters and prompts (a conversation of several turns, a field that no
option sets, a system message of two lines), the same is written as Python.
"""

from __future__ import annotations

import ast
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from ...config import GenerationParams, ModelParams, RemoteParams, parse_value
from ...engines import registry
from ...errors import ConfigurationError
from ...messages import Conversation, ImagePart, Message, TextPart
from ...selection import Selection
from ..arguments import PARSERS
from .pictures import Picture

__all__ = ["Asked", "benchmark_cell", "compare_cell", "infer_cell", "model_words", "separated"]

SEPARATOR = "---"
# The options that %%infer has of their own; what else there is goes by --set.
_OPTIONS = {
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "seed": "--seed",
    "n": "-n",
}


@dataclass(frozen=True)
class Asked:
    """What is asked of one or several engines.

    Attributes
    ----------
    turns : tuple of tuple
        Of the conversation before the prompt: role, text, and pictures.
    pictures : tuple of Picture
        The prompt's.
    """

    selections: tuple[Selection, ...]
    prompts: tuple[str, ...]
    params: GenerationParams = field(default_factory=GenerationParams)
    system: str | None = None
    turns: tuple[tuple[Any, ...], ...] = ()
    pictures: tuple[Picture, ...] = ()


def separated(text: str) -> tuple[str, ...]:
    """The prompts of a text, as ``%%infer`` separates them."""
    from ..commands import _split

    return tuple(_split(text, SEPARATOR))


# ------------------------------------------------------------------------------ cells


def infer_cell(asked: Asked) -> str:
    """The ``%%infer`` cell that asks the same, or Python where there is none."""
    (selection,) = asked.selections
    words = ["%%infer", "-e", selection.engine, *model_words(selection), *_asked_words(asked)]
    cell = _with_body(words, asked.prompts)
    if not asked.turns and _reads(cell) == ("infer", *_meaning(asked)):
        return cell
    return _python(asked)


def compare_cell(asked: Asked) -> str:
    """The ``%%compare`` cell that asks the same, or Python where there is none."""
    names = [selection.engine for selection in asked.selections]
    words = ["%%compare", "-e", ",".join(names)]
    for selection in asked.selections:
        words += model_words(selection, only=True)
    cell = _with_body([*words, *_asked_words(asked)], asked.prompts)
    if _reads(cell) == ("compare", *_meaning(asked)):
        return cell
    return _python(asked)


def benchmark_cell(selections: Sequence[Selection], fields: dict[str, str]) -> str:
    """The ``%benchmark`` line with these options, or Python where there is none."""
    words = ["%benchmark", "-e", ",".join(selection.engine for selection in selections)]
    for selection in selections:
        words += model_words(selection, only=True)
    for name, value in fields.items():
        words += [f"--{name.replace('_', '-')}", shlex.quote(value)]
    line = " ".join(words)
    if _selections("benchmark", line.partition(" ")[2]) == [_plain(s) for s in selections]:
        return line
    engines = ", ".join(map(_engine, selections))
    given = "".join(f", {name}={_value(value)}" for name, value in fields.items())
    return f"import nbinfer\n\nnbinfer.benchmark([{engines}]{given})"


def model_words(selection: Selection, *, only: bool = False) -> list[str]:
    """The options that name a model, how it is loaded, and where; ``only`` for that engine."""
    own, of = (f"{selection.engine}=", f"{selection.engine}:") if only else ("", "")
    words = ["-m", shlex.quote(own + selection.model.model_name)]
    for name, value in selection.model.to_dict()["model_kwargs"].items():
        words += ["-k", shlex.quote(f"{of}{name}={_literal(value)}")]
    if selection.remote is None:
        return words
    changed = selection.remote.to_dict(changed_only=True)
    urls = changed.pop("api_url", None)
    for url in [urls] if isinstance(urls, str) else urls or ():
        words += ["--url", shlex.quote(own + url)]
    changed.pop("api_key", None)  # no cell holds a key
    for name, value in changed.items():
        words += ["-r", shlex.quote(f"{of}{name}={_literal(value)}")]
    return words


def _asked_words(asked: Asked) -> list[str]:
    words = [shlex.quote(f"--image={picture.name}") for picture in asked.pictures]
    if asked.system is not None:  # after "=": it may begin with a dash
        words.append(shlex.quote(f"--system={asked.system}"))
    for name, value in asked.params.to_dict(changed_only=True).items():
        if name == "raw":
            words.append("--raw")
        elif name in _OPTIONS:
            words += [_OPTIONS[name], str(value)]
        else:
            words += ["--set", shlex.quote(f"{name}={_literal(value)}")]
    return words


def _literal(value: Any) -> str:
    """A value as ``parse_value`` reads it back; plain text where that is the same."""
    if isinstance(value, str):
        plain = value == value.strip() and parse_value(value) == value
        return value if plain else repr(value)
    # Of a list or a mapping JSON, whose quotes a shell's quotes leave alone, where it is the same.
    text = json.dumps(value) if isinstance(value, list | dict) else repr(value)
    return text if parse_value(text) == value else repr(value)


def _with_body(words: Sequence[str], prompts: Sequence[str]) -> str:
    separator = SEPARATOR
    lines = {line.strip() for prompt in prompts for line in prompt.splitlines()}
    while separator in lines:
        separator += "-"
    if separator != SEPARATOR:
        words = [*words, f"--sep={separator}"]
    return f"{' '.join(words)}\n" + f"\n{separator}\n".join(prompts)


# ---------------------------------------------------------------------------- reading


def _meaning(asked: Asked) -> tuple[Any, ...]:
    prompts: list[Any] = [*asked.prompts]
    if asked.pictures:
        images = [ImagePart(picture.name) for picture in asked.pictures]
        prompts = [Conversation([Message("user", [*images, TextPart(t)])]) for t in prompts]
    return [_plain(s) for s in asked.selections], asked.params, asked.system, prompts


def _plain(selection: Selection) -> tuple[str, ModelParams, RemoteParams]:
    return selection.engine, selection.model, selection.remote or RemoteParams()


def _reads(cell: str) -> tuple[Any, ...] | None:
    """What IPython and our parser make of a cell: magic, engines, parameters, system, prompts."""
    from ..commands import Commands

    try:
        tree = ast.parse(TransformerManager().transform_cell(cell))
        (statement,) = tree.body
        assert isinstance(statement, ast.Expr)
        assert isinstance(statement.value, ast.Call)
        name, line, body = map(ast.literal_eval, statement.value.args)
        commands = Commands(SimpleNamespace(user_ns={}))
        options = PARSERS[name]().parse_line(line)
        prompts, extra = commands._asked(options, body)
        params = commands._generation(options)
        return name, _selections(name, line), params, extra["system"], prompts
    except (ConfigurationError, ValueError, SyntaxError, AssertionError):
        return None


def _selections(name: str, line: str) -> list[tuple[str, ModelParams, RemoteParams]] | None:
    """The engines that a magic's line means."""
    from ..choosing import chosen

    try:
        options = PARSERS[name]().parse_line(line)
        return [_plain(chosen(engine, options)) for engine in options.engine.split(",")]
    except ConfigurationError:
        return None


# ----------------------------------------------------------------------------- Python


def _python(asked: Asked) -> str:
    """The same as Python."""
    lines = ["import nbinfer", ""]
    if asked.turns or asked.pictures:
        (prompt,) = asked.prompts
        said = [*asked.turns, ("user", prompt, *asked.pictures)]
        lines += ["messages = ["]
        lines += [
            f"    {{'role': {role!r}, 'content': {_content(text, more)}}},"
            for role, text, *more in said
        ]
        lines += ["]"]
        prompts = "[messages]"
    else:
        prompts = repr([*asked.prompts])
    changed = asked.params.to_dict(changed_only=True)
    params = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    more = f", system={asked.system!r}" if asked.system is not None else ""
    lines.append(f"params = nbinfer.GenerationParams({params})")
    engines = [_engine(selection) for selection in asked.selections]
    if len(engines) == 1:
        lines.append(f"{engines[0]}.infer({prompts}, params{more})")
    else:
        lines += ["engines = [", *(f"    {engine}," for engine in engines), "]"]
        lines.append(f"nbinfer.compare(engines, {prompts}, params{more})")
    return "\n".join(lines)


def _content(text: str, pictures: Sequence[Picture]) -> str:
    """A message's content as Python; an image that came from a browser is named as a file."""
    if not pictures:
        return repr(text)
    parts = [f"nbinfer.ImagePart({picture.name!r})" for picture in pictures]
    return f"[{', '.join([*parts, f'nbinfer.TextPart({text!r})'])}]"


def _engine(selection: Selection) -> str:
    """An engine as Python makes it; of a key it says ``***``."""
    model = selection.model.to_dict(changed_only=True)
    name = model.pop("model_name", selection.model.model_name)
    more = "".join(f", {key}={value!r}" for key, value in model.items())
    remote = ""
    if selection.remote is not None:
        fields = selection.remote.to_dict(changed_only=True)
        given = ", ".join(f"{key}={value!r}" for key, value in fields.items())
        remote = f", remote_params=nbinfer.RemoteParams({given})"
    class_name = registry.spec(selection.engine).path.partition(":")[2]
    return f"nbinfer.{class_name}(nbinfer.ModelParams({name!r}{more}){remote})"


def _value(text: str) -> str:
    """A field of the benchmark's as Python: numbers, lists of them, or text."""
    words = [parse_value(word) for word in text.split(",")]
    if all(isinstance(word, int | float) for word in words):
        return repr(words if len(words) > 1 else words[0])
    return repr(text)
