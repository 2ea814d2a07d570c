"""``nbinfer demo|infer|install|...``: thin over the functions that notebooks use."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__
from .errors import NbinferError, RunInterrupted, brief_traceback
from .guide.cli import add_commands
from .notebook.arguments import install_options, serve_options

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main"]

DEMO = (
    "Explain in one sentence what a language model is.",
    "Write a haiku about the sea.",
    "Name three uses of a notebook.",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 good, 1 an error, 130 interrupted)."""
    options = _parser().parse_args(arguments)
    try:
        with _terminable():
            status: int = options.run(options)
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read it has seen enough (``| head``)
        # Or the interpreter, as it ends, would flush into the same pipe and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except RunInterrupted as stopped:
        if stopped.frame is not None and len(stopped.frame):
            _show(stopped.frame)
        print(stopped.message, file=sys.stderr)
        return 130
    except KeyboardInterrupt:  # before a run began, or after it
        return 130
    except NbinferError as error:
        print("\n".join(brief_traceback(error)), file=sys.stderr)
        return 1


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the command as an exception does: what it has started is ended with it."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    except ValueError:  # not the main thread: no handler can be set, and none is needed
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbinfer", description="LLM engines side by side.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"nbinfer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="three prompts through the embedded model")
    demo.set_defaults(run=_demo)

    infer = commands.add_parser(
        "infer", help="prompts in, a table or a file out", allow_abbrev=False
    )
    add = infer.add_argument
    add("prompts", nargs="*", help="prompts; without any, one a line from standard input")
    add("-e", "--engine", help="engine (default llamacpp)")
    add(
        "-m",
        "--model",
        action="append",
        help="embedded name, path, hub id or alias; ENGINE=MODEL for one engine alone",
    )
    add("--url", action="append", help="where an engine that is a server is")
    add(
        *("-r", "--remote"),
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other field of RemoteParams (a key: api_key_env_varname=NAME)",
    )
    add("-o", "--output", type=Path, help="write rows to a .csv, .jsonl or .parquet file")
    add(
        "--resume",
        type=Path,
        metavar="PATH",
        help="keep each answer in this file (answers.db) as it comes, and go on from what it has",
    )
    add("--system", help="system message")
    add("--max-new-tokens", type=int)
    add("--temperature", type=float)
    add("--seed", type=int)
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any GenerationParams field"
    )
    infer.set_defaults(run=_infer)

    install = commands.add_parser("install", help="an engine's own environment", allow_abbrev=False)
    install.add_argument("name", help="vllm, native, llama-cpp-python, ... (nbinfer installed)")
    install_options(install)
    install.set_defaults(run=_install)

    uninstall = commands.add_parser("uninstall", help="remove an engine's own environment")
    uninstall.add_argument("name")
    uninstall.set_defaults(run=_uninstall)

    installed = commands.add_parser("installed", help="the engines' libraries, and where they are")
    installed.set_defaults(run=_installed)

    serve = commands.add_parser("serve", help="an engine's own server", allow_abbrev=False)
    serve.add_argument("name", choices=("vllm", "sglang", "llamacpp"))
    serve.add_argument("-m", "--model", help="what it serves")
    serve.add_argument("-k", "--kwarg", action="append", default=[], metavar="KEY=VALUE")
    serve_options(serve)
    serve.set_defaults(run=_serve)

    stop = commands.add_parser("stop", help="end servers that were started here")
    stop.add_argument("name", nargs="?", help="engine, address or port; default: all of them")
    stop.set_defaults(run=_stop)

    add_commands(commands)

    doctor = commands.add_parser("doctor", help="what is installed, what works, what to do")
    doctor.set_defaults(run=_doctor)
    return parser


def _demo(_: argparse.Namespace) -> int:
    from .config import GenerationParams
    from .engines.llamacpp import LlamaCppInferenceEngine

    print("Three prompts through the embedded model smollm2-135m, on llama.cpp:")
    engine = LlamaCppInferenceEngine()
    frame = engine.infer(list(DEMO), GenerationParams(max_new_tokens=48), progress=True)
    _show(frame)
    print("\nIn a notebook: %load_ext nbinfer, then %%infer in a cell of its own.")
    return 0 if frame["error"].isna().all() else 1


def _infer(options: argparse.Namespace) -> int:
    from .config import GenerationParams, parse_setting, parse_value
    from .selection import for_engine

    if options.output is not None and options.output.suffix not in WRITERS:
        print(f"{options.output}: write to {', '.join(WRITERS)}", file=sys.stderr)
        return 2
    prompts = options.prompts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    names = ("max_new_tokens", "temperature", "seed")
    values = {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    values.update(parse_setting(text) for text in options.set)
    remote = dict(setting.partition("=")[::2] for setting in options.remote)
    remote = {name: parse_value(value) for name, value in remote.items()}
    if options.url:
        remote["api_url"] = options.url
    chosen = for_engine(options.engine, options.model, remote=remote)
    engine = chosen.make()
    try:
        frame = engine.infer(
            prompts,
            GenerationParams(**values),
            system=options.system,
            output_path=options.resume,
        )
    except (RunInterrupted, NbinferError) as error:
        if error.frame is not None and options.output is not None:
            WRITERS[options.output.suffix](error.frame, options.output)
        raise
    if options.output is not None:
        WRITERS[options.output.suffix](frame, options.output)
        print(f"{len(frame)} rows in {options.output}", file=sys.stderr)
    else:
        _show(frame)
    return 0 if frame["error"].isna().all() else 1


def _to_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def _to_jsonl(frame: pd.DataFrame, path: Path) -> None:
    frame.to_json(path, orient="records", lines=True, force_ascii=False)


def _to_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, index=False)


WRITERS = {".csv": _to_csv, ".jsonl": _to_jsonl, ".parquet": _to_parquet}


def _show(frame: pd.DataFrame) -> None:
    from .notebook.display import frame_text

    print(frame_text(frame))


def _install(options: argparse.Namespace) -> int:
    from .installing import run_install
    from .progress import Plain, Terminal

    shown = Terminal() if sys.stderr.isatty() else Plain()
    done = run_install(
        options.name,
        shown,
        reinstall=options.reinstall,
        upgrade=options.upgrade,
        dry_run=options.dry_run,
        extras=options.extras,
    )
    print("\n".join(done))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from .config import ModelParams, parse_value
    from .serving import serve_for
    from .settings import current

    kwargs = {k: parse_value(v) for k, _, v in (text.partition("=") for text in options.kwarg)}
    model = ModelParams(options.model or current().default_model, model_kwargs=kwargs)
    server = serve_for(options, model)
    print(f"{server.engine} serves {server.model} at {server.url}", flush=True)
    while not options.keep and server.alive:
        time.sleep(0.5)
    return 0


def _stop(options: argparse.Namespace) -> int:
    from .server_records import stop

    for server in stop(options.name):
        print(f"the server of {server.engine} at {server.url} is stopped")
    return 0


def _installed(_: argparse.Namespace) -> int:
    from .env_table import installed

    _show(installed())
    return 0


def _uninstall(options: argparse.Namespace) -> int:
    from .installing import run_uninstall

    print("\n".join(run_uninstall(options.name)))
    return 0


def _doctor(_: argparse.Namespace) -> int:
    from .doctor import report

    lines, good = report()
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
