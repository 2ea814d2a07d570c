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
    from ..notebook.guide_commands import run_migrate

    frame = run_migrate(options, tell=lambda line: print(line, file=sys.stderr))
    if frame is not None:
        _show(frame)
        print("\n" + frame.attrs["nbinfer"]["code"], end="")
    return 0


def _show(frame: Any) -> None:
    from ..notebook.display import frame_text

    print(frame_text(frame))
