"""Runs on a resident engine: timings, order, failures, and every place to be stopped at."""

from __future__ import annotations

import os
import signal
import threading
import time

import pandas as pd
import pytest

import nbinfer
from nbinfer import (
    ConfigurationError,
    Conversation,
    EngineCrashed,
    GenerationParams,
    LoadError,
    Message,
    RunInterrupted,
    UnsupportedParameter,
    runstore,
    settings,
)
from nbinfer.progress import Silent
from nbinfer.records import Delta, Finished, Progress, Stage
from nbinfer.worker import protocol

from ..conftest import eventually
from .conftest import busy, echo, gone, hanging, interrupt_when, interrupts_at, pid_of

# What an interrupted call may take: a second of grace, and a slow machine's slack.
IN_TIME_S = 1.6


class Kept(Silent):
    """Keeps every record of a run."""

    def __init__(self) -> None:
        self.records = []

    def __call__(self, record):
        self.records.append(record)

    def of(self, kind):
        return [r for r in list(self.records) if isinstance(r, kind)]


# ------------------------------------------------------------------------- timings


def test_timings_of_a_batch_are_exact(clean):
    """One virtual clock: four rows start together, and each ends at its own last token."""
    engine = echo(clock="virtual", prefill_s=0.25, token_s=0.125)
    frame = engine.infer(["a", "a b", "a b c", "a b c d"])
    assert frame["queue_s"].nunique() == 1
    assert frame["ttft_s"].tolist() == [0.375] * 4
    assert frame["latency_s"].tolist() == [0.375, 0.5, 0.625, 0.75]
    assert frame["tpot_s"].isna().tolist() == [True, False, False, False]
    assert frame["tpot_s"].tolist()[1:] == [0.125] * 3
    assert frame["prompt_tokens"].tolist() == [1, 2, 3, 4]
    assert frame["output_tokens"].tolist() == [1, 2, 3, 4]
    assert frame["cached_tokens"].tolist() == [0] * 4


def test_a_second_batch_queues_for_the_first(clean):
    engine = echo(clock="virtual", prefill_s=0.5, token_s=0.25, slots=2)
    frame = engine.infer(["a b", "a b", "a b c d", "a", "a"])
    assert frame["queue_s"].tolist() == [0, 0, 1, 1, 2.5]
    assert frame["ttft_s"].tolist() == [0.75] * 5
    assert frame["latency_s"].tolist() == [1, 1, 1.5, 0.75, 0.75]


def test_the_queue_is_counted_from_each_runs_own_start(clean):
    engine = echo(clock="virtual", token_s=1.0)
    assert engine.infer("a b c")["queue_s"][0] == 0
    assert engine.infer("a")["queue_s"][0] == 0


def test_an_empty_answer_has_no_times(clean):
    frame = echo(clock="virtual", token_s=1.0).infer(["", "a"])
    assert frame["output"].tolist() == ["", "a"]
    assert frame["output_tokens"].tolist() == [0, 1]
    assert frame["ttft_s"].isna().tolist() == [True, False]
    assert frame["latency_s"].isna().tolist() == [True, False]


def test_real_times_hold_together(clean):
    engine = echo(token_s=0.02, slots=2)
    engine.load()
    started = time.monotonic()
    frame = engine.infer(["a b c", "a b", "a"])
    wall = time.monotonic() - started
    assert (frame["queue_s"] >= 0).all()
    assert (frame["ttft_s"] > 0).all()
    assert (frame["latency_s"] >= frame["ttft_s"]).all()
    assert (frame["queue_s"] + frame["latency_s"] <= wall).all()
    facts = frame.attrs["nbinfer"]
    assert facts["load_s"] == 0
    assert 0 < facts["running_s"] <= facts["wall_s"] <= wall


# --------------------------------------------------------------------------- rows


