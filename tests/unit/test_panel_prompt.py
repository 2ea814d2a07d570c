"""The panel's prompt: a conversation with a real echo worker, driven as a front end does."""

from __future__ import annotations

import threading
import time

import pytest

import nbinfer
from nbinfer import ModelParams, selection
from nbinfer.frame import COLUMNS
from nbinfer.notebook import cellid
from nbinfer.notebook import panel as panel_module
from nbinfer.notebook.panels import live, parts
from nbinfer.notebook.panels.jobs import Job, Jobs
from nbinfer.notebook.panels.refresher import refresher
from nbinfer.records import Delta, Finished, Stage
from nbinfer.residents import pool
from nbinfer.selection import Selection

from ..conftest import eventually, our_threads, workers
from .panels import fresh, living  # noqa: F401

SLOW = {"token_s": 0.05}


def use(model="mine", **kwargs):
    selection.use(Selection("echo", ModelParams(model, model_kwargs=kwargs)))
    refresher.draw()


def send(panel, text, wait=True):
    panel.prompt.text.value = text
    panel.prompt.go.click()
    if wait:
        assert panel.wait(20)


@pytest.fixture
def panel(shell):
    made = nbinfer.panel()
    use()
    return made


# ------------------------------------------------------------------------- asking


def test_an_answer_becomes_a_row_and_a_cell_that_does_the_same(shell, panel):
    panel.prompt.form["max_new_tokens"].widget.value = "2"
    panel.prompt.system.value = "be brief"
    send(panel, "one two three")
    (row,) = panel.df.itertuples()
    assert (row.prompt, row.output, row.finish_reason) == ("one two three", "one two", "length")
    assert list(panel.df)[: len(COLUMNS)] == list(COLUMNS)
    assert "one two" in panel.prompt.history.value
    assert "2 tokens" in panel.prompt.status.value
    assert panel.prompt.text.value == ""
    cell = panel.prompt.cell.value
    assert cell == "%%infer -e echo -m mine '--system=be brief' --max-new-tokens 2\none two three"
    again = shell.cell(cell.replace("%%infer", "%%infer --no-stream", 1)).value
    assert again["output"].tolist() == [row.output]
    params = again.attrs["nbinfer"]["generation_params"]
    assert params == nbinfer.manifest(panel.df)[row.run_id]["generation_params"]
    assert panel.df["run_id"].nunique() == len(panel.df) == 1


def test_the_cell_is_read_only(panel):
    send(panel, "a")
    before = panel.prompt.cell.value
    panel.prompt.cell.set_state({"value": "changed"})
    assert panel.prompt.cell.value == before


def test_a_conversation_goes_on_until_a_new_one(panel):
    send(panel, "first")
    send(panel, "second")
    messages = panel.df["messages"].iloc[-1]
    assert [(m["role"], m["content"]) for m in messages] == [
        ("user", "first"),
        ("assistant", "first"),
        ("user", "second"),
    ]
    assert panel.prompt.cell.value.startswith("import nbinfer")
    panel.prompt.new.click()
    assert panel.prompt.history.value == ""
    send(panel, "third")
    assert panel.prompt.cell.value.startswith("%%infer")
    assert len(panel.df) == 3  # the rows of a conversation stay


def test_it_asks_what_a_plain_infer_asks(shell, panel):
    shell.cell("%engine use echo -m other")
    send(panel, "a")
    assert panel.df["model"].tolist() == ["other"]
    refresher.draw()
    assert "echo · other" in panel.prompt.head.value


def test_several_answers(panel):
    panel.prompt.form["n"].widget.value = "3"
    send(panel, "a")
    assert len(panel.df) == 3
    assert "(3 of 3)" in panel.prompt.history.value


def test_a_failed_row_is_told_and_is_no_part_of_the_conversation(panel):
    send(panel, "!fail it <b>broke</b>")
    assert "it &lt;b&gt;broke&lt;/b&gt;" in panel.prompt.history.value
    assert panel.prompt.turns == ()
    assert panel.df["finish_reason"].tolist() == ["error"]
    send(panel, "a")
    assert panel.df["output"].tolist()[-1] == "a"


def test_a_crash_is_told_and_got_over(panel):
    send(panel, "!exit 3")
    assert "EngineCrashed" in panel.prompt.status.value
    assert not panel.prompt.busy
    send(panel, "a")
    assert panel.df["output"].tolist()[-1] == "a"


