"""``nbinfer.benchmark`` on the stand-in engine, whose clock is exact, in real processes."""

from __future__ import annotations

import itertools
import json
import threading
import time

import numpy as np
import pandas as pd
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    GenerationParams,
    ModelParams,
    RemoteParams,
    RemoteVLLMInferenceEngine,
    RunInterrupted,
    UnsupportedParameter,
)
from nbinfer.guide import benchmark as benchmarks
from nbinfer.guide import results
from nbinfer.notebook.display import frame_html, frame_text
from nbinfer.pacing import Pace

from .apiserver import Server, stream
from .conftest import echo, interrupt_when

# 0.25 s for a prompt, 0.01 s for each token, on a clock that moves by these alone.
EXACT = {"clock": "virtual", "prefill_s": 0.25, "token_s": 0.01}
SMALL = {"prompt_tokens": 12, "output_tokens": 5, "requests": 6, "repeats": 2, "progress": False}


def test_times_are_exact(clean):
    frame = nbinfer.benchmark(
        echo(**EXACT), concurrency=[1, 4], **{**SMALL, "output_tokens": 11, "requests": 8}
    )
    assert list(frame.columns) == list(results.COLUMNS)
    assert frame["concurrency"].tolist() == [1, 4]
    assert frame["rate"].isna().all()
    for name in ("p50", "p90", "p99", "mean"):
        assert frame[f"ttft_s_{name}"].tolist() == pytest.approx([0.26, 0.26])
        assert frame[f"tpot_s_{name}"].tolist() == pytest.approx([0.01, 0.01])
        assert frame[f"itl_s_{name}"].tolist() == pytest.approx([0.01, 0.01])
        assert frame[f"latency_s_{name}"].tolist() == pytest.approx([0.36, 0.36])
    assert frame["prompt_tokens"].tolist() == [12, 12]
    assert frame["output_tokens"].tolist() == [11, 11]
    assert frame["requests"].tolist() == [16, 16]
    assert frame["failed"].tolist() == [0, 0]
    assert frame["goodput_per_s"].isna().all()
    assert frame["error"].isna().all()
    assert (frame["model_memory_bytes"] > 0).all()
    assert (frame["load_s"] > 0).all()


def test_a_row_for_each_request(clean):
    frame = nbinfer.benchmark(echo(**EXACT), **SMALL)
    rows = frame.infer.requests()
    assert len(rows) == 12
    assert rows["repeat"].tolist() == [0] * 6 + [1] * 6
    assert rows["output_tokens"].tolist() == [5] * 12
    assert [len(gaps) for gaps in rows["itl_s"]] == [4] * 12
    assert rows["lag_s"].isna().all()
    assert "12 requests" in frame_text(rows)
    lost = frame.copy()
    lost.attrs["nbinfer"] = {**frame.attrs["nbinfer"], "benchmark": "gone"}
    with pytest.raises(ConfigurationError, match="no longer at hand"):
        lost.infer.requests()
    with pytest.raises(ConfigurationError, match=r"no result of nbinfer\.benchmark"):
        pd.DataFrame({"a": [1]}).infer.requests()


def test_a_closed_loop_keeps_so_many_under_way_and_no_more(clean, monkeypatch):
    seen = []
    wait = Pace.wait_s

    def watched(self, number, pending, elapsed):
        seen.append(pending)
        return wait(self, number, pending, elapsed)

    monkeypatch.setattr(Pace, "wait_s", watched)
    nbinfer.benchmark(echo(token_s=0.002, slots=3), concurrency=3, **SMALL)
    assert max(seen) == 3


