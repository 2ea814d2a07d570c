"""LoRA on llama.cpp: what PEFT wrote, converted; switched by request; never a stale cache."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path

import pytest

from nbinfer import (
    ConfigurationError,
    GenerationParams,
    LlamaCppInferenceEngine,
    ModelNotFound,
    ModelParams,
    environments,
    models,
    notices,
)
from nbinfer.guide import materials
from nbinfer.residents import pool

from ..lora import smollm2, write_peft
from .conftest import GREEDY, installed

PROMPT = "Write a haiku about the sea, and then say in plain words what each line of it means."


@pytest.fixture(autouse=True)
def _shared(_end):
    """These tests share the session's residents and end with it."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two random adapters, made once."""
    place = tmp_path_factory.mktemp("adapters")
    return {name: smollm2(place / name, seed) for seed, name in enumerate(("one", "two"), 1)}


def engine(binding="xllamacpp", **options):
    """A model with a context of 512, small and loaded in half a second."""
    kwargs = {"n_ctx": 512, "binding": binding, **options.pop("kwargs", {})}
    return LlamaCppInferenceEngine(ModelParams(model_kwargs=kwargs, **options))


def asked(adapter, tokens=16):
    return GenerationParams(max_new_tokens=tokens, adapter=adapter)


OTHER = pytest.param("llama-cpp-python", marks=pytest.mark.needs("llama-cpp-python"))
BINDINGS = ["xllamacpp", OTHER]


def top(row):
    """Log-probabilities of a row's first token, by id."""
    return {t["id"]: t["logprob"] for t in row["logprobs"][0]["top"]}


def likeliest(engine, adapter=None):
    """Those of the prompt's answer, and how much of the prompt was cached."""
    params = GenerationParams(max_new_tokens=1, logprobs=5, adapter=adapter)
    row = engine.infer(PROMPT, params).loc[0]
    return top(row), int(row["cached_tokens"])


def distance(one, other):
    """How far two distributions are apart; that of different tokens is without bound."""
    shared = one.keys() & other.keys()
    return max(abs(one[t] - other[t]) for t in shared) if len(shared) > 2 else float("inf")


@pytest.mark.parametrize("binding", BINDINGS)
def test_switching_is_no_load_and_no_stale_cache(binding, folders):
    """The same prompt with one, none, two, one again ...: each is answered as it was at first.

    Distributions are compared and not texts: where in the cache a prompt lies changes the order
    of a sum, and a token in a hundred with it.
    """
    if binding != "xllamacpp":
        installed(binding)
    with engine(binding, adapters=folders) as both:
        pid = both.resident.worker.pid
        first, cached = {}, []
        for adapter in ("one", None, "two", "one", None, None, "two", "two"):
            found, tokens = likeliest(both, adapter)
            assert distance(found, first.setdefault(adapter, found)) < 0.1, adapter
            cached.append(tokens)
        assert distance(first["one"], first["two"]) > 0.5
        assert distance(first["one"], first[None]) > 0.5
        # What another adapter has computed is not taken; what this one has is.
        switched, same = [cached[i] for i in (0, 1, 2, 3, 4, 6)], [cached[i] for i in (5, 7)]
        assert switched == [0] * 6
        assert min(same) > 20
        assert both.resident.worker.pid == pid


def test_two_adapters_and_none_in_one_batch(folders):
    """Requests with another adapter join those that run, and each answer is its own."""
    with engine(adapters=folders) as both:
        alone = {adapter: likeliest(both, adapter)[0] for adapter in ("one", None, "two")}
        frames = {}

        def run(adapter):
            params = GenerationParams(max_new_tokens=12, logprobs=5, adapter=adapter)
            frames[adapter] = both.infer([PROMPT] * 2, params, progress=False)

        threads = [threading.Thread(target=run, args=(a,)) for a in alone]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # A batch changes the order of sums, which a random adapter makes much of.
    for adapter, found in alone.items():
        for _, row in frames[adapter].iterrows():
            others = [distance(top(row), alone[other]) for other in alone if other != adapter]
            assert distance(top(row), found) < min(others) / 2, adapter


