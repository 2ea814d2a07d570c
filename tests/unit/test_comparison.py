"""``%%compare`` and ``nbinfer.compare``, on two stand-in engines in real processes."""

from __future__ import annotations

import pandas as pd
import pytest

import nbinfer
from nbinfer import ConfigurationError, EchoInferenceEngine, GenerationParams, ModelParams
from nbinfer.agreement import agreement, logprob_gaps
from nbinfer.comparison import _asked, _together, _wide
from nbinfer.notebook.differences import marked
from nbinfer.notebook.display import frame_html, frame_text
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
    frame = _together([two[0].infer("same <b>x</b>"), two[1].infer("same <b>y</b>")])
    shown = frame_html(frame)
    assert "<b>" not in shown
    assert "same &lt;b&gt;</" in shown or "same &lt;b&gt;<span" in shown
    assert ">y</span>&lt;/b&gt;" in shown  # the word alone


# -------------------------------------------------------------- agreement and the gap


def test_agreement_is_ratcliffs():
    assert agreement("the cat sat", "the cat sat") == 1.0
    assert agreement("the cat sat", "the dog sat") == pytest.approx(2 * 2 / 6)
    assert agreement("a b", "c d") == 0.0
    assert agreement("a  b", "a b") < 1.0  # spaces are a difference too
    assert agreement("a", None) is None
    assert 0 < agreement("x y\n" * 4000, "x y\n" * 3999 + "z\n") < 1  # long ones, in no time


def token(text, logprob, **others):
    top = [{"token": t.replace("_", " "), "logprob": p} for t, p in others.items()]
    return {"token": text, "id": None, "logprob": logprob, "top": top}


def test_the_gap_is_what_each_preferred_its_own_token_by():
    same = token("The", -0.1)
    first = ("The cat", [same, token(" cat", -0.5, _cat=-0.5, _dog=-1.25)])
    other = ("The dog", [same, token(" dog", -0.25, _dog=-0.25, _cat=-2.25)])
    assert logprob_gaps(4, first, other) == (0.75, 2.0)
    assert logprob_gaps(None, first, first) == (None, None)
    # Not among the alternatives that were asked: not known, and not made up.
    bare = ("The dog", [same, token(" dog", -0.25)])
    assert logprob_gaps(4, first, bare) == (0.75, None)
    # An answer that ends there, tokens that part before the texts do, and none at all.
    assert logprob_gaps(3, first, ("The", [same])) == (None, None)
    parted = ("The dog", [token("The d", -1.0), token("og", -1.0)])
    assert logprob_gaps(4, first, parted) == (None, None)
    assert logprob_gaps(4, first, ("The dog", None)) == (None, None)
    special = ("The dog", [token("<s>", -1.0), same, token(" dog", -1.0)])
    assert logprob_gaps(4, first, special) == (None, None)


def test_the_columns_of_an_answer_against_the_firsts(two):
    frames = [two[0].infer("one two three"), two[1].infer("one two four")]
    frame = _together(frames)
    assert frame["agreement"].tolist() == [pd.NA, pytest.approx(4 / 6)]
    assert frame["logprob_gap"].isna().all()
    assert "agreement 0.67" in frame.attrs["nbinfer"]["caption"]
    at = list(frame.columns).index("output")
    names = ["first_difference", "agreement", "logprob_gap", "reference_gap"]
    assert list(frame.columns[at + 1 : at + 5]) == names


def test_log_probabilities_are_asked_of_those_that_have_them(clean):
    llama = nbinfer.LlamaCppInferenceEngine()
    assert _asked(llama, None, 5).logprobs == 5
    assert _asked(llama, GenerationParams(seed=1), 5) == GenerationParams(seed=1, logprobs=5)
    assert _asked(llama, GenerationParams(logprobs=2), 5).logprobs == 2
    assert _asked(llama, None, None) is None
    assert _asked(echo(), None, 5) is None


# -------------------------------------------------------------------------- wide


def test_a_wide_frame_has_the_engines_beside_each_other(two):
    table = pd.DataFrame({"word": ["x", "y z"]})
    frame = nbinfer.compare(two, table, template="say {{word}}", wide=True)
    assert len(frame) == 2
    assert list(frame.columns[:3]) == ["word", "id", "prompt"]
    assert frame["echo_output"].tolist() == ["say x", "say y z"]
    assert frame["echo_2_output"].tolist() == ["say x", "say y z"]
    assert frame["echo_2_agreement"].tolist() == [1.0, 1.0]
    assert frame["echo_2_first_difference"].isna().all()
    assert "echo_agreement" not in frame
    assert (frame["echo_model_memory_bytes"] > 0).all()
    assert frame["echo_output_tokens"].tolist() == [2, 3]
    assert "2 of 2 answers equal" in frame_text(frame)
    assert nbinfer.last() is frame


def test_a_wide_frame_of_samples(two):
    frame = nbinfer.compare(two, ["a", "b"], GenerationParams(n=2), wide=True)
    assert frame["sample"].tolist() == [0, 1, 0, 1]
    assert frame["prompt"].tolist() == ["a", "a", "b", "b"]


def test_a_wide_view_marks_and_escapes(two):
    frame = _wide(_together([two[0].infer("<b>x</b> y"), two[1].infer("<b>z</b>")]), 2)
    shown = frame_html(frame)
    assert "<b>" not in shown
    assert ">z</span>" in shown
    assert "∅</span>" in shown  # it lacks the y


def test_marks_are_the_words_that_differ():
    shown = marked("the cat sat", "the <dog> sat down")
    assert shown.startswith("the <span")
    assert "&lt;dog&gt;</span> sat<span" in shown
    assert marked("same", "same") == "same"
    assert '"' not in marked('a "b" c', "a c").split("title=")[1].split(">")[0].strip('"')


def test_engines_that_do_not_fit_together_are_loaded_one_after_another(clean):
    one, two = echo(slots=1, memory_bytes=40_000_000), echo(slots=2, memory_bytes=40_000_000)
    nbinfer.configure(memory_budget_bytes=90_000_000)  # one takes 60 MB, by its own estimate
    seen = []
    listeners.append(seen.append)
    frame = nbinfer.compare([one, two], ["a b"])
    assert frame["output"].tolist() == ["a b", "a b"]
    assert one.resident is None
    assert two.resident is not None
    assert any("unload" in text for text in seen)
