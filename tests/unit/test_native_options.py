"""What native checks without its library: options, and adapters of one resident model."""

from __future__ import annotations

import json

import pytest

from nbinfer import (
    ConfigurationError,
    GenerationParams,
    ModelNotFound,
    ModelParams,
    NativeTextInferenceEngine,
)


def made(**options):
    return NativeTextInferenceEngine(ModelParams(model_kwargs=options))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batching": "dynamic"}, "'continuous' or 'static', not 'dynamic'"),
        ({"prefix_cache_tokens": -1}, "at least 0, not -1"),
        ({"prefix_cache_tokens": True}, "at least 0, not True"),
        ({"prefix_cache_tokens": 5, "batching": "static"}, "keep no prefixes"),
        ({"assistant_model": ""}, "must be a model's name or path"),
        ({"assistant_model": 3}, "must be a model's name or path, not 3"),
        ({"num_assistant_tokens": 5}, "how many tokens an assistant_model guesses"),
        ({"prompt_lookup_num_tokens": 0}, "at least 1, not 0"),
        ({"assistant_model": "a", "prompt_lookup_num_tokens": 2}, "exclude each other"),
    ],
)
def test_options_that_are_refused(options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        made(**options)


def test_options_that_are_taken():
    made(batching="static", prefix_cache_tokens=0)
    made(assistant_model="smollm2-135m", num_assistant_tokens=5, offload_folder="/tmp/x")
    made(prompt_lookup_num_tokens=4, batching="continuous")


def with_adapters(**adapters):
    return NativeTextInferenceEngine(ModelParams(adapters=adapters or None))


def test_adapters_are_no_part_of_what_is_resident():
    plain = with_adapters()
    assert with_adapters(a="x").plan().key == with_adapters(b="y").plan().key == plain.plan().key
    single = NativeTextInferenceEngine(ModelParams(adapter_model="x"))
    assert single.plan().key == plain.plan().key
    assert made(batching="static").plan().key != plain.plan().key


def test_a_folder_that_is_no_adapter_is_told_before_anything_runs(tmp_path):
    engine = with_adapters(a=str(tmp_path))
    asked = GenerationParams(adapter="a")

    def refused():
        with pytest.raises(ModelNotFound, match=r"native takes a folder as PEFT writes it"):
            engine.infer("x", asked)

    refused()
    config = tmp_path / "adapter_config.json"
    config.write_text("[]")
    refused()
    config.write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    refused()  # no weights
    with pytest.raises(ConfigurationError, match=r"'b' is not among .* engine's"):
        engine.infer("x", GenerationParams(adapter="b"))
