"""The contract, the same for every engine, on the real libraries and the real model."""

from __future__ import annotations

import json
import threading
import time

import jsonschema
import pandas as pd
import pydantic
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    Conversation,
    GenerationParams,
    GuidedDecodingParams,
    ImagePart,
    Message,
    TextPart,
    UnsupportedParameter,
)
from nbinfer.frame import COLUMNS

from .conftest import GREEDY

PROMPTS = [
    "Write a haiku about the sea.",
    "What is the capital of Italy?",
    "Name three colours.",
    "Count from one to five.",
    "Say hello in French.",
    "What is two plus two?",
    "Name an animal that flies.",
    "Describe rain in a sentence.",
]


def test_rows_in_order_with_exact_columns_and_dtypes(engine):
    frame = engine.infer(PROMPTS, GREEDY)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["id"].tolist() == list(range(len(PROMPTS)))
    assert frame["prompt"].tolist() == PROMPTS
    assert frame["error"].isna().all()
    assert frame["finish_reason"].isin(["stop", "length"]).all()
    assert (frame["output"].str.len() > 0).all()
    assert frame["output_tokens"].between(1, 16).all()
    assert (frame.loc[frame["finish_reason"] == "length", "output_tokens"] == 16).all()
    assert frame["engine"].unique().tolist() == [engine.name]
    assert frame["run_id"].nunique() == 1


def test_timings_hold_together_inside_a_batch(engine):
    started = time.monotonic()
    frame = engine.infer(PROMPTS, GREEDY)
    wall = time.monotonic() - started
    assert (frame["queue_s"] >= 0).all()
    assert (frame["ttft_s"] > 0).all()
    assert (frame["latency_s"] >= frame["ttft_s"]).all()
    assert (frame["queue_s"] + frame["latency_s"] <= wall).all()
    many = frame[frame["output_tokens"] > 1]
    rebuilt = many["ttft_s"] + many["tpot_s"] * (many["output_tokens"] - 1)
    assert (rebuilt - many["latency_s"]).abs().max() < 1e-6
    # Rows end at their own last token, not when the batch ends.
    assert frame["latency_s"].nunique() == len(frame)


def test_memory_is_the_engines_own(engine):
    frame = engine.infer("Hello", GREEDY)
    idle, peak = frame["model_memory_bytes"][0], frame["peak_memory_bytes"][0]
    # vLLM is three processes with torch, and its KV cache is paid for at the load.
    assert 90e6 < idle < (1.5e9 if engine.name in ("llamacpp", "native") else 4.5e9)
    assert peak >= 0.9 * idle
    now = engine.memory()
    assert now["memory_bytes"] > 90e6
    if "server" not in engine.capabilities.features:
        assert now["peak_bytes"] >= now["memory_bytes"]


def test_run_facts(engine):
    frame = engine.infer(PROMPTS[:2], GREEDY)
    facts = frame.attrs["nbinfer"]
    assert json.loads(json.dumps(facts)) == facts
    assert facts["engine"] == engine.name
    if "server" in engine.capabilities.features:
        assert facts["engine_facts"]["servers"] == engine.urls
    else:
        precision = {"llamacpp": "Q4_1", "native": "float32", "vllm": "float32"}
        assert facts["model_facts"]["precision"] == precision[engine.name]
    assert facts["output_tokens"] == frame["output_tokens"].sum()
    assert facts["output_tokens_per_s"] > 0
    assert facts["generation_params"]["max_new_tokens"] == 16
    assert next(iter(facts["versions"].values()))
    assert nbinfer.last() is frame


def test_greedy_is_repeatable_one_by_one(engine):
    first = engine.infer(PROMPTS[0], GREEDY)["output"][0]
    assert engine.infer(PROMPTS[0], GREEDY)["output"][0] == first


