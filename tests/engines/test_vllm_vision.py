"""Images on vLLM: a small LLaVA whose tower knows colours, loaded once."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from nbinfer import (
    Conversation,
    GenerationParams,
    ImagePart,
    Message,
    ModelParams,
    TextPart,
    VLLMInferenceEngine,
)
from nbinfer.guide import materials
from nbinfer.residents import pool

from .conftest import installed
from .pictures import BLUE, GREEN, RED, YELLOW, png, served

pytestmark = [pytest.mark.needs("vllm", "native"), pytest.mark.timeout(600)]
PARAMS = GenerationParams(max_new_tokens=12)
QUESTION = "What colour is this?"


@pytest.fixture(scope="module")
def engine(_end):
    installed("vllm")
    installed("native")
    pool.unload_all()  # one vLLM at a time
    folder = materials.get("vision")
    made = VLLMInferenceEngine(ModelParams(str(folder), model_max_length=1024))
    yield made
    made.unload()


def asked(*images, text=QUESTION):
    parts = [image if isinstance(image, ImagePart) else ImagePart(image) for image in images]
    return Conversation([Message("user", [*parts, TextPart(text)])])


def test_an_image_is_the_same_however_it_is_given(engine, tmp_path):
    """One batch: by bytes, path, address, data and picture; and another image among them."""
    red, path = png(RED), tmp_path / "red.png"
    path.write_bytes(red)
    picture = Image.open(io.BytesIO(red))
    data = "data:image/png;base64," + base64.b64encode(red).decode()
    with served({"/red.png": red}) as address:
        given = [red, path, str(path), f"{address}/red.png?size=1", data, picture, png(BLUE)]
        frame = engine.infer([asked(image) for image in given], PARAMS)
    assert frame["error"].isna().all(), frame["error"].tolist()
    *same, other = frame["output"]
    assert set(same) == {same[0]}
    assert other != same[0]
    plain = engine.infer(QUESTION, PARAMS)  # and the model reads text alone as well
    assert plain["error"].isna().all()
    assert plain["output"][0] not in (same[0], other)
    assert frame["prompt_tokens"][0] > plain["prompt_tokens"][0]


def test_the_answers_are_the_raw_models(engine, tmp_path):
    engine.load()
    colours = {"red": RED, "blue": BLUE, "green": GREEN, "yellow": YELLOW}
    for name, colour in colours.items():
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    paths = [str(tmp_path / f"{name}.png") for name in colours]
    frame = engine.infer([asked(path) for path in paths], PARAMS)
    raw = subprocess.run(
        [
            engine.resident.report["python"],
            str(Path(__file__).with_name("raw.py")),
            "vision",
            engine.resident.model_facts["path"],
        ],
        input=json.dumps({"prompts": [[path, QUESTION] for path in paths], "tokens": 12}),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    expected = [json.loads(line)[0] for line in raw.stdout.splitlines()]
    assert frame["output"].tolist() == expected
    assert len(set(expected)) == len(colours)


def test_a_prefix_is_another_images_only_where_it_is_the_same_image(engine):
    """The cache holds what comes before and after an image, of that image alone."""
    long = "Think of a very long answer, and then of a short one. " * 40 + QUESTION
    red, blue = asked(png(RED), text=long), asked(png(BLUE), text=long)
    first, other, again = (engine.infer(one, PARAMS).loc[0] for one in (red, blue, red))
    assert first["output"] == again["output"]
    assert again["cached_tokens"] > 256
    assert other["cached_tokens"] < 128  # what is before the image, at most


def test_what_is_no_image_is_that_rows_error(engine):
    with served({"/text.png": b"hello"}) as address:
        bad = {
            b"hello": "these bytes are no image",
            png(RED)[:60]: "image 1 of the prompt cannot be read",
            f"{address}/text.png": "image 1 .* cannot identify image file$",
            f"{address}/none.png?key=abc": rf"image 1 .*{address}/none.png answers 404",
            "http://127.0.0.1:9/x.png?key=abc": r"127.0.0.1:9/x.png cannot be fetched: .*refused",
        }
        frame = engine.infer([asked(image) for image in (*bad, png(RED))], PARAMS)
    *errors, fine = frame["error"]
    for text, pattern in zip(errors, bad.values(), strict=True):
        assert re.search(pattern, text), (pattern, text)
        assert "abc" not in text
    assert pd.isna(fine)
    assert "abc" not in engine.resident.worker.log.read_text(errors="replace")


def test_several_images_in_one_prompt(engine):
    two = engine.infer([asked(png(RED), png(BLUE)), asked(png(BLUE), png(RED))], PARAMS)
    assert two["error"].isna().all()
    one = engine.infer(asked(png(RED)), PARAMS)
    assert two["prompt_tokens"][0] > one["prompt_tokens"][0]