def test_rows_are_in_order_whatever_ends_first(clean):
    prompts = [" ".join(["w"] * (9 - n)) for n in range(9)]
    kept = Kept()
    frame = echo(token_s=0.005, slots=3).infer(prompts, progress=kept)
    assert frame["id"].tolist() == list(range(9))
    assert frame["prompt"].tolist() == prompts
    assert frame["output"].tolist() == prompts
    ended = [r.number for r in kept.of(Finished)]
    assert sorted(ended) == list(range(9)) != ended


def test_limits_and_reasons(clean):
    frame = echo().infer(["a b c d", "a b"], GenerationParams(max_new_tokens=2))
    assert frame["output"].tolist() == ["a b", "a b"]
    assert frame["finish_reason"].tolist() == ["length", "stop"]


def test_samples_and_their_seeds_on_the_wire(clean):
    engine = echo()
    sent = []
    real = engine._requests
    engine._requests = lambda *args: sent.extend(real(*args)) or real(*args)
    frame = engine.infer(["a", "b"], GenerationParams(n=3, seed=40))
    assert frame["id"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["sample"].tolist() == [0, 1, 2, 0, 1, 2]
    assert [r.params["seed"] for r in sent] == [40, 41, 42, 40, 41, 42]
    assert all(set(r.params) <= engine.capabilities.generation for r in sent)


def test_without_a_seed_there_is_none_on_the_wire(clean):
    params = [r.params for r in echo()._requests([], GenerationParams())]
    assert params == []
    frame = echo().infer("a", GenerationParams(n=2))
    assert frame["output"].tolist() == ["a", "a"]


def test_a_row_that_fails_leaves_the_others_alone(clean):
    frame = echo().infer(["a", "!fail too long for me", "b"])
    assert frame["finish_reason"].tolist() == ["stop", "error", "stop"]
    assert frame["error"][1] == "too long for me"
    assert frame["error"].isna().tolist() == [True, False, True]
    assert pd.isna(frame["output"][1])
    facts = frame.attrs["nbinfer"]
    assert (facts["rows"], facts["rows_failed"], facts["rows_cancelled"]) == (3, 1, 0)


def test_what_no_engine_can_read_does_not_reach_it(clean):
    frame = echo().infer(["half \ud800", "b"])
    assert "surrogate" in frame["error"][0]
    assert frame["output"][1] == "b"


def test_only_such_rows_load_nothing(clean):
    engine = echo()
    frame = engine.infer(["half \ud800"])
    assert frame["finish_reason"].tolist() == ["error"]
    assert engine.resident is None


@pytest.mark.parametrize(
    "text", ["a\0b", "🙂👩‍👩‍👧", "שלום", "<|im_end|>", "a\u0085b\u2028c", "{{x}}"]
)
def test_odd_texts_come_back(clean, text):
    frame = echo().infer([text])
    assert frame["prompt"][0] == text
    assert frame["output"][0] == " ".join(text.split())


def test_a_megabyte(clean):
    text = "x" * 3_000_000
    assert echo().infer([text])["output"][0] == text


def test_rows_too_large_for_one_message_are_split_and_one_alone_fails(clean, monkeypatch):
    engine = echo().load()
    real = protocol.pack

    def pack(message):
        if len(str(message)) > 2000:
            raise protocol.ProtocolError("over the limit")
        return real(message)

    monkeypatch.setattr(protocol, "pack", pack)
    frame = engine.infer(["x" * 900] * 8 + ["y" * 3000, "z"])
    assert frame["output"].tolist()[:8] == ["x" * 900] * 8
    assert "over the limit" in frame["error"][8]
    assert frame["output"][9] == "z"


def test_what_is_no_json_fails_the_load_and_does_not_hang_it(clean):
    with pytest.raises(LoadError, match="JSON"):
        echo(token_s=float("nan")).load()


def test_a_conversation_is_answered_to_its_last_message(clean):
    talk = Conversation([Message("system", "s"), Message("user", "q")], conversation_id="c")
    frame = echo().infer(talk)
    assert frame["id"][0] == "c"
    assert frame["output"][0] == "q"
    assert frame["messages"][0] == talk.to_list()


def test_five_thousand_rows(clean):
    """More than are sent ahead: all are answered, in order, and memory stays bounded."""
    kept = Kept()
    prompts = [f"row {n}" for n in range(5000)]
    frame = echo(clock="virtual", slots=64).infer(prompts, progress=kept)
    assert len(frame) == 5000
    assert frame["output"].tolist() == prompts
    assert len(kept.of(Finished)) == 5000


def test_at_most_so_many_rows_are_in_the_worker(clean):
    """With batch_size=1 no row is dispatched before the one before it is done."""
    engine = echo(clock="virtual", token_s=1.0, slots=4)
    together = engine.infer(["a", "a", "a"])
    assert together["queue_s"].tolist() == [0, 0, 0]
    one_by_one = engine.infer(["a", "a", "a"], batch_size=1)
    assert one_by_one["queue_s"].tolist() == [0, 1, 2]
    two = engine.infer(["a", "a", "a", "a"], batch_size=2)
    assert sorted(two["queue_s"].tolist())[:2] == [0, 0]
    assert two["queue_s"].max() >= 1


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4"])
def test_no_batch_size(clean, size):
    with pytest.raises(ConfigurationError, match="batch_size"):
        echo().infer("x", batch_size=size)


def test_what_the_engine_cannot_honour(clean):
    engine = echo()
    with pytest.raises(UnsupportedParameter) as caught:
        engine.infer("x", GenerationParams(top_p=0.5))
    assert caught.value.parameter == "top_p"
    assert caught.value.engine == "echo"
    assert "llamacpp" in caught.value.engines
    with pytest.raises(ConfigurationError):
        engine.infer("x", {"max_new_tokens": 1})
    assert engine.resident is None


def test_progress_counts(clean):
    kept = Kept()
    echo(token_s=0.01, slots=1).infer(["a b c d e f"] * 6, progress=kept)
    assert kept.of(Stage)[0].text.startswith("loading echo")
    last = kept.of(Progress)[-1]
    assert last.rows == 6
    assert 0 < last.tokens <= 36
    assert last.done <= 6
    assert kept.of(Delta) == []


def test_facts(clean):
    engine = echo()
    frame = engine.infer(["a b", "c"], GenerationParams(seed=3))
    facts = frame.attrs["nbinfer"]
    assert facts["engine"] == "echo"
    assert facts["output_tokens"] == 3
    assert facts["prompt_tokens"] == 3
    assert facts["seed"] == 3
    assert facts["versions"] == {"echo": "1"}
    assert facts["load_s"] > 0
    assert facts["interrupted"] is False
    assert facts["run_id"] == frame["run_id"][0]
    assert runstore.recall(facts["run_id"]) == facts
    assert nbinfer.last() is frame
    assert frame["model_memory_bytes"][0] > 1e6
    assert frame["peak_memory_bytes"][0] >= 0.5 * frame["model_memory_bytes"][0]


def test_the_peak_is_of_the_run(clean):
    engine = echo()
    idle = engine.infer("a")["peak_memory_bytes"][0]
    frame = engine.infer(["!grow 60000000"])
    assert frame["peak_memory_bytes"][0] > idle + 50e6
    assert frame["model_memory_bytes"][0] < idle + 10e6


# ------------------------------------------------------------------------- crashes


@pytest.mark.parametrize(
    ("order", "by", "code"),
    [("!exit 3", None, 3), ("!kill SIGKILL", "SIGKILL", None), ("!kill SIGSEGV", "SIGSEGV", None)],
)
def test_a_crash_keeps_what_was_finished(clean, order, by, code):
    engine = echo()
    with pytest.raises(EngineCrashed) as caught:
        engine.infer(["a", "b", order, "c"], batch_size=1)
    error = caught.value
    assert (error.signal, error.exit_code) == (by, code)
    assert error.peak_memory_bytes > 1e6
    assert "2 of 4 rows were done" in error.message
    assert (by or f"exit status {code}") in error.message
    assert ("out-of-memory" in error.message) == (by == "SIGKILL")
    assert error.frame["finish_reason"].tolist() == ["stop", "stop", "error", "error"]
    assert error.frame["output"].tolist()[:2] == ["a", "b"]
    assert error.frame["error"].isna().tolist() == [True, True, False, False]
    assert nbinfer.last() is error.frame
    assert nbinfer.engines()["state"].tolist() == ["crashed"]
    # The next use loads again, on a process of its own.
    frame = engine.infer("d")
    assert frame["output"][0] == "d"
    assert frame.attrs["nbinfer"]["load_s"] > 0


def test_the_last_words_of_a_segfault(clean):
    with pytest.raises(EngineCrashed) as caught:
        echo().infer("!kill SIGSEGV")
    assert "Segmentation fault" in caught.value.log_tail
    assert "Segmentation fault" in str(caught.value)


def test_a_death_between_two_runs_goes_unnoticed(clean):
    engine = echo().load()
    pid = pid_of(engine)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: gone(pid))
    assert engine.infer("a")["output"][0] == "a"
    assert pid_of(engine) != pid


