"""Each sampling parameter does on the real library what ``docs/parameters.md`` says of it.

``seed``, ``n``, ``stop_strings``, ``max_new_tokens`` and ``logprobs`` are in the conformance suite.
Token ids are those of the one vocabulary that all engines have here.
"""

from __future__ import annotations

import math
from collections import Counter

import gguf
import pytest

from nbinfer import GenerationParams, UnsupportedParameter, models

# Rows that are sent as they are: a few tokens of prompt, so that hundreds of samples take seconds.
SKY = "The colour of the sky is"
LOOP = "one two one two one two one two"
STRONG = {"frequency_penalty": 2.0, "presence_penalty": 2.0, "repetition_penalty": 2.0}
# Whether the prompt's tokens count as seen. llama.cpp has one window for the three penalties.
COUNTS_PROMPT = {
    "frequency_penalty": {"llamacpp"},
    "repetition_penalty": {"llamacpp", "native", "vllm", "remote-vllm"},
}
# Of chi-square with as many degrees of freedom: exceeded once in ten thousand (p = 1e-4).
CRITICAL = {1: 15.137, 2: 18.421, 3: 21.108, 4: 23.513}
FLOAT32 = ("remote-vllm", "sglang", "native", "vllm")
distributions: dict[str, dict[str, float]] = {}  # of SKY's next token, by engine


pytestmark = pytest.mark.thorough("remote-vllm", "sglang", "llama-cpp-python")


@pytest.fixture(scope="session")
def vocabulary():
    """Token ids by text: `` blue`` is one token, whose first letter is a space."""
    reader = gguf.GGUFReader(models.resolve("smollm2-135m").path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    return {token.replace("Ġ", " "): number for number, token in enumerate(tokens)}


def raw(engine, prompt=SKY, **params):
    given = {"max_new_tokens": 8, "raw": True, **params}
    row = engine.infer(prompt, GenerationParams(**given)).loc[0]
    assert row["error"] is None or row["error"] != row["error"], row["error"]
    return row


def able(engine, *names):
    """Skip nothing: a parameter that the engine has not must be refused."""
    lacking = [n for n in names if n not in engine.capabilities.generation]
    for name in lacking:
        value = {"stop_token_ids": [1], "skip_special_tokens": False, "num_beams": 2}[name]
        with pytest.raises(UnsupportedParameter, match=name):
            engine.infer("x", GenerationParams(**{name: value}))
    return not lacking


def label(engine):
    """``llamacpp`` has two bindings, and each its own ways."""
    return getattr(engine, "binding", engine.name).replace("xllamacpp", "llamacpp")


@pytest.mark.parametrize("limit", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}])
def test_limits_that_leave_one_token_are_greedy(engine, limit):
    greedy = raw(engine)["output"]
    assert raw(engine, temperature=2.0, **limit)["output"] == greedy


def test_temperature_spreads(engine):
    params = GenerationParams(max_new_tokens=8, raw=True, n=4)
    assert engine.infer(SKY, params)["output"].nunique() == 1
    hot = GenerationParams(max_new_tokens=8, raw=True, n=4, temperature=2.0)
    assert engine.infer(SKY, hot)["output"].nunique() == 4


@pytest.mark.parametrize("name", STRONG)
def test_penalties_make_repeats_fewer(engine, vocabulary, name):
    """Of five tokens that an answer may have, a greedy one repeats few and a penalised one most."""
    bias = dict.fromkeys((vocabulary[t] for t in next_tokens(engine, vocabulary)), 100)

    def distinct(**params):
        words = raw(engine, max_new_tokens=12, logit_bias=bias, **params)["output"].split()
        return len(set(words))

    assert distinct() < distinct(**{name: STRONG[name]})


@pytest.mark.parametrize("name", COUNTS_PROMPT)
def test_whether_the_prompt_counts_as_seen(engine, name):
    """The first token of an answer has no answer before it: only the prompt can be against it."""
    first = raw(engine, LOOP, max_new_tokens=1)["output"]
    assert first in (" one", " two")
    penalised = raw(engine, LOOP, max_new_tokens=1, **{name: STRONG[name]})["output"]
    assert (penalised != first) is (label(engine) in COUNTS_PROMPT[name])


def test_logit_bias_forces_and_bans(engine, vocabulary):
    first = raw(engine, max_new_tokens=1)["output"]
    banned = raw(engine, max_new_tokens=1, logit_bias={vocabulary[first]: -100})["output"]
    assert banned != first
    forced = raw(engine, max_new_tokens=3, logit_bias={vocabulary[" zebra"]: 100})["output"]
    assert forced == " zebra zebra zebra"


