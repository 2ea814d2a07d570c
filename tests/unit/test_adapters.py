"""A PEFT folder as the GGUF adapter that llama.cpp loads: read back, weight by weight."""

from __future__ import annotations

import json
import math

import gguf as gguf_reader
import numpy as np
import pytest

from nbinfer import ConfigurationError, ModelNotFound, adapters, lora_gguf, settings
from nbinfer.engines.llamacpp_adapters import read_header
from nbinfer.errors import NbinferError

from ..lora import write_peft, write_safetensors

Q, K, V = (f"model.layers.0.self_attn.{part}_proj" for part in "qkv")
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "home"))


def base(architecture="llama", heads=4, kv_heads=2, width=16):
    """The header of a model of one layer, as ``gguf.read_header`` would give it."""
    head = width // heads
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width, head * kv_heads),
        "attn_v": (width, head * kv_heads),
        "ffn_gate_exps": (width, 32, 4),
    }
    return {
        "general.architecture": architecture,
        f"{architecture}.block_count": 1,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": [kv_heads],
        "tensors": [(f"blk.0.{name}.weight", shape, 0, 0) for name, shape in shapes.items()],
    }


def pair(outputs, rank=4, inputs=16):
    return (
        RANDOM.normal(size=(rank, inputs)).astype("<f4"),
        RANDOM.normal(size=(outputs, rank)).astype("<f4"),
    )


def convert(folder, header=None):
    """The adapter's file, and what it holds: its own keys and ``{tensor: array}``."""
    path = adapters.gguf_for(str(folder), header or base(), lambda _: None)
    reader = gguf_reader.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return path, keys, {t.name: np.array(t.data) for t in reader.tensors}


def applied(keys, tensors, name):
    """What llama.cpp adds to a weight: alpha / rank · B A."""
    a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    return keys["adapter.lora.alpha"] / a.shape[0] * (b @ a)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_each_weight_is_where_and_what_llama_cpp_expects(tmp_path, kind):
    pairs = {Q: pair(16), K: pair(8), V: pair(8)}
    if kind != "F32":  # values that the narrow type holds exactly
        pairs = {m: tuple(np.round(x * 4) / 4 for x in p) for m, p in pairs.items()}
    write_peft(tmp_path / "a", pairs, kind, lora_alpha=8)
    _, keys, tensors = convert(tmp_path / "a")
    assert keys["general.type"] == "adapter"
    assert keys["adapter.type"] == "lora"
    assert keys["general.architecture"] == "llama"
    assert set(tensors) == {
        f"blk.0.attn_{part}.weight.lora_{side}" for part in "qkv" for side in "ab"
    }
    for module, name, heads in ((Q, "attn_q", 4), (K, "attn_k", 2), (V, "attn_v", None)):
        a, b = pairs[module]
        delta = 8 / 4 * (b @ a)
        if heads is not None:
            # Row i of each half of a head becomes row 2 i and 2 i + 1.
            size = delta.shape[0] // heads
            order = [
                head * size + half * size // 2 + i
                for head in range(heads)
                for i in range(size // 2)
                for half in range(2)
            ]
            delta = delta[order]
        np.testing.assert_allclose(applied(keys, tensors, f"blk.0.{name}.weight"), delta, rtol=1e-5)


def test_models_that_turn_halves_keep_their_order(tmp_path):
    a, b = pair(16)
    write_peft(tmp_path / "a", {Q: (a, b)})
    _, _, tensors = convert(tmp_path / "a", base("qwen2"))
    np.testing.assert_array_equal(tensors["blk.0.attn_q.weight.lora_b"], b)


@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 8 / math.sqrt(4)),
        ({"lora_alpha": 8, "alpha_pattern": {"v_proj": 3}}, 0.75),
        ({"lora_alpha": 0}, 0.0),
        ({"r": 16, "rank_pattern": {r"layers\.\d+\.self_attn\.v_proj": 4}, "lora_alpha": 8}, 2.0),
    ],
)
def test_the_scaling_is_pefts(tmp_path, config, scaling):
    a, b = pair(8)
    write_peft(tmp_path / "a", {V: (a, b)}, **config)
    _, keys, tensors = convert(tmp_path / "a")
    found = applied(keys, tensors, "blk.0.attn_v.weight")
    np.testing.assert_allclose(found, scaling * (b @ a), rtol=1e-5, atol=1e-7)


