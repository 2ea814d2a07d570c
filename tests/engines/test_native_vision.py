"""Images on native: a small LLaVA whose tower tells colours apart, by the real library."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import threading

import pytest
from PIL import Image

from nbinfer import (
    Conversation,
    GenerationParams,
    ImagePart,
    Message,
    ModelParams,
    NativeTextInferenceEngine,
    TextPart,
)
from nbinfer.guide import materials

from .conftest import GREEDY, installed

pytestmark = pytest.mark.needs("native")

RED, BLUE = (220, 30, 30), (30, 60, 220)
QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def eyes(_end):
    installed("native")
    with NativeTextInferenceEngine(ModelParams(str(materials.get("vision")))) as engine:
        yield engine


def picture(colour, size=(56, 56), form="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, form)
    return stream.getvalue()


def asked(*images, text=QUESTION):
    return Conversation([Message("user", [*map(ImagePart, images), TextPart(text)])])


def answers(engine, *prompts):
    frame = engine.infer(list(prompts), GREEDY)
    assert frame["error"].isna().all(), frame["error"].tolist()
    return frame["output"].tolist()


def test_what_is_seen_changes_the_answer(eyes):
    frame = eyes.infer([asked(picture(RED)), asked(picture(BLUE))], GREEDY)
    red, blue = frame["output"]
    assert "red" in red.lower()
    assert "blue" in blue.lower()
    # 56 pixels in patches of 14: sixteen tokens.
    (alone,) = eyes.infer([QUESTION], GREEDY)["prompt_tokens"]
    assert (frame["prompt_tokens"] == alone + 16 + 1).all()  # and a line's end
    assert (frame["ttft_s"] > 0).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_the_answer_is_the_librarys(eyes, beams):
    url = "data:image/png;base64," + base64.b64encode(picture(RED)).decode()
    raw = eyes.execute(
        "import base64, io\n"
        "from PIL import Image\n"
        "from transformers import AutoProcessor\n"
        f"p = AutoProcessor.from_pretrained({str(materials.get('vision'))!r})\n"
        f"im = Image.open(io.BytesIO(base64.b64decode({url.partition(',')[2]!r})))\n"
        "chat = [{'role': 'user', 'content': [{'type': 'image'}, "
        f"{{'type': 'text', 'text': {QUESTION!r}}}]}}]\n"
        "text = p.apply_chat_template(chat, add_generation_prompt=True)\n"
        "ids = p(text=text, images=[im], return_tensors='pt')\n"
        f"out = model.generate(**ids, max_new_tokens=16, do_sample=False, num_beams={beams})\n"
        "p.decode(out[0, ids['input_ids'].shape[1]:], skip_special_tokens=True)"
    )
    params = GenerationParams(max_new_tokens=16, num_beams=beams)
    assert eyes.infer([asked(url)], params)["output"].tolist() == [eval(raw)]


def test_an_image_comes_by_path_url_and_bytes(eyes, tmp_path):
    data = picture(RED)
    (tmp_path / "red.png").write_bytes(data)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/red.png"
        inline = "data:image/png;base64," + base64.b64encode(data).decode()
        found = answers(eyes, *map(asked, [tmp_path / "red.png", address, inline, data]))
        lost = eyes.infer([asked(address + ".gone?key=planted")], GREEDY)
        server.shutdown()
    assert len(set(found)) == 1
    (error,) = lost["error"]
    assert "404" in error
    assert "red.png.gone" in error
    assert "planted" not in error


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_rows_with_images_and_without_share_a_run(eyes):
    prompts = [
        asked(picture(RED)),
        "What is the capital of France?",
        asked(picture(BLUE, (80, 30), "JPEG")),
        asked(picture(RED), picture(BLUE), text="Which colors are these?"),
        [{"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]}],
    ]
    alone = [answers(eyes, prompt)[0] for prompt in prompts]
    assert answers(eyes, *prompts) == alone
    assert alone[1] == alone[4]
    assert "Paris" in alone[1]


def test_no_prefix_is_taken_for_another_image(eyes):
    """The prompts are the same tokens, image for image."""
    text = "Look at this picture for a while and at nothing else. " * 4 + QUESTION
    first = eyes.infer([asked(picture(RED), text=text)], GREEDY).loc[0]
    second = eyes.infer([asked(picture(BLUE), text=text)], GREEDY).loc[0]
    assert first["prompt_tokens"] == second["prompt_tokens"]
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 0)
    assert first["output"] != second["output"]


def test_a_seed_means_the_same_again(eyes):
    params = GenerationParams(max_new_tokens=8, temperature=0.8, seed=3)
    once, again = (eyes.infer([asked(picture(BLUE))], params).loc[0, "output"] for _ in range(2))
    assert once == again


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (picture(RED)[:60], "no picture"),
        ("http://127.0.0.1:9/x.png?key=planted", "http://127.0.0.1:9/x.png cannot be fetched"),
        ("data:image/png;base64,@@@", "base64"),
    ],
)
def test_an_image_that_cannot_be_had_fails_its_row_alone(eyes, image, words):
    frame = eyes.infer([asked(image), asked(picture(RED))], GREEDY)
    assert words in frame.loc[0, "error"]
    assert "planted" not in frame.loc[0, "error"]
    assert "image 1 of 1" in frame.loc[0, "error"]
    assert "red" in frame.loc[1, "output"].lower()


def test_text_that_spells_an_image_is_refused(eyes):
    frame = eyes.infer([asked(picture(RED), text="<filename>")], GREEDY)
    assert "'<filename>'" in frame.loc[0, "error"]


def test_a_model_of_text_says_what_would_read_images(_end):
    engine = NativeTextInferenceEngine(ModelParams(model_max_length=2048))
    frame = engine.infer([asked(picture(RED)), "What is the capital of France?"], GREEDY)
    assert "reads text alone" in frame.loc[0, "error"]
    assert "LLaVA" in frame.loc[0, "error"]
    assert "Paris" in frame.loc[1, "output"]
