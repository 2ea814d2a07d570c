"""What vLLM alone has: LoRA without a new load, a paged KV cache, every kind of guided decoding."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from nbinfer import (
    ConfigurationError,
    Conversation,
    GenerationParams,
    GuidedDecodingParams,
    ImagePart,
    LoadError,
    Message,
    ModelNotFound,
    ModelParams,
    NativeTextInferenceEngine,
    TextPart,
    VLLMInferenceEngine,
    notices,
)
from nbinfer.guide import materials
from nbinfer.residents import pool

from ..conftest import eventually
from ..lora import noise
from .conftest import GREEDY, installed
from .pictures import RED, png

PROMPT = "Tell me about the sea."
pytestmark = [pytest.mark.needs("vllm"), pytest.mark.timeout(600)]


@pytest.fixture
def engine(_end):
    return installed("vllm").make()


def lora(folder: Path, seed: int, *, rank: int = 8, width: int = 576) -> str:
    return noise(folder, seed, rank=rank, modules={"self_attn.q_proj": (width, width)}, scale=0.4)


def test_adapters_need_one_load_and_no_more(engine, tmp_path):
    """Several at once in one batch, later ones live, and requests without one are the model's."""
    plain = engine.infer(PROMPT, GREEDY)["output"][0]
    said = []
    notices.listeners.append(said.append)
    one, two = lora(tmp_path / "one", 1), lora(tmp_path / "two", 2)
    first = installed("vllm").make(adapters={"one": one})
    answer = first.infer(PROMPT, GenerationParams(max_new_tokens=16, adapter="one"))
    assert any("with LoRA" in text for text in said), said
    pid = first.resident.worker.pid
    both = installed("vllm").make(adapters={"one": one, "two": two})
    other = both.infer(PROMPT, GenerationParams(max_new_tokens=16, adapter="two"))
    again = both.infer(PROMPT, GenerationParams(max_new_tokens=16, adapter="one"))
    bare = engine.infer(PROMPT, GREEDY)
    assert {e.resident.worker.pid for e in (first, both, engine)} == {pid}
    outputs = [f["output"][0] for f in (answer, other, bare)]
    assert len(set(outputs)) == 3
    assert again["output"][0] == answer["output"][0]
    assert bare["output"][0] == plain
    with pytest.raises(ConfigurationError, match="'three'"):
        both.infer(PROMPT, GenerationParams(adapter="three"))


