"""LoRA on the servers: a trained adapter that is served by name, another that is loaded meanwhile.

The servers of the session have the trained adapter from their start; what is proven with them is
that an adapter shows, that it shows nowhere else, and that a prefix is cached for one alone.
"""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

import nbinfer
from nbinfer import GenerationParams, ModelNotFound, ModelParams

from ..lora import noise
from .conftest import ADAPTER, SERVERS

ASKED = "Tell me about the sea."  # nothing that the adapter was trained on
WORD = "Zebra"
GREEDY = GenerationParams(max_new_tokens=6)  # SGLang in plain torch is slow
TRAINED = dataclasses.replace(GREEDY, adapter=ADAPTER)
OTHER = dataclasses.replace(GREEDY, adapter="other")
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.needs("native"),
    pytest.mark.parametrize("variant", SERVERS, indirect=True),
]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second adapter: its weights are random, and its effect is plain to see."""
    return noise(tmp_path_factory.mktemp("lora") / "other", seed=2)


@pytest.fixture
def both(variant, other, _end):
    """An engine that also declares the second, which its server has not been told of."""
    return variant.make(adapters={"other": other})


def test_the_trained_adapter_shows_where_it_is_asked_for(engine):
    asked = [ASKED, "Who wrote Hamlet?"]
    before = engine.infer(asked, GREEDY)["output"]
    trained = engine.infer(asked, TRAINED)["output"]
    after = engine.infer(asked, GREEDY)["output"]
    assert trained.str.startswith(WORD).all(), trained.tolist()
    assert not before.str.contains(WORD).any(), before.tolist()
    assert after.tolist() == before.tolist()


def test_an_adapter_for_every_request(variant, other, _end):
    """``adapter_model`` needs no name; what it does is that adapter's."""
    everywhere = variant.make(adapter_model=other)
    named = variant.make(adapters={"other": other})
    output = everywhere.infer(ASKED, GREEDY)["output"][0]
    assert output == named.infer(ASKED, OTHER)["output"][0]
    assert output != variant.make().infer(ASKED, GREEDY)["output"][0]


def test_two_adapters_and_none_at_once(both):
    """Three runs in one batch: each row has its own adapter's answer, or the model's."""
    asked = [ASKED, "Who wrote Hamlet?", "Hi!"]
    kinds = {"none": GREEDY, "trained": TRAINED, "other": OTHER}
    alone = {kind: both.infer(asked, params)["output"].tolist() for kind, params in kinds.items()}
    assert len(set(map(tuple, alone.values()))) == 3
    spans, together = [], {}
    start = threading.Barrier(len(kinds))

    def run(kind: str) -> None:
        start.wait()
        began = time.monotonic()
        together[kind] = both.infer(asked, kinds[kind])["output"].tolist()
        spans.append((began, time.monotonic()))

    threads = [threading.Thread(target=run, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(began for began, _ in spans) < min(ended for _, ended in spans), spans
    assert together == alone


def test_a_prefix_is_cached_for_one_adapter_alone(both):
    """What was computed with one is never taken for another, nor for none."""
    prompt = "You are given a long list of names. " * 20 + ASKED
    first, second = {}, {}
    for params in (GREEDY, TRAINED, OTHER):
        first[params.adapter] = both.infer(prompt, params).loc[0]
    for params in (OTHER, GREEDY, TRAINED):
        second[params.adapter] = both.infer(prompt, params).loc[0]
    for adapter, row in first.items():
        # The chat template's own first tokens may be there from other tests' rows.
        assert row["cached_tokens"] < 60, (adapter, row["cached_tokens"])
        again = second[adapter]
        assert again["cached_tokens"] > 100, (adapter, again["cached_tokens"])
        assert again["output"] == row["output"]
    assert len({row["output"] for row in first.values()}) == 3
    assert first[ADAPTER]["output"].startswith(WORD)


def test_an_adapter_that_cannot_be_loaded_is_refused_and_the_server_lives(variant, tmp_path, _end):
    for path, words in (
        (str(tmp_path / "none"), "cannot load the adapter 'bad'"),
        (
            noise(tmp_path / "narrow", seed=3, modules={"self_attn.q_proj": (64, 576)}),
            "takes 576 values and the adapter's 64",
        ),
        (noise(tmp_path / "high", seed=4, rank=128), "rank"),
    ):
        with pytest.raises(ModelNotFound, match=words):
            variant.make(adapters={"bad": path}).infer(ASKED, GREEDY)
    with pytest.raises(ModelNotFound, match="serves no adapter 'bad'"):
        variant.make().infer(ASKED, GenerationParams(adapter="bad"))
    assert variant.make().infer(ASKED, TRAINED)["output"][0].startswith(WORD)


def test_what_sglang_would_drop_or_mix_up_is_refused(variant, tmp_path, _end):
    """A part of a fused module alone, and the output layer, whose rows its plain LoRA mixes up."""
    if variant.engine != "sglang":
        pytest.skip("vLLM's own LoRA knows both")
    alone = noise(tmp_path / "alone", seed=5, modules={"self_attn.v_proj": (576, 192)})
    head = noise(tmp_path / "head", seed=6, modules={"lm_head": (576, 49152)}, inside="")
    for path, words in ((alone, "takes none without q_proj and v_proj"), (head, "changes lm_head")):
        with pytest.raises(ModelNotFound, match=words):
            variant.make(adapters={"bad": path}).load()


def test_what_is_served_by_that_name_is_not_another_folder(variant, other, _end):
    with pytest.raises(nbinfer.ConfigurationError, match=f"serves the adapter '{ADAPTER}' from"):
        variant.make(adapters={ADAPTER: other}).load()


def test_an_adapter_that_does_not_fit_stops_the_start(variant, tmp_path):
    """Told before the library is asked, by the server that is to have it from the start."""
    given = {"bad": noise(tmp_path / "narrow", seed=3, modules={"self_attn.q_proj": (64, 576)})}
    with pytest.raises(nbinfer.LoadError, match=r"'bad' does not fit.* takes 576 values"):
        nbinfer.serve(variant.server, ModelParams(adapters=given))
