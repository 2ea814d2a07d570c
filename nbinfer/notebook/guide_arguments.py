"""The options of the magics that are the guide's: ``%features`` and its kin."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .parser import Parser

__all__ = [
    "PARSERS",
    "benchmark_options",
    "features_options",
    "memory_options",
    "migrate_options",
    "recommend_options",
]


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


def benchmark_parser() -> Parser:
    """The options of ``%benchmark``."""
    parser = Parser(
        prog="%benchmark",
        description=(
            "How fast engines answer under load, one engine after another: a row for each engine\n"
            "and load, with TTFT, TPOT, latency, throughput, memory, and intervals over repeats."
        ),
        epilog=(
            "Example: %benchmark -e llamacpp,native --concurrency 1,4,8 --save bench.json\n"
            "Lengths: 128, uniform:64,256 (from, to), normal:128,32 or lognormal:128,64 (mean, sd)."
        ),
    )
    benchmark_options(parser)
    return parser


def benchmark_options(parser: argparse.ArgumentParser) -> None:
    """What ``%benchmark`` and ``nbinfer benchmark`` take."""
    from .arguments import model_options

    add = parser.add_argument
    add("-e", "--engine", metavar="A,B,...", help="engines (default: the one last chosen)")
    model_options(parser)
    add("--data", metavar="NAME|FILE", help="prompts: a DataFrame, or a .csv, .jsonl or .parquet")
    add("--template", metavar="TEXT", help="with --data: {{column}} is filled per row")
    add("--prompt-tokens", metavar="N", default="128", help="length of prompts (128)")
    add("--output-tokens", metavar="N", default="64", help="length of answers (64)")
    add("--requests", metavar="N", type=int, help="for each load and repeat")
    add("--concurrency", metavar="N,...", help="closed loops of so many under way (1)")
    add("--rate", metavar="R,...", help="open loops of so many a second, Poisson arrivals")
    add("--warmup", metavar="N", type=int, help="requests that do not count")
    add("--repeats", metavar="N", type=int, default=3, help="of each load (3)")
    add("--seed", metavar="S", type=int, default=0, help="of lengths, words and arrivals (0)")
    add(
        "--slo",
        metavar="KEY=SECONDS",
        action="append",
        default=[],
        help="a bound of ttft_s, tpot_s or latency_s: what is within all is goodput",
    )
    add(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any GenerationParams field"
    )
    add("--keep", action="store_true", help="leave engines loaded that were loaded for this")
    add("--against", metavar="FILE", help="a .json of an earlier benchmark: ratios to it")
    add(
        "--save",
        metavar="FILE",
        action="append",
        default=[],
        help=".json (all), .html or .md (report), .png or .svg (plot), .csv or .parquet (requests)",
    )


def migrate_parser() -> Parser:
    """The options of ``%migrate`` and ``%%migrate``."""
    parser = Parser(
        prog="%migrate",
        description=(
            "What changes between two engines for the parameters given: kept, renamed,\n"
            "approximated or lost, and why. As %%migrate it rewrites the cell below it; without\n"
            "engines that is Oumi's code. Of files and folders it shows the diff."
        ),
        epilog=(
            "Examples: %migrate native vllm -k load_in_4bit=true --set num_beams=4\n"
            "          %migrate old.ipynb --from native --to vllm --write"
        ),
    )
    migrate_options(parser)
    return parser


def migrate_options(parser: argparse.ArgumentParser) -> None:
    """What ``%migrate`` and ``nbinfer migrate`` take; parameters are by default the engine's."""
    from .arguments import model_options

    add = parser.add_argument
    add("words", nargs="*", metavar="FROM TO|PATH", help="two engines; or files and folders")
    add("--from", dest="source", metavar="ENGINE", help="in files: where this engine is used ...")
    add("--to", dest="target", metavar="ENGINE", help="... make this one instead")
    add("--write", action="store_true", help="write the files, after the diff")
    add("--force", action="store_true", help="--write: also where git has uncommitted changes")
    model_options(parser)
    add(
        "-p", "--param", metavar="KEY=VALUE", action="append", default=[],
        help="any other field of ModelParams, such as torch_dtype_str=bfloat16",
    )  # fmt: skip
    add(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="any GenerationParams field"
    )


PARSERS: dict[str, Callable[[], Parser]] = {
    "features": features_parser,
    "memory": memory_parser,
    "recommend": recommend_parser,
    "benchmark": benchmark_parser,
    "migrate": migrate_parser,
}