def test_two_runs_on_a_worker_that_dies_both_hear_of_it(clean):
    engine = echo().load()
    errors = []

    def run(prompt):
        try:
            engine.infer(prompt)
        except EngineCrashed as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=("!hang",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: engine.resident.runs == 2)
    time.sleep(0.1)
    os.kill(pid_of(engine), signal.SIGKILL)
    for thread in threads:
        thread.join(10)
    assert [e.signal for e in errors] == ["SIGKILL"] * 2


# ---------------------------------------------------------------------- interrupts


def interrupted(call, when):
    """Interrupt ``call`` as soon as ``when()``; returns the error and the seconds it took."""
    struck = []

    def ready():
        if not when():
            return False
        struck.append(time.monotonic())
        return True

    with interrupt_when(ready), pytest.raises(RunInterrupted) as caught:
        call()
    return caught.value, time.monotonic() - struck[0]


def test_an_interrupt_keeps_what_is_finished_and_the_model(clean):
    engine = echo(token_s=0.05, slots=1).load()
    pid = pid_of(engine)
    kept = Kept()
    error, seconds = interrupted(
        lambda: engine.infer(["a", "b", "w " * 1000, "c"], progress=kept),
        lambda: len(kept.of(Finished)) == 2,
    )
    assert seconds < IN_TIME_S
    assert error.frame["finish_reason"].tolist() == ["stop", "stop", "cancelled", "cancelled"]
    assert error.frame["output"].tolist()[:2] == ["a", "b"]
    assert error.frame["error"].isna().all()
    assert "2 of 4 rows" in error.message
    assert nbinfer.last() is error.frame
    facts = error.frame.attrs["nbinfer"]
    assert facts["interrupted"] is True
    assert facts["rows_cancelled"] == 2
    assert pid_of(engine) == pid
    frame = engine.infer("next")
    assert frame["output"].tolist() == ["next"]
    assert frame["prompt"].tolist() == ["next"]
    assert pid_of(engine) == pid


