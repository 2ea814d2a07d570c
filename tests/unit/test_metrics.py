"""What a benchmark says of requests, against figures that are worked out by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from nbinfer import ConfigurationError
from nbinfer.frame import Row
from nbinfer.guide import hardware, metrics
from nbinfer.guide.metrics import Request, interval, of_requests, ratio, student
from nbinfer.guide.workload import Calibration, Lengths, Workload, arrivals, calibrate


def request(ttft=0.1, latency=1.1, tokens=11, ok=True, **more):
    tpot = (latency - ttft) / (tokens - 1) if tokens > 1 else None
    return Request(ok, 20, tokens, 0, 0.0, ttft, tpot, latency, **more)


# --------------------------------------------------------------------------- metrics


def test_rates_are_sums_over_the_time():
    found = of_requests([request(), request(tokens=21), request(ok=False)], 2.0)
    assert found["requests_per_s"] == 1.0
    assert found["output_tokens_per_s"] == 16.0
    assert found["total_tokens_per_s"] == 36.0
    assert found["goodput_per_s"] is None


def test_percentiles_are_those_of_numpy():
    times = [0.1, 0.2, 0.4, 0.8, 1.6]
    found = of_requests([request(ttft=t, latency=2 * t) for t in times], 1.0)
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[f"ttft_s_{name}"] == np.percentile(times, share)
        assert found[f"latency_s_{name}"] == pytest.approx(np.percentile(times, share) * 2)
    assert found["ttft_s_mean"] == pytest.approx(statistics.fmean(times))


def test_the_same_as_vllm_computes_of_the_same_requests():
    # The lines of calculate_metrics() in vllm/benchmarks/serve.py, on the same numbers.
    ttfts, latencies, tokens = [0.2, 0.3, 0.25], [1.0, 2.0, 1.5], [9, 18, 1]
    requests = [request(t, e, n) for t, e, n in zip(ttfts, latencies, tokens, strict=True)]
    tpots = [(e - t) / (n - 1) for t, e, n in zip(ttfts, latencies, tokens, strict=True) if n > 1]
    found = of_requests(requests, 4.0, {"ttft_s": 0.26, "tpot_s": 0.11})
    assert found["output_tokens_per_s"] == sum(tokens) / 4
    assert found["tpot_s_p50"] == pytest.approx(np.median(tpots))
    assert found["tpot_s_p99"] == pytest.approx(np.percentile(tpots, 99))
    # The one of a single token is within every bound of TPOT, as there.
    assert found["goodput_per_s"] == 2 / 4
    assert found["good_share"] == pytest.approx(2 / 3)


def test_goodput_is_within_all_bounds():
    requests = [request(ttft=0.1), request(ttft=0.5), request(ok=False)]
    assert of_requests(requests, 1.0, {"ttft_s": 0.2})["good_share"] == pytest.approx(1 / 3)
    assert of_requests(requests, 1.0, {"ttft_s": 1, "latency_s": 1.0})["goodput_per_s"] == 0.0


def test_what_was_not_seen_is_unknown():
    found = of_requests([Request(True, None, None, latency_s=1.0)], 1.0)
    assert found["output_tokens_per_s"] is None
    assert found["ttft_s_p50"] is None
    assert found["itl_s_p99"] is None
    assert found["requests_per_s"] == 1.0
    assert set(of_requests([request(ok=False)], 1.0).values()) == {None}
    assert set(of_requests([], 0.0).values()) == {None}


def test_the_wait_in_the_queue_is_the_requests():
    row = Row(0, finish_reason="length", queue_s=0.5, ttft_s=0.1, tpot_s=0.01, latency_s=0.2)
    seen = Request.of(row, lag_s=0.001)
    assert (seen.ttft_s, seen.latency_s, seen.tpot_s) == (0.6, 0.7, 0.01)
    assert seen.ok
    assert not Request.of(Row(0, finish_reason="error", error="x")).ok


def test_an_slo_that_makes_no_sense():
    assert metrics.check_slo({"ttft_s": 1}) == {"ttft_s": 1.0}
    with pytest.raises(ConfigurationError, match="no 'ttft'") as caught:
        metrics.check_slo({"ttft": 1})
    assert "did you mean 'ttft_s'" in str(caught.value)
    for bad in (0, -1, math.nan, math.inf, "fast", True):
        with pytest.raises(ConfigurationError, match="ttft_s"):
            metrics.check_slo({"ttft_s": bad})


# ------------------------------------------------------------------------- intervals


def test_students_t():
    assert student(1) == 12.706
    assert student(4) == 2.776
    assert student(2.9) == 4.303  # the wider one
    # Abramowitz and Stegun's table goes on with these.
    assert student(40) == pytest.approx(2.021, abs=5e-4)
    assert student(60) == pytest.approx(2.000, abs=5e-4)
    assert student(120) == pytest.approx(1.980, abs=5e-4)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(7)
    held = 0
    for _ in range(2000):
        _, low, high = interval(random.normal(10, 2, 3).tolist())
        held += low <= 10 <= high
    assert 0.93 < held / 2000 < 0.97


def test_one_repeat_has_no_interval():
    assert interval([3.0]) == (3.0, None, None)
    assert interval([3.0, None]) == (None, None, None)
    assert interval([]) == (None, None, None)
    assert interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_a_ratio_holds_the_true_one_as_often_as_it_says():
    random = np.random.default_rng(8)
    held = 0
    for _ in range(1000):
        _, low, high = ratio(random.normal(10, 1, 5).tolist(), random.normal(20, 1, 5).tolist())
        held += low <= 2 <= high
    assert 0.92 < held / 1000 < 0.99
    assert ratio([2.0], [4.0]) == (2.0, None, None)
    assert ratio([2.0, 2.0], [4.0, 4.0]) == (2.0, 2.0, 2.0)
    assert ratio([None], [1.0]) == (None, None, None)
    assert ratio([0.0, 0.0], [1.0, 1.0]) == (None, None, None)


# -------------------------------------------------------------------------- workload


@pytest.mark.parametrize(
    ("value", "mean", "spread"),
    [
        (128, 128, 0),
        ("64", 64, 0),
        ("uniform:64,256", 160, 55.7),
        ("normal:128,32", 128, 32),
        ("lognormal:128,64", 128, 64),
    ],
)
def test_lengths_have_the_mean_and_spread_that_are_said(value, mean, spread):
    lengths = Lengths.parse("prompt_tokens", value)
    drawn = lengths.draw(20_000, np.random.default_rng(1))
    assert min(drawn) >= 1
    assert np.mean(drawn) == pytest.approx(mean, rel=0.02)
    assert np.std(drawn) == pytest.approx(spread, rel=0.04)
    assert str(Lengths.parse("x", str(lengths))) == str(lengths)


@pytest.mark.parametrize(
    "value",
    [
        *("", "7B", "many", "-3", 0, -1, 1.5, True, None, [1], "uniform:5", "uniform:9,3"),
        *("normal:5", "128,256", "lognormal:a,b", "zipf:1,2", "8192 tokens", "nan"),
    ],
)
def test_lengths_that_make_no_sense(value):
    with pytest.raises(ConfigurationError, match="output_tokens"):
        Lengths.parse("output_tokens", value)


def test_arrivals_are_a_poisson_process():
    times = arrivals(4.0, 20_000, np.random.default_rng(2))
    gaps = np.diff(times)
    assert times[0] == 0.0
    assert times == sorted(times)
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert np.std(gaps) == pytest.approx(0.25, rel=0.03)  # exponential: as much as the mean


def test_words_are_counted_by_what_two_probes_come_to():
    known = calibrate([32 + 21, 160 + 21])
    assert known == Calibration(21.0, 1.0)
    assert known.words(128) == 107
    assert calibrate([85, 341]).per_word == 2.0
    assert not calibrate([None, None]).known
    with pytest.raises(ConfigurationError, match="the chat template alone has 21"):
        known.words(21)


def test_repeats_have_the_same_lengths_and_other_words():
    work = Workload(Lengths.parse("p", "uniform:5,50"), Lengths.parse("o", "normal:20,5"), seed=3)
    one, two, again = (work.rows(8, repeat, lambda n: n, raw=True) for repeat in (0, 1, 0))
    assert [len(p.shown.split()) for p, _ in one] == [len(p.shown.split()) for p, _ in two]
    assert [limit for _, limit in one] == [limit for _, limit in two]
    assert [p.shown for p, _ in one] == [p.shown for p, _ in again]
    first = {p.shown.split()[0] + p.shown.split()[1] for p, _ in [*one, *two]}
    assert len(first) > 12  # nearly none begins as another


# -------------------------------------------------------------------------- hardware


def zone(root, number, name, energy, most):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_energy_is_of_the_packages_and_a_counter_may_wrap(tmp_path):
    one = zone(tmp_path, "0", "package-0", 5_000_000, 100_000_000)
    two = zone(tmp_path, "1", "package-1", 99_000_000, 100_000_000)
    zone(tmp_path, "0:0", "dram", 0, 100_000_000)
    meter = hardware.EnergyMeter(tmp_path)
    meter.start()
    one.write_text("8000000\n")
    two.write_text("1500000\n")
    assert meter.source == "RAPL"
    assert meter.joules() == pytest.approx(3.0 + 2.5)


def test_a_machine_that_does_not_tell_its_energy(tmp_path):
    meter = hardware.EnergyMeter(tmp_path / "none")
    meter.start()
    assert meter.joules() is None
    assert meter.source == ""


def test_the_memorys_bandwidth_is_a_machines():
    assert 1e8 < hardware.bandwidth_bytes_per_s(1) < 1e13
