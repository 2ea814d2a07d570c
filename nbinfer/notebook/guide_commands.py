"""What the guide's magics do: thin over the Python functions of the same names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigurationError
from .arguments import PARSERS

if TYPE_CHECKING:
    import pandas as pd
    from IPython.core.interactiveshell import InteractiveShell

    from .recommender import Recommender

__all__ = [
    "GuideCommands",
    "listed",
    "run_benchmark",
    "run_features",
    "run_memory",
    "run_migrate",
    "run_recommend",
]


class GuideCommands:
    """The guide's commands of one shell, each a method of its name."""

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell

    def features(self, line: str) -> pd.DataFrame:
        """Run ``%features``."""
        return run_features(PARSERS["features"]().parse_line(line))

    def memory(self, line: str) -> pd.DataFrame:
        """Run ``%memory``."""
        return run_memory(PARSERS["memory"]().parse_line(line))

    def recommend(self, line: str) -> pd.DataFrame | Recommender:
        """Run ``%recommend``: with widgets where nothing is said."""
        if not line.strip():
            from .recommender import Recommender

            return Recommender()
        return run_recommend(PARSERS["recommend"]().parse_line(line))

    def benchmark(self, line: str) -> pd.DataFrame:
        """Run ``%benchmark``."""
        return run_benchmark(PARSERS["benchmark"]().parse_line(line), self.shell.user_ns)

    def migrate(self, line: str, cell: str | None) -> pd.DataFrame | None:
        """Run ``%migrate`` or ``%%migrate``; what to run afterwards comes before the table."""
        frame = run_migrate(PARSERS["migrate"]().parse_line(line), cell)
        if frame is not None and cell is None:
            told = frame.attrs["nbinfer"]
            print(f"{told['cell']}\n\n{told['code']}", end="")
        return frame


# What the command line runs too, of the same options.


def run_features(options: argparse.Namespace, **more: Any) -> pd.DataFrame:
    """The table of ``%features`` and ``nbinfer features``."""
    from ..guide.features import features

    return features(
        probe=options.probe,
        engines=listed(options.engine),
        only=listed(options.feature),
        details=options.details,
        **more,
    )


def run_memory(options: argparse.Namespace) -> pd.DataFrame:
    """The table of ``%memory`` and ``nbinfer memory``."""
    from ..guide.memory import memory

    return memory(
        options.model,
        engines=listed(options.engine),
        precisions=listed(options.precision),
        context=options.context,
        batch=options.batch,
        tensor_parallel_size=options.tensor_parallel_size,
        kv_dtype=options.kv_dtype,
        device=options.device,
    )


def run_recommend(options: argparse.Namespace) -> pd.DataFrame:
    """The table of ``%recommend`` and ``nbinfer recommend``, its first row in full before it."""
    from ..guide.flowchart import QUESTIONS
    from ..guide.recommend import recommend, summary
    from .text import visible

    frame = recommend(
        options.model,
        features=listed(options.feature) or (),
        context=options.context,
        batch=options.batch,
        device=options.device,
        **{question.name: getattr(options, question.name) for question in QUESTIONS},
    )
    print("\n".join(visible(line) for line in summary(frame).splitlines()))
    return frame


def run_benchmark(
    options: argparse.Namespace, variables: Mapping[str, Any] | None = None, **more: Any
) -> pd.DataFrame:
    """The table of ``%benchmark`` and ``nbinfer benchmark``."""
    from ..config import GenerationParams, parse_setting, parse_value
    from ..guide.benchmark import benchmark
    from .choosing import chosen

    named = listed(options.engine)
    names: list[str | None] = list(named) if named else [None]
    slo = dict(text.partition("=")[::2] for text in options.slo)
    return benchmark(
        [chosen(name, options).make() for name in names],
        prompts=None if options.data is None else _table(options.data, variables or {}),
        template=options.template,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        requests=options.requests,
        concurrency=_numbers(options.concurrency),
        rate=_numbers(options.rate),
        warmup=options.warmup,
        repeats=options.repeats,
        seed=options.seed,
        slo={name: parse_value(value) for name, value in slo.items()},
        generation_params=GenerationParams(**dict(map(parse_setting, options.set))),
        keep=options.keep,
        against=options.against,
        save=options.save,
        **more,
    )


def _numbers(text: str | None) -> list[Any] | None:
    from ..config import parse_value

    words = listed(text)
    return None if words is None else [parse_value(word) for word in words]


_READERS = {".csv": "read_csv", ".jsonl": "read_json", ".parquet": "read_parquet"}


def _table(name: str, variables: Mapping[str, Any]) -> pd.DataFrame:
    """A DataFrame of the notebook, or a file of one."""
    found = variables.get(name)
    if hasattr(found, "columns"):
        return cast("pd.DataFrame", found)
    path = Path(name).expanduser()
    if name in variables:
        raise ConfigurationError(f"--data: {name!r} is no DataFrame but {type(found).__name__}")
    if path.suffix not in _READERS or not path.is_file():
        raise ConfigurationError(
            f"--data: {name!r} is neither a DataFrame of the notebook nor a file",
            hint=f"files: {', '.join(_READERS)}",
        )
    import pandas as pd

    options = {"lines": True} if path.suffix == ".jsonl" else {}
    try:
        return cast("pd.DataFrame", getattr(pd, _READERS[path.suffix])(path, **options))
    except (ValueError, OSError, ImportError) as error:
        raise ConfigurationError(f"--data: {name!r} cannot be read: {error}") from None


def run_migrate(
    options: argparse.Namespace, cell: str | None = None, tell: Callable[[str], None] = print
) -> pd.DataFrame | None:
    """The table of two engines, with a cell rewritten before it; of files the diff alone."""
    from ..engines import registry
    from ..guide import cells

    words, names = options.words, registry.names(hidden=True)
    named = [word for word in words if word in names and not Path(word).exists()]
    if cell is not None and not words:
        cells.show_rewritten(cell, None, None)
        return None
    if len(words) == 2 and (named or cell is not None):
        options.source, options.target = words
        return cells.migrate_line(options, cell)
    if named or cell is not None or not words:
        raise ConfigurationError(
            "two engines are required, the one now and the one to come: "
            + (" ".join(words) if words else "none is named"),
            hint="%migrate native vllm; or name files and folders",
        )
    _migrate_files(options, tell)
    return None


def _migrate_files(options: argparse.Namespace, tell: Callable[[str], None]) -> None:
    """Print the diff of what would change, and write it if that is asked for."""
    from ..guide import convert

    found = convert.convert(options.words, options.source, options.target)
    print(convert.diff(found), end="", flush=True)
    for one in found:
        for finding in one.findings:
            tell(f"{one.path}:{finding.line}: {finding.what}")
    if options.write:
        for line in convert.write(found, force=options.force):
            tell(f"written: {line}")
    elif any(one.changed for one in found):
        tell("nothing is written yet: --write does it")
    else:
        tell("there is nothing to change")


def listed(text: str | None) -> list[str] | None:
    """``"a,b"`` as a list; ``None`` stays."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]
