"""The options of the magics that are the guide's: ``%features`` and its kin."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .parser import Parser

__all__ = ["PARSERS", "features_options"]


def features_parser() -> Parser:
    """The options of ``%features``."""
    parser = Parser(
        prog="%features",
        description=(
            "What each engine can do here, a row for each feature: proven by a probe that ran on\n"
            "this machine, there but not probed, not installed, or not to be had, with the reason."
        ),
        epilog="Example: %features --probe -e native,llamacpp",
    )
    features_options(parser)
    return parser


def features_options(parser: argparse.ArgumentParser) -> None:
    """What ``%features`` and ``nbinfer features`` take."""
    add = parser.add_argument
    add("--probe", action="store_true", help="prove what can be proven here: it takes minutes")
    add("-e", "--engine", metavar="A,B,...", help="these engines alone")
    add("-f", "--feature", metavar="A,B,...", help="these features alone")
    add("--details", action="store_true", help="a row for each cell, with its reason and source")


PARSERS: dict[str, Callable[[], Parser]] = {"features": features_parser}