def test_stop_token_ids(engine, vocabulary):
    if not able(engine, "stop_token_ids"):
        return
    zebra = vocabulary[" zebra"]
    row = raw(engine, logit_bias={zebra: 100}, stop_token_ids=[zebra])
    assert (row["finish_reason"], row["output_tokens"]) == ("stop", 1)
    assert "zebra" not in row["output"]


def test_skip_special_tokens(engine, vocabulary):
    if not able(engine, "skip_special_tokens"):
        return
    # Not the token that ends an answer: no engine has that in the text.
    special = {"logit_bias": {vocabulary["<|im_start|>"]: 100}, "max_new_tokens": 2}
    assert raw(engine, **special)["output"] == ""
    shown = raw(engine, skip_special_tokens=False, **special)["output"]
    assert shown == "<|im_start|>" * 2


def test_num_beams(engine):
    if able(engine, "num_beams"):
        assert raw(engine, num_beams=3)["output_tokens"] > 0


# ------------------------------------------------------------------------ distributions


def next_tokens(engine, vocabulary, prompt=SKY, count=5):
    """The likeliest next tokens of plain words, with their log-probabilities."""
    (token,) = raw(engine, prompt, max_new_tokens=1, logprobs=20)["logprobs"]
    plain = [t for t in token["top"] if t["token"].strip().isalpha() and t["token"] in vocabulary]
    assert len(plain) >= count
    return {t["token"]: t["logprob"] for t in plain[:count]}


def softmax(logprobs, temperature=1.0):
    weights = {t: math.exp(value / temperature) for t, value in logprobs.items()}
    return {t: weight / sum(weights.values()) for t, weight in weights.items()}


def draws(engine, vocabulary, tokens, number, **params):
    """One-token answers out of these tokens alone: an equal bias leaves their odds as they are."""
    seed = None if engine.name == "sglang" else 1
    bias = dict.fromkeys((vocabulary[t] for t in tokens), 100)
    asked = {"max_new_tokens": 1, "raw": True, "n": number, "seed": seed, "logit_bias": bias}
    frame = engine.infer(SKY, GenerationParams(**asked, **params))
    assert frame["error"].isna().all()
    return Counter(frame["output"])


@pytest.mark.parametrize(("temperature", "number"), [(1.0, 200), (2.0, 100)])
def test_samples_are_distributed_as_the_log_probabilities_say(
    engine, vocabulary, temperature, number
):
    logprobs = next_tokens(engine, vocabulary)
    if engine.name in FLOAT32:
        distributions[engine.name] = logprobs
    expected = {t: number * p for t, p in softmax(logprobs, temperature).items()}
    seen = draws(engine, vocabulary, expected, number, temperature=temperature)
    assert set(seen) <= set(expected)
    # Tokens that are too rare for the test are one bin.
    bins = [(seen[t], e) for t, e in expected.items() if e >= 5]
    rare = [(seen[t], e) for t, e in expected.items() if e < 5]
    if rare:
        bins.append((sum(s for s, _ in rare), sum(e for _, e in rare)))
    statistic = sum((s - e) ** 2 / e for s, e in bins)
    assert statistic < CRITICAL[len(bins) - 1], (seen, expected)


def test_engines_in_float32_have_the_same_distribution(engine):
    """Whichever of them have run: the log-probabilities are of one model."""
    mine = distributions.get(engine.name)
    for other in distributions.values() if mine else ():
        assert mine == pytest.approx(other, abs=5e-3)


def test_temperature_comes_before_top_p(engine, vocabulary):
    """A nucleus of the heated distribution has tokens that one of the cold has not."""
    logprobs = next_tokens(engine, vocabulary)
    cold, hot = softmax(logprobs), softmax(logprobs, 2.0)
    # The most tokens for whose last the two orders differ, and a limit between them.
    gaps = {}
    for size in range(1, len(cold)):
        head = list(cold)[:size]
        gaps[size] = sum(cold[t] for t in head) - sum(hot[t] for t in head)
    size = max(gaps, key=lambda s: gaps[s])
    head = list(cold)[:size]
    assert gaps[size] > 0.05
    top_p = (sum(cold[t] for t in head) + sum(hot[t] for t in head)) / 2
    seen = draws(engine, vocabulary, cold, 80, temperature=2.0, top_p=top_p)
    assert list(cold)[size] in seen