def test_a_load_that_fails_is_told(panel):
    use(load_fails="<i>no</i>")
    send(panel, "a")
    assert "LoadError" in panel.prompt.status.value
    assert "<i>" not in panel.prompt.status.value
    assert not panel.prompt.go.disabled


# -------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("temperature", "hot", "temperature"),
        ("temperature", "-1", "of at least 0"),
        ("max_new_tokens", "1.5", "whole number"),
        ("top_p", "2", "top_p"),
        ("seed", "<b>", "seed"),
        ("guided_decoding", "{", "no JSON"),
        ("guided_decoding", "[]", "is an object"),
        ("", "nonsense=1", "nonsense"),
        ("", "temperature", "KEY=VALUE"),
    ],
)
def test_a_wrong_value_is_said_at_its_field_and_nothing_is_sent(shell, name, text, says):
    panel = nbinfer.panel()  # llamacpp: it takes all of these
    field = panel.prompt.form[name]
    field.widget.value = text
    assert says in field.wrong.value
    assert "<b>" not in field.wrong.value
    send(panel, "a")
    assert says in panel.prompt.status.value
    assert panel.prompt.text.value == "a"  # nothing that was typed is lost
    assert workers() == []
    field.widget.value = ""
    assert field.wrong.value == ""


def test_what_an_engine_cannot_honour_is_off_with_the_reason(panel):
    top_k = panel.prompt.form["top_k"]
    assert top_k.widget.disabled
    assert "echo cannot honour top_k" in top_k.widget.tooltip
    assert "llamacpp" in top_k.widget.placeholder
    assert not panel.prompt.form["seed"].widget.disabled
    selection.use(Selection("llamacpp", ModelParams()))
    refresher.draw()
    assert not top_k.widget.disabled
    assert panel.prompt.form["num_beams"].widget.disabled
    top_k.widget.value = "40"
    use()
    assert "not sent" in top_k.wrong.value


def test_fields_come_to_parameters(shell):
    form = nbinfer.panel().prompt.form
    for name, text in {
        "temperature": "0.5",
        "seed": "7",
        "stop_strings": '["a", "b"]',
        "guided_decoding": '{"type": "object"}',
        "": "logprobs=2\nraw=true",
    }.items():
        form[name].widget.value = text
    assert form.params() == nbinfer.GenerationParams(
        temperature=0.5,
        seed=7,
        stop_strings=["a", "b"],
        guided_decoding={"json": {"type": "object"}},
        logprobs=2,
        raw=True,
    )


def test_a_schema_is_checked_as_it_is_typed(shell):
    field = nbinfer.panel().prompt.form["guided_decoding"]
    assert field.widget.continuous_update
    field.widget.set_state({"value": '{"type": '})
    assert "no JSON: Expecting value: line 1 column 10" in field.wrong.value
    field.widget.set_state({"value": '{"type": "object"}'})
    assert field.wrong.value == ""


def test_an_unsupported_setting_is_refused(panel):
    panel.prompt.form[""].widget.value = "top_k=4"
    send(panel, "a")
    assert "echo cannot honour top_k" in panel.prompt.status.value
    assert len(panel.df) == 0


def test_no_prompt_is_no_run(panel):
    send(panel, " \n ")
    assert "there is no prompt" in panel.prompt.status.value
    assert not panel.prompt.busy


# ------------------------------------------------------------------ beside the kernel


def test_stop_keeps_what_was_made_and_the_model(panel):
    use(**SLOW)
    send(panel, "a b c d e f g h i j " * 20, wait=False)
    assert panel.prompt.go.disabled
    assert eventually(lambda: ">a b" in panel.prompt.answer.value)
    panel.prompt.stop.click()
    assert panel.wait(5)
    (row,) = panel.df.itertuples()
    assert row.finish_reason == "cancelled"
    assert row.output.startswith("a b")
    assert "stopped" in panel.prompt.history.value
    assert panel.prompt.turns == ()
    assert [r.state for r in pool.residents()] == ["ready"]
    assert panel.prompt.stop.disabled
    assert not panel.prompt.go.disabled


def test_stop_in_a_load(panel):
    use(load_s=60)
    send(panel, "a", wait=False)
    assert eventually(lambda: "loading" in panel.prompt.status.value)
    panel.prompt.stop.click()
    assert panel.wait(5)
    assert len(panel.df) in (0, 1)
    assert not panel.prompt.busy


