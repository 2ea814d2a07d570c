"""Guessing ahead on llama.cpp: greedy answers stay what they are, and what was guessed is told."""

from __future__ import annotations

import pytest

from nbinfer import GenerationParams, LlamaCppInferenceEngine, LoadError, ModelParams

from .conftest import installed

# What repeats is what n-grams guess.
PROMPTS = [
    "Repeat this exactly: one two three four five one two three four five one two three four",
    "Write the word hello ten times.",
]
GREEDY = GenerationParams(max_new_tokens=40)
OTHER = pytest.param("llama-cpp-python", marks=pytest.mark.needs("llama-cpp-python"))


@pytest.fixture(autouse=True)
def _shared(_end):
    """These tests share the session's residents and end with it."""


def answers(binding="xllamacpp", **kwargs):
    """Answers one by one, so that no batch changes a sum's order; and the run's facts."""
    kwargs = {"n_ctx": 512, "binding": binding, **kwargs}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs)) as engine:
        frame = engine.infer(PROMPTS, GREEDY, batch_size=1)
    assert frame["error"].isna().all(), frame["error"].tolist()
    return frame["output"].tolist(), frame.attrs["nbinfer"].get("speculative", {})


@pytest.fixture(scope="module")
def plain(_end):
    outputs, facts = answers()
    assert facts == {}
    return outputs


@pytest.mark.parametrize(
    "kwargs",
    [
        {"draft_model": "smollm2-135m", "draft_max": 4},
        {"spec_type": "ngram-simple", "ngram_size": 3, "draft_max": 6},
        {"spec_type": "ngram-map-k", "ngram_size": 3, "draft_max": 6},
        {"spec_type": "ngram-map-k4v", "ngram_size": 3, "draft_max": 6},
        {"spec_type": "ngram-mod", "ngram_size": 4, "draft_max": 8, "draft_min": 1},
        {"spec_type": "ngram-cache"},
    ],
    ids=lambda kwargs: kwargs.get("spec_type", "draft_model"),
)
def test_greedy_answers_are_the_same(plain, kwargs):
    outputs, facts = answers(**kwargs)
    assert outputs == plain
    drafted, accepted = facts.get("drafted_tokens", 0), facts.get("accepted_tokens", 0)
    assert 0 <= accepted <= drafted
    if "draft_model" in kwargs:  # its own guesses: it agrees with nearly all
        assert accepted > 0.8 * drafted > 5


@pytest.mark.needs("llama-cpp-python")
def test_prompt_lookup_with_the_other_binding():
    installed("llama-cpp-python")
    bare, _ = answers("llama-cpp-python")
    outputs, facts = answers("llama-cpp-python", spec_type="prompt-lookup", draft_max=4)
    assert outputs == bare
    assert 0 < facts["accepted_tokens"] <= facts["drafted_tokens"]


def test_rows_at_once_do_not_overflow_the_cache(plain):
    """Guesses take cells too: four rows fill a cache that holds one context."""
    kwargs = {"n_ctx": 256, "kv_tokens": 256, "draft_model": "smollm2-135m", "draft_max": 8}
    with LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs)) as engine:
        frame = engine.infer(PROMPTS * 2, GenerationParams(max_new_tokens=16))
    assert frame["error"].isna().all(), frame["error"].tolist()


def test_a_draft_model_that_is_none(tmp_path):
    (tmp_path / "draft.gguf").write_text("hello")
    kwargs = {"n_ctx": 256, "draft_model": str(tmp_path / "draft.gguf")}
    with pytest.raises(LoadError, match=r"magic|draft"):
        LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs)).load()
