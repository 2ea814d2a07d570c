"""``nbinfer.benchmark``: engines under the same load, one after another."""

from __future__ import annotations

import datetime
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import notices, selection
from ..checks import integer, number, shown
from ..comparison import label_of
from ..config import GenerationParams
from ..engines.base import InferenceEngine
from ..errors import ConfigurationError, NbinferError, RunInterrupted
from ..measure import machine
from . import exports, metrics, results
from .loadpoint import Load, Point, Subject
from .workload import Lengths, Workload

if TYPE_CHECKING:
    import pandas as pd

    from ..progress import Reporter

__all__ = ["benchmark"]


def benchmark(
    engines: str | InferenceEngine | Sequence[str | InferenceEngine] | None = None,
    *,
    prompts: Any = None,
    template: str | None = None,
    prompt_tokens: int | str | Lengths = 128,
    output_tokens: int | str | Lengths = 64,
    requests: int | None = None,
    concurrency: int | Sequence[int] | None = None,
    rate: float | Sequence[float] | None = None,
    warmup: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    slo: Mapping[str, float] | None = None,
    generation_params: GenerationParams | None = None,
    keep: bool = False,
    against: str | os.PathLike[str] | None = None,
    save: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    progress: bool | Reporter | None = None,
) -> pd.DataFrame:
    """Measure how fast engines answer under load: one after another, never at once.

    Parameters
    ----------
    engines : str, InferenceEngine, or sequence of them, optional
        Names or engines. Default: the engine last chosen.
    prompts : str, DataFrame, or sequence, optional
        As ``engine.infer`` takes them, in their order and again from the first. A DataFrame's
        column ``max_new_tokens`` is each prompt's own length of answer. By default random words.
        Prompts that repeat are answered from the prefix cache where an engine has one:
        ``cached_share`` tells.
    template : str, optional
        Text with ``{{column}}`` placeholders, for a DataFrame.
    prompt_tokens, output_tokens : int, str or Lengths, default 128 and 64
        Lengths in tokens: ``128``, ``"uniform:64,256"`` (from, to), ``"normal:128,32"`` or
        ``"lognormal:128,64"`` (mean, standard deviation). A prompt's includes the chat template;
        it is made by what two probes come to on the engine, and what it really was is in the
        result. Answers have exactly their length on an engine that can ignore the model's end.
    requests : int, optional
        For each load and repeat. Default: four times the concurrency or 20 seconds of the rate, at
        least 16.
    concurrency : int or sequence of int, optional
        Closed loops of so many requests under way, one after another. Default 1. With ``rate``:
        the most under way at once.
    rate : float or sequence of float, optional
        Open loops of so many requests a second, arriving as a Poisson process.
    warmup : int, optional
        Requests before the first load of an engine, which do not count. Default: the highest
        concurrency, at most 8.
    repeats : int, default 3
        Of each load, with new words.
    seed : int, default 0
        Of lengths, words and arrivals: the same for every engine.
    slo : mapping, optional
        Bounds in seconds, of ``ttft_s``, ``tpot_s`` and ``latency_s``: what is within all of them
        is goodput.
    generation_params : GenerationParams, optional
        What else each request has. Default: greedy.
    keep : bool, default False
        Leave engines loaded that were loaded for this. Those that were resident stay.
    against : path, optional
        A ``.json`` of an earlier benchmark: ratios to it are added, where load and engine are the
        same.
    save : path or sequence of paths, optional
        ``.json`` (all of it), ``.html`` and ``.md`` (a report), ``.png`` or ``.svg`` (throughput
        against latency), ``.csv`` or ``.parquet`` (a row for each request).
    progress : bool or Reporter, optional
        By default shown in notebooks and terminals.

    Returns
    -------
    pandas.DataFrame
        A row for each engine and load; columns as in ``nbinfer.guide.results.COLUMNS``. Times in
        seconds, memory in bytes, energy in joules, means of the repeats; ``_low`` and ``_high``
        are the ends of the 95 % confidence interval, NA with one repeat. What could not be seen
        is NA. ``df.infer.requests()`` has a row for each request, ``df.infer.plot()`` draws
        throughput against latency. How each metric is defined: ``nbinfer.guide.metrics``.

    Raises
    ------
    ConfigurationError, UnsupportedParameter
        For what makes no sense, before anything runs.
    RunInterrupted
        When it is stopped; ``.frame`` has the loads that were measured.
    NbinferError
        If no engine could be measured. One of several that fails has its reason in ``error``.
    """
    targets = _targets(save)
    earlier = exports.load(against) if against is not None else None
    params = _generation(generation_params)
    chosen = _engines(engines, params)
    workload = Workload.of(
        prompts,
        template,
        params.raw,
        prompt_tokens=Lengths.parse("prompt_tokens", prompt_tokens),
        output_tokens=Lengths.parse("output_tokens", output_tokens),
        seed=integer(0, 2**32 - 1)("seed", seed),
    )
    loads = _loads(concurrency, rate)
    bounds = metrics.check_slo(slo)
    repeats = integer(1, 1000)("repeats", repeats)
    count = None if requests is None else integer(1)("requests", requests)
    highest = max(load.concurrency or 1 for load in loads)
    warm = min(8, highest) if warmup is None else integer(0)("warmup", warmup)
    found = results.Benchmark(
        id=uuid.uuid4().hex[:12],
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine(),
        workload=workload.to_dict(),
        slo=bounds,
        generation_params=params.to_dict(changed_only=True),
        earlier=earlier,
    )
    failures: list[NbinferError] = []
    try:
        for engine in chosen:
            subject = Subject(engine, params, workload, bounds, progress)
            _measure(subject, found, loads, count, repeats, warm, keep, failures)
    except RunInterrupted as stopped:
        done = sum(len(p.metrics) for p in found.points)
        raise RunInterrupted(
            f"{stopped.message}; what was measured is kept ({done} runs)",
            _finished(found, targets) if done else None,
        ) from None
    if failures and not any(point.metrics for point in found.points):
        raise failures[0]
    return _finished(found, targets)


