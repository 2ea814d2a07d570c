"""Whether a model can be divided, told from its files."""

from __future__ import annotations

import json

import pytest

from nbinfer import ConfigurationError, gpu, models
from nbinfer.engines import parallel
from nbinfer.engines.parallel import check_tensor_parallel

LLAMA = {"num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 96}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Makes a model that says this of itself, on a machine of 64 CPUs and no GPU."""
    monkeypatch.setattr(gpu, "visible", list)
    monkeypatch.setattr(parallel, "_cpus", lambda: 64)

    def make(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return models.ResolvedModel("m", tmp_path, "safetensors", None, None, 0, None)

    return make


def sizes(model, *, repeats_kv):
    found = []
    for size in range(1, 30):
        try:
            check_tensor_parallel(model, size, repeats_kv=repeats_kv)
        except ConfigurationError:
            continue
        found.append(size)
    return found


def test_all_that_is_divided_must_divide(model):
    assert sizes(model(LLAMA), repeats_kv=False) == [1, 2, 4]
    # vLLM gives 12 ranks each a head, and three of them the same keys and values.
    assert sizes(model(LLAMA), repeats_kv=True) == [1, 2, 4, 12]
    assert sizes(model({**LLAMA, "intermediate_size": 6}), repeats_kv=True) == [1, 2]
    # Of a model that sees images the language model is divided.
    assert sizes(model({"text_config": LLAMA}), repeats_kv=False) == [1, 2, 4]


def test_the_error_names_what_would_do(model):
    with pytest.raises(ConfigurationError, match=r"size'\]=5 does not divide") as caught:
        check_tensor_parallel(model(LLAMA), 5, repeats_kv=True)
    assert "12 attention heads, 4 heads of keys and values, 96 columns" in caught.value.message
    assert caught.value.hint == "what would do: 1, 2, 4, 12"


@pytest.mark.parametrize("config", [{}, {"num_attention_heads": True}, []])
def test_what_is_not_told_is_left_to_the_library(model, config):
    assert sizes(model(config), repeats_kv=True) == list(range(1, 30))


def test_each_rank_needs_a_device(model, monkeypatch):
    monkeypatch.setattr(parallel, "_cpus", lambda: 1)
    with pytest.raises(ConfigurationError, match="=2 needs a CPU for each rank, and there is 1 CP"):
        check_tensor_parallel(model(LLAMA), 2, repeats_kv=True)
    monkeypatch.setattr(gpu, "visible", lambda: [None, None])
    check_tensor_parallel(model(LLAMA), 2, repeats_kv=True)
    with pytest.raises(ConfigurationError, match="=4 needs a GPU for each rank, and there are 2 G"):
        check_tensor_parallel(model(LLAMA), 4, repeats_kv=True)


def test_a_model_that_is_yet_to_be_derived_is_read_from_its_gguf(monkeypatch):
    """The embedded model has 9 heads, 3 of keys and values, and 1,536 columns."""
    monkeypatch.setattr(parallel, "_cpus", lambda: 64)
    path = models.resolve("smollm2-135m").path
    found = models.ResolvedModel(
        "m",
        path.with_name("not there"),
        "safetensors",
        None,
        None,
        0,
        None,
        derived_from=str(path),
        ready=False,
    )
    with pytest.raises(ConfigurationError, match="9 attention heads, 3 heads of keys") as caught:
        check_tensor_parallel(found, 2, repeats_kv=True)
    assert caught.value.hint == "what would do: 1, 3"