def test_an_interrupt_during_a_hang(clean):
    engine = echo().load()
    pid = pid_of(engine)
    error, seconds = interrupted(lambda: engine.infer(["!hang"]), lambda: hanging(engine))
    assert seconds < IN_TIME_S
    assert error.frame["finish_reason"].tolist() == ["cancelled"]
    assert engine.infer("next")["output"].tolist() == ["next"]
    assert pid_of(engine) == pid


def test_an_interrupt_during_a_load_lets_it_go_on(clean):
    engine = echo(load_s=1.5)
    error, seconds = interrupted(
        lambda: engine.infer(["a", "b"]),
        lambda: engine.resident is not None and engine.resident.stage == "loading",
    )
    assert seconds < IN_TIME_S
    assert error.frame["finish_reason"].tolist() == ["cancelled", "cancelled"]
    pid = pid_of(engine)
    assert engine.infer("next")["output"].tolist() == ["next"]
    assert pid_of(engine) == pid


def test_an_interrupt_during_load(clean):
    engine = echo(load_s=1.5)
    error, seconds = interrupted(
        engine.load, lambda: engine.resident is not None and engine.resident.stage == "loading"
    )
    assert seconds < IN_TIME_S
    assert "goes on loading" in error.message
    engine.load()


def test_an_interrupt_while_another_engine_computes(clean):
    first, second = echo("first", token_s=0.05), echo("second")
    first.load()
    second.load()
    other = threading.Thread(target=first.infer, args=("w " * 60,))
    other.start()
    assert eventually(lambda: busy(first))
    kept = Kept()
    error, seconds = interrupted(
        lambda: second.infer(["a"], progress=kept),
        lambda: any("waiting for echo · first" in s.text for s in kept.of(Stage)),
    )
    assert seconds < IN_TIME_S
    assert other.is_alive(), "the first run ended too soon: this proved nothing"
    assert error.frame["finish_reason"].tolist() == ["cancelled"]
    other.join()
    assert second.infer("next")["output"].tolist() == ["next"]