def test_the_language_model_of_a_vision_model_is_meant(tmp_path):
    write_peft(tmp_path / "a", {V.replace("model.", "model.language_model."): pair(8)})
    _, _, tensors = convert(tmp_path / "a")
    assert set(tensors) == {"blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b"}


def test_converted_once_until_it_is_trained_anew(tmp_path):
    said = []
    write_peft(tmp_path / "a", {V: pair(8)})
    first = adapters.gguf_for(str(tmp_path / "a"), base(), said.append)
    assert adapters.gguf_for(str(tmp_path / "a"), base(), said.append) == first
    assert len(said) == 1
    assert "'a'" in said[0]
    before = adapters.stamp(str(tmp_path / "a"))
    write_peft(tmp_path / "a", {V: pair(8, rank=5)})
    assert adapters.stamp(str(tmp_path / "a")) != before
    assert adapters.gguf_for(str(tmp_path / "a"), base(), said.append) != first
    # For a model of another shape it is another file too.
    assert adapters.gguf_for(str(tmp_path / "a"), base("qwen2"), said.append) != first
    assert sorted(p.suffix for p in (settings.home() / "adapters").iterdir()) == [".gguf"] * 3


def test_what_fails_leaves_no_file(tmp_path):
    write_peft(tmp_path / "a", {V: (np.full((4, 16), np.nan, "<f4"), pair(8)[1])})
    with pytest.raises(ConfigurationError, match="no numbers"):
        convert(tmp_path / "a")
    assert not list((settings.home() / "adapters").iterdir())


def test_a_home_that_cannot_be_written_is_told(tmp_path):
    write_peft(tmp_path / "a", {V: pair(8)})
    settings.home().mkdir(parents=True, exist_ok=True)
    (settings.home() / "adapters").write_text("a file in its place")
    with pytest.raises(NbinferError, match="could not be converted"):
        convert(tmp_path / "a")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "a changed model"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"target_parameters": ["mlp.experts"]}, "experts"),
        ({"lora_alpha": "big"}, "lora_alpha is 'big'"),
        ({"r": 7}, "rank 7, its matrices 4"),
        ({"rank_pattern": {"(": 4}}, "no pattern"),
        ({"alpha_pattern": {"v_proj": None}}, "the value None"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path, config, match):
    write_peft(tmp_path / "a", {V: pair(8)}, **config)
    with pytest.raises(ConfigurationError, match=match):
        convert(tmp_path / "a")


@pytest.mark.parametrize(
    ("modules", "match"),
    [
        ({V: pair(16)}, "gives 8 values and the adapter's 16"),
        ({V: pair(8, inputs=32)}, "takes 16 values and the adapter's 32"),
        ({V.replace("layers.0", "layers.3"): pair(8)}, r"layers\.3\.self_attn\.v_proj"),
        ({"model.layers.0.mlp.down_proj": pair(8)}, "which the model has not"),
        ({V: (pair(8, rank=3)[0], pair(8)[1])}, "their ranks do not meet"),
        ({}, "no LoRA matrices"),
    ],
)
def test_an_adapter_for_another_model_says_where_they_differ(tmp_path, modules, match):
    write_peft(tmp_path / "a", modules, base_model_name_or_path="org/other", r=4)
    if "rank" in match:
        write_peft(tmp_path / "a", modules, r=3)
    with pytest.raises(ConfigurationError, match=match) as caught:
        convert(tmp_path / "a")
    if "values" in match:
        assert "trained on 'org/other'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.layers.0.self_attn.v_proj.lora_magnitude_vector.weight", "DoRA"),
        ("model.embed_tokens.lora_embedding_A", "embeddings"),
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.0.self_attn.v_proj.lora_B.bias", "biases"),
        ("model.layers.0.input_layernorm.weight", "other weights"),
    ],
)
def test_tensors_beyond_plain_matrices_are_refused_by_name(tmp_path, name, what):
    write_peft(tmp_path / "a", {V: pair(8)})
    a, b = pair(8)
    prefix = "base_model.model."
    write_safetensors(
        tmp_path / "a" / "adapter_model.safetensors",
        {f"{prefix}{V}.lora_A.weight": a, f"{prefix}{V}.lora_B.weight": b, prefix + name: a},
    )
    with pytest.raises(ConfigurationError, match=what) as caught:
        convert(tmp_path / "a")
    assert name in str(caught.value)


