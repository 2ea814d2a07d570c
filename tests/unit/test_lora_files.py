"""Whether a LoRA adapter fits a model, by the headers of their files."""

from __future__ import annotations

import json
import struct

import pytest

from nbinfer.worker.backends import _lora


def weights(file, **shapes):
    """A safetensors file of these shapes, without the data that nobody reads."""
    header = {
        name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    text = json.dumps(header).encode()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(struct.pack("<Q", len(text)) + text)
    return str(file.parent)


@pytest.fixture
def model(tmp_path):
    return weights(
        tmp_path / "model" / "model.safetensors",
        **{"layer.q_proj.weight": (8, 6), "layer.v_proj.weight": (4, 6)},
    )


def adapter(tmp_path, module, *, takes, gives):
    name = f"base_model.model.{module}"
    shapes = {f"{name}.lora_A.weight": (2, takes), f"{name}.lora_B.weight": (gives, 2)}
    return weights(tmp_path / "adapter" / "adapter_model.safetensors", **shapes)


def test_one_that_fits(tmp_path, model):
    _lora.check(adapter(tmp_path, "layer.q_proj", takes=6, gives=8), model)
    _lora.check(str(tmp_path / "none"), model)  # what is no folder here is the library's


@pytest.mark.parametrize(
    ("module", "takes", "gives", "words"),
    [
        ("layer.q_proj", 5, 8, "layer.q_proj takes 6 values and the adapter's 5"),
        ("layer.v_proj", 6, 8, "layer.v_proj gives 4 values and the adapter's 8"),
        ("other.q_proj", 6, 8, "weights for other.q_proj, which the model does not have"),
    ],
)
def test_one_that_does_not_is_told_by_its_name(tmp_path, model, module, takes, gives, words):
    path = adapter(tmp_path, module, takes=takes, gives=gives)
    with pytest.raises(ValueError, match=f"the adapter 'mine' does not fit: .*{words}"):
        _lora.check_all({"mine": path}, lambda given: _lora.check(given, model))


def test_which_modules_it_changes(tmp_path):
    path = adapter(tmp_path, "lm_head", takes=6, gives=8)
    assert _lora.changes(path, "lm_head")
    assert not _lora.changes(path, "embed_tokens")
    assert not _lora.changes(str(tmp_path / "none"), "lm_head")