def _finished(found: results.Benchmark, targets: Sequence[Path]) -> pd.DataFrame:
    frame = results.finish(found)
    exports.write(found, frame, targets)
    return frame


def _measure(
    subject: Subject,
    found: results.Benchmark,
    loads: Sequence[Load],
    count: int | None,
    repeats: int,
    warmup: int,
    keep: bool,
    failures: list[NbinferError],
) -> None:
    """One engine: all its loads; a failure is told and ends this engine alone."""
    engine = subject.engine
    point: Point | None = None
    try:
        subject.prepare(warmup)
        for load in loads:
            point = Point(engine.name, engine.model_params.model_name, load)
            found.points.append(point)
            for repeat in range(repeats):
                subject.measure(point, count or load.requests(), repeat)
            point.facts["bandwidth_share"] = subject.bandwidth_share(point)
            point.notes += subject.notes
    except RunInterrupted:
        raise
    except NbinferError as error:
        failures.append(error)
        notices.notify(f"{engine.name} could not be measured: {error.message.splitlines()[0]}")
        if point is None:
            point = Point(engine.name, engine.model_params.model_name, loads[0])
            found.points.append(point)
        point.error = error.message.splitlines()[0]
    finally:
        subject.close(keep=keep)


# ------------------------------------------------------------------------- checking


def _engines(given: Any, params: GenerationParams) -> list[InferenceEngine]:
    listed = [given] if given is None or isinstance(given, str | InferenceEngine) else list(given)
    if not listed:
        raise ConfigurationError("no engine is named", hint='nbinfer.benchmark(["llamacpp"])')
    chosen = [
        e if isinstance(e, InferenceEngine) else selection.for_engine(e).make() for e in listed
    ]
    labels = [label_of(engine) for engine in chosen]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigurationError(f"{label} is there twice")
    for engine in chosen:  # all are asked before the first of them runs for minutes
        engine._params(params)
    return chosen


def _generation(given: Any) -> GenerationParams:
    params = GenerationParams() if given is None else given
    if not isinstance(params, GenerationParams):
        raise ConfigurationError(
            f"generation_params must be GenerationParams, not {type(params).__name__}"
        )
    changed = params.to_dict(changed_only=True)
    for name, instead in (("max_new_tokens", "output_tokens"), ("n", "requests")):
        if name in changed:
            raise ConfigurationError(
                f"generation_params has {name}={changed[name]!r}", hint=f"use {instead}=..."
            )
    return params


def _loads(concurrency: Any, rate: Any) -> list[Load]:
    many = [integer(1)("concurrency", c) for c in _listed("concurrency", concurrency)]
    rates = [float(number(0, above=True)("rate", r)) for r in _listed("rate", rate)]
    if rates:
        if len(many) > 1:
            raise ConfigurationError(
                f"beside a rate, concurrency is the most under way at once, and it is {many}",
                hint="give one, or leave out rate",
            )
        return [Load(many[0] if many else None, r) for r in rates]
    return [Load(c) for c in many or [1]]


def _listed(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    listed = list(value) if isinstance(value, list | tuple | range | set) else [value]
    if not listed or len(set(map(str, listed))) < len(listed):
        raise ConfigurationError(f"{name} takes values that differ, not {shown(value)}")
    return listed


def _targets(save: Any) -> list[Path]:
    listed = [save] if isinstance(save, str | os.PathLike) else list(save)
    paths = [Path(path).expanduser() for path in listed]
    for path in paths:
        if path.suffix not in exports.WRITERS:
            raise ConfigurationError(
                f"save={str(path)!r} has an ending that says nothing",
                hint=f"there are: {', '.join(exports.WRITERS)}",
            )
        if not path.parent.is_dir():
            raise ConfigurationError(f"save={str(path)!r}: there is no folder {str(path.parent)!r}")
    return paths