def test_a_cell_runs_meanwhile_on_the_same_resident(shell, panel):
    use(**SLOW)
    send(panel, "word " * 40, wait=False)
    assert eventually(lambda: "word" in panel.prompt.answer.value)
    assert panel.prompt.busy
    frame = shell.cell("%%infer --no-stream\nx y").value  # echo answers it when its batch is done
    assert frame["output"].tolist() == ["x y"]
    assert len(workers()) == 1
    assert panel.wait(20)
    assert panel.df["output_tokens"].tolist() == [40]


def test_a_click_returns_at_once_and_two_panels_share_the_engine(panel):
    other = nbinfer.panel()
    use(load_s=0.5, **SLOW)
    began = time.monotonic()
    send(panel, "a b", wait=False)
    send(other, "c d", wait=False)
    assert time.monotonic() - began < 0.4
    assert panel.wait(20)
    assert other.wait(20)
    assert len(workers()) == 1
    assert [p.df["output"].tolist() for p in (panel, other)] == [["a b"], ["c d"]]


@pytest.mark.parametrize("end", ["close", "shutdown", "again"])
def test_no_thread_is_left_and_a_run_is_ended(shell, monkeypatch, end):
    run = iter(["1", "2"])
    monkeypatch.setattr(cellid, "current", lambda: ("cell", next(run)))
    monkeypatch.setattr(panel_module, "_of_cells", {})
    before = living()
    panel = nbinfer.panel()
    use(**SLOW)
    send(panel, "word " * 400, wait=False)
    assert eventually(lambda: "word" in panel.prompt.answer.value)
    assert "nbinfer-panel-work" in our_threads()
    if end == "close":
        panel.close()
        assert living() <= before
    elif end == "shutdown":
        nbinfer.shutdown()
        assert not panel.prompt.busy
        send(panel, "a")  # it can still be used
        assert panel.df["output"].tolist()[-1] == "a"
    else:
        made = nbinfer.panel()
        assert panel.comm is None
        assert made.comm is not None
    assert "nbinfer-panel-work" not in our_threads()
    assert panel.df["finish_reason"].iloc[0] in ("cancelled", "error")


def test_a_closed_panel_takes_no_work(panel):
    panel.close()
    panel.prompt.text.value = "a"
    panel.prompt.start()
    assert not panel.prompt.busy
    assert our_threads() == [] or "nbinfer-panel-work" not in our_threads()


def test_jobs_one_after_another_and_what_waits_can_be_dropped():
    jobs, said, gate = Jobs(), [], threading.Event()

    def job(name, wait=False):
        return Job(
            lambda: (gate.wait(5) if wait else None, said.append(name)),
            lambda text: said.append(text),
            lambda: said.append(f"{name} dropped"),
        )

    first, second, third = job("first", wait=True), job("second"), job("third")
    for one in (first, second, third):
        assert jobs.put(one)
    assert not jobs.wait(0.01)
    jobs.stop(second)
    gate.set()
    assert jobs.wait(5)
    assert said == ["second dropped", "first", "third"]
    broken = Job(lambda: 1 / 0, said.append, lambda: None)
    jobs.put(broken)
    assert jobs.wait(5)
    assert "ZeroDivisionError" in said[-1]
    jobs.end(closed=True)
    assert not jobs.put(first)


# --------------------------------------------------------------------------- live


def test_at_most_ten_updates_a_second(shell):
    panel = nbinfer.panel()
    text, status = panel.prompt._live, panel.prompt.told
    report = live.Answer(text, status)
    report(Stage("loading"))
    assert "loading" in panel.prompt.status.value
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        report(Delta(0, "x", 1))
        time.sleep(0.0005)
    assert text.updates <= 0.5 / parts.UPDATE_S + 2
    report(Finished(0, None))
    assert "tok/s" in panel.prompt.status.value


def test_a_long_answer_is_bounded_while_it_grows(shell):
    panel = nbinfer.panel()
    report = live.Answer(panel.prompt._live, panel.prompt.told)
    for _ in range(200):
        report(Delta(0, "<" * 5_000, 1))
    report(Finished(0, None))
    assert len(panel.prompt.answer.value) < 5 * parts.MOST_CHARS
    assert "<<" not in panel.prompt.answer.value
