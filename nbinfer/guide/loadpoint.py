"""One engine under load: measured with a tokenizer's counts, warmed, and run point by point."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import interrupts
from ..engines.local import LocalEngine, physical_cores
from ..engines.remote import RemoteEngine
from ..errors import NbinferError, RunInterrupted
from ..frame import Row
from ..pacing import Pace
from ..progress import Reporter, reporter
from ..prompts import Prompt, normalise
from ..records import Finished, Outcome
from ..run import AHEAD, Run, new_run_id
from . import metrics
from .hardware import EnergyMeter, bandwidth_bytes_per_s
from .workload import PROBES, Calibration, Workload, arrivals, calibrate, text_of

if TYPE_CHECKING:
    from ..config import GenerationParams
    from ..engines.base import InferenceEngine

__all__ = ["Load", "Point", "Subject"]

MOST_AT_ONCE = 4096  # an open loop's: the server's queue is what is measured, not ours
LEASE_WAIT_S = 0.05  # a run that waited longer for the device has no energy of its own


@dataclass(frozen=True)
class Load:
    """How hard an engine is asked: so many requests under way, or so many a second, or both.

    Attributes
    ----------
    concurrency : int or None
        A closed loop of so many; beside ``rate`` the most under way at once.
    rate : float or None
        Requests a second of a Poisson process.
    """

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        if self.rate is None:
            return f"concurrency {self.concurrency}"
        capped = f", at most {self.concurrency} at once" if self.concurrency else ""
        return f"{self.rate:g} requests/s{capped}"

    def requests(self) -> int:
        """How many requests tell something: enough to fill it four times, or 20 seconds."""
        if self.rate is not None:
            return max(16, round(20 * self.rate))
        return max(16, 4 * (self.concurrency or 1))

    def pace(self, workload: Workload, count: int, repeat: int) -> Pace:
        if self.rate is None:
            return Pace(concurrency=self.concurrency)
        times = arrivals(self.rate, count, workload.random(4, repeat))
        return Pace(concurrency=self.concurrency, arrivals=times)


@dataclass
class Point:
    """What was seen of one engine at one load; a repeat is one entry of each list."""

    engine: str
    model: str
    load: Load
    requests: list[list[metrics.Request]] = field(default_factory=list)
    metrics: list[dict[str, float | None]] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)  # on the kernel's clock
    energy_j: list[float | None] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sample: str | None = None
    error: str | None = None


class Subject:
    """An engine that is measured.

    Parameters
    ----------
    engine : InferenceEngine
        Loaded by ``prepare``, if it is not.
    params : GenerationParams
        For every request; the length is the request's own.
    workload : Workload
    slo : mapping of str to float
    progress : bool or Reporter, optional
    """

    def __init__(
        self,
        engine: InferenceEngine,
        params: GenerationParams,
        workload: Workload,
        slo: dict[str, float],
        progress: bool | Reporter | None,
    ) -> None:
        self.engine = engine
        self.workload = workload
        self.calibration = Calibration(0.0, 1.0, known=False)
        self.notes: list[str] = []
        self.was_resident = isinstance(engine, LocalEngine) and engine.resident is not None
        able = "ignore_eos" in engine.capabilities.generation
        self._params = dataclasses.replace(params, ignore_eos=True) if able else params
        if not able:
            self.notes.append(
                f"{engine.name} cannot be told to ignore the end: answers end where the model does"
            )
        self._slo = slo
        self._progress = progress

    def prepare(self, warmup: int) -> None:
        """Load it, find out what its tokenizer makes of words, and run some rows for warmth."""
        random = self.workload.random(0)
        if self.workload.prompts is None:
            probes = [text_of(words, random) for words in PROBES]
            asked = [(p, 1) for p in normalise(probes, raw=self._params.raw)]
            _, rows, _ = self._run(asked, Pace(concurrency=1))
            problem = next((row.error for row in rows if row.error), None)
            if problem is not None:
                raise NbinferError(f"{self.engine.name} does not answer: {problem}")
            self.calibration = calibrate([row.prompt_tokens for row in rows])
            if not self.calibration.known:
                self.notes.append("the engine tells no prompt_tokens: lengths are in words")
        if warmup:
            asked = self._asked(warmup, -1)
            self._run(asked, Pace(concurrency=min(warmup, 8)))

    def measure(self, point: Point, count: int, repeat: int) -> None:
        """One repeat at one load; what was seen is added to the point."""
        asked = self._asked(count, repeat)
        pace = point.load.pace(self.workload, count, repeat)
        run, rows, energy = self._run(asked, pace)
        lags = [
            None if pace.arrivals is None else max(0.0, pace.sent[i] - pace.arrivals[i])
            for i in range(len(rows))
        ]
        requests = [metrics.Request.of(row, lag) for row, lag in zip(rows, lags, strict=True)]
        duration = run.done_at - run.sent_at
        found = metrics.of_requests(requests, duration, self._slo)
        facts = self.engine._run_facts(run)
        point.requests.append(requests)
        point.metrics.append(found)
        point.spans.append((run.sent_at, run.done_at))
        point.energy_j.append(energy)
        point.sample = next((r.output for r in rows if r.output), point.sample)
        point.error = next((r.error for r in requests if r.error), point.error)
        peaks = [b for b in (point.facts.get("peak_memory_bytes"), facts["peak_memory_bytes"]) if b]
        point.facts = {**facts, "peak_memory_bytes": max(peaks, default=None)}
        resident = self.engine.resident if isinstance(self.engine, LocalEngine) else None
        point.facts["load_s"] = resident.loaded_s if resident is not None else None

    def bandwidth_share(self, point: Point) -> float | None:
        """The part of the memory's bandwidth that decoding the weights takes, 0 to 1.

        Each step of a decode reads every weight of a dense model once, whatever the batch: weights
        / TPOT, over what a copy reaches (the roofline of Williams, Waterman and Patterson, CACM
        52, 2009, for the arithmetic of Pope et al., "Efficiently Scaling Transformer Inference",
        2022). The KV cache is left out, so it is a lower bound. Known on a CPU alone, of weights
        that are loaded as they are in the file.
        """
        engine = self.engine
        if not isinstance(engine, LocalEngine) or engine.plan().device != "cpu":
            return None
        model = engine.model_params
        changed = ("load_in_4bit", "load_in_8bit", "quantization", "quantization_config")
        size = (point.facts.get("model_facts") or {}).get("size_bytes")
        tpot = metrics.interval([m["tpot_s_mean"] for m in point.metrics])[0]
        if not size or not tpot or model.torch_dtype_str or set(changed) & set(model.model_kwargs):
            return None
        threads = point.facts.get("engine_facts", {}).get("n_threads") or physical_cores()
        return float(size / tpot / bandwidth_bytes_per_s(threads))

    def close(self, *, keep: bool) -> None:
        """Unload what was loaded for this alone."""
        if isinstance(self.engine, LocalEngine) and not (keep or self.was_resident):
            self.engine.unload()

    # -------------------------------------------------------------------- one run

    def _asked(self, count: int, repeat: int) -> list[tuple[Prompt, int]]:
        # The warm-up's words are no repeat's.
        number = repeat + 1
        return self.workload.rows(count, number, self.calibration.words, raw=self._params.raw)

    def _run(
        self, asked: Sequence[tuple[Prompt, int]], pace: Pace
    ) -> tuple[Run, list[Row], float | None]:
        """Send prompts at a pace; rows in the prompts' order, and joules where they are told."""
        engine = self.engine
        prompts = [prompt for prompt, _ in asked]
        engine._check_prompts(prompts)
        requests = [
            dataclasses.replace(request, params={**request.params, "max_new_tokens": limit})
            for request, (_, limit) in zip(
                engine._requests(prompts, self._params), asked, strict=True
            )
        ]
        outcome, rows = Outcome(), {}
        run = self._opened(pace)._open_run(
            requests, run_id=new_run_id(), outcome=outcome, stream=False, wait=True, ahead=AHEAD
        )
        run.pace = pace
        meter = EnergyMeter()
        with interrupts.guard() as guard, guard.listening(run.stop):
            meter.start()
            began = time.monotonic()
            with reporter(self._progress) as report:
                for record in run.records():
                    if isinstance(record, Finished):
                        rows[record.number] = record.row
                    report(record)
            energy = meter.joules() if self._is_here(run, run.sent_at - began) else None
            outcome.interrupted = guard.take() or outcome.interrupted
        if outcome.interrupted:
            raise RunInterrupted("the benchmark was stopped")
        if outcome.error is not None:
            raise outcome.error
        return run, [rows[number] for number in range(len(requests))], energy

    def _opened(self, pace: Pace) -> InferenceEngine:
        """A server's client with as many places as the load asks for: its own pace would adapt."""
        engine = self.engine
        if not isinstance(engine, RemoteEngine) or engine.remote_params.num_workers is not None:
            return engine
        places = pace.concurrency or MOST_AT_ONCE
        remote = dataclasses.replace(engine.remote_params, num_workers=places)
        return type(engine)(engine.model_params, remote_params=remote)

    def _is_here(self, run: Run, waited_s: float) -> bool:
        """Whether the energy of this machine, in this time, is the engine's."""
        local = isinstance(self.engine, LocalEngine) or getattr(run, "_process", None) is not None
        return local and waited_s < LEASE_WAIT_S