def test_an_architecture_whose_layers_are_rearranged_is_not_guessed_at(tmp_path):
    write_peft(tmp_path / "a", {V: pair(8)})
    with pytest.raises(ConfigurationError, match="'falcon' are not converted") as caught:
        convert(tmp_path / "a", base("falcon"))
    assert "convert_lora_to_gguf.py" in str(caught.value)


def test_every_architecture_that_is_converted_has_a_map(tmp_path):
    known = set(gguf_reader.MODEL_ARCH_NAMES.values())
    assert known >= lora_gguf.CONVERTED
    for architecture in lora_gguf.CONVERTED:
        folder = tmp_path / architecture
        module = V
        if architecture == "phi3":  # whose projections are one
            module = "model.layers.0.self_attn.qkv_proj"
        if architecture == "exaone":
            module = "transformer.h.0.attn.attention.v_proj"
        write_peft(folder, {module: pair(8)})
        header = base(architecture)
        header["tensors"].append(("blk.0.attn_qkv.weight", (16, 8), 0, 0))
        convert(folder, header)


def test_damaged_folders(tmp_path):
    with pytest.raises(ModelNotFound, match="no adapter at"):
        convert(tmp_path / "nothing")
    folder = tmp_path / "a"
    folder.mkdir()
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json cannot be read"):
        convert(folder)
    config = folder / "adapter_config.json"
    config.write_text("{")
    with pytest.raises(ConfigurationError, match="is no JSON"):
        convert(folder)
    config.write_text(json.dumps({"r": 4}))
    with pytest.raises(ModelNotFound, match=r"no adapter_model\.safetensors"):
        convert(folder)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelNotFound, match="safe_serialization"):
        convert(folder)
    weights = folder / "adapter_model.safetensors"
    for data in (b"", b"\xff" * 8, b"\x02" + bytes(7) + b"{}"[:1], b"\x02" + bytes(7) + b"[]"):
        weights.write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"adapter_model\.safetensors"):
            convert(folder)
    write_peft(folder, {V: pair(8)})
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ConfigurationError, match="ends before"):
        convert(folder)
    header = b'{"x": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}'
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ConfigurationError, match="I8"):
        convert(folder)


def test_a_gguf_adapter_is_taken_as_it_is_where_it_fits(tmp_path):
    write_peft(tmp_path / "a", {V: pair(8)})
    path, _, _ = convert(tmp_path / "a")
    assert adapters.gguf_for(str(path), base(), lambda _: None) == path
    for header, match in (
        (base("qwen2"), "architecture 'llama', and this one is 'qwen2'"),
        (base(kv_heads=4), "gives 16 values and the adapter's 8"),
        ({**base(), "tensors": []}, "which the model has not"),
    ):
        with pytest.raises(ConfigurationError, match=match):
            adapters.gguf_for(str(path), header, lambda _: None)
    text = tmp_path / "notes.gguf"
    text.write_text("hello")
    with pytest.raises(ConfigurationError, match="not a GGUF file"):
        adapters.gguf_for(str(text), base(), lambda _: None)
    writer = gguf_reader.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ConfigurationError, match="no LoRA adapter"):
        adapters.gguf_for(str(tmp_path / "model.gguf"), base(), lambda _: None)


def test_a_model_in_parts_has_the_tensors_of_all(tmp_path):
    for number, name in enumerate(("attn_q", "attn_v"), 1):
        path = tmp_path / f"model-0000{number}-of-00002.gguf"
        writer = gguf_reader.GGUFWriter(path, "llama")
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((8, 16), "<f4"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    header = read_header(tmp_path / "model-00001-of-00002.gguf")
    assert [t[0] for t in header["tensors"]] == ["blk.0.attn_q.weight", "blk.0.attn_v.weight"]
    path.write_bytes(path.read_bytes()[:40])
    assert read_header(tmp_path / "model-00001-of-00002.gguf") == {}
