"""What a benchmark found: its DataFrame, the rows of its requests, and the file to compare with."""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..checks import shown
from ..errors import ConfigurationError
from ..frame import jsonable
from . import metrics
from .loadpoint import Point

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "FORMAT", "Benchmark", "finish", "of_frame", "requests"]

FORMAT = "nbinfer benchmark 1"
# Metrics with an interval of their own among the columns; --against compares the same.
WITH_INTERVAL = (
    *("requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "goodput_per_s"),
    *("ttft_s_p50", "tpot_s_p50", "latency_s_p50"),
)
_SHOWN_OF_REQUESTS = [f for f in metrics.Request.__dataclass_fields__ if f != "itl_s"]


def _with_intervals() -> list[str]:
    names: list[str] = []
    for name in metrics.METRICS:
        names.append(name)
        if name in WITH_INTERVAL:
            names += [f"{name}_low", f"{name}_high"]
    return names


COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(("engine", "model"), "str"),
    "concurrency": "Int64",
    "rate": "Float64",
    **dict.fromkeys(("repeats", "requests", "failed"), "Int64"),
    **dict.fromkeys(("prompt_tokens", "output_tokens", "cached_share"), "Float64"),
    **dict.fromkeys(_with_intervals(), "Float64"),
    "load_s": "Float64",
    **dict.fromkeys(("model_memory_bytes", "peak_memory_bytes"), "Int64"),
    **dict.fromkeys(("energy_j", "energy_j_per_token", "bandwidth_share"), "Float64"),
    "error": "str",
}
# With --against: ratios, new over old.
RATIOS = tuple(f"{name}_ratio{end}" for name in WITH_INTERVAL for end in ("", "_low", "_high"))
# What a table shows; the rest is in the frame.
FIRST = frozenset(
    {
        *("engine", "model", "concurrency", "rate", "requests", "failed", "error"),
        *("prompt_tokens", "output_tokens", "requests_per_s", "output_tokens_per_s"),
        *("output_tokens_per_s_low", "output_tokens_per_s_high", "goodput_per_s"),
        *("ttft_s_p50", "ttft_s_p99", "tpot_s_p50", "itl_s_p99", "latency_s_p50", "latency_s_p99"),
        *("load_s", "peak_memory_bytes", "energy_j_per_token", "bandwidth_share"),
        "output_tokens_per_s_ratio",
    }
)
KEPT = 8


@dataclass
class Benchmark:
    """All that one call measured."""

    id: str
    created: str
    machine: dict[str, Any]
    workload: dict[str, Any]
    slo: dict[str, float]
    generation_params: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    earlier: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """In JSON's own types; requests without the gaps between their tokens."""
        from .. import __version__

        points = []
        for point in self.points:
            told = {k: v for k, v in vars(point).items() if k not in ("load", "requests", "spans")}
            told["load"] = asdict(point.load)
            told["requests"] = [
                [{n: getattr(r, n) for n in _SHOWN_OF_REQUESTS} for r in requests]
                for requests in point.requests
            ]
            points.append(told)
        own = {k: v for k, v in vars(self).items() if k not in ("points", "earlier")}
        plain: dict[str, Any] = jsonable(
            {"format": FORMAT, "nbinfer_version": __version__, **own, "points": points}
        )
        return plain


_kept: OrderedDict[str, Benchmark] = OrderedDict()


def finish(found: Benchmark) -> pd.DataFrame:
    """The frame of a benchmark, which is kept for ``requests`` and ``plot``."""
    _kept[found.id] = found
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return to_frame(found)


def to_frame(found: Benchmark) -> pd.DataFrame:
    """A row for each engine and load."""
    import pandas as pd

    rows = [_row(point, found.earlier) for point in found.points]
    names = [*COLUMNS, *(RATIOS if found.earlier is not None else ())]
    frame = pd.DataFrame(
        {n: pd.Series([r.get(n) for r in rows], dtype=COLUMNS.get(n, "Float64")) for n in names}
    )
    facts = {k: v for k, v in found.to_dict().items() if k != "points"}
    frame.attrs["nbinfer"] = {
        **facts,
        "benchmark": found.id,
        "notes": [f"{p.engine}: {note}" for p in found.points for note in p.notes],
        "caption": _caption(found),
        "hidden": [name for name in names if name not in FIRST],
    }
    return frame


