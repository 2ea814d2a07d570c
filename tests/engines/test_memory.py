"""The formulas of ``%memory`` against Transformers' own models, and a file of llama.cpp's."""

from __future__ import annotations

import json
import subprocess

import pytest

from nbinfer import environments, gguf, models
from nbinfer.guide.quantization import gguf_type
from nbinfer.guide.shapes import LEFT_OUT, from_config
from nbinfer.guide.sources import describe, families
from nbinfer.guide.tensors import tensors

from .conftest import installed

# Parameters that Transformers makes of each config, on the meta device, and the sizes that are
# the defaults of each config class.
CODE = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
configs = json.load(sys.stdin)
counts, defaults = {}, {}
for name, given in configs.items():
    kind = given.pop("model_type")
    config = AutoConfig.for_model(kind, **given)
    auto = AutoModelForImageTextToText if kind == "gemma3" else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    counts[name] = sum(p.numel() for p in model.parameters())
    kinds = {**given.get("text_config", given)}
    plain = AutoConfig.for_model(kind).get_text_config()
    defaults[name] = {k: getattr(plain, k, None) for k in kinds}
json.dump([counts, defaults], sys.stdout)
"""
# Config classes whose defaults are a known model's: those that Transformers was written for.
DEFAULTS = {
    "meta-llama/Llama-2-7b-hf": {"max_position_embeddings"},  # of the first Llama
    "mistralai/Mistral-7B-v0.1": {"max_position_embeddings"},
    "mistralai/Mixtral-8x7B-v0.1": {"max_position_embeddings"},
    "google/gemma-2-2b": set(),
    "microsoft/Phi-3-mini-4k-instruct": {"sliding_window"},
    "deepseek-ai/DeepSeek-V3": {"max_position_embeddings"},
    "Qwen/Qwen1.5-MoE-A2.7B": {"max_position_embeddings"},
}


pytestmark = pytest.mark.needs("native")


@pytest.fixture(scope="module")
def transformers():
    python = environments.python_for(installed("native").recipe)
    configs = {repo: entry["config"] for repo, entry in families().items()}
    done = subprocess.run(
        [python, "-c", CODE],
        input=json.dumps(configs),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_parameters_are_those_of_transformers_models(transformers):
    counts, _ = transformers
    ours = {}
    for repo in families():
        found = describe(repo)
        ours[repo] = sum(t.count for t in found.tensors) + found.extra
        if repo == "deepseek-ai/DeepSeek-V3":  # a router's correction is a buffer there
            ours[repo] -= sum(t.count for t in found.tensors if "exp_probs_b" in t.name)
    assert ours == counts


def test_known_sizes_are_the_defaults_of_transformers_configs(transformers):
    _, defaults = transformers
    for repo, apart in DEFAULTS.items():
        config = families()[repo]["config"]
        for key, value in config.items():
            if key not in apart | {"model_type"}:
                default = defaults[repo][key]
                assert default == value or default is None, (repo, key)


def test_what_gemmas_configs_leave_out_is_its_class_default(transformers):
    """A config that leaves it out is filled in as Transformers does."""
    _, defaults = transformers
    given = defaults["google/gemma-3-270m"]
    for key, value in LEFT_OUT["gemma3_text"].items():
        assert given[key] == value


def test_a_gguf_type_gives_each_tensor_what_llama_cpp_gave_it():
    """The embedded model's file was made by llama.cpp itself."""
    header = gguf.read_header(models.fetch_embedded("smollm2-135m"))
    shape = from_config(families()["HuggingFaceTB/SmolLM2-135M-Instruct"]["config"], "smollm2")
    made = {name: gguf.type_name(kind) for name, _, kind, _ in header["tensors"]}
    assert gguf_type(shape, tensors(shape), "Q4_1") == made
