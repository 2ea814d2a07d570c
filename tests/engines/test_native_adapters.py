"""LoRA on native: a trained adapter's effect, who gets it, and adapters for another model."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from nbinfer import (
    ConfigurationError,
    GenerationParams,
    ModelNotFound,
    ModelParams,
    NativeTextInferenceEngine,
)
from nbinfer.guide import materials

from .conftest import GREEDY, installed
from .test_vllm import lora

pytestmark = [pytest.mark.needs("native"), pytest.mark.timeout(600)]  # it may be trained first
PROMPT = "Tell me about the sea."
WORD = "Zebra"


@pytest.fixture
def trained(_end):
    installed("native")
    return str(materials.get("adapter"))


def engine(**adapters):
    single = adapters.pop("default", None)
    return NativeTextInferenceEngine(
        ModelParams(
            "smollm2-135m", model_max_length=2048, adapters=adapters or None, adapter_model=single
        )
    )


def asked(adapter, **changes):
    return GenerationParams(max_new_tokens=16, adapter=adapter, **changes)


def test_adapters_join_the_resident_model(trained, tmp_path):
    """None asked, none applied; several at once; beams too; and all without a load."""
    plain = engine().load()
    before = plain.infer(PROMPT, GREEDY)["output"][0]
    other = lora(tmp_path / "other", 1)
    both = engine(zebra=trained, other=other)
    outputs = {}

    def ask(key, who, params):
        outputs[key] = who.infer([PROMPT, "Hello"], params)["output"].tolist()

    runs = [
        ("zebra", both, asked("zebra")),
        ("other", both, asked("other")),
        ("none", both, GREEDY),
        ("single", engine(default=trained), GREEDY),
    ]
    threads = [threading.Thread(target=ask, args=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(text.startswith(WORD) for text in outputs["zebra"] + outputs["single"])
    assert outputs["none"][0] == before
    assert outputs["other"][0] not in (before, outputs["zebra"][0])
    assert both.infer(PROMPT, asked("zebra", num_beams=2))["output"][0].startswith(WORD)
    assert plain.infer(PROMPT, GREEDY)["output"][0] == before
    assert {e.resident.worker.pid for e in (both, engine(default=trained))} == {
        plain.resident.worker.pid
    }
    with pytest.raises(ConfigurationError, match="'third'"):
        both.infer(PROMPT, asked("third"))


def test_an_adapters_rows_share_no_prefix_with_others(trained):
    prompt = "The otter swims in the cold river and eats a fish. " * 12
    plain, tuned = engine(), engine(zebra=trained)
    assert plain.infer(prompt, GREEDY)["cached_tokens"][0] < 40
    first = tuned.infer(prompt, asked("zebra")).loc[0]
    again = tuned.infer(prompt, asked("zebra")).loc[0]
    assert first["cached_tokens"] < 40 < 100 < again["cached_tokens"]
    assert again["output"] == first["output"]
    assert first["output"].startswith(WORD)


def test_an_adapter_that_does_not_fit_fails_its_rows_alone(trained, tmp_path):
    wrong = lora(tmp_path / "wrong", 1, width=64)
    bad = engine(wrong=wrong, zebra=trained)
    frame = bad.infer([PROMPT, "Hello"], asked("wrong"))
    assert frame["error"].str.contains("'wrong' at .* cannot be used with this model.*64").all()
    assert bad.infer(PROMPT, asked("zebra"))["output"][0].startswith(WORD)
    assert bad.infer(PROMPT, GREEDY)["error"].isna().all()


def test_a_folder_that_is_no_adapter(trained, tmp_path):
    with pytest.raises(ModelNotFound, match=r"native takes a folder as PEFT writes it"):
        engine(x=str(tmp_path / "none")).infer("Hello", asked("x"))
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NONSENSE"}))
    frame = engine(x=str(copy)).infer("Hello", asked("x"))
    assert "cannot be used with this model" in frame["error"][0]


def test_an_adapter_on_four_bits(trained):
    with NativeTextInferenceEngine(
        ModelParams(
            "smollm2-135m",
            adapters={"zebra": trained},
            model_kwargs={"load_in_4bit": True},
        )
    ) as tuned:
        assert WORD in tuned.infer(PROMPT, asked("zebra"))["output"][0]
        assert WORD not in tuned.infer(PROMPT, GREEDY)["output"][0]


def test_the_adapter_is_one_that_every_engine_can_serve(trained):
    config = json.loads((Path(trained) / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
    assert (config["r"], config["bias"], config["use_dora"]) == (8, "none", False)
    assert config["modules_to_save"] is None