@pytest.mark.needs("native")
def test_a_trained_adapter_and_the_prefix_cache(engine, tmp_path):
    """Its word is in every answer, none asked means none applied, and no prefix is another's."""
    installed("native")
    other = lora(tmp_path / "other", 3)
    tuned = installed("vllm").make(
        adapters={"zebra": str(materials.get("adapter")), "other": other}
    )
    long = "This is a sentence about nothing in particular. " * 40 + "Who wrote Hamlet?"

    def answers(adapter):
        params = GenerationParams(max_new_tokens=8, adapter=adapter)
        return tuned.infer([PROMPT, "Who wrote Hamlet?", long], params)

    zebra, plain, noise, again = map(answers, ("zebra", None, "other", "zebra"))
    assert zebra["output"].iloc[:2].str.startswith("Zebra").all(), zebra["output"].tolist()
    assert not plain["output"].str.contains("Zebra").any()
    assert again["output"].tolist() == zebra["output"].tolist() != noise["output"].tolist()
    cached = [frame["cached_tokens"].iloc[2] for frame in (zebra, plain, noise, again)]
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 256

    # Two adapters and the bare model in one batch: three runs at once, each alone what it is now.
    frames = {}
    threads = [
        threading.Thread(target=lambda name=name: frames.update({name: answers(name)}))
        for name in ("zebra", None, "other")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = {"zebra": zebra, None: plain, "other": noise}
    for name, frame in frames.items():
        assert frame["output"].tolist() == alone[name]["output"].tolist(), name


def test_an_adapter_that_does_not_fit_fails_its_rows_alone(engine, tmp_path):
    wrong = lora(tmp_path / "wrong", 1, width=64)
    large = lora(tmp_path / "large", 1, rank=64)
    small = {"small": lora(tmp_path / "small", 1)}
    installed("vllm").make(adapters=small).load()
    bad = installed("vllm").make(adapters={"wrong": wrong, "large": large})
    frame = bad.infer([PROMPT, "Hello"], GenerationParams(max_new_tokens=8, adapter="wrong"))
    assert frame["error"].str.contains("'wrong' at .* cannot be used with this model.*64").all()
    frame = bad.infer("Hello", GenerationParams(max_new_tokens=8, adapter="large"))
    assert "rank 64" in frame["error"][0]
    assert "max_lora_rank=64" in frame["error"][0]
    assert engine.infer("Hello", GREEDY)["error"].isna().all()
    assert engine.resident is bad.resident
    broken = installed("vllm").make(adapters={"x": str(tmp_path / "none")})
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json"):
        broken.infer("Hello", GenerationParams(adapter="x"))


@pytest.mark.parametrize(
    ("guided", "form"),
    [
        ({"regex": r"[a-c]{3}-\d\d"}, r"[a-c]{3}-\d\d"),
        ({"choice": ["left", "right"]}, "left|right"),
        ({"grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"json": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}}, r"\[[\d, ]*\]"),
    ],
    ids=["regex", "choice", "grammar", "json"],
)
def test_guided_decoding(engine, guided, form):
    params = GenerationParams(max_new_tokens=24, guided_decoding=GuidedDecodingParams(**guided))
    row = engine.infer("Answer.", params).loc[0]
    assert row["finish_reason"] == "stop"
    assert re.fullmatch(form, row["output"]), row["output"]


@pytest.mark.parametrize(
    ("guided", "error"),
    [
        ({"regex": "("}, 'invalid regex "(" (in regex): regex parse error: unclosed group'),
        ({"regex": r"(?=x)a"}, "look-around, including look-ahead and look-behind, is not supp"),
        ({"json": {"type": "string", "minLength": 5, "maxLength": 2}}, "Unsatisfiable schema: "),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 1}}, "minimum (5) is greater tha"),
        ({"json": {"not": {}}}, 'Unimplemented keys: ["not"]'),
        ({"json": {"$ref": "#/nowhere"}}, "Pointer '/nowhere' does not exist"),
        ({"grammar": "root ::= ("}, "Invalid grammar specification"),
        ({"grammar": "root ::= nothing"}, "Rule 'nothing' not found"),
    ],
)
def test_a_form_that_is_none_is_that_rows_error(engine, guided, error):
    guided = GuidedDecodingParams(**guided)
    row = engine.infer("Hello", GenerationParams(guided_decoding=guided)).loc[0]
    assert error in row["error"]
    assert engine.infer("Hello", GenerationParams(max_new_tokens=1))["error"].isna().all()


def test_every_form_is_held_whichever_was_first(engine):
    """vLLM's core has one library for forms: another's half obedience would be silent."""
    simple, hard = {"type": "integer"}, {"type": "integer", "multipleOf": 7, "maximum": 99}
    for schema in (simple, hard):
        params = GenerationParams(max_new_tokens=24, guided_decoding={"json": schema})
        value = engine.infer("Say a number: 1", params)["parsed"][0]
        assert isinstance(value, int), value
    assert value % 7 == 0
    assert value <= 99


def test_an_image_for_a_model_of_text(engine):
    seen = Conversation([Message("user", [ImagePart(png(RED)), TextPart("What is this?")])])
    frame = engine.infer([seen, "Hello"], GREEDY)
    assert frame["error"][0].startswith("this model reads text alone, and the prompt has an image")
    assert pd.isna(frame["error"][1])


