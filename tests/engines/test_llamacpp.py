"""What only llama.cpp has: LoRA in GGUF, grammars, options, its load message."""

from __future__ import annotations

import json

import gguf as gguf_writer
import numpy as np
import psutil
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    GenerationParams,
    GuidedDecodingParams,
    LlamaCppInferenceEngine,
    LoadError,
    ModelNotFound,
    ModelParams,
    gpu,
    models,
)
from nbinfer.engines import llamacpp
from nbinfer.residents import pool

from .conftest import GREEDY, installed

PROMPT = "Write a haiku about the sea."
OTHER = pytest.param("llama-cpp-python", marks=pytest.mark.needs("llama-cpp-python"))
BINDINGS = ["xllamacpp", OTHER]


@pytest.fixture(autouse=True)
def _shared(_end):
    """These tests share the session's residents and end with it."""


def lora(path, seed: int, scale: float) -> str:
    """A LoRA adapter for SmolLM2-135M with random weights: its effect is plain to see."""
    random = np.random.default_rng(seed)
    writer = gguf_writer.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(30):
        name = f"blk.{layer}.attn_q.weight"
        a = random.normal(0, scale, (8, 576)).astype(np.float32)
        b = random.normal(0, scale, (576, 8)).astype(np.float32)
        writer.add_tensor(name + ".lora_a", a)
        writer.add_tensor(name + ".lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_declared_adapters_are_applied_by_request_and_not_otherwise(tmp_path):
    one, two = lora(tmp_path / "one.gguf", 1, 0.4), lora(tmp_path / "two.gguf", 2, 0.4)
    base = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 512}))
    plain = base.infer(PROMPT, GREEDY)["output"][0]
    base.unload()
    engine = LlamaCppInferenceEngine(
        ModelParams(adapters={"one": one, "two": two}, model_kwargs={"n_ctx": 512})
    )

    def answer(adapter):
        params = GenerationParams(max_new_tokens=16, adapter=adapter)
        return engine.infer(PROMPT, params)["output"][0]

    first, second = answer("one"), answer("two")
    assert answer(None) == plain  # none asked means none applied, also after others were
    assert len({first, second, plain}) == 3
    assert answer("one") == first
    with pytest.raises(ConfigurationError, match="not among this engine's"):
        answer("three")
    engine.unload()


def test_adapter_model_is_on_by_default(tmp_path):
    path = lora(tmp_path / "a.gguf", 1, 0.4)
    engine = LlamaCppInferenceEngine(ModelParams(adapter_model=path, model_kwargs={"n_ctx": 512}))
    plain = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048}))
    with engine:
        adapted = engine.infer(PROMPT, GREEDY)["output"][0]
    assert adapted != plain.infer(PROMPT, GREEDY)["output"][0]


def test_a_missing_adapter_file():
    engine = LlamaCppInferenceEngine(ModelParams(adapter_model="/nowhere/a.gguf"))
    with pytest.raises(ModelNotFound, match=r"/nowhere/a\.gguf"):
        engine.load()


def test_choice_and_grammar():
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048}))
    for guided in (
        GuidedDecodingParams(choice=["yes", 'no "quoted"']),
        GuidedDecodingParams(grammar='root ::= "yes" | "no \\"quoted\\""'),
    ):
        params = GenerationParams(max_new_tokens=16, guided_decoding=guided)
        assert engine.infer("Is water wet?", params)["output"][0] in ("yes", 'no "quoted"')
    guided = GuidedDecodingParams(choice=["🙂 日本"])
    params = GenerationParams(max_new_tokens=32, guided_decoding=guided)
    assert engine.infer("Smile.", params)["output"][0] == "🙂 日本"


@pytest.mark.parametrize(
    ("guided", "match"),
    [
        ({"grammar": "root ::= ("}, "the grammar"),
        ({"grammar": 'answer ::= "yes"'}, "the grammar"),  # nothing to begin with
        ({"grammar": 'root ::= "a" other'}, "the grammar"),
        ({"json": {"type": "nonsense"}}, "nonsense"),
        ({"json": {"enum": []}}, "no answer fits"),
        ({"json": {"type": "string", "minLength": 5, "maxLength": 2}}, "no answer fits"),
        ({"json": {"$ref": "#/$defs/none"}}, "none"),
    ],
)
@pytest.mark.parametrize("binding", BINDINGS)
def test_a_form_that_nothing_can_have_is_that_rows_error(binding, guided, match):
    if binding != "xllamacpp":
        installed(binding)
    kwargs = {"n_ctx": 2048, "binding": binding}
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs))
    params = GenerationParams(max_new_tokens=8, guided_decoding=GuidedDecodingParams(**guided))
    row = engine.infer(PROMPT, params).loc[0]
    assert row["finish_reason"] == "error", row["output"]
    assert match in row["error"]
    assert engine.infer(PROMPT, GREEDY)["error"].isna().all()


def test_logit_bias_forbids_a_token():
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048}))
    params = GenerationParams(max_new_tokens=1, logprobs=1)
    token = engine.infer(PROMPT, params)["logprobs"][0][0]
    biased = GenerationParams(max_new_tokens=1, logprobs=1, logit_bias={token["id"]: -100})
    assert engine.infer(PROMPT, biased)["logprobs"][0][0]["id"] != token["id"]


