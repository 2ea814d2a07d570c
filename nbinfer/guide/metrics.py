"""From the timings of requests to what a benchmark says of them.

Definitions are those of ``vllm bench serve`` (``vllm/benchmarks/serve.py``) and of guidellm, for
requests that were answered:

* TTFT: from the request to its first token, with whatever wait there was in the engine's queue;
* TPOT: (latency - TTFT) / (output tokens - 1), of answers of two tokens and more;
* ITL: the gaps between the arrivals of a request's tokens; tokens that come together are one
  arrival;
* latency: from the request to its last token;
* requests/s, output and total tok/s: sums over the time from the first request to the last answer;
* goodput: requests/s of those within all bounds (Zhong et al., "DistServe", OSDI 2024).

Percentiles are interpolated linearly between the two nearest values, as NumPy does by default.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..checks import choices_hint, number, shown
from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..frame import Row

__all__ = ["METRICS", "SLO", "Request", "check_slo", "interval", "of_requests", "ratio"]

TIMES = ("ttft_s", "tpot_s", "itl_s", "latency_s")
QUANTILES = {"p50": 50, "p90": 90, "p99": 99}
RATES = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "goodput_per_s")
METRICS = (
    *RATES,
    "good_share",
    *(f"{time}_{part}" for time in TIMES for part in ("mean", *QUANTILES)),
    "lag_s_p99",
)
SLO = ("ttft_s", "tpot_s", "latency_s")
CONFIDENCE = 0.95
# Student's t for 95 %, two-sided, by degrees of freedom from 1 (Abramowitz and Stegun, "Handbook
# of Mathematical Functions", 1964, table 26.10).
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160),
    *(2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056),
    *(2.052, 2.048, 2.045, 2.042),
)


@dataclass(slots=True)
class Request:
    """One request as it was seen: times in seconds from the moment that it was sent.

    ``lag_s`` is how much later that was than the workload wanted.
    """

    ok: bool
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None
    itl_s: list[float] | None = field(default=None, repr=False)
    lag_s: float | None = None
    error: str | None = None

    @classmethod
    def of(cls, row: Row, lag_s: float | None = None) -> Request:
        """A row that was timed by itself: the wait in the queue is the user's too."""
        wait = row.queue_s or 0.0
        ttft = None if row.ttft_s is None else wait + row.ttft_s
        latency = None if row.latency_s is None else wait + row.latency_s
        return cls(
            ok=row.finish_reason in ("stop", "length"),
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            cached_tokens=row.cached_tokens,
            queue_s=row.queue_s,
            ttft_s=ttft,
            tpot_s=row.tpot_s,
            latency_s=latency,
            itl_s=row.itl_s,
            lag_s=lag_s,
            error=row.error,
        )


def check_slo(given: Mapping[str, Any] | None) -> dict[str, float]:
    """Bounds in seconds by ``ttft_s``, ``tpot_s`` and ``latency_s``.

    Raises
    ------
    ConfigurationError
        For another name, or a bound that is no number above 0.
    """
    bounds = {}
    for name, value in (given or {}).items():
        if name not in SLO:
            raise ConfigurationError(
                f"an SLO has no {shown(name)}", hint=choices_hint(str(name), SLO)
            )
        bounds[name] = float(number(0, above=True)(f"slo[{name!r}]", value))
    return bounds


def of_requests(
    requests: Sequence[Request], duration_s: float, slo: Mapping[str, float] | None = None
) -> dict[str, float | None]:
    """The metrics of one run; ``None`` for what was not seen.

    Parameters
    ----------
    requests : sequence of Request
        All of the run.
    duration_s : float
        From the first request to the last answer.
    slo : mapping, optional
        See ``check_slo``.
    """
    import numpy as np

    answered = [r for r in requests if r.ok]
    output = _total(r.output_tokens for r in answered)
    prompt = _total(r.prompt_tokens for r in answered)
    found: dict[str, float | None] = dict.fromkeys(METRICS)
    if answered and duration_s > 0:
        found["requests_per_s"] = len(answered) / duration_s
        if output is not None:
            found["output_tokens_per_s"] = output / duration_s
            if prompt is not None:
                found["total_tokens_per_s"] = (prompt + output) / duration_s
        if slo:
            good = sum(_is_good(r, slo) for r in answered)
            found["goodput_per_s"] = good / duration_s
            found["good_share"] = good / len(requests)
    for time in TIMES:
        values = _values(answered, time)
        if values:
            found[f"{time}_mean"] = statistics.fmean(values)
            for name, share in QUANTILES.items():
                found[f"{time}_{name}"] = float(np.percentile(values, share))
    lags = [r.lag_s for r in requests if r.lag_s is not None]
    if lags:
        found["lag_s_p99"] = float(np.percentile(lags, 99))
    return found


def _total(values: Any) -> int | None:
    """A sum; unknown where a part of it is."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _values(requests: Sequence[Request], time: str) -> list[float]:
    if time == "itl_s":
        return [gap for r in requests for gap in r.itl_s or ()]
    return [value for r in requests if (value := getattr(r, time)) is not None]


def _is_good(request: Request, slo: Mapping[str, float]) -> bool:
    """Within all bounds. An answer of one token has no TPOT, and is within every bound of it."""
    for name, bound in slo.items():
        value = getattr(request, name)
        if value is None and name == "tpot_s" and request.output_tokens == 1:
            continue
        if value is None or value > bound:
            return False
    return True


# --------------------------------------------------------------------------- repeats


def student(freedom: float) -> float:
    """Student's t for 95 %, two-sided.

    Between the table's entries the next lower one, which is the wider; above 30 by the expansion
    of Abramowitz and Stegun, 26.7.5.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[max(1, math.floor(freedom)) - 1]
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def interval(
    values: Sequence[float | None],
) -> tuple[float | None, float | None, float | None]:
    """Mean of the repeats, and the ends of its 95 % confidence interval.

    mean ± t s/√n (Student, "The Probable Error of a Mean", Biometrika 6, 1908). One repeat has no
    interval; of values that are unknown in some repeat all three are unknown.
    """
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None, None, None
    mean = statistics.fmean(known)
    if len(known) < 2:
        return mean, None, None
    half = student(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    return mean, mean - half, mean + half


def ratio(
    before: Sequence[float | None], after: Sequence[float | None]
) -> tuple[float | None, float | None, float | None]:
    """Mean after over mean before, and the ends of its 95 % confidence interval.

    By the delta method on the logarithm, the two benchmarks being independent: the variance of
    ln(a/b) is about s_a²/(n_a a²) + s_b²/(n_b b²) (Casella and Berger, "Statistical Inference",
    2002, section 5.5.4), with the degrees of freedom of Welch (Biometrika 34, 1947).
    """
    old, new = interval(before)[0], interval(after)[0]
    if old is None or new is None or old <= 0 or new <= 0:
        return None, None, None
    quotient = new / old
    if len(before) < 2 or len(after) < 2:
        return quotient, None, None
    parts = []
    for values, mean in ((before, old), (after, new)):
        spread = statistics.stdev([v for v in values if v is not None])
        parts.append(((spread / mean) ** 2 / len(values), len(values) - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return quotient, quotient, quotient
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    factor = math.exp(student(freedom) * math.sqrt(variance))
    return quotient, quotient / factor, quotient * factor