def test_an_interrupt_of_a_stream(clean):
    engine = echo(token_s=0.02).load()
    pid = pid_of(engine)
    stream = engine.stream("w " * 2000)
    pieces = [next(stream)]
    error, seconds = interrupted(lambda: pieces.extend(stream), lambda: True)
    assert seconds < IN_TIME_S
    assert error.frame["finish_reason"].tolist() == ["cancelled"]
    assert error.frame["output"][0].startswith("w w" if len(pieces) > 1 else "w")
    assert stream.result is error.frame
    assert list(stream) == []
    assert engine.infer("next")["output"].tolist() == ["next"]
    assert pid_of(engine) == pid


def test_an_interrupt_between_two_pieces_is_pythons_own(clean):
    engine = echo(token_s=0.02).load()
    stream = engine.stream("w " * 500)
    next(stream)
    with pytest.raises(KeyboardInterrupt) as caught:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert not isinstance(caught.value, RunInterrupted)
    stream.close()
    assert engine.infer("next")["output"].tolist() == ["next"]


def test_a_second_interrupt_waits_no_longer(clean):
    settings.configure(cancel_grace_s=30)
    engine = echo(ignore_cancel=True, token_s=0.05)
    engine.load()
    started = time.monotonic()
    with interrupts_at(0.3, 0.8), pytest.raises(RunInterrupted) as caught:
        engine.infer("w " * 100)
    assert time.monotonic() - started < 4
    assert caught.value.frame["finish_reason"].tolist() == ["cancelled"]


def test_an_interrupt_as_the_last_row_arrives_is_not_lost(clean):
    class Last(Silent):
        def __call__(self, record):
            if isinstance(record, Finished):
                os.kill(os.getpid(), signal.SIGINT)

    engine = echo().load()
    with pytest.raises(RunInterrupted) as caught:
        engine.infer("a", progress=Last())
    assert caught.value.frame["output"].tolist() == ["a"]
    assert "1 of 1 rows" in caught.value.message


def test_a_worker_that_ignores_a_cancel_is_abandoned_in_time(clean):
    engine = echo(ignore_cancel=True, token_s=0.05).load()
    pid = pid_of(engine)
    kept = Kept()
    error, seconds = interrupted(
        lambda: engine.infer(["w " * 50, "a"], progress=kept, batch_size=1),
        lambda: busy(engine),
    )
    assert seconds < IN_TIME_S
    assert error.frame["finish_reason"].tolist() == ["cancelled", "cancelled"]
    # The next call waits until it obeys, and gets nothing of the old one.
    frame = engine.infer("next")
    assert frame["output"].tolist() == ["next"]
    assert frame["prompt"].tolist() == ["next"]
    assert pid_of(engine) == pid


