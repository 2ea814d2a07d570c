"""``%%compare`` and ``nbinfer.compare``, on two stand-in engines in real processes."""

from __future__ import annotations

import pandas as pd
import pytest

import nbinfer
from nbinfer import ConfigurationError, EchoInferenceEngine, GenerationParams, ModelParams
from nbinfer.notices import listeners


def echo(**options):
    return EchoInferenceEngine(ModelParams(model_kwargs=options))


@pytest.fixture
def two(clean):
    return [echo(slots=2), echo(slots=3)]


def test_one_frame_with_answers_below_each_other(two):
    frame = nbinfer.compare(two, ["one two", "three"])
    assert frame["prompt"].tolist() == ["one two", "one two", "three", "three"]
    assert frame["id"].tolist() == [0, 0, 1, 1]
    assert frame["first_difference"].isna().all()
    assert frame["run_id"].nunique() == 2
    assert len(frame.infer.summary()) == 2
    assert nbinfer.last() is frame
    assert "2 of 2 answers equal" in frame.attrs["nbinfer"]["caption"]


def test_where_answers_first_differ(two):
    frames = [two[0].infer("one two three"), two[1].infer("one two", GenerationParams())]
    from nbinfer.comparison import _together

    frame = _together(frames)
    assert frame["first_difference"].tolist() == [pd.NA, 7]
    assert list(frame.columns).index("first_difference") == list(frame.columns).index("output") + 1


def test_of_a_frame_it_is_the_accessors(two):
    frame = nbinfer.compare(two, ["a"])
    side_by_side = nbinfer.compare(frame)
    assert side_by_side["same"].tolist() == [True]
    with pytest.raises(ConfigurationError, match="takes nothing else"):
        nbinfer.compare(frame, ["a"])


def test_columns_of_the_users_table_come_first(two):
    table = pd.DataFrame({"word": ["x", "y"]})
    frame = nbinfer.compare(two, table, template="say {{word}}")
    assert frame.columns[0] == "word"
    assert frame["word"].tolist() == ["x", "x", "y", "y"]


def test_what_cannot_be_compared(clean):
    with pytest.raises(ConfigurationError, match="two engines or more, got 1"):
        nbinfer.compare([echo()], ["a"])
    with pytest.raises(ConfigurationError, match="there twice"):
        nbinfer.compare([echo(), echo()], ["a"])
    with pytest.raises(nbinfer.UnsupportedParameter, match="top_p"):
        nbinfer.compare([echo(slots=1), echo(slots=2)], ["a"], GenerationParams(top_p=0.5))


def test_a_crash_of_the_second_keeps_the_firsts_rows(clean):
    first, second = echo(slots=2), echo(slots=3)
    second.load()
    second.resident.worker.send({"op": "begin", "run": "x"})
    prompts = ["one", "!sleep 0"]
    with pytest.raises(nbinfer.EngineCrashed) as caught:
        nbinfer.compare([first, second], [*prompts, "!exit 3"])
    # The first engine dies of the same order: its own rows are kept.
    assert len(caught.value.frame) == 3


def test_a_load_failure_of_the_second_keeps_the_firsts_rows(clean):
    with pytest.raises(nbinfer.LoadError) as caught:
        nbinfer.compare([echo(), echo(load_fails="no luck")], ["one", "two"])
    assert caught.value.frame["output"].tolist() == ["one", "two"]
    assert len(nbinfer.last()) == 2


def test_the_magic(shell):
    shell.cell("%load_ext nbinfer")
    for line, problem in {
        "-e echo,echo": "twice",
        "-e ecko,echo": "no engine is called 'ecko'",
        "": "required",
        "-e echo": "two engines or more",
    }.items():
        with pytest.raises(ConfigurationError, match=problem):
            shell.cell(f"%%compare {line}\na\n---\nb")
    with pytest.raises(ConfigurationError, match="begin the cell"):
        shell.cell("%nbinfer compare -e echo,echo")


def test_precisions_that_differ_are_told(two, monkeypatch):
    said = []
    listeners.append(said.append)
    frames = [engine.infer("a") for engine in two]
    frames[0].attrs["nbinfer"].update(engine="llamacpp", model_facts={"precision": "Q4_1"})
    frames[1].attrs["nbinfer"].update(engine="native", model_facts={"precision": "float32"})
    from nbinfer.comparison import _warn_of_precision

    _warn_of_precision(frames)
    assert said == [
        "the precisions differ, and the answers may for that alone: "
        "llamacpp has Q4_1, native has float32"
    ]


def test_what_differs_is_marked_and_escaped(two):
    from nbinfer.comparison import _together
    from nbinfer.notebook.display import frame_html

    frame = _together([two[0].infer("same <b>x</b>"), two[1].infer("same <b>y</b>")])
    shown = frame_html(frame)
    assert "<b>" not in shown
    assert "same &lt;b&gt;</" in shown or "same &lt;b&gt;<span" in shown
    assert ">y</span>&lt;/b&gt;" in shown  # the word alone
