"""The options of the magics that are the guide's: ``%features`` and its kin."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .parser import Parser

__all__ = ["PARSERS", "features_options", "memory_options", "recommend_options"]


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


def memory_parser() -> Parser:
    """The options of ``%memory``."""
    parser = Parser(
        prog="%memory",
        description=(
            "How much memory a model takes, by engine and precision, and whether it fits here.\n"
            "Nothing is loaded or downloaded: headers and configs are read."
        ),
        epilog="Example: %memory Qwen/Qwen3-8B -e vllm,native -c 8k -b 4",
    )
    memory_options(parser)
    return parser


def memory_options(parser: argparse.ArgumentParser) -> None:
    """What ``%memory`` and ``nbinfer memory`` take."""
    add = parser.add_argument
    add("model", help="embedded name, path, alias, hub id, or a well-known model")
    add("-e", "--engine", metavar="A,B,...", help="vllm, native, llamacpp")
    add("-p", "--precision", metavar="A,B,...", help="bf16, fp8, 8-bit, 4-bit, Q4_K_M, ...")
    _job_options(parser)
    add("-t", "--tensor-parallel-size", default="1", metavar="N", help="devices that share it")
    add("--kv-dtype", metavar="TYPE", help="of the KV cache: fp16, fp8, q8_0, ...")


def _job_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--context", metavar="N", help="tokens of prompt and answer, such as 8192 or 8k")
    add("-b", "--batch", default="1", metavar="N", help="requests at once (default 1)")
    add("--device", metavar="SIZE", help='memory of the device in mind, such as "40GB"')


def recommend_parser() -> Parser:
    """The options of ``%recommend``."""
    parser = Parser(
        prog="%recommend",
        description=(
            "Which engine to take: the guide's flowchart, this model in this machine's memory,\n"
            "what is needed and what is installed. Without options it asks."
        ),
        epilog="Example: %recommend -m Qwen/Qwen3-8B --gpu --production",
    )
    recommend_options(parser)
    return parser


def recommend_options(parser: argparse.ArgumentParser) -> None:
    """What ``%recommend`` and ``nbinfer recommend`` take."""
    from ..guide.flowchart import QUESTIONS

    add = parser.add_argument
    add("-m", "--model", help="embedded name, path, alias or hub id")
    for question in QUESTIONS:
        add(f"--{question.name}", action=argparse.BooleanOptionalAction, help=question.text)
    add("-f", "--feature", metavar="A,B,...", help="what is needed: adapters, tools, ...")
    _job_options(parser)


PARSERS: dict[str, Callable[[], Parser]] = {
    "features": features_parser,
    "memory": memory_parser,
    "recommend": recommend_parser,
}