def test_one_that_never_obeys_gets_the_signals_in_order(clean, capfd):
    settings.configure(escalation_s=(0.3, 0.6, 0.9), cancel_grace_s=0.2)
    engine = echo(ignore_cancel=True, ignore_signals=True).load()
    pid = pid_of(engine)
    error, seconds = interrupted(lambda: engine.infer("!hang"), lambda: hanging(engine))
    assert seconds < IN_TIME_S
    assert error.frame["finish_reason"].tolist() == ["cancelled"]
    frame = engine.infer("next")
    assert frame["output"].tolist() == ["next"]
    assert gone(pid)
    assert pid_of(engine) != pid
    lines = [line for line in capfd.readouterr().err.splitlines() if "ignored a cancel" in line]
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["SIGINT", "SIGTERM", "SIGKILL"]
    assert all(str(pid) in line for line in lines)


def test_one_that_obeys_sigterm_is_not_killed(clean, capfd):
    settings.configure(escalation_s=(0.3, 0.6, 30), cancel_grace_s=0.2)
    engine = echo(ignore_cancel=True).load()
    pid = pid_of(engine)
    interrupted(lambda: engine.infer("!hang"), lambda: hanging(engine))
    assert eventually(lambda: gone(pid))
    err = capfd.readouterr().err
    assert "SIGTERM" in err
    assert "SIGKILL" not in err


def test_stop_from_another_thread(clean):
    """A panel has no signals: it calls the run's own stop()."""
    engine = echo(token_s=0.05, slots=1).load()
    runs = []
    real = engine._open_run
    engine._open_run = lambda *a, **k: runs.append(real(*a, **k)) or runs[-1]
    errors = []

    def work():
        try:
            engine.infer(["a", "w " * 1000], progress=False)
        except RunInterrupted as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert eventually(lambda: bool(runs) and runs[0]._done == 1)
    started = time.monotonic()
    runs[0].stop()
    thread.join(10)
    assert time.monotonic() - started < IN_TIME_S
    assert errors[0].frame["finish_reason"].tolist() == ["stop", "cancelled"]


# ------------------------------------------------------------------------- streams


def test_a_stream(clean):
    engine = echo(clock="virtual", token_s=0.5)
    stream = engine.stream("a b c")
    with pytest.raises(ConfigurationError, match="not ended"):
        _ = stream.result
    assert "".join(stream) == "a b c"
    row = stream.result.loc[0]
    assert row["output"] == "a b c"
    assert row["latency_s"] == 1.5
    assert nbinfer.last() is stream.result


def test_leaving_a_stream_early_cancels_the_rest(clean):
    engine = echo(token_s=0.02).load()
    pid = pid_of(engine)
    stream = engine.stream("w " * 5000)
    assert next(stream) == "w"
    stream.close()
    assert not busy(engine)
    assert eventually(lambda: engine.resident.worker.obeying)
    started = time.monotonic()
    assert engine.infer("next")["output"].tolist() == ["next"]
    assert time.monotonic() - started < 5
    assert pid_of(engine) == pid


def test_a_stream_that_is_forgotten_is_cancelled(clean):
    engine = echo(token_s=0.02).load()
    stream = engine.stream("w " * 5000)
    next(stream)
    del stream
    assert eventually(lambda: not busy(engine))
    assert eventually(lambda: engine.resident.worker.obeying)


@pytest.mark.parametrize("prompts", [["a", "b"], []])
def test_a_stream_takes_one_prompt(clean, prompts):
    with pytest.raises(ConfigurationError):
        echo().stream(prompts)
    with pytest.raises(ConfigurationError, match="n=2"):
        echo().stream("a", GenerationParams(n=2))


def test_a_stream_whose_engine_crashes(clean):
    stream = echo().stream("!exit 3")
    with pytest.raises(EngineCrashed) as caught:
        list(stream)
    assert caught.value.exit_code == 3
    assert caught.value.frame["finish_reason"].tolist() == ["error"]


def test_a_load_that_fails_has_no_rows(clean):
    engine = echo(load_fails="no such tensor")
    with pytest.raises(LoadError, match="no such tensor") as caught:
        engine.infer(["a", "b"])
    assert caught.value.frame is None
    with pytest.raises(LoadError, match="no such tensor"):
        list(engine.stream("a"))
    assert nbinfer.last() is None