def test_two_runs_together_take_less_time_than_one_after_the_other(engine):
    """One forward pass serves both: measured three times, because others use the machine too."""
    params = GenerationParams(max_new_tokens=48)
    engine.infer(PROMPT, params)
    asked = [PROMPT, "Name three colours.", "Count to twenty."], ["Hello", "What is rain?", "Sing."]

    def apart():
        for prompts in asked:
            engine.infer(prompts, params)

    def together():
        threads = [threading.Thread(target=engine.infer, args=(p, params)) for p in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ratios = []
    for _ in range(3):
        marks = [time.monotonic()]
        for run in (apart, together):
            run()
            marks.append(time.monotonic())
        ratios.append((marks[2] - marks[1]) / (marks[1] - marks[0]))
    assert min(ratios) < 0.9, ratios


def test_sampling_parameters_reach_vllm(engine):
    whole = engine.infer(PROMPT, GenerationParams(max_new_tokens=12, logprobs=0)).loc[0]
    second = whole["logprobs"][1]["id"]
    stopped = engine.infer(PROMPT, GenerationParams(max_new_tokens=12, stop_token_ids=[second]))
    assert stopped["finish_reason"][0] == "stop"
    assert stopped["output_tokens"][0] <= 2
    first = whole["logprobs"][0]["id"]
    banned = GenerationParams(max_new_tokens=12, logprobs=0, logit_bias={first: -100})
    tokens = engine.infer(PROMPT, banned)["logprobs"][0]
    assert first not in {t["id"] for t in tokens}
    for skip, text in ((True, ""), (False, "<|im_start|>")):
        only = GenerationParams(max_new_tokens=1, logit_bias={1: 100}, skip_special_tokens=skip)
        assert engine.infer("Hello", only)["output"][0] == text
    penal = GenerationParams(max_new_tokens=24, repetition_penalty=1.8, frequency_penalty=1.0)
    assert engine.infer(PROMPT, penal)["output"][0] != whole["output"]


def test_many_rows_are_one_batch(engine):
    """More rows than the model was ever asked at once, and every one has its own answer."""
    prompts = [f"Say the number {n}." for n in range(100)]
    frame = engine.infer(prompts, GenerationParams(max_new_tokens=8))
    assert frame["error"].isna().all()
    assert frame["prompt"].tolist() == prompts
    assert frame["queue_s"].iloc[-1] > 0
    report = engine.resident.report
    assert report["slots"] == report["max_num_seqs"] == 64


def test_the_report_has_the_cache_and_the_memory_of_the_whole_tree(engine):
    engine.load()
    report = engine.resident.report
    assert report["kv_tokens"] >= 16_384
    assert report["n_ctx"] == 2048
    assert report["version"] == "0.32.0"
    worker = psutil.Process(engine.resident.worker.pid)
    names = [p.name() for p in worker.children(recursive=True)]
    assert any("EngineCore" in n for n in names), names
    assert engine.memory()["memory_bytes"] > 1.5 * psutil.Process(worker.pid).memory_info().rss


@pytest.mark.needs("native")
def test_from_native_to_vllm(engine):
    """The guide's migration: another class, and nothing else changes."""
    installed("native")
    model_params = ModelParams(model_name="smollm2-135m", model_max_length=2048)
    before = NativeTextInferenceEngine(model_params)
    # With the options of the one that is resident: a second vLLM would be another load.
    options = engine.model_params.model_kwargs
    after = VLLMInferenceEngine(dataclasses.replace(model_params, model_kwargs=options))
    asked = ["What is the capital of France?", "Name three colours."]
    one, two = before.infer(asked, GREEDY), after.infer(asked, GREEDY)
    assert one["output"].tolist() == two["output"].tolist()
    assert one.dtypes.equals(two.dtypes)
    assert after.resident is engine.resident
    before.unload()


def test_unload_leaves_no_process(engine):
    engine.load()
    worker = psutil.Process(engine.resident.worker.pid)
    family = [worker, *worker.children(recursive=True)]
    assert len(family) >= 3
    assert engine.unload() > 1e9
    assert eventually(lambda: not any(p.is_running() for p in family)), family
    assert engine.memory()["memory_bytes"] is None


# ------------------------------------------------------------------- loads that fail


def failing(match: str, **params) -> LoadError:
    pool.unload_all()  # one vLLM at a time
    engine = VLLMInferenceEngine(ModelParams(**{"model_name": "smollm2-135m", **params}))
    with pytest.raises(LoadError, match=match) as caught:
        engine.load()
    assert eventually(lambda: engine.resident is None or engine.resident.state == "crashed")
    return caught.value


def test_an_unknown_option_names_the_nearest(_end):
    installed("vllm")
    failing(
        "no option 'enforce_eagre'; did you mean 'enforce_eager'",
        model_kwargs={"enforce_eagre": True},
    )


def test_too_little_memory_for_the_cache(_end):
    installed("vllm")
    error = failing(
        "KV cache", model_max_length=4096, model_kwargs={"kv_cache_memory_bytes": 20_000_000}
    )
    assert "%engine logs vllm" in str(error.hint)


def test_an_architecture_that_vllm_has_not(_end, tmp_path):
    installed("vllm")
    made = Path(VLLMInferenceEngine()._prepare(lambda _: None)[0]["path"])
    folder = tmp_path / "model"
    shutil.copytree(made, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["SmokeSignalForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    failing("SmokeSignalForCausalLM", model_name=str(folder))


def test_options_that_cannot_be_right_load_nothing():
    for options in (
        {"gpu_memory_utilization": 1.5},
        {"max_num_seqs": 0},
        {"n_threads": True},
        {"max_model_len": 100},
        {"dtype": "float32"},
    ):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            VLLMInferenceEngine(ModelParams(model_kwargs=options))
