"""A benchmark's files: what can be compared with later, reports, pictures, rows."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, OutputError
from .results import FORMAT, Benchmark, requests

__all__ = ["WRITERS", "load", "write"]


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """An earlier benchmark's file.

    Raises
    ------
    ConfigurationError
        For a file that is not there, or is none of a benchmark.
    """
    try:
        value = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"against={str(path)!r} cannot be read: {error.strerror}"
        ) from None
    except ValueError:
        value = None
    known = isinstance(value, dict) and value.get("format") == FORMAT
    if not known or not isinstance(value.get("points"), list):
        raise ConfigurationError(
            f"against={str(path)!r} is no benchmark of nbinfer",
            hint="nbinfer.benchmark(..., save='old.json') writes one",
        )
    plain: dict[str, Any] = value
    return plain


def write(found: Benchmark, frame: Any, targets: Sequence[Path]) -> None:
    """Write each file, by its ending.

    Raises
    ------
    OutputError
        If one cannot be written; ``.frame`` has what was measured.
    """
    for path in targets:
        try:
            WRITERS[path.suffix](found, frame, path)
        except OSError as error:
            failed = OutputError(f"{str(path)!r} cannot be written: {error.strerror}")
            failed.frame = frame
            raise failed from None


def _to_json(found: Benchmark, _: Any, path: Path) -> None:
    text = json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _to_csv(_: Benchmark, frame: Any, path: Path) -> None:
    requests(frame).drop(columns="itl_s").to_csv(path, index=False, quoting=csv.QUOTE_MINIMAL)


def _to_parquet(_: Benchmark, frame: Any, path: Path) -> None:
    requests(frame).to_parquet(path, index=False)


def _report(kind: str) -> Callable[[Benchmark, Any, Path], None]:
    def write(found: Benchmark, frame: Any, path: Path) -> None:
        from . import report

        path.write_text(getattr(report, kind)(found, frame), encoding="utf-8")

    return write


def _to_picture(_: Benchmark, frame: Any, path: Path) -> None:
    from .report import draw

    draw(frame).savefig(path)


WRITERS: Mapping[str, Callable[[Benchmark, Any, Path], None]] = {
    ".json": _to_json,
    ".html": _report("html_report"),
    ".md": _report("markdown_report"),
    ".png": _to_picture,
    ".svg": _to_picture,
    ".csv": _to_csv,
    ".parquet": _to_parquet,
}
