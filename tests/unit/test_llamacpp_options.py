"""llama.cpp's load options: what cannot be right is told before anything is loaded."""

from __future__ import annotations

import pytest

import nbinfer
from nbinfer import ConfigurationError, LlamaCppInferenceEngine, ModelParams, UnsupportedParameter

PYTHON = {"binding": "llama-cpp-python"}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"split_mode": "columns"}, "none, layer, row, tensor"),
        ({"split_mode": 4}, "not 4"),
        ({"tensor_split": "1,1"}, "must be list"),
        ({"tensor_split": [1, -1]}, "not -1"),
        ({"tensor_split": [True]}, "not True"),
        ({"spec_type": "magic"}, "ngram-simple"),
        ({"spec_type": "prompt-lookup"}, "draft_model"),
        ({"spec_type": "ngram-mod", "draft_model": "a.gguf"}, "both spec_type and draft_model"),
        ({"draft_max": 4}, "nothing is guessed ahead"),
        ({"ngram_size": 4, "draft_model": "a.gguf"}, "nothing is guessed ahead|has none"),
        ({"spec_type": "ngram-simple", "draft_min": 1}, "spec_type='ngram-simple' has none"),
        ({"spec_type": "ngram-cache", "draft_max": 1}, "spec_type='ngram-cache' has none"),
        ({"spec_type": "ngram-mod", "draft_max": 2, "draft_min": 3}, "from 0 to draft_max"),
        ({"spec_type": "ngram-mod", "draft_max": 0}, "at least 1"),
        ({**PYTHON, "spec_type": "ngram-mod"}, "binding='xllamacpp' has draft models"),
        ({**PYTHON, "draft_model": "a.gguf"}, "binding='xllamacpp' has it"),
        ({"mmproj": 1}, "must be str or bool"),
    ],
)
def test_what_cannot_be_right(kwargs, match):
    with pytest.raises(ConfigurationError, match=match):
        LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"split_mode": "row", "tensor_split": [3, 1.5]},
        {"split_mode": 1},
        {"draft_model": "smollm2-135m", "draft_max": 8, "draft_min": 2},
        {"spec_type": "ngram-mod", "draft_max": 8, "draft_min": 0, "ngram_size": 3},
        {"spec_type": "ngram-cache"},
        {**PYTHON, "spec_type": "prompt-lookup", "draft_max": 4, "ngram_size": 3},
        {"mmproj": False},
        {"mmproj": "mmproj.gguf"},
    ],
)
def test_what_is_taken(kwargs):
    LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs))


def test_adapters_beside_a_cache_that_does_not_know_them():
    kwargs = {"cache_ram_mib": 64}
    LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs))
    for adapters in ({"adapter_model": "a"}, {"adapters": {"a": "a"}}):
        with pytest.raises(ConfigurationError, match="cache_ram_mib"):
            LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs, **adapters))


def test_the_other_binding_takes_adapters_too():
    engine = LlamaCppInferenceEngine(ModelParams(adapters={"a": "/a"}, model_kwargs=PYTHON))
    assert "adapter" in engine.capabilities.generation
    with pytest.raises(UnsupportedParameter, match="chat_template_kwargs"):
        LlamaCppInferenceEngine(ModelParams(chat_template_kwargs={"a": 1}, model_kwargs=PYTHON))


def test_a_server_of_llama_cpp_has_no_names_for_adapters():
    with pytest.raises(ConfigurationError, match=r"no names for adapters.*'a'"):
        nbinfer.serve("llamacpp", ModelParams(adapters={"a": "/a"}))
