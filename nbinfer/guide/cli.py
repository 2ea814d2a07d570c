"""The guide's commands on the command line: ``nbinfer features`` and its kin."""

from __future__ import annotations

import argparse
from typing import Any

from ..notebook.guide_arguments import benchmark_options, features_options

__all__ = ["add_commands"]


def add_commands(commands: Any) -> None:
    """Add a subcommand for each to ``nbinfer``'s."""
    features = commands.add_parser(
        "features", help="what each engine can do here, and --probe to prove it", allow_abbrev=False
    )
    features_options(features)
    features.set_defaults(run=_features)

    benchmark = commands.add_parser(
        "benchmark", help="how fast engines answer under load", allow_abbrev=False
    )
    benchmark_options(benchmark)
    benchmark.set_defaults(run=_benchmark)


def _features(options: argparse.Namespace) -> int:
    from ..notebook.guide_commands import run_features

    _show(run_features(options, progress=True))
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from ..notebook.guide_commands import run_benchmark

    frame = run_benchmark(options)
    _show(frame)
    return 0 if frame["error"].isna().all() else 1


def _show(frame: Any) -> None:
    from ..notebook.display import frame_text

    print(frame_text(frame))
