"""Greedy rows are the raw library's own answers, token for token, on fifty prompts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nbinfer import GenerationParams, models
from nbinfer.guide.parity import PROMPTS

from .conftest import VARIANTS

TOKENS = 24
LIBRARIES = {
    "": "xllamacpp",
    "native": "native",
    "llama-cpp-python": "llama_cpp_python",
    "vllm": "vllm",
}


@pytest.mark.parametrize("variant", VARIANTS, indirect=True)
def test_fifty_prompts(variant, engine):
    resident = engine.load().resident
    path = resident.model_facts["path"]
    if engine.name == "llamacpp" and not variant.recipe:
        # One slot: in a batch llama.cpp's quantized products round in another order.
        engine.unload()
        engine = variant.make(model_kwargs={"n_parallel": 1})
    params = GenerationParams(max_new_tokens=TOKENS)
    frame = engine.infer(PROMPTS, params)
    assert frame["error"].isna().all()
    python = resident.report["python"]
    raw = subprocess.run(
        [python, str(Path(__file__).with_name("raw.py")), LIBRARIES[variant.recipe], path],
        input=json.dumps({"prompts": PROMPTS, "tokens": TOKENS}),
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    expected = [tuple(json.loads(line)) for line in raw.stdout.splitlines()]
    ours = list(zip(frame["output"], frame["output_tokens"], strict=True))
    differing = [(p, a, b) for p, a, b in zip(PROMPTS, ours, expected, strict=True) if a != b]
    assert differing == []
    assert models.resolve("smollm2-135m").path.is_file()
    if variant.recipe == "" and engine.name == "llamacpp":
        engine.unload()