def test_repetition_penalty_changes_a_loop():
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048}))

    def variety(penalty):
        params = GenerationParams(max_new_tokens=60, raw=True, repetition_penalty=penalty)
        words = engine.infer("one two one two one two one two", params)["output"][0].split()
        return len(set(words)) / len(words)

    assert variety(1.0) < variety(1.8)


def test_the_guides_block_runs_as_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").symlink_to(models.resolve("smollm2-135m").path)
    monkeypatch.chdir(tmp_path)
    engine = LlamaCppInferenceEngine(
        ModelParams(
            model_name="model.gguf",
            model_kwargs={
                "n_gpu_layers": 0,  # CPU only
                "n_ctx": 2048,
            },
        )
    )
    frame = engine.load().infer("What is the capital of Italy?", GREEDY)
    assert frame["error"].isna().all()
    assert frame["model"][0] == "model.gguf"
    assert engine.resident.report["n_ctx"] == 2048
    engine.unload()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"n_ctxx": 1}, "n_ctx"),
        ({"n_ctx": "2048"}, "must be int"),
        ({"n_ctx": 0}, "at least 1"),
        ({"n_ctx": True}, "must be int"),
        ({"cache_type_k": "q3"}, "one of"),
        ({"flash_attn": 1}, "must be bool"),
    ],
)
def test_impossible_options_are_told_before_anything_loads(kwargs, match):
    before = len(pool.residents())
    with pytest.raises(ConfigurationError, match=match):
        LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs))
    assert len(pool.residents()) == before


def test_refused_model_parameters_name_the_engine():
    with pytest.raises(nbinfer.UnsupportedParameter, match="torch_dtype_str"):
        LlamaCppInferenceEngine(ModelParams(torch_dtype_str="bfloat16"))


def test_gpu_layers_without_a_device_warn(capfd):
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_gpu_layers": 99, "n_ctx": 256}))
    engine.load()
    if engine.resident.report["devices"] == ["CPU"]:
        assert "sees no accelerator" in capfd.readouterr().err
    engine.unload()


@pytest.mark.parametrize("binding", BINDINGS)
def test_split_modes_are_passed_on_and_need_devices(binding, capfd):
    if binding != "xllamacpp":
        installed(binding)
    kwargs = {"n_ctx": 256, "binding": binding, "split_mode": "row", "tensor_split": [3, 1]}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs)) as engine:
        assert engine.infer("Hi", GREEDY)["error"].isna().all()
        if engine.resident.report["devices"] == ["CPU"]:
            assert "split_mode='row'" in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(
    len(gpu.devices()) < 2, reason="a model is split among two GPUs, and here are fewer"
)
@pytest.mark.parametrize("mode", ["layer", "row", "tensor"])
def test_a_model_on_two_devices(mode):
    whole = {"n_ctx": 256, "split_mode": "none"}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=whole)) as engine:
        plain = engine.infer(PROMPT, GREEDY)["output"][0]
    split = {"n_ctx": 256, "split_mode": mode, "tensor_split": [1, 1]}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=split)) as engine:
        assert len(engine.resident.report["devices"]) >= 2
        assert engine.infer(PROMPT, GREEDY)["output"][0] == plain


def test_capacity_follows_context_and_memory(monkeypatch):
    nbinfer.configure(memory_budget_bytes=1_000_000_000)
    assert llamacpp._capacity({}, 2048, 23_040) == (16, 8192)
    assert llamacpp._capacity({}, 2048, 131_072) == (16, 2048)  # a quarter of the budget is less
    assert llamacpp._capacity({}, 16_384, 23_040) == (16, 16_384)  # never below one context
    assert llamacpp._capacity({"n_parallel": 2}, 2048, 23_040)[0] == 2
    assert llamacpp._capacity({"kv_tokens": 4096}, 2048, 23_040) == (16, 4096)


def test_quantized_cache_takes_less_memory():
    def loaded(**kwargs):
        with LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048, **kwargs})) as engine:
            answer = engine.infer(PROMPT, GREEDY)
            assert answer["error"].isna().all()
            return answer["model_memory_bytes"][0]

    saved = loaded(kv_tokens=16_384) - loaded(
        kv_tokens=16_384, cache_type_k="q8_0", cache_type_v="q8_0", flash_attn=True
    )
    expected = 16_384 * 23_040 * (1 - 34 / 64)
    assert saved == pytest.approx(expected, rel=0.2)


def test_a_directory_and_a_text_file_are_no_models(tmp_path):
    with pytest.raises(ModelNotFound, match="is a folder with no weights"):
        LlamaCppInferenceEngine(str(tmp_path)).load()
    (tmp_path / "notes.gguf").write_text("hello")
    for path in (tmp_path / "notes.gguf", tmp_path):  # a folder's only GGUF file is meant
        with pytest.raises(LoadError, match="magic"):
            LlamaCppInferenceEngine(str(path)).load()


def test_facts_name_the_file_and_the_library():
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048}))
    facts = engine.infer("Hi", GREEDY).attrs["nbinfer"]
    assert facts["model_facts"]["format"] == "gguf"
    assert facts["model_facts"]["sha256"].startswith("b179c952")
    assert list(facts["versions"]) == ["xllamacpp"]
    assert facts["engine_facts"]["kv_tokens"] >= 2048
    assert json.dumps(facts)
    assert psutil.pid_exists(engine.resident.worker.pid)