def test_an_open_loop_sends_each_at_its_moment_whatever_is_under_way(clean):
    engine = echo(slots=1, prefill_s=0.02, token_s=0.002)
    frame = nbinfer.benchmark(engine, rate=60, **{**SMALL, "requests": 24, "repeats": 1})
    rows = frame.infer.requests()
    # One at a time of 0.03 s cannot keep up with 60 a second: the wait is in TTFT and latency.
    assert rows["queue_s"].iloc[-1] > 0.1
    assert (rows["ttft_s"] >= rows["queue_s"]).all()
    assert (rows["latency_s"] >= rows["ttft_s"]).all()
    assert frame["rate"][0] == 60
    assert frame["concurrency"].isna().all()
    assert frame["lag_s_p99"][0] < 0.2
    assert frame["requests_per_s"][0] < 45


def test_a_rate_with_a_limit(clean):
    frame = nbinfer.benchmark(
        echo(slots=1, token_s=0.01), rate=200, concurrency=1, **{**SMALL, "repeats": 1}
    )
    rows = frame.infer.requests()
    # Nobody waits in the engine: they wait before they are sent, which is told as lag.
    assert rows["queue_s"].max() < 0.05
    assert rows["lag_s"].iloc[-1] > 0.05


def test_goodput(clean):
    for bound, share in ((0.27, 1.0), (0.25, 0.0)):
        frame = nbinfer.benchmark(echo(**EXACT), slo={"ttft_s": bound}, **SMALL)
        assert frame["good_share"][0] == share
    assert "goodput within ttft_s ≤ 0.25" in frame_text(frame)


def test_engines_run_one_after_another_and_what_was_loaded_goes(clean):
    stays, goes = echo("stays", slots=1, token_s=0.001), echo("goes", slots=2, token_s=0.001)
    stays.load()
    nbinfer.benchmark([stays, goes], concurrency=[1, 2], **SMALL)
    (found,) = (b for b in [next(reversed(results._kept.values()))])
    spans = [span for point in found.points for span in point.spans]
    assert len(spans) == 8
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert stays.resident is not None
    assert goes.resident is None
    nbinfer.benchmark(goes, keep=True, **SMALL)
    assert goes.resident is not None


def test_it_waits_for_a_run_that_is_under_way(clean):
    other = echo("other", token_s=0.02)
    words = "a b c d e f g h i j k l m n o p q r s t u v w x y z" * 2
    ended = []

    def run():
        other.infer(words, progress=False)
        ended.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    while other.resident is None or not other.resident.busy:
        time.sleep(0.005)
    nbinfer.benchmark(echo("mine"), **SMALL)
    thread.join()
    first = next(reversed(results._kept.values())).points[0].spans[0][0]
    assert first >= ended[0] - 0.1


def test_the_users_table_is_asked_in_its_order(clean, tmp_path):
    tally = tmp_path / "tally"
    table = pd.DataFrame({"word": ["x", "y y", "z z z"], "max_new_tokens": [2, 3, 4]})
    frame = nbinfer.benchmark(
        echo(tally=str(tally), slots=1),
        prompts=table,
        template="say {{word}}",
        warmup=0,
        **{**SMALL, "requests": 4, "repeats": 1},
    )
    asked = [json.loads(line) for line in tally.read_text().splitlines()]
    assert asked == ["say x", "say y y", "say z z z", "say x"]
    assert frame.infer.requests()["output_tokens"].tolist() == [2, 3, 4, 2]
    assert "3 prompts of yours" in frame.attrs["nbinfer"]["caption"]


def test_failed_requests_are_counted_and_not_measured(clean):
    prompts = ["one two", "!fail it broke", "three four"]
    frame = nbinfer.benchmark(echo(**EXACT), prompts=prompts, warmup=0, **SMALL)
    assert frame["failed"][0] == 4
    assert frame["requests"][0] == 12
    assert frame["error"][0] == "it broke"
    assert frame["ttft_s_p50"][0] == pytest.approx(0.26)


def test_an_engine_that_fails_does_not_take_the_others_along(clean):
    frame = nbinfer.benchmark([echo(load_fails="no luck"), echo("good")], **SMALL)
    assert "no luck" in frame["error"][0]
    assert frame["requests_per_s"].isna().tolist() == [True, False]
    with pytest.raises(nbinfer.LoadError, match="no luck"):
        nbinfer.benchmark(echo(load_fails="no luck"), **SMALL)


