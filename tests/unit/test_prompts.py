"""What may be passed as prompts, and how templates are filled."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbinfer import (
    ConfigurationError,
    Conversation,
    ImagePart,
    Message,
    Role,
    TemplateError,
    TextPart,
)
from nbinfer.guide import pictures
from nbinfer.images import data_url
from nbinfer.prompts import fill, normalise, placeholders

USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be brief"}


def texts(*args, **kwargs):
    return [prompt.shown for prompt in normalise(*args, **kwargs)]


# ------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("one", ["one"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        ((c for c in "ab"), ["a", "b"]),
        (pd.Series(["a", "b"], index=[7, 8]), ["a", "b"]),
        (np.array(["a", "b"]), ["a", "b"]),
        (Conversation([Message("user", "hi")]), ["hi"]),
        ([Conversation([Message("user", "hi")]), "b"], ["hi", "b"]),
        ([USER], ["hi"]),
        ([SYSTEM, USER], ["hi"]),
        ([Message("user", "a"), Message("assistant", "b"), Message("user", "c")], ["c"]),
        ([[SYSTEM, USER], [USER], "x"], ["hi", "hi", "x"]),
        ([[Message(Role.USER, "m")]], ["m"]),
    ],
    ids=str,
)
def test_kinds_of_prompts(given, shown):
    prompts = normalise(given)
    assert [p.shown for p in prompts] == shown
    assert [p.id for p in prompts] == list(range(len(shown)))


def test_what_goes_to_the_engine():
    (prompt,) = normalise([SYSTEM, USER])
    assert prompt.request(raw=False)[0] == {"messages": [SYSTEM, USER]}
    assert prompt.request(raw=True)[0] == {"prompt": "hi"}
    (raw,) = normalise("hi", raw=True)
    assert raw.conversation == "hi"
    assert raw.request(raw=True)[0] == {"prompt": "hi"}
    (talk,) = normalise([SYSTEM, USER], raw=True)
    assert talk.request(raw=True)[0] == {"prompt": "hi"}


def test_a_conversations_identifier_becomes_the_rows():
    given = [Conversation([USER], conversation_id="c-1"), Conversation([USER]), "x"]
    assert [p.id for p in normalise(given)] == ["c-1", 1, 2]


def test_system_is_put_before_those_that_have_none():
    first, second = normalise(["a", [SYSTEM, USER]], system="answer in French")
    assert first.request(raw=False)[0]["messages"] == [
        {"role": "system", "content": "answer in French"},
        {"role": "user", "content": "a"},
    ]
    assert second.request(raw=False)[0]["messages"] == [SYSTEM, USER]


def test_system_keeps_the_identifier():
    (prompt,) = normalise([Conversation([USER], conversation_id="c-1")], system="s")
    assert prompt.id == "c-1"
    assert prompt.conversation.conversation_id == "c-1"


def test_images():
    parts = [ImagePart(pictures.png("disc", 4)), TextPart("what is it?")]
    (prompt,) = normalise([Message("user", parts)])
    assert prompt.has_images
    body, problem = prompt.request(raw=False)
    assert problem is None
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert "image needs the chat template" in prompt.request(raw=True)[1]
    assert prompt.shown == "what is it?"
    assert not normalise("x")[0].has_images


def test_images_come_as_paths_urls_bytes_and_pictures(tmp_path):
    made = pictures.png("disc", 4)
    (tmp_path / "a.png").write_bytes(made)
    url = data_url(made)
    assert data_url(tmp_path / "a.png") == data_url(str(tmp_path / "a.png")) == url
    assert data_url("https://x.y/a.png") == "https://x.y/a.png"
    assert data_url(url) == url
    picture = PIL.Image.open(io.BytesIO(made))
    assert data_url(picture).startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"x", "no image"),
        (b"", "no image"),
        (3, "not 3"),
        ("/no/such.png", "no image file"),
        (__file__, "no image"),
    ],
)
def test_an_image_that_is_none_fails_its_row(source, said):
    with pytest.raises(ConfigurationError, match=said):
        data_url(source)
    (prompt,) = normalise([Message("user", [ImagePart(source), TextPart("what?")])])
    assert said in prompt.request(raw=False)[1]


@pytest.mark.parametrize(
    "wrong",
    [None, 3, 3.5, {"a": 1}, USER, [None], [3], [b"x"], b"xy", [float("nan")], [["x"]], object()],
    ids=repr,
)
def test_what_is_no_prompt(wrong):
    with pytest.raises(ConfigurationError):
        normalise(wrong)


@pytest.mark.parametrize("none", [[], (), pd.DataFrame({"prompt": []}), iter(())], ids=repr)
def test_no_prompts(none):
    with pytest.raises(ConfigurationError, match="no prompts"):
        normalise(none)


def test_an_empty_conversation():
    with pytest.raises(ConfigurationError):
        normalise([[]])


def test_a_system_message_without_a_chat_template():
    with pytest.raises(ConfigurationError, match="chat template"):
        normalise("x", system="s", raw=True)


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b"])
def test_half_a_character_is_a_problem_and_says_where(text):
    (prompt,) = normalise([text])
    position = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
    assert f"U+{ord(text[position]):04X}" in prompt.request(raw=False)[1]
    assert f"character {position}:" in prompt.request(raw=False)[1]
    assert normalise([text], raw=True)[0].request(raw=False)[1] == prompt.request(raw=False)[1]


@pytest.mark.parametrize("text", ["", "\0", "🙂", "שלום", "\u2028", "x" * 1_000_000])
def test_no_problem(text):
    assert normalise([text])[0].request(raw=False)[1] is None


# -------------------------------------------------------------------- DataFrames


def test_a_frame_with_prompts():
    frame = pd.DataFrame({"prompt": ["a", "b"], "id": ["x", "y"]}, index=[5, 5])
    prompts = normalise(frame)
    assert [(p.id, p.shown) for p in prompts] == [("x", "a"), ("y", "b")]
    assert [p.id for p in normalise(frame[["prompt"]])] == [0, 1]


def test_a_frame_whose_prompts_are_messages():
    frame = pd.DataFrame({"prompt": [[SYSTEM, USER], "b"]})
    assert [p.shown for p in normalise(frame)] == ["hi", "b"]


def test_a_frame_with_a_template():
    frame = pd.DataFrame({"name": ["Ada", "Bo"], "age": [3, 4]})
    assert texts(frame, template="{{name}} is {{ age }} {x}") == [
        "Ada is 3 {x}",
        "Bo is 4 {x}",
    ]
    assert texts(frame, template="same") == ["same", "same"]


def test_variables_fill_what_are_no_columns_and_columns_win():
    frame = pd.DataFrame({"a": [1, 2]})
    given = texts(frame, template="{{a}} {{b}}", variables={"a": "no", "b": "yes"})
    assert given == ["1 yes", "2 yes"]


def test_what_a_value_holds_is_not_filled_again():
    frame = pd.DataFrame({"a": ["{{b}}", r"\1 \g<0>"]})
    assert texts(frame, template="{{a}}", variables={"b": "no"}) == ["{{b}}", r"\1 \g<0>"]


@pytest.mark.parametrize("rows", [0, 1])
def test_a_name_that_nothing_fills(rows):
    frame = pd.DataFrame({"question": ["x"] * rows})
    with pytest.raises(TemplateError) as caught:
        normalise(frame, template="{{qestion}}")
    assert "{{qestion}}" in caught.value.message
    assert "did you mean {{question}}?" in caught.value.hint


def test_a_frame_without_prompts_or_template():
    with pytest.raises(TemplateError, match="no column 'prompt'") as caught:
        normalise(pd.DataFrame({"text": ["a"]}))
    assert "'text'" in caught.value.hint


def test_a_template_without_a_frame():
    with pytest.raises(TemplateError, match="needs a DataFrame"):
        normalise("x", template="{{a}}")


def test_a_row_of_a_frame_that_is_no_prompt():
    with pytest.raises(ConfigurationError, match="prompt 1 is float"):
        normalise(pd.DataFrame({"prompt": ["a", float("nan")]}, dtype=object))


# --------------------------------------------------------------------- templates


@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_double_braces_is_untouched(text):
    assert placeholders(text) == []
    assert fill(text, {}) == text


@given(st.text(alphabet="{} ab\n", max_size=40))
def test_what_is_no_placeholder_is_untouched(text):
    values = dict.fromkeys(placeholders(text), "")
    if values:
        assert fill(text, values) != text
    else:
        assert fill(text, {}) == text


@given(
    st.recursive(
        st.integers() | st.text("ab{} "), lambda s: st.lists(s) | st.dictionaries(st.text("ab"), s)
    )
)
def test_json_bodies_with_a_space_between_braces_are_untouched(value):
    body = json.dumps(value, indent=1)
    if not placeholders(body):
        assert fill(body, {}) == body


@pytest.mark.parametrize(
    "body",
    [
        '{"a": {"b": [1, 2]}}',
        "def f(x):\n    return {k: {v} for k, v in x.items()}",
        "print(f'{name!r:>{width}}')",
        "if (a) { return {}; }",
        "\\frac{a}{b}",
        "{ {spaced} }",
        "{{two\nlines}}",
        "${shell} %(old)s {0}",
    ],
)
def test_bodies_of_code_are_untouched(body):
    assert fill(body, {}) == body


def test_placeholders_in_order_each_once():
    assert placeholders("{{b}} {{ a }} {{b}} {c} {{d e}}") == ["b", "a", "d e"]


@given(st.text(), st.text(), st.text())
def test_a_value_is_put_in_to_the_letter(before, value, after):
    if "{" in before + after or "}" in before + after:
        return
    assert fill(f"{before}{{{{x}}}}{after}", {"x": value}) == before + value + after


def test_the_known_names_are_bounded():
    with pytest.raises(TemplateError) as caught:
        fill("{{zzz}}", {f"name{n}": n for n in range(5000)})
    assert len(caught.value.hint) < 400
    with pytest.raises(TemplateError, match=r"\{\{\}\}"):
        fill("{{}}", {"a": 1})
