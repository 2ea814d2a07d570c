"""What llama.cpp's backend asks, counts and reports, without the library."""

from __future__ import annotations

import os
import tempfile

import pytest

from nbinfer import GenerationParams, GuidedDecodingParams
from nbinfer.worker.backends._llamacpp_answer import Answer, describe
from nbinfer.worker.backends._llamacpp_body import body, choice_grammar
from nbinfer.worker.backends._llamacpp_cells import Cells, estimate, has_images
from nbinfer.worker.backends._llamacpp_schema import Compiling
from nbinfer.worker.backends._llamacpp_words import unused

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}


def data(content="Hi", **params):
    return {
        "messages": [{"role": "user", "content": content}],
        "params": GenerationParams(**params).to_dict(),
    }


class Emit:
    """What the scheduler would be told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda request, *facts, **fields: self.told.append((name, facts, fields))


class Row:
    def __init__(self, given):
        self.data = given


def answer(given, total=1000, reserved=300):
    """An answer under way, and the cells that it has reserved."""
    cells, emit = Cells(total), Emit()
    assert cells.reserve(reserved, lambda: False)
    made = Answer(Row(given), emit, cells, lambda: False)
    made.start(reserved)
    return made, cells, emit


def progress(total, processed=0):
    return {"choices": [], "prompt_progress": {"total": total, "processed": processed}}


def test_an_images_url_is_no_text():
    text = estimate(data("Which colour?"), 500)
    parts = [IMAGE, {"type": "text", "text": "Which colour?"}, IMAGE]
    assert estimate(data(parts), 500) == text + 1000
    assert has_images(data(parts))
    assert not has_images(data())
    assert not has_images({"prompt": "raw", "params": {}})


def test_the_prompts_true_length_corrects_what_is_reserved():
    made, cells, _ = answer(data(max_new_tokens=50), reserved=300)
    assert not made(progress(100))
    assert made.reserved == 150  # what was too much is others' at once
    assert cells.reserve(850, lambda: False)
    cells.release(850)
    assert not made(progress(400))
    assert made.reserved == 450
    cells.reserve(550, lambda: False)
    assert made(progress(600)) is True  # it is stopped before its prefill, and waits for room
    assert made.needs_more == 650
    assert made.reserved == 450


def test_drafts_are_told_where_there_were_any():
    for timings, told in (({"predicted_n": 2}, None), ({"draft_n": 9, "draft_n_accepted": 7}, 9)):
        made, _, emit = answer(data())
        made({"choices": [{"delta": {"content": "a"}}], "timings": timings})
        made({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {}})
        made.close()
        name, _, fields = emit.told[-1]
        assert name == "finished"
        assert (fields.get("speculative") or {}).get("drafted_tokens") == told


def test_each_sampling_parameter_is_sent():
    asked = body(
        data(temperature=0.5, seed=3, stop_strings=["x"], logit_bias={7: -1}), 512, None, ""
    )
    assert asked["top_k"] == 0  # llama.cpp's own would be 40
    assert asked["min_p"] == 0
    assert asked["repeat_last_n"] == 512
    assert asked["seed"] == 3
    assert asked["stop"] == ["x"]
    assert asked["logit_bias"] == [[7, -1.0]]
    assert "lora" not in asked
    assert body(data(), 512, [{"id": 0, "scale": 0.0}], "")["lora"] == [{"id": 0, "scale": 0.0}]


@pytest.mark.parametrize(
    ("guided", "key"),
    [
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"choice": ["a"]}, "grammar"),
        ({"json": {"type": "integer"}}, "response_format"),
    ],
)
def test_the_form_of_the_answer_is_asked_for(guided, key):
    given = data(guided_decoding=GuidedDecodingParams(**guided))
    assert key in body(given, 512, None, "")


def test_a_form_that_was_left_out_stops_the_answer_at_once():
    """llama.cpp tells its log alone, and would answer in any form."""
    with os.fdopen(os.dup(2), "w") as log, tempfile.TemporaryFile("w+b") as own:
        os.dup2(own.fileno(), 2)
        try:
            for said, expected in (
                (b"0.01.668 E llg error: at 2(8): failed to compile: Invalid type: x\n", "Invalid"),
                (b"0.01.700 I srv: fine\n", None),
            ):
                compiling = Compiling()
                cells, emit = Cells(100), Emit()
                made = Answer(Row(data()), emit, cells, lambda: False, compiling)
                made.start(0)
                own.write(said)
                own.flush()
                stopped = made({"choices": [{"delta": {"content": "a"}}]})
                made.begun()  # and again at its end: nothing is left locked
                made.close()
                assert bool(stopped) is (expected is not None)
                if expected:
                    assert emit.told[-1][0] == "failed"
                    assert expected in emit.told[-1][1][0]
                assert compiling._lock.acquire(timeout=1)
        finally:
            os.dup2(log.fileno(), 2)


def test_choices_keep_their_characters():
    assert choice_grammar(['a "b"', "日本", "🙂\n"]) == r'root ::= "a \"b\"" | "日本" | "🙂\n"'


def test_words():
    assert describe("plain") == "plain"
    assert describe({"message": "said"}) == "said"
    assert "rule called root" in describe({"message": "samplers: failed to parse grammar"})
    error = {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}
    assert "9 tokens and the context is 8" in describe(error)
    assert "tensor_split=[1]" in unused({"tensor_split": [1]})
    assert unused({"n_gpu_layers": 0}) is None