def test_a_crash_in_the_middle(clean):
    frame = nbinfer.benchmark(
        [echo("bad"), echo("good")],
        prompts=["a b", "a b", "!exit 3"],
        warmup=0,
        **{**SMALL, "requests": 2, "repeats": 1, "concurrency": 1},
    )
    assert frame["error"].isna().all()  # so far it was well
    with pytest.raises(nbinfer.EngineCrashed):
        nbinfer.benchmark(echo("bad"), prompts=["!exit 3"], warmup=0, **SMALL)


def test_an_interrupt_keeps_what_was_measured(clean):
    engine = echo(token_s=0.01)
    done = results._kept

    def second_load():
        return engine.resident is not None and engine.resident.busy and ready.is_set()

    ready = threading.Event()
    measure = benchmarks.Subject.measure

    def watched(self, point, count, repeat):
        if point.load.concurrency == 2:
            ready.set()
        return measure(self, point, count, repeat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmarks.Subject, "measure", watched)
        with interrupt_when(second_load), pytest.raises(RunInterrupted) as caught:
            nbinfer.benchmark(engine, concurrency=[1, 2], **{**SMALL, "requests": 60, "repeats": 1})
    assert caught.value.frame["requests"].tolist() == [60, 0]
    assert done


# ----------------------------------------------------------------------------- files


def test_reports_hold_no_live_text(clean, tmp_path):
    # An answer and a name of an untrusted model: HTML, Markdown, a fence, a control character.
    evil = '<script>alert(1)</script> ``` | <img src=x onerror=y> \x1b[31m "'
    paths = [tmp_path / f"b.{kind}" for kind in ("html", "md", "json", "png", "svg", "csv")]
    frame = nbinfer.benchmark(
        echo("<b>|model`"), prompts=[evil], save=paths, **{**SMALL, "output_tokens": 30}
    )
    page, text = (path.read_text() for path in paths[:2])
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page + text
    assert "data:image/png;base64," in page
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "````text" in text  # longer than any fence of the answer's
    assert "<b>" not in frame_html(frame)
    assert paths[3].read_bytes().startswith(b"\x89PNG")
    assert "svg" in paths[4].read_text()
    assert len(pd.read_csv(paths[5])) == 12


def test_ratios_to_an_earlier_benchmark(clean, tmp_path):
    path = tmp_path / "old.json"
    nbinfer.benchmark(echo(**EXACT), save=path, **SMALL)
    stored = json.loads(path.read_text())
    assert stored["points"][0]["metrics"][0]["ttft_s_p50"] == pytest.approx(0.26)
    for repeat in stored["points"][0]["metrics"]:
        repeat["ttft_s_p50"] *= 2
    path.write_text(json.dumps(stored))
    frame = nbinfer.benchmark(echo(**EXACT), against=path, **SMALL)
    assert frame["ttft_s_p50_ratio"][0] == pytest.approx(0.5)
    assert frame["ttft_s_p50_ratio_low"][0] <= frame["ttft_s_p50_ratio_high"][0]
    assert "ratios to the benchmark of" in frame_text(frame)
    other = nbinfer.benchmark(echo(**EXACT), against=path, concurrency=2, **SMALL)
    assert other["ttft_s_p50_ratio"].isna().all()  # another load


def test_it_is_drawn(clean):
    frame = nbinfer.benchmark([echo("$x_1$", slots=1), echo("_y")], concurrency=[1, 2], **SMALL)
    figure = frame.infer.plot()
    (axes,) = figure.axes
    assert len(axes.get_legend_handles_labels()[1]) == 2
    assert "output tokens" in axes.get_ylabel()