def _row(point: Point, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    every = [request for repeat in point.requests for request in repeat]
    answered = [r for r in every if r.ok]
    row: dict[str, Any] = {
        "engine": point.engine,
        "model": point.model,
        "concurrency": point.load.concurrency,
        "rate": point.load.rate,
        "repeats": len(point.metrics),
        "requests": len(every),
        "failed": len(every) - len(answered),
        "prompt_tokens": _mean([r.prompt_tokens for r in answered]),
        "output_tokens": _mean([r.output_tokens for r in answered]),
        "error": point.error,
    }
    cached = _mean([r.cached_tokens for r in answered])
    if cached is not None and row["prompt_tokens"]:
        row["cached_share"] = cached / row["prompt_tokens"]
    for name in metrics.METRICS:
        mean, low, high = metrics.interval([m[name] for m in point.metrics])
        row.update({name: mean, f"{name}_low": low, f"{name}_high": high})
    names = ("load_s", "model_memory_bytes", "peak_memory_bytes", "bandwidth_share")
    row.update({name: point.facts.get(name) for name in names})
    energies = [e for e in point.energy_j if e is not None]
    if energies and len(energies) == len(point.energy_j):
        row["energy_j"] = sum(energies)
        made = sum(r.output_tokens or 0 for r in answered)
        row["energy_j_per_token"] = row["energy_j"] / made if made else None
    if earlier is not None:
        row.update(_ratios(point, earlier))
    return row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _ratios(point: Point, earlier: Mapping[str, Any]) -> dict[str, float | None]:
    """New over old, where the earlier benchmark has this engine, model and load."""
    load = asdict(point.load)
    old = [
        p
        for p in earlier["points"]
        if (p["engine"], p["model"], p["load"]) == (point.engine, point.model, load)
    ]
    found: dict[str, float | None] = {}
    for name in WITH_INTERVAL if old else ():
        before = [m.get(name) for m in old[0]["metrics"]]
        values = metrics.ratio(before, [m[name] for m in point.metrics])
        ends = ("", "_low", "_high")
        found.update({f"{name}_ratio{e}": v for e, v in zip(ends, values, strict=True)})
    return found


def _caption(found: Benchmark) -> str:
    work = found.workload
    if work["prompts"] is None:
        asked = f"{work['prompt_tokens']} tokens in"
    else:
        asked = f"{work['prompts']} prompts of yours"
    parts = [f"{asked}, {work['output_tokens'] or 'so many as each says'} out"]
    repeats = max((len(p.metrics) for p in found.points), default=0)
    parts.append(f"{repeats} repeat{'' if repeats == 1 else 's'}")
    if found.slo:
        bounds = ", ".join(f"{name} ≤ {value:g}" for name, value in found.slo.items())
        parts.append(f"goodput within {bounds}")
    if found.earlier is not None:
        parts.append(f"ratios to the benchmark of {found.earlier['created']}")
        if found.earlier.get("workload") != work:
            parts.append("which had another workload")
        if found.earlier.get("machine") != found.machine:
            parts.append("on another machine or system")
    return " · ".join([*parts, str(found.machine["cpu"])])


def of_frame(frame: Any) -> Benchmark:
    """The benchmark that a frame came from.

    Raises
    ------
    ConfigurationError
        If it is no benchmark's, or one of another kernel or long past.
    """
    key = (getattr(frame, "attrs", {}).get("nbinfer") or {}).get("benchmark")
    if key is None:
        raise ConfigurationError(
            "this is no result of nbinfer.benchmark()", hint=f"it is {shown(type(frame).__name__)}"
        )
    if key not in _kept:
        raise ConfigurationError(
            f"the benchmark {key} is no longer at hand: it is another kernel's or long past",
            hint="nbinfer.benchmark(..., save=['all.json', 'requests.csv']) keeps it in files",
        )
    return _kept[key]


def requests(frame: Any) -> pd.DataFrame:
    """A row for each request of a benchmark, in the order that they were sent.

    Returns
    -------
    pandas.DataFrame
        ``engine, model, concurrency, rate, repeat, request``, and the fields of
        ``nbinfer.guide.metrics.Request``; ``itl_s`` is a list.
    """
    import pandas as pd

    names = list(metrics.Request.__dataclass_fields__)
    rows = [
        {
            "engine": point.engine,
            "model": point.model,
            **asdict(point.load),
            "repeat": repeat,
            "request": number,
            **{name: getattr(request, name) for name in names},
        }
        for point in of_frame(frame).points
        for repeat, each in enumerate(point.requests)
        for number, request in enumerate(each)
    ]
    kinds = dict.fromkeys(("engine", "model", "error"), "str")
    kinds |= dict.fromkeys(
        ("concurrency", "prompt_tokens", "output_tokens", "cached_tokens"), "Int64"
    )
    kinds |= dict.fromkeys(("rate", "queue_s", "ttft_s", "tpot_s", "latency_s", "lag_s"), "Float64")
    kinds |= dict.fromkeys(("repeat", "request"), "int64") | {"ok": "bool", "itl_s": "object"}
    order = ("engine", "model", "concurrency", "rate", "repeat", "request", *names)
    table = pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=kinds[name]) for name in order}
    )
    table.attrs["nbinfer"] = {"caption": f"{len(rows)} requests", "hidden": ["itl_s"]}
    return table
