"""Ways to load vLLM: on two ranks, with drafts, with fewer bits. Each is a load of its own."""

from __future__ import annotations

import psutil
import pytest

from nbinfer import (
    ConfigurationError,
    GenerationParams,
    LoadError,
    ModelParams,
    VLLMInferenceEngine,
    gpu,
)
from nbinfer.guide import materials
from nbinfer.residents import pool

from ..conftest import eventually
from .conftest import installed

pytestmark = [pytest.mark.needs("vllm", "native"), pytest.mark.timeout(600)]
PARAMS = GenerationParams(max_new_tokens=24)
# The second half of the answer is in the prompt: what n-grams are for.
REPEATS = "Repeat this text word by word: one two three four five six seven. one two three four"
PROMPTS = [REPEATS, "Name three colours.", "What is rain?"]


@pytest.fixture(autouse=True)
def alone(_end):
    installed("vllm")
    installed("native")
    pool.unload_all()  # one vLLM at a time
    yield
    pool.unload_all()


def engine(name="smollm2-135m", **options):
    params = ModelParams(str(name), model_max_length=1024, model_kwargs=options)
    return VLLMInferenceEngine(params)


@pytest.fixture(scope="module")
def expected(_end):
    """What the embedded model answers without any of it."""
    installed("vllm")
    pool.unload_all()
    plain = engine()
    yield plain.infer(PROMPTS, PARAMS)["output"].tolist()
    plain.unload()


# ------------------------------------------------------------------------ tensor parallel


@pytest.mark.thorough
def test_two_ranks(tmp_path):
    """Their answers are one rank's; memory counts all processes, and none of them stays."""
    folder = materials.get("tensor_parallel")
    alone = engine(folder)
    one = alone.infer(PROMPTS, PARAMS)
    alone_bytes = alone.memory()["memory_bytes"]
    alone.unload()
    both = engine(folder, tensor_parallel_size=2)
    two = both.infer(PROMPTS, PARAMS)
    assert two["error"].isna().all()
    # Sums in another order: of random weights the first tokens are what can be compared.
    assert two["output"].tolist() == one["output"].tolist()
    worker = psutil.Process(both.resident.worker.pid)
    family = [worker, *worker.children(recursive=True)]
    ranks = [p for p in family if "VLLM::Worker" in p.name() or "VLLM::Worker_TP" in p.name()]
    assert len(ranks) == 2, [p.name() for p in family]
    assert both.memory()["memory_bytes"] > alone_bytes + 1e8
    assert both.unload() > 0
    assert eventually(lambda: not any(p.is_running() for p in family)), family


def test_sizes_that_cannot_be_are_refused_before_the_load():
    with pytest.raises(ConfigurationError, match=r"does not divide.*9 attention heads") as caught:
        engine(tensor_parallel_size=2).load()
    assert caught.value.hint == "what would do: 1, 3"
    if gpu.visible():
        pytest.skip("what a machine without a GPU says")
    count = len(psutil.Process().cpu_affinity())
    size = 3 if count < 3 else 9
    if count < size:
        with pytest.raises(ConfigurationError, match=rf"size'\]={size} needs a CPU for each rank"):
            engine(tensor_parallel_size=size).load()


# ------------------------------------------------------------------- speculative decoding


@pytest.mark.thorough
def test_drafts_by_n_grams(expected):
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    made = engine(speculative_config=drafts)
    frame = made.infer(PROMPTS, PARAMS)
    assert frame["output"].tolist() == expected
    facts = frame.attrs["nbinfer"]["speculative"]
    assert 0 < facts["accepted_tokens"] <= facts["drafted_tokens"]
    for name, value in (("min_p", 0.1), ("logit_bias", {5: 1.0})):
        with pytest.raises(ConfigurationError, match=f"no {name} with speculative"):
            made.infer("Hello", GenerationParams(**{name: value}))


@pytest.mark.thorough
def test_drafts_by_a_model(expected):
    """By itself, so that every draft is right: and by its name, as the model has it."""
    made = engine(speculative_config={"model": "smollm2-135m", "num_speculative_tokens": 3})
    frame = made.infer(PROMPTS, PARAMS)
    assert frame["output"].tolist() == expected
    facts = frame.attrs["nbinfer"]["speculative"]
    assert facts["accepted_tokens"] > 0.6 * facts["drafted_tokens"] > 0


def test_what_speculation_cannot_be():
    with pytest.raises(ConfigurationError, match="must be a mapping, not 'ngram'"):
        engine(speculative_config="ngram")
    with pytest.raises(LoadError, match="num_speculative_tokens"):
        engine(speculative_config={"model": "smollm2-135m"}).load()


# ---------------------------------------------------------------------------- quantization


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "bits"), [("w8a8", 8), ("w4a16", 4)])
def test_a_checkpoint_of_fewer_bits(name, bits):
    made = engine(materials.get(name))
    frame = made.infer(["What is the capital of France?", *PROMPTS], PARAMS)
    assert frame["error"].isna().all()
    assert "Paris" in frame["output"][0]
    facts = frame.attrs["nbinfer"]
    assert facts["model_facts"]["precision"] == f"compressed-tensors-{bits}bit"
    assert facts["engine_facts"]["quantization"] == "compressed-tensors"


@pytest.mark.skipif(bool(gpu.visible()), reason="what a machine without a GPU says")
def test_a_quantization_without_a_kernel_here_says_what_there_is():
    folder = materials.get("tensor_parallel")
    with pytest.raises(
        LoadError, match=r"cannot run this quantization.*'fp8_per_channel' are made"
    ):
        engine(folder, quantization="mxfp8").load()


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.visible(), reason="vLLM's kernels for it are for GPUs")
def test_eight_bits_of_floating_point_made_at_the_load():
    made = engine(quantization="fp8_per_tensor")
    frame = made.infer("What is the capital of France?", PARAMS)
    assert "Paris" in frame["output"][0]
    assert frame.attrs["nbinfer"]["engine_facts"]["quantization"] == "fp8_per_tensor"


def test_a_quantization_that_is_none_names_those_there_are():
    words = r"no quantization 'awk'; did you mean 'awq'.*auto_gptq"
    with pytest.raises(LoadError, match=words):
        engine(quantization="awk").load()