# -------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": [1, 1]}, "values that differ"),
        ({"concurrency": []}, "values that differ"),
        ({"concurrency": "8"}, "concurrency"),
        ({"rate": 0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 2, "concurrency": [1, 2]}, "most under way"),
        ({"repeats": 0}, "repeats"),
        ({"requests": 0}, "requests"),
        ({"warmup": -1}, "warmup"),
        ({"seed": -1}, "seed"),
        ({"slo": {"p99": 1}}, "SLO"),
        ({"prompt_tokens": "40GB"}, "prompt_tokens"),
        ({"output_tokens": "7B"}, "output_tokens"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": 3}, "prompts must be"),
        ({"prompts": ["\ud800"]}, "lone surrogate"),
        ({"prompts": pd.DataFrame({"prompt": ["a"], "max_new_tokens": [0.5]})}, "max_new_tokens"),
        ({"prompts": pd.DataFrame({"prompt": ["a"], "max_new_tokens": [None]})}, "max_new_tokens"),
        ({"prompts": ["a"], "template": "{{x}}"}, "needs a DataFrame"),
        ({"generation_params": GenerationParams(max_new_tokens=3)}, "max_new_tokens=3"),
        ({"generation_params": GenerationParams(n=2)}, "n=2"),
        ({"generation_params": {"n": 1}}, "must be GenerationParams"),
        ({"save": "table.xlsx"}, "ending"),
        ({"save": "/no/such/folder/b.json"}, "no folder"),
        ({"against": "/no/such.json"}, "cannot be read"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(clean, options, problem):
    engine = echo()
    with pytest.raises(ConfigurationError, match=problem):
        nbinfer.benchmark(engine, **options)
    assert engine.resident is None


def test_engines_that_make_no_sense(clean):
    with pytest.raises(ConfigurationError, match="no engine is called 'ecko'"):
        nbinfer.benchmark("ecko")
    with pytest.raises(ConfigurationError, match="no engine is named"):
        nbinfer.benchmark([])
    with pytest.raises(ConfigurationError, match="there twice"):
        nbinfer.benchmark([echo(), echo()])
    with pytest.raises(UnsupportedParameter, match="top_p"):
        nbinfer.benchmark(echo(), generation_params=GenerationParams(top_p=0.5))


def test_a_file_that_is_no_benchmark(clean, tmp_path):
    for number, text in enumerate(
        ("", "[]", '{"format": "x"}', '{"format": "nbinfer benchmark 1"}')
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="no benchmark of nbinfer"):
            nbinfer.benchmark(echo(), against=path)


def test_a_prompt_that_is_shorter_than_the_template(clean, monkeypatch):
    from nbinfer.guide import loadpoint, workload

    monkeypatch.setattr(loadpoint, "calibrate", lambda _: workload.Calibration(30.0, 1.0))
    with pytest.raises(ConfigurationError, match="the chat template alone has 30"):
        nbinfer.benchmark(echo(), **SMALL)


# ------------------------------------------------------------------- magic, command line


def test_the_magic(shell):
    line = "%benchmark -e echo --prompt-tokens 8 --output-tokens 4 --requests 4 --repeats 1"
    frame = shell.cell(f"{line} --concurrency 1,2 --slo ttft_s=9").value
    assert frame["concurrency"].tolist() == [1, 2]
    assert frame["good_share"].tolist() == [1.0, 1.0]
    shown, _ = shell.display_formatter.format(frame)  # with units, and not every column
    assert shown["text/plain"].startswith("8 tokens in, 4 out")
    assert "goodput_per_s_low" not in shown["text/html"]
    assert "image/png" in shell.display_formatter.format(frame.infer.plot())[0]
    shell.user_ns["table"] = pd.DataFrame({"w": ["a", "b"]})
    frame = shell.cell(f"{line} --data table --template '{{{{w}}}} c'").value
    assert np.allclose(frame["prompt_tokens"].astype(float), 2)
    for options, problem in {
        "--data nothing": "neither a DataFrame",
        "--concurrency two": "concurrency",
        "--rate fast": "rate",
        "-e ecko": "no engine",
        "--set max_new_tokens=3": "output_tokens",
        "--slo ttft_s": "ttft_s",
    }.items():
        with pytest.raises(ConfigurationError, match=problem):
            shell.cell(f"{line} {options}")


def test_the_command(clean, tmp_path, capsys):
    from nbinfer import cli

    path = tmp_path / "b.md"
    words = ["benchmark", "-e", "echo", "--requests", "4", "--repeats", "1", "--save", str(path)]
    assert cli.main(words) == 0
    assert "echo" in capsys.readouterr().out
    assert path.read_text().startswith("# Benchmark")
    data = tmp_path / "p.csv"
    data.write_text("prompt\nhello there\n")
    assert cli.main([*words, "--data", str(data)]) == 0
    assert cli.main([*words, "--data", str(tmp_path / "none.csv")]) == 1
    assert "neither a DataFrame" in capsys.readouterr().err


# --------------------------------------------------------------------------- servers


def server_engine(server, **remote):
    params = RemoteParams(api_url=server.url, **remote)
    return RemoteVLLMInferenceEngine(ModelParams("m"), remote_params=params)


def test_a_server_is_asked_by_as_many_as_the_load_says(clean):
    with Server(lambda call: stream(call, "a b c d e", 0.01), owner="vllm") as server:
        options = {**SMALL, "requests": 48, "repeats": 1, "warmup": 0, "prompts": ["x"]}
        frame = nbinfer.benchmark(server_engine(server), concurrency=24, **options)
        assert server.most_at_once == 24  # its own adaptive pace begins with fewer
        (row,) = frame.to_dict("records")
        assert row["failed"] == 0
        rows = frame.infer.requests()
        assert {len(gaps) for gaps in rows["itl_s"]} == {4}
        # Pieces are made 10 ms apart; a client that is late for one is sooner at the next.
        assert 0.004 < row["itl_s_p50"] < 0.2
        assert row["cached_share"] == pytest.approx(2 / 5)
        assert pd.isna(row["load_s"])
        assert pd.isna(row["energy_j"])
        assert pd.isna(row["bandwidth_share"])
        assert all(call.body["ignore_eos"] is True for call in server.calls)
        assert all(call.body["max_tokens"] == 5 for call in server.calls)
        nbinfer.shutdown()


def test_a_server_that_tells_no_counts_is_asked_in_words(clean):
    with Server(owner="vllm") as server:  # it says 5 whatever the prompt is
        frame = nbinfer.benchmark(server_engine(server), **SMALL)
        assert any("lengths are in words" in note for note in frame.attrs["nbinfer"]["notes"])
        assert {len(call.text.split()) for call in server.calls[3:]} == {12}
        nbinfer.shutdown()


def test_what_cannot_be_measured_is_an_error_and_no_number(clean, tmp_path):
    with pytest.raises(nbinfer.ModelNotFound):
        nbinfer.benchmark(nbinfer.LlamaCppInferenceEngine(str(tmp_path / "none.gguf")), **SMALL)
    gone = RemoteParams(api_url="http://127.0.0.1:9")
    engine = RemoteVLLMInferenceEngine(ModelParams("m"), remote_params=gone)
    frame = nbinfer.benchmark([engine, echo()], **SMALL)
    assert "127.0.0.1:9" in frame["error"][0]
    numbers = frame.iloc[0][[n for n, kind in results.COLUMNS.items() if kind == "Float64"]]
    assert numbers.drop("rate").isna().all()
    nbinfer.shutdown()


def test_a_file_that_cannot_be_written_loses_nothing(clean, tmp_path):
    path = tmp_path / "b.json"
    path.mkdir()  # no file can be there
    with pytest.raises(nbinfer.OutputError, match="cannot be written") as caught:
        nbinfer.benchmark(echo(), save=path, **SMALL)
    assert caught.value.frame["requests"].tolist() == [12]
