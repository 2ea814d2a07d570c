"""What a model thinks is a column of its own."""

from __future__ import annotations

import pytest

import nbinfer
from nbinfer import GenerationParams, OpenAICompatibleInferenceEngine, RemoteParams
from nbinfer.reasoning import split
from nbinfer.worker.thoughts import Thoughts, opening

from .apiserver import Server, chunk
from .conftest import echo

THOUGHT = "<think> two and two </think> four"


@pytest.mark.parametrize(
    ("text", "inside", "parts"),
    [
        ("four", False, (None, "four")),
        ("<think>\na\n</think>\n\nb\n", False, ("a", "b\n")),
        ("\n<think>a</think>b", False, ("a", "b")),
        ("<think>\n\n</think>\n\nb", False, (None, "b")),
        ("<think>a", False, ("a", "")),
        ("a</think>b", True, ("a", "b")),
        ("a", True, ("a", "")),
        ("a</think>b", False, (None, "a</think>b")),
        ("say <think>a</think>", False, (None, "say <think>a</think>")),
        ("<think>a</think>b<think>c</think>", False, ("a", "b<think>c</think>")),
        ("<thin", False, (None, "<thin")),
    ],
)
def test_splitting(text, inside, parts):
    assert split(text, inside=inside) == parts


def test_pieces_become_one_text():
    thoughts = Thoughts()
    told = [thoughts.reasoning("a"), thoughts.reasoning("b"), thoughts.reasoning("")]
    told += [thoughts.answer(""), thoughts.answer("c"), thoughts.answer("d"), thoughts.end()]
    assert "".join(told) == "<think>\nab\n</think>\n\ncd"
    assert opening("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert opening("<|im_start|>assistant\n") == ""


def test_reasoning_is_a_column_and_no_part_of_the_output(clean):
    frame = echo().infer([THOUGHT, "plain"])
    assert frame["reasoning"].tolist() == ["two and two", None]
    assert frame["output"].tolist() == ["four", "plain"]
    assert frame["output_tokens"].tolist() == [6, 1]
    assert "reasoning" not in echo().infer("plain").columns


def test_it_can_be_left_in_the_output(clean):
    frame = echo().infer(THOUGHT, GenerationParams(separate_reasoning=False))
    assert frame["output"].tolist() == [THOUGHT]
    assert "reasoning" not in frame.columns


def test_reasoning_that_was_cut(clean):
    row = echo().infer(THOUGHT, GenerationParams(max_new_tokens=3)).loc[0]
    assert (row["reasoning"], row["output"], row["finish_reason"]) == ("two and", "", "length")


def test_a_stream_shows_it_as_it_is_made(clean):
    stream = echo().stream(THOUGHT)
    assert "".join(stream) == THOUGHT
    assert stream.result["reasoning"].tolist() == ["two and two"]
    assert stream.result["output"].tolist() == ["four"]


def test_a_raw_prompt_that_opens_the_block(clean):
    # The echo answers with its prompt: it goes on inside the block, and closes it.
    row = echo().infer("so </think> yes <think>", GenerationParams(raw=True)).loc[0]
    assert (row["reasoning"], row["output"]) == ("so", "yes <think>")


def test_guided_answers_are_parsed_without_it(clean):
    params = GenerationParams(tools=[now], tool_choice="now")
    row = echo().infer('<think> hm </think> {"name": "now", "arguments": {}}', params).loc[0]
    assert row["reasoning"] == "hm"
    assert row["tool_calls"] == [{"name": "now", "arguments": {}}]


def now() -> str:
    """Say what time it is."""
    return ""


def test_resumed_rows_have_it_too(clean, tmp_path):
    path = tmp_path / "answers.db"
    first = echo().infer(THOUGHT, output_path=path)
    again = echo().infer(THOUGHT, output_path=path)
    for frame in (first, again, nbinfer.read_rows(path)):
        assert frame["reasoning"].tolist() == ["two and two"]
        assert frame["output"].tolist() == ["four"]


# ------------------------------------------------------------------------------ servers


def thinking(field: str, *, reason: str = "stop", answer: str | None = "four"):
    async def script(call):
        for word in ("two and", " two"):
            event = chunk()
            event["choices"][0]["delta"] = {field: word}
            await call.event(event)
        if answer is not None:
            await call.event(chunk(answer))
        await call.event(chunk(reason=reason))
        await call.event("[DONE]")
        await call.end()

    return script


@pytest.fixture
def engine(clean):
    with Server() as server:
        made = OpenAICompatibleInferenceEngine("m", remote_params=RemoteParams(api_url=server.url))
        yield server, made
        nbinfer.shutdown()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_what_a_server_tells_apart(engine, field):
    server, made = engine
    server.script = thinking(field)
    row = made.infer("x").loc[0]
    assert (row["reasoning"], row["output"]) == ("two and two", "four")
    whole = made.infer("x", GenerationParams(separate_reasoning=False)).loc[0]
    assert whole["output"] == "<think>\ntwo and two\n</think>\n\nfour"
    stream = made.stream("x")
    assert "".join(stream) == whole["output"]
    assert stream.result["reasoning"][0] == "two and two"


def test_a_server_that_was_cut_while_it_thought(engine):
    server, made = engine
    server.script = thinking("reasoning", reason="length", answer=None)
    row = made.infer("x").loc[0]
    assert (row["reasoning"], row["output"]) == ("two and two", "")
    assert row["finish_reason"] == "length"


def test_an_answer_in_one_piece(engine):
    server, made = engine

    async def script(call):
        message = {"role": "assistant", "content": "four", "reasoning_content": "two and two"}
        await call.json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    server.script = script
    row = made.infer("x").loc[0]
    assert (row["reasoning"], row["output"]) == ("two and two", "four")
