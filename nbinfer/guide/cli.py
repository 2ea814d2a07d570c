"""The guide's commands on the command line: ``nbinfer features`` and its kin."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..notebook.guide_arguments import (
    benchmark_options,
    features_options,
    memory_options,
    migrate_options,
    recommend_options,
)

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add a subcommand for each to ``nbinfer``'s."""
    features = commands.add_parser(
        "features", help="what each engine can do here, and --probe to prove it", allow_abbrev=False
    )
    features_options(features)
    features.set_defaults(run=_features)
    memory = commands.add_parser(
        "memory", help="how much memory a model takes, and what fits", allow_abbrev=False
    )
    memory_options(memory)
    memory.set_defaults(run=_memory)
    recommend = commands.add_parser(
        "recommend", help="which engine to take, and why", allow_abbrev=False
    )
    recommend_options(recommend)
    recommend.set_defaults(run=_recommend)

    benchmark = commands.add_parser(
        "benchmark", help="how fast engines answer under load", allow_abbrev=False
    )
    benchmark_options(benchmark)
    benchmark.set_defaults(run=_benchmark)

    migrate = commands.add_parser(
        "migrate",
        help="files that use Oumi, or another engine, rewritten: a diff first; or FROM TO",
        allow_abbrev=False,
    )
    add = migrate.add_argument
    add("words", nargs="+", metavar="PATH", help="files and folders; or two engines: what changes")
    add("--from", dest="source", metavar="ENGINE", help="where this engine is used ...")
    add("--to", dest="target", metavar="ENGINE", help="... make this one instead")
    add("--write", action="store_true", help="write the files, after the diff")
    add("--force", action="store_true", help="--write: also where git has uncommitted changes")
    migrate_options(migrate)
    migrate.set_defaults(run=_migrate)


def _features(options: argparse.Namespace) -> int:
    from ..notebook.guide_commands import run_features

    _show(run_features(options, progress=True))
    return 0


def _memory(options: argparse.Namespace) -> int:
    from ..notebook.guide_commands import run_memory

    _show(run_memory(options))
    return 0


def _recommend(options: argparse.Namespace) -> int:
    from ..notebook.guide_commands import run_recommend

    frame = run_recommend(options)
    print()
    _show(frame)
    return 0 if frame.attrs["nbinfer"]["recommended"] else 1


def _benchmark(options: argparse.Namespace) -> int:
    from ..notebook.guide_commands import run_benchmark

    frame = run_benchmark(options)
    _show(frame)
    return 0 if frame["error"].isna().all() else 1


def _migrate(options: argparse.Namespace) -> int:
    from ..engines import registry
    from . import convert

    names = registry.names(hidden=True)
    if len(options.words) == 2 and all(word in names for word in options.words):
        from ..notebook.guide_commands import run_migrate

        options.source, options.target = options.words
        frame = run_migrate(options)
        _show(frame)
        print("\n" + frame.attrs["nbinfer"]["code"], end="")
        return 0
    found = convert.convert(options.words, options.source, options.target)
    print(convert.diff(found), end="")
    for one in found:
        for finding in one.findings:
            print(f"{one.path}:{finding.line}: {finding.what}", file=sys.stderr)
    if options.write:
        for line in convert.write(found, force=options.force):
            print(f"written: {line}", file=sys.stderr)
    elif any(one.changed for one in found):
        print("nothing is written yet: --write does it", file=sys.stderr)
    else:
        print("there is nothing to change", file=sys.stderr)
    return 0


def _show(frame: Any) -> None:
    from ..notebook.display import frame_text

    print(frame_text(frame))
