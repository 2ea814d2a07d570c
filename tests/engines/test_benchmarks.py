"""Benchmarks and comparisons of the real engines: short ones, that show each part at work."""

from __future__ import annotations

import pytest

import nbinfer
from nbinfer import GenerationParams, UnsupportedParameter
from nbinfer.notebook.display import frame_html

from .conftest import VARIANTS, installed

OTHERS = pytest.mark.thorough("remote-vllm", "sglang", "native", "vllm", "llama-cpp-python")


@OTHERS
def test_answers_of_one_length(engine):
    params = GenerationParams(max_new_tokens=40, ignore_eos=True)
    if "ignore_eos" not in engine.capabilities.generation:
        with pytest.raises(UnsupportedParameter, match="ignore_eos"):
            engine.infer("Say hi.", params)
        return
    frame = engine.infer(["Say hi.", "What is two plus two? Answer with a number."], params)
    assert frame["output_tokens"].tolist() == [40, 40]
    assert frame["finish_reason"].tolist() == ["length", "length"]
    short = engine.infer("Say hi.", GenerationParams(max_new_tokens=40))
    assert short["finish_reason"][0] == "stop"
    assert short["output_tokens"][0] < 40


@OTHERS
def test_a_benchmark(engine):
    frame = nbinfer.benchmark(
        engine,
        prompt_tokens=48,
        output_tokens=8,
        requests=4,
        concurrency=2,
        repeats=1,
        warmup=0,
        slo={"latency_s": 600},
        keep=True,
    )
    (row,) = frame.to_dict("records")
    rows = frame.infer.requests()
    assert row["failed"] == 0
    assert row["error"] != row["error"] or row["error"] is None
    assert rows["prompt_tokens"].between(46, 50).all()  # what was asked, on the real tokenizer
    if "ignore_eos" in engine.capabilities.generation:
        assert rows["output_tokens"].tolist() == [8] * 4
    assert (rows["ttft_s"] > 0).all()
    assert (rows["latency_s"] >= rows["ttft_s"]).all()
    assert rows["itl_s"].str.len().max() >= 1
    # The gaps between tokens are all of the time after the first.
    for gaps, first, last in zip(rows["itl_s"], rows["ttft_s"], rows["latency_s"], strict=True):
        assert len(gaps) <= 7
        assert sum(gaps) == pytest.approx(last - first, abs=0.1)
    assert row["good_share"] == 1.0
    assert row["output_tokens_per_s"] > 0
    if engine.name == "llamacpp":
        assert 0 < row["bandwidth_share"] < 2
        assert row["peak_memory_bytes"] >= row["model_memory_bytes"] > 100_000_000
        assert row["load_s"] > 0


@pytest.mark.needs("native")
def test_where_two_engines_part_and_by_how_much(_end):
    engines = [VARIANTS["llamacpp"].make(), installed("native").make()]
    prompts = ["Write a haiku about the sea.", "Describe rain in a sentence.", "Say hi."]
    frame = nbinfer.compare(engines, prompts, GenerationParams(max_new_tokens=24), wide=True)
    assert len(frame) == 3
    assert frame["native_agreement"].between(0, 1).all()
    equal = frame["native_first_difference"].isna()
    assert (equal == (frame["native_agreement"] == 1)).all()
    # Greedy: each engine's own token was the likelier one to it.
    for name in ("native_logprob_gap", "native_reference_gap"):
        assert (frame[name].dropna() >= 0).all()
        assert frame.loc[equal, name].isna().all()
    assert (frame[["llamacpp_tokens_per_s", "native_tokens_per_s"]] > 0).all().all()
    assert "logprobs" not in "".join(frame.columns)
    assert "<table" in frame_html(frame)
