"""GGUF files of several types on llama.cpp: loaded, answering, and called what they are."""

from __future__ import annotations

import subprocess

import pytest

from nbinfer import GenerationParams, LlamaCppInferenceEngine, ModelParams, environments, models
from nbinfer.guide import materials

from .conftest import installed

PROMPT = "The sea is a large body of salt water, and it"
FIRST = GenerationParams(max_new_tokens=1, logprobs=5, raw=True)
# llama.cpp's own quantizer, by the binding that has it; the numbers are enum llama_ftype's.
QUANTIZE = """
import sys, llama_cpp
source, target, kind = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread, params.allow_requantize = int(kind), 2, True
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
"""
TYPES = {"Q4_0": 2, "Q5_K_M": 17, "Q8_0": 7}


@pytest.fixture(autouse=True)
def _shared(_end):
    """These tests share the session's residents and end with it."""


@pytest.fixture(scope="module")
def reference(_end):
    """Log-probabilities of the embedded model's likeliest first tokens, by their id."""
    engine = LlamaCppInferenceEngine(ModelParams(model_kwargs={"n_ctx": 2048}))
    (token,) = engine.infer(PROMPT, FIRST)["logprobs"][0]
    return {t["id"]: t["logprob"] for t in token["top"]}


def loaded(path, reference):
    """The precision that the facts tell, and how far it is from what it was made of."""
    with LlamaCppInferenceEngine(ModelParams(str(path), model_kwargs={"n_ctx": 256})) as engine:
        frame = engine.infer(PROMPT, FIRST)
    assert frame["error"].isna().all(), frame["error"].tolist()
    (token,) = frame["logprobs"][0]
    near = [abs(t["logprob"] - reference[t["id"]]) for t in token["top"] if t["id"] in reference]
    assert len(near) >= 3
    return frame.attrs["nbinfer"]["model_facts"]["precision"], max(near)


@pytest.mark.needs("llama-cpp-python")
@pytest.mark.parametrize("kind", TYPES)
def test_types_that_the_library_quantizes_to(kind, reference, tmp_path):
    installed("llama-cpp-python")
    python = environments.python_for("llama-cpp-python")
    source, target = str(models.resolve("smollm2-135m").path), str(tmp_path / "model.gguf")
    command = [python, "-c", QUANTIZE, source, target, str(TYPES[kind])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-2000:]
    precision, distance = loaded(target, reference)
    assert precision == kind
    assert distance < (0.2 if kind == "Q8_0" else 1.5)


@pytest.mark.needs("native")
def test_the_eight_bit_material_is_the_embedded_model(reference):
    installed("native")
    precision, distance = loaded(materials.get("q8_0") / "model.gguf", reference)
    assert precision == "Q8_0"
    assert distance < 0.2
