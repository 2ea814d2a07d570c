"""Tab completion inside nbinfer's magics: options, engines, models, variables, fields."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import ACTIONS, PARSERS
from .parser import Parser

# What is completed is imported with the first Tab: %load_ext nbinfer must cost next to nothing.
if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["candidates", "install", "model_names", "model_paths", "uninstall"]

_MOST_PATHS = 500
LISTS = ("-e", "--engine", "-f", "--feature", "-p", "--precision")  # words with commas between
ROWS = (".db", ".sqlite", ".sqlite3")  # what people call files that runs are resumed from
_NAMES = "|".join(sorted(PARSERS, reverse=True))  # engine_exec before engine
_LINE = re.compile(rf"^\s*(%{{1,2}})(nbinfer\s+)?({_NAMES})\s(.*)$", re.DOTALL)
_FULL = re.compile(r"^\s*%{1,2}nbinfer\s+(\w*)$")


def candidates(text: str, namespace: dict[str, Any]) -> list[str] | None:
    """What may follow ``text``, the cell's first line up to the cursor.

    Returns ``None`` where it is not one of our magics, or a place where anything may stand.
    """
    full = _FULL.match(text)
    if full is not None:
        return [name for name in PARSERS if name.startswith(full.group(1))]
    match = _LINE.match(text)
    if match is None or "\n" in text:
        return None
    command, rest = match.group(3), match.group(4)
    words = rest.split()
    word = "" if not rest or rest[-1].isspace() else words.pop()
    parser = PARSERS[command]()
    previous = words[-1] if words else ""
    if parser.takes_value(previous):
        found = _taken(command, previous, word, namespace)
    elif word.startswith("-"):
        found = _options(parser)
    elif command == "engine":
        from ..engines import registry

        plain = [w for w in words if not w.startswith("-")]
        found = list(ACTIONS) if not plain else registry.names() if len(plain) == 1 else []
        if len(plain) == 1 and plain[0] in ("install", "uninstall"):
            from ..recipes import RECIPES

            found = list(RECIPES)
        elif len(plain) == 1 and plain[0] in ("serve", "stop"):
            found = ["vllm", "sglang", "llamacpp"]
    elif command == "engine_exec":
        from ..engines import registry

        found = list(registry.supporting("exec", of="features")) if not words else []
    elif command == "migrate":
        from ..engines import registry
        from ..guide.convert import SUFFIXES

        plain = [w for w in words if not w.startswith("-")]
        found = [n for n in registry.names() if n not in plain] if len(plain) < 2 else []
        found += _paths(word, *SUFFIXES)
    elif command == "memory":
        found = model_names(word, known=True)
    else:
        return None
    return [c for c in found if c.startswith(word)]


def _taken(command: str, option: str, word: str, namespace: dict[str, Any]) -> list[str]:
    """What an option's value may be."""
    if option in ("-m", "--model"):
        return model_names(word, known=command == "recommend")
    if option in ("--against", "--save"):
        return _paths(word, ".json")
    if option in ("-k", "--kwarg"):
        return _kwargs(word)
    if option == "--resume":
        return _paths(word, *ROWS)
    values = _guide_values(command, option) or _values(option, namespace)
    if option in LISTS and "," in word:  # %%compare -e llamacpp,nat
        before = word.rpartition(",")[0]
        taken = before.split(",")
        return [f"{before},{n}" for n in values if n not in taken]
    return values


def _guide_values(command: str, option: str) -> list[str]:
    """What an option of the guide's magics takes that is none of the others'."""
    if command not in ("features", "memory", "recommend", "benchmark", "migrate"):
        return []
    from ..config import ModelParams
    from ..engines import registry
    from ..guide import asking, features, kvcache, metrics

    every = list(dict.fromkeys(p for able in asking.ENGINES.values() for p in able))
    values: dict[tuple[str, str], list[str]] = {
        ("memory", "--engine"): list(asking.ENGINES),
        ("memory", "--precision"): every,
        ("memory", "--kv-dtype"): list(kvcache.KV_DTYPES),
        ("features", "--feature"): list(features.FEATURES),
        ("recommend", "--feature"): list(features.FEATURES),
        ("benchmark", "--slo"): [f"{name}=" for name in metrics.SLO],
        ("migrate", "--from"): registry.names(),
        ("migrate", "--to"): registry.names(),
        ("migrate", "--param"): [f"{name}=" for name in ModelParams.__dataclass_fields__],
    }
    action = PARSERS[command]()._option_string_actions[option]
    return values.get((command, action.option_strings[-1]), [])


def _kwargs(word: str) -> list[str]:
    """Names of model_kwargs: of the engine before the colon, or of all."""
    from ..engines import registry

    prefix, colon, _ = word.partition(":")
    if colon and prefix in registry.names():
        return [f"{prefix}:{name}=" for name in registry.engine_class(prefix).model_options]
    every = [n for e in registry.names() for n in registry.engine_class(e).model_options]
    return [f"{name}=" for name in dict.fromkeys(every)]


