"""The options of every magic."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from . import guide_arguments
from .parser import Parser

__all__ = [
    "ACTIONS",
    "CELLS",
    "LINES",
    "PARSERS",
    "install_options",
    "model_options",
    "serve_options",
]

# What %engine does; completion offers the same.
ACTIONS = (
    *("use", "load", "unload", "restart", "logs", "serve", "stop"),
    *("install", "uninstall", "installed"),
)


def infer_parser() -> Parser:
    """The options of ``%infer`` and ``%%infer``."""
    parser = Parser(
        prog="%%infer",
        description="Send prompts to an engine; the value is a DataFrame, one row per completion.",
        epilog=(
            "A line --- alone separates prompts. With --data, {{column}} is filled per row; with\n"
            "--vars, {{name}} comes from the notebook. Without them braces are left alone."
        ),
    )
    add = parser.add_argument
    add(
        "-e",
        "--engine",
        metavar="NAME",
        help="engine (default: the one last chosen by %%engine use)",
    )
    model_options(parser)
    _prompt_options(parser)
    add(
        "--resume",
        metavar="PATH",
        help="keep each answer in this file (answers.db) as it comes, and go on from what it has",
    )
    add("--no-stream", action="store_true", help="do not print a single answer as it is made")
    return parser


def compare_parser() -> Parser:
    """The options of ``%%compare``."""
    parser = Parser(
        prog="%%compare",
        description=(
            "Send the same prompts to several engines, one after another; the value is one\n"
            "DataFrame, in which a prompt's answers stand below each other."
        ),
        epilog="Example: %%compare -e llamacpp,native -k native:batch_size=8",
    )
    parser.add_argument(
        "-e", "--engine", metavar="A,B,...", required=True, help="two engines or more, by comma"
    )
    model_options(parser)
    _prompt_options(parser)
    parser.add_argument(
        "--wide", action="store_true", help="a row for each prompt, the engines beside each other"
    )
    parser.add_argument(
        "--no-logprobs",
        action="store_true",
        help="do not ask for log-probabilities: logprob_gap stays unknown",
    )
    return parser


def exec_parser() -> Parser:
    """The options of ``%%engine_exec``."""
    parser = Parser(
        prog="%%engine_exec",
        description=(
            "Run the cell beside a resident model, in the engine's process: model, tokenizer and\n"
            "torch are there. What is printed and the last value come back as text; names live\n"
            "on there until the engine is unloaded, and none reaches the notebook."
        ),
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="engine (default: the one last chosen)"
    )
    model_options(parser)
    return parser


def model_options(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded: the same for every magic."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="MODEL",
        action="append",
        default=[],
        help="embedded name, path, hub id or alias; ENGINE=MODEL for one engine alone",
    )
    parser.add_argument(
        "-k",
        "--kwarg",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="how to load the model: one of the engine's model_kwargs, such as n_ctx=8192; "
        "ENGINE:KEY=VALUE for one engine alone",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        action="append",
        default=[],
        help="where an engine that is a server is; several share the work; "
        "ENGINE=URL for one engine alone",
    )
    parser.add_argument(
        "-r",
        "--remote",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other field of RemoteParams, such as num_workers=64 or "
        "api_key_env_varname=NAME; ENGINE:KEY=VALUE for one engine alone",
    )


def _prompt_options(parser: Parser) -> None:
    """What is asked, how it is answered, and where the rows go."""
    add = parser.add_argument
    add("-o", "--out", metavar="NAME", help="assign the DataFrame to a variable and show nothing")
    add("--show", action="store_true", help="with -o: show it too")
    add("--data", metavar="NAME", help="a DataFrame of the notebook; {{column}} is filled per row")
    add("--vars", action="store_true", help="fill {{name}} from the notebook's variables")
    add("--system", metavar="TEXT", help="system message")
    add("--max-new-tokens", metavar="N", type=int, help="longest answer, in tokens")
    add("--temperature", metavar="T", type=float, help="0 is greedy, the default")
    add("--top-p", metavar="P", type=float, help="nucleus sampling")
    add("--seed", metavar="S", type=int, help="makes sampling repeatable")
    add("-n", metavar="N", type=int, help="completions for each prompt")
    add(
        "--schema",
        metavar="NAME",
        help="a JSON Schema or pydantic model of the notebook; fills the column 'parsed'",
    )
    add(
        "--tools",
        metavar="NAME",
        help="tools of the notebook: a list of schemas or Python functions; fills 'tool_calls'",
    )
    add(
        "--adapter",
        metavar="PATH",
        help="a LoRA adapter: a GGUF file for llamacpp, else a PEFT folder",
    )
    add(
        "--image",
        metavar="NAME|PATH",
        help="an image for the prompt, where the engine reads images",
    )
    add(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="any other field of GenerationParams",
    )
    add("--batch-size", metavar="N", type=int, help="at most so many rows in the engine at once")
    add("--no-wait", action="store_true", help="do not wait while another engine computes")
    add("--raw", action="store_true", help="no chat template, for base models")
    add(
        "--sep", metavar="TEXT", default="---", help="the line that separates prompts (default ---)"
    )


def engine_parser() -> Parser:
    """The options of ``%engine``."""
    parser = Parser(
        prog="%engine",
        description=(
            "Without a word: what is resident. use: choose what a plain %%infer uses.\n"
            "load, unload, restart: as they say; unload without a name unloads everything.\n"
            "logs: the engine's own output. serve: start its server (vllm, sglang, llamacpp);\n"
            "stop: end servers, by name, address or port. install, uninstall: an engine's own\n"
            "environment;\n"
            "installed: which are there, and the disk that they take."
        ),
    )
    add = parser.add_argument
    add("action", nargs="?", choices=ACTIONS)
    add("name", nargs="?", metavar="NAME", help="engine (default: the one last chosen)")
    model_options(parser)
    add("--lines", metavar="N", type=int, default=20, help="of the log (default 20)")
    serve_options(parser)
    install_options(parser)
    return parser


def serve_options(parser: argparse.ArgumentParser) -> None:
    """What ``%engine serve`` and ``nbinfer serve`` take."""
    add = parser.add_argument
    add("--host", metavar="HOST", default="127.0.0.1", help="serve: where it listens (loopback)")
    add("--port", metavar="PORT", type=int, help="serve: default a free one")
    add(
        "--api-key-env",
        metavar="NAME",
        help="serve: the variable that holds the key which clients must send",
    )
    add("--keep", action="store_true", help="serve: let it outlive whoever started it")


def install_options(parser: argparse.ArgumentParser) -> None:
    """What ``%engine install`` and ``nbinfer install`` take."""
    add = parser.add_argument
    add("--reinstall", action="store_true", help="install: make the environment anew")
    add("--upgrade", action="store_true", help="install: newer versions, where the recipe has any")
    add("--dry-run", action="store_true", help="install: say what would change, and change nothing")
    add(
        "--with",
        dest="extras",
        metavar="REQUIREMENT",
        action="append",
        default=[],
        help="install: another package beside it, refused where it would overwrite a library",
    )


def panel_parser() -> Parser:
    """``%panel`` has no options."""
    return Parser(
        prog="%panel",
        description=(
            "Tabs: which engine to take; every engine with its state and memory, switched by a\n"
            "click; a conversation with the one in use; comparisons; benchmarks; the rows of it\n"
            "all, which are in .df too. Work runs beside the kernel. What was done is there as a\n"
            "cell that does the same."
        ),
    )


# Every magic that has a short name, and the parser of its line. What is of both kinds (%infer,
# %%infer) is in neither of the sets.
PARSERS: dict[str, Callable[[], Parser]] = {
    "infer": infer_parser,
    "engine": engine_parser,
    "compare": compare_parser,
    "engine_exec": exec_parser,
    "panel": panel_parser,
    **guide_arguments.PARSERS,
}
LINES = frozenset({"engine", "panel", *guide_arguments.PARSERS} - {"migrate"})
CELLS = frozenset({"compare", "engine_exec"})