def test_seeds(engine):
    def sample(seed):
        params = GenerationParams(max_new_tokens=24, temperature=1.5, seed=seed)
        return engine.infer(PROMPTS[0], params)["output"][0]

    if engine.name == "sglang":  # what it would drop in silence is refused
        with pytest.raises(UnsupportedParameter, match="cannot honour seed"):
            sample(7)
        return
    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_n_gives_samples_of_one_prompt(engine):
    seed = None if engine.name == "sglang" else 1
    params = GenerationParams(max_new_tokens=24, temperature=1.5, seed=seed, n=3)
    frame = engine.infer(PROMPTS[:2], params)
    assert list(frame.columns[:2]) == ["id", "sample"]
    assert frame["id"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["sample"].tolist() == [0, 1, 2, 0, 1, 2]
    assert frame[frame["id"] == 0]["output"].nunique() > 1


def test_streaming_is_the_same_answer_in_pieces(engine):
    whole = engine.infer(PROMPTS[0], GREEDY)["output"][0]
    stream = engine.stream(PROMPTS[0], GREEDY)
    with pytest.raises(ConfigurationError, match="not ended"):
        _ = stream.result
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == whole == stream.result["output"][0]
    assert stream.result["ttft_s"][0] > 0


def test_leaving_a_stream_early_cancels_it(engine):
    stream = engine.stream(PROMPTS[0], GenerationParams(max_new_tokens=1500))
    next(stream)
    stream.close()
    started = time.monotonic()
    assert engine.infer("Hi", GenerationParams(max_new_tokens=2))["error"].isna().all()
    assert time.monotonic() - started < 10


def test_stop_strings(engine):
    full = engine.infer(PROMPTS[3], GenerationParams(max_new_tokens=48))["output"][0]
    stop = full.split()[3]
    row = engine.infer(PROMPTS[3], GenerationParams(max_new_tokens=48, stop_strings=[stop])).loc[0]
    assert stop not in row["output"]
    assert full.startswith(row["output"].rstrip())
    assert row["finish_reason"] == "stop"


def test_max_new_tokens_is_exact(engine):
    frame = engine.infer(PROMPTS[0], GenerationParams(max_new_tokens=3))
    assert frame["output_tokens"][0] == 3
    assert frame["finish_reason"][0] == "length"


def test_prefix_caching_shows_in_cached_tokens(engine):
    shared = "You are given a long list of rules. " * 20
    short = GenerationParams(max_new_tokens=2)
    engine.infer(shared + "What is rule one?", short)
    second = engine.infer(shared + "What is rule two?", short).loc[0]
    if "prefix_caching" not in engine.capabilities.features:
        assert second["cached_tokens"] == 0
        return
    assert second["cached_tokens"] > 100
    assert second["cached_tokens"] < second["prompt_tokens"]


def test_logprobs(engine):
    params = GenerationParams(max_new_tokens=4, logprobs=3)
    tokens = engine.infer(PROMPTS[1], params)["logprobs"][0]
    assert len(tokens) == 4
    for token in tokens:
        assert token["logprob"] <= 0
        assert len(token["top"]) == 3
        assert token["top"][0]["logprob"] >= token["top"][1]["logprob"]
        assert token["token"] == token["top"][0]["token"]  # greedy takes the likeliest


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_json_schema_and_pydantic(engine):
    schema = Person.model_json_schema()
    for given in (schema, json.dumps(schema), Person):
        params = GenerationParams(
            max_new_tokens=80, guided_decoding=GuidedDecodingParams(json=given)
        )
        row = engine.infer("Invent a person.", params).loc[0]
        value = json.loads(row["output"])
        jsonschema.validate(value, schema)
        parsed = row["parsed"]
        assert (parsed.model_dump() if given is Person else parsed) == value


def test_a_cut_schema_answer_says_so(engine):
    params = GenerationParams(max_new_tokens=3, guided_decoding=GuidedDecodingParams(json=Person))
    row = engine.infer("Invent a person.", params).loc[0]
    assert row["parsed"] is None or pd.isna(row["parsed"])
    assert "max_new_tokens" in row["error"]


def test_conversations_and_system_messages(engine):
    talk = Conversation(
        [
            Message("user", "My name is Ada."),
            Message("assistant", "Hello Ada!"),
            Message("user", "What is my name?"),
        ],
        conversation_id="c-1",
    )
    frame = engine.infer([talk], GREEDY, system="Answer in one word.")
    assert frame["id"][0] == "c-1"
    assert frame["prompt"][0] == "What is my name?"
    assert frame["messages"][0][0] == {"role": "system", "content": "Answer in one word."}
    as_dicts = engine.infer(talk.to_list(), GREEDY)
    assert len(as_dicts) == 1
    # The model was given every turn, and the system message on top of that.
    alone = engine.infer("What is my name?", GREEDY)["prompt_tokens"][0]
    assert frame["prompt_tokens"][0] > alone
    assert as_dicts["prompt_tokens"][0] > alone + 10


def test_raw_prompts_have_no_template(engine):
    chat = engine.infer("Once upon a time", GREEDY).loc[0]
    raw = engine.infer("Once upon a time", GenerationParams(max_new_tokens=16, raw=True)).loc[0]
    assert raw["prompt_tokens"] < chat["prompt_tokens"]
    assert raw["prompt_tokens"] <= 5


def test_a_dataframe_with_a_template(engine):
    data = pd.DataFrame({"word": ["cat", "dog"], "score": [1.5, 2.5]}, index=[10, 11])
    frame = engine.infer(data, GREEDY, template="Spell {{word}} with {braces}.")
    assert list(frame.columns[:2]) == ["word", "score"]
    assert frame["prompt"].tolist() == ["Spell cat with {braces}.", "Spell dog with {braces}."]
    assert frame["score"].tolist() == [1.5, 2.5]


def test_a_prompt_longer_than_the_context_is_that_rows_error(engine):
    frame = engine.infer(["Hi", "word " * 4000, "Bye"], GREEDY)
    assert frame["error"].isna().tolist() == [True, False, True]
    assert "2048" in frame["error"][1]
    assert frame["finish_reason"][1] == "error"


def test_n_ctx_is_for_each_request(engine):
    """A prompt of 1,400 tokens fits a context of 2,048 whatever else is running."""
    frame = engine.infer(["word " * 1400, *PROMPTS[:3]], GenerationParams(max_new_tokens=4))
    assert frame["error"].isna().all(), frame["error"].tolist()
    assert frame["prompt_tokens"][0] > 1400


@pytest.mark.parametrize(
    "text",
    [
        "a\0b",
        "emoji 🙂👩‍👩‍👧",
        "שלום עולם",
        "<|im_end|>\n<|im_start|>user\nhi",
        " \n ",
        "{{x}} {y} %s",
    ],
    ids=["nul", "emoji", "rtl", "template tokens", "blank", "braces"],
)
def test_odd_prompts_reach_the_model_unchanged(engine, text):
    frame = engine.infer([text, "Hello"], GenerationParams(max_new_tokens=4))
    assert frame["prompt"][0] == text
    assert frame["error"].isna().all(), frame["error"].tolist()


def test_a_lone_surrogate_and_a_megabyte_fail_alone(engine):
    frame = engine.infer(
        ["half \ud800", "x" * 1_000_000, "Hello"], GenerationParams(max_new_tokens=4)
    )
    assert "surrogate" in frame["error"][0]
    assert "2048" in frame["error"][1]
    assert frame["error"].isna().tolist() == [False, False, True]


@pytest.mark.parametrize("prompts", [[], "", None, 3, [None], [float("nan")], {"a": 1}])
def test_what_is_no_prompt(engine, prompts):
    if prompts == "":
        assert len(engine.infer(prompts, GenerationParams(max_new_tokens=1))) == 1
        return
    with pytest.raises(ConfigurationError):
        engine.infer(prompts, GREEDY)


def test_what_an_engine_cannot_honour_is_refused(engine):
    others = {"num_beams": 2, "stop_token_ids": [1], "adapter": "x", "prompt_logprobs": 1}
    refused = {n: v for n, v in others.items() if n not in engine.capabilities.generation}
    assert refused
    for name, value in refused.items():
        with pytest.raises(UnsupportedParameter, match=name):
            engine.infer("x", GenerationParams(**{name: value}))
    if "vision" not in engine.capabilities.features:
        picture = Conversation([Message("user", [ImagePart(b"x"), TextPart("what?")])])
        with pytest.raises(UnsupportedParameter, match="images"):
            engine.infer(picture, GREEDY)


def test_a_second_run_joins_the_batch(engine):
    """While one run has many rows waiting, another's single row does not wait for them all."""
    frames = {}
    long = threading.Thread(
        target=lambda: frames.update(
            long=engine.infer(PROMPTS * 4, GenerationParams(max_new_tokens=32))
        )
    )
    long.start()
    time.sleep(0.5)
    frames["short"] = engine.infer("Hello", GenerationParams(max_new_tokens=4))
    was_running = long.is_alive()
    long.join()
    assert was_running, "the long run ended first: it proved nothing"
    assert len(frames["long"]) == 32
    assert frames["long"]["error"].isna().all()
    assert frames["short"]["run_id"][0] != frames["long"]["run_id"][0]


def test_runs_together_take_less_time_than_one_after_the_other(engine):
    if "continuous_batching" not in engine.capabilities.features:
        pytest.skip(f"{engine.name} answers one request at a time here")
    things = ("a fox", "the sea", "winter", "a clock")
    prompts = [f"Write a long story about {thing}." for thing in things]
    params = GenerationParams(max_new_tokens=24)

    def seconds(work):
        started = time.monotonic()
        work()
        return time.monotonic() - started

    def one_by_one():
        for prompt in prompts:
            engine.infer(prompt, params)

    def together():
        threads = [threading.Thread(target=engine.infer, args=(p, params)) for p in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    one_by_one()  # both ways find the same in the prefix cache
    ratios = []
    while len(ratios) < 3 and min(ratios, default=1) > 0.9:
        ratios.append(seconds(together) / seconds(one_by_one))
    assert min(ratios) < 0.9, ratios


def test_a_resident_engine_starts_at_once(engine):
    engine.load()
    delays = []
    for _ in range(5):
        started = time.monotonic()
        frame = engine.infer("Hi", GenerationParams(max_new_tokens=1))
        delays.append(time.monotonic() - started - frame["latency_s"][0])
    assert min(delays) < 0.05, delays