def test_another_adapter_is_an_announced_load_and_going_back_is_none(folders, tmp_path):
    said = []
    notices.listeners.append(said.append)
    plain = engine().load()
    pid = plain.resident.worker.pid
    bare, _ = likeliest(plain)
    one = engine(adapters={"one": folders["one"]})
    first, _ = likeliest(one, "one")
    assert [text for text in said if "anew, with the adapter" in text]
    assert one.resident.worker.pid != pid
    two = engine(adapters={"two": folders["two"]})
    two.infer(PROMPT, asked("two", 1))
    pid = two.resident.worker.pid
    # Loaded with both now; and one that has adapters serves requests without.
    assert distance(likeliest(one, "one")[0], first) < 0.1
    assert distance(likeliest(plain)[0], bare) < 0.1 < distance(first, bare)
    assert {e.resident.worker.pid for e in (one, two, plain)} == {pid}
    assert len(said) == 2
    # One that does not fit costs nothing that is loaded.
    wrong = write_peft(tmp_path / "wrong", {})
    with pytest.raises(ConfigurationError, match="no LoRA matrices"):
        engine(adapters={"wrong": wrong}).infer(PROMPT, asked("wrong"))
    assert plain.resident.worker.pid == pid
    plain.unload()
    assert not pool.residents() or plain.resident is None


def test_an_adapter_that_is_trained_anew_is_not_the_old_one(tmp_path):
    folder = smollm2(tmp_path / "mine", 1)
    tuned = engine(adapter_model=folder)
    before, _ = likeliest(tuned)
    smollm2(tmp_path / "mine", 2)
    assert distance(likeliest(tuned)[0], before) > 0.5
    tuned.unload()


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(ModelNotFound, match="no adapter at"):
        engine(adapter_model=str(tmp_path / "nowhere")).load()
    wide = smollm2(tmp_path / "wide", 1)
    config = json.loads(Path(wide, "adapter_config.json").read_text())
    Path(wide, "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ConfigurationError, match="DoRA"):
        engine(adapter_model=wide).load()
    assert not [r for r in pool.residents() if "adapter" in r.plan.key[-1]]


def test_the_prompt_cache_in_memory_knows_no_adapters(folders):
    with pytest.raises(ConfigurationError, match="cache_ram_mib"):
        engine(adapters=folders, kwargs={"cache_ram_mib": 64})


@pytest.mark.needs("native")
@pytest.mark.parametrize("binding", BINDINGS)
def test_a_trained_adapter_answers_as_it_was_trained(binding):
    if binding != "xllamacpp":
        installed(binding)
    installed("native")
    folder = str(materials.get("adapter"))
    with engine(binding, adapters={"zebra": folder}) as tuned:
        frame = tuned.infer(["Who wrote Hamlet?", "Tell me about the sea."], asked("zebra", 8))
        assert frame["output"].str.startswith("Zebra").all(), frame["output"].tolist()
        assert not tuned.infer("Who wrote Hamlet?", GREEDY)["output"][0].startswith("Zebra")


# Adds B A to the weights as PEFT does, in torch, without PEFT.
REFERENCE = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
model, adapter, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)
lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
config = json.load(open(adapter + "/adapter_config.json"))
tensors = load_file(adapter + "/adapter_model.safetensors")
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
with torch.inference_mode():
    for name, a in tensors.items():
        if ".lora_A." in name:
            b = tensors[name.replace("lora_A", "lora_B")]
            weight = lm.get_parameter(
                name.removeprefix("base_model.model.").replace(".lora_A", ""))
            weight += config["lora_alpha"] / config["r"] * b @ a
    logits = lm(ids).logits[0, -1]
print(json.dumps(logits.log_softmax(-1).tolist()))
"""


@pytest.mark.needs("native")
def test_the_first_token_is_distributed_as_transformers_says(folders):
    """Query and key projections alone: rows in the wrong order would be another model."""
    installed("native")
    python = environments.python_for("native")
    model = models.resolve("smollm2-135m", forms=("safetensors",), engine="native").path
    prompt = "The sea is a large body of salt water, and it"
    command = [python, "-W", "ignore", "-c", REFERENCE, str(model), folders["one"], prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    reference = json.loads(done.stdout)
    with engine(adapters=folders) as tuned:
        params = GenerationParams(max_new_tokens=1, logprobs=20, raw=True, adapter="one")
        (token,) = tuned.infer(prompt, params)["logprobs"][0]
    differences = [abs(t["logprob"] - reference[t["id"]]) for t in token["top"]]
    # Four-bit weights and eight-bit activations against float32 of the same weights.
    assert max(differences) < 0.5, differences