def _options(parser: Parser) -> list[str]:
    return sorted(parser._option_string_actions, key=lambda o: o.replace("--", ""))


def _values(option: str, namespace: dict[str, Any]) -> list[str]:
    from ..config import GenerationParams, RemoteParams
    from ..engines import registry

    if option in ("-e", "--engine"):
        return registry.names()
    if option == "--data":
        pandas = sys.modules.get("pandas")
        frame = getattr(pandas, "DataFrame", ())
        return sorted(
            n for n, v in namespace.items() if isinstance(v, frame) and not n.startswith("_")
        )
    if option == "--schema":
        return sorted(
            n
            for n, v in namespace.items()
            if not n.startswith("_") and (isinstance(v, dict) or hasattr(v, "model_json_schema"))
        )
    if option == "--tools":
        return sorted(n for n, v in namespace.items() if not n.startswith("_") and _is_tools(v))
    if option in ("-r", "--remote"):
        left_out = ("api_key", "api_url")  # one must not be written here, the other is --url
        return [f"{name}=" for name in RemoteParams.__dataclass_fields__ if name not in left_out]
    if option == "--set":
        return [f"{name}=" for name in GenerationParams.__dataclass_fields__]
    return []


def _is_tools(value: Any) -> bool:
    """Whether a variable may be a list of tools."""
    return isinstance(value, list) and any(
        callable(tool) or (isinstance(tool, dict) and "function" in tool) for tool in value
    )


def model_names(word: str, *, known: bool = False) -> list[str]:
    """What ``-m`` may name: with ``ENGINE=`` before it where the word begins so.

    With ``known`` also models whose configs nbinfer has, of which nothing need be here.
    """
    from .. import hubcache, settings
    from ..embedded import EMBEDDED
    from ..engines import registry
    from ..errors import NbinferError
    from ..residents import pool

    prefix, sign, rest = word.partition("=")
    if sign and prefix in registry.names(hidden=True):
        return [f"{prefix}={name}" for name in model_names(rest)]
    aliases: list[str] = []
    with contextlib.suppress(NbinferError):  # broken settings are told by the cell that runs
        aliases = sorted(settings.aliases())
    resident = [r.plan.model for r in pool.residents()]
    found = [*aliases, *EMBEDDED, *resident, *model_paths(word), *hubcache.cached_repositories()]
    if known:
        from ..guide.sources import families

        # By the last part of the id too, as %memory takes it.
        found += [name for repo in families() for name in (repo, repo.rpartition("/")[2])]
    return list(dict.fromkeys(found))


def model_paths(word: str) -> list[str]:
    """Files and folders that are models, or may lead to one, below what is typed."""
    return _paths(word, ".gguf")


def _paths(word: str, *suffixes: str) -> list[str]:
    """Files of a kind, and folders that hold a model or may lead on, below what is typed."""
    typed = word.rpartition("/")[0] + "/" if "/" in word else ""
    found = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(Path(typed or ".").expanduser().iterdir())[:_MOST_PATHS]:
            if path.name.startswith("."):
                continue
            model = ".gguf" in suffixes and (path / "config.json").is_file()
            if model or path.suffix.lower() in suffixes:
                found.append(typed + path.name)
            elif word and path.is_dir():
                found.append(f"{typed}{path.name}/")
    return found


class Matcher:
    """The function that IPython's completer calls; one a shell."""

    matcher_identifier = "nbinfer"
    matcher_api_version = 2
    matcher_priority = 100

    def __init__(self, ip: InteractiveShell) -> None:
        self._ip = ip
        # The completer asks every matcher for it, as if all were functions.
        self.__qualname__ = type(self).__qualname__

    def __call__(self, context: Any) -> Any:
        from IPython.core.completer import SimpleCompletion

        found = candidates(context.text_until_cursor, self._ip.user_ns)
        if context.cursor_line != 0 or found is None:
            return {"completions": [], "suppress": False}
        matches = [SimpleCompletion(text=c, type="magic option") for c in found]
        word = re.search(r"\S*$", context.text_until_cursor)
        fragment = word.group(0) if word else ""
        return {"completions": matches, "matched_fragment": fragment, "suppress": bool(matches)}


def install(ip: InteractiveShell) -> None:
    """Add our matcher to the shell's completer, once."""
    if ip.Completer is not None:
        uninstall(ip)
        ip.Completer.custom_matchers.append(Matcher(ip))


def uninstall(ip: InteractiveShell) -> None:
    """Take it away again."""
    if ip.Completer is not None:
        ip.Completer.custom_matchers[:] = [
            m for m in ip.Completer.custom_matchers if not isinstance(m, Matcher)
        ]
