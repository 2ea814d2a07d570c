"""What SGLang does on a GPU alone: seeds that are heeded, weights of fewer bits, drafts.

On a CPU it refuses both: ``--enable-deterministic-inference`` has no backend of attention there
(``srt/arg_groups/overrides.py``, ``_deterministic_attention_backend``), and its quantized layers
want AMX and kernels that PyPI has for CUDA alone (``srt/layers/quantization/fp8.py``).
"""

from __future__ import annotations

import pytest

import nbinfer
from nbinfer import GenerationParams, ModelParams, SGLangInferenceEngine, gpu

from .conftest import GREEDY

pytestmark = [
    pytest.mark.needs("sglang"),
    pytest.mark.gpu,
    pytest.mark.skipif(not gpu.devices(), reason="no NVIDIA GPU here"),
]


def served(**options):
    return nbinfer.serve("sglang", ModelParams(model_max_length=1024, model_kwargs=options))


def test_a_deterministic_server_heeds_seeds(clean):
    def sample(seed):
        params = GenerationParams(max_new_tokens=24, temperature=1.5, seed=seed)
        return SGLangInferenceEngine().infer("Write a haiku about the sea.", params)["output"][0]

    with served(enable_deterministic_inference=True):
        assert sample(7) == sample(7)
        assert len({sample(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("quantization", ["fp8", "bitsandbytes"], ids=["8 bits", "4 bits"])
def test_weights_of_fewer_bits(clean, quantization):
    with served(quantization=quantization):
        frame = SGLangInferenceEngine().infer("What is the capital of France?", GREEDY)
    assert frame["error"].isna().all()
    assert frame.attrs["nbinfer"]["engine_facts"]["quantization"] == quantization


def test_drafts_change_nothing_of_a_greedy_answer(clean):
    answers = []
    for options in ({}, {"speculative_algorithm": "NGRAM"}):
        with served(**options):
            answers.append(SGLangInferenceEngine().infer("Count to ten.", GREEDY)["output"][0])
    assert answers[0] == answers[1]
