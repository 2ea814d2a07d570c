"""Runs that are kept in a file: what is resumed, what is refused, and what a kill costs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import hypothesis
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbinfer
from nbinfer import (
    ConfigurationError,
    Conversation,
    EchoInferenceEngine,
    EngineCrashed,
    GenerationParams,
    GuidedDecodingParams,
    LoadError,
    Message,
    ModelParams,
    OutputError,
    RunInterrupted,
    rowfile,
    rowstore,
)
from nbinfer.frame import Row
from nbinfer.notebook.display import frame_text
from nbinfer.progress import Silent, StatusLine
from nbinfer.records import Finished, Progress
from nbinfer.resume import Asked

from ..conftest import eventually
from ..kernel import Kernel
from .conftest import echo, interrupt_when, pid_of

# Columns that are the run's own, and so another's after a resume.
OF_RUN = ["run_id", "model_memory_bytes", "peak_memory_bytes"]


@pytest.fixture
def path(tmp_path):
    """A place for the file; afterwards nothing is beside it."""
    # Called so that the check for descriptors of ours sees it.
    folder = tmp_path / "nbinfer rows?#%41"
    folder.mkdir()
    yield folder / "answers.db"
    assert [p.name for p in folder.iterdir()] in ([], ["answers.db"])


@pytest.fixture
def tally(tmp_path):
    """What the engine began, as a function; its file is an option of the engine."""
    file = tmp_path / "tally"

    def begun() -> list[str]:
        return [json.loads(line) for line in file.read_text().splitlines()]

    begun.file = str(file)
    file.touch()
    return begun


class Kept(Silent):
    def __init__(self):
        self.records = []

    def __call__(self, record):
        self.records.append(record)

    def of(self, kind):
        return [r for r in list(self.records) if isinstance(r, kind)]


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """All that is a row's own is equal, to the last bit."""
    one, other = (frame.drop(columns=OF_RUN).reset_index(drop=True) for frame in (one, other))
    one.attrs, other.attrs = {}, {}
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def resumed(frame: pd.DataFrame) -> int:
    return frame.attrs["nbinfer"]["rows_resumed"]


def content(path: Path) -> bytes:
    return path.read_bytes()


# ------------------------------------------------------------------------ going on


def test_a_whole_run_is_not_run_again(clean, path, tally):
    engine = echo(token_s=0.01, tally=tally.file)
    prompts = ["a b", "same", "same", "same", "", "🙂 שלום \x00 \u2028"]
    first = engine.infer(prompts, output_path=path)
    assert resumed(first) == 0
    engine.unload()
    again = engine.infer(prompts, output_path=str(path))
    assert engine.resident is None
    assert len(tally()) == 6
    same(first, again)
    facts = again.attrs["nbinfer"]
    assert facts["rows"] == facts["rows_resumed"] == 6
    assert facts["output_tokens"] == first["output_tokens"].sum()
    assert facts["output_tokens_per_s"] is facts["requests_per_s"] is None
    assert facts["run_id"] == again["run_id"][0] != first["run_id"][0]
    assert nbinfer.last() is again


def test_more_prompts_at_the_end(clean, path, tally):
    engine = echo(token_s=0.01, tally=tally.file)
    first = engine.infer(["x", "x"], output_path=path)
    frame = engine.infer(["x", "x", "x", "y z"], output_path=path)
    assert sorted(tally()) == ["x", "x", "x", "y z"]
    assert frame["output"].tolist() == ["x", "x", "x", "y z"]
    same(frame.iloc[:2], first)
    facts = frame.attrs["nbinfer"]
    assert facts["rows_resumed"] == 2
    assert facts["output_tokens"] == 5
    assert facts["requests_per_s"] == pytest.approx(2 / facts["running_s"])
    assert facts["output_tokens_per_s"] == pytest.approx(3 / facts["running_s"])
    assert "2 resumed" in frame_text(frame)


def test_samples_are_rows_of_their_own(clean, path, tally):
    engine = echo(tally=tally.file)
    params = GenerationParams(n=3, seed=7)
    first = engine.infer(["a", "a"], params, output_path=path)
    again = engine.infer(["a", "a", "b"], params, output_path=path)
    same(again.iloc[:6], first)
    assert again["sample"].tolist() == [0, 1, 2] * 3
    assert sorted(tally()) == ["a"] * 6 + ["b"] * 3
    same(nbinfer.read_rows(path), again)


def test_rows_that_failed_are_asked_again(clean, path, tally):
    engine = echo(tally=tally.file)
    prompts = ["a", "!fail for now", "half \ud800", "b"]
    engine.infer(prompts, output_path=path)
    assert nbinfer.read_rows(path)["id"].tolist() == [0, 3]
    frame = engine.infer(prompts, output_path=path)
    assert resumed(frame) == 2
    assert frame["finish_reason"].tolist() == ["stop", "error", "error", "stop"]
    assert tally().count("!fail for now") == 2
    assert tally().count("a") == 1


def test_ids_of_ones_own_may_move(clean, path, tally):
    engine = echo(token_s=0.01, tally=tally.file)
    table = pd.DataFrame({"id": ["u", "v", "w"], "prompt": ["same", "same", "z"], "k": [1, 2, 3]})
    first = engine.infer(table, output_path=path)
    moved = table.iloc[[2, 0, 1]].reset_index(drop=True)
    again = engine.infer(moved, output_path=path)
    assert len(tally()) == 3
    assert again["id"].tolist() == ["w", "u", "v"]
    assert again["k"].tolist() == [3, 1, 2]
    same(again.iloc[[1, 2, 0]], first)
    assert nbinfer.read_rows(path)["id"].tolist() == ["u", "v", "w"]


@pytest.mark.parametrize(
    "ids",
    [
        ["u", "u", "v"],
        [1.5, 2.5, 3.5],
        [None, "a", "b"],
        pd.to_datetime(["2024"] * 3),
        [0, True, 2],
    ],
    ids=["repeated", "floats", "missing", "dates", "mixed"],
)
def test_ids_that_are_no_keys(clean, path, ids):
    table = pd.DataFrame({"id": ids, "prompt": ["a", "b", "c"]})
    first = echo().infer(table, output_path=path)
    same(echo().infer(table, output_path=path), first)
    assert first["id"].tolist() == table["id"].tolist() or first["id"].isna().any()
    assert nbinfer.read_rows(path)["output"].tolist() == ["a", "b", "c"]


def test_conversations_and_what_is_parsed(clean, path, monkeypatch):
    pydantic = pytest.importorskip("pydantic")

    class Colour(pydantic.BaseModel):
        name: str

    monkeypatch.setattr(EchoInferenceEngine, "_check_generation", lambda *_: None)
    params = GenerationParams(guided_decoding=GuidedDecodingParams(json=Colour), max_new_tokens=2)
    talks = [
        Conversation([Message("system", "s"), Message("user", '{"name": "red"}')]),
        Conversation([Message("user", '{"name": "cut short"}')], conversation_id="second"),
    ]
    first = echo().infer(talks, params, output_path=path)
    again = echo().infer(talks, params, output_path=path)
    assert resumed(again) == 2
    same(first, again)
    assert again["parsed"][0] == Colour(name="red")
    assert again["messages"][0] == talks[0].to_list()
    assert "max_new_tokens" in again["error"][1]
    seen = nbinfer.read_rows(path)
    assert list(seen.columns) == list(again.columns)
    assert seen["parsed"].tolist() == [{"name": "red"}, None]
    same(seen.drop(columns="parsed"), again.drop(columns="parsed"))


texts = st.text(st.characters(exclude_categories=()))
numbers = st.none() | st.floats(allow_nan=False)
counts = st.none() | st.integers(0, 2**63)
objects = st.none() | st.lists(st.dictionaries(texts, numbers | texts, max_size=3), max_size=3)
VALUES = {
    "index": st.integers(0, 10**6),
    "sample": st.integers(0, 1023),
    "id": texts | st.integers(),
    "prompt": texts,
    **dict.fromkeys(("output", "finish_reason", "error", "reasoning"), st.none() | texts),
    **dict.fromkeys(("prompt_tokens", "output_tokens", "cached_tokens"), counts),
    **dict.fromkeys(("queue_s", "ttft_s", "tpot_s", "latency_s"), numbers),
    "itl_s": st.none() | st.lists(st.floats(0, 10)),
    **dict.fromkeys(("messages", "logprobs", "prompt_logprobs", "tool_calls", "parsed"), objects),
}


@hypothesis.settings(deadline=None)
@given(st.builds(Row, **VALUES))
def test_every_field_of_a_row_survives(row):
    assert set(VALUES) == {field.name for field in dataclasses.fields(Row)}
    assert rowstore._decoded(rowstore._encoded(row)) == row


def test_resumed_rows_are_done_at_once(clean, path):
    engine = echo(token_s=0.02, slots=1)
    engine.infer(["w w w w w w"] * 4, output_path=path)
    kept = Kept()
    engine.infer(
        ["w w w w w w"] * 4 + ["w w w w w w w w w w w w"] * 2, output_path=path, progress=kept
    )
    assert [r.number for r in kept.records[:4]] == [0, 1, 2, 3]
    assert sorted(r.number for r in kept.of(Finished)) == list(range(6))
    assert all((r.rows, r.resumed) == (6, 4) and 4 <= r.done <= 6 for r in kept.of(Progress))
    assert kept.of(Progress)


def test_the_time_left_is_of_what_this_run_does():
    progress = Progress(
        done=910, rows=1000, tokens=5, prefilled=0, prompt_tokens=0, seconds=10, resumed=900
    )
    line = StatusLine()
    line._last = progress
    text = line.text(progress, 0)
    assert "910 of 1000 rows" in text
    assert "1 min 30 s left" in text


def test_a_streamed_row_has_its_own_number(clean, path):
    engine = echo(token_s=0.01)
    engine.infer(["a"], output_path=path)
    kept = Kept()
    engine.infer(["a", "b c d"], output_path=path, stream=True, progress=kept)
    deltas = [r for r in kept.records if type(r).__name__ == "Delta"]
    assert {r.number for r in deltas} == {1}


# ---------------------------------------------------------------------- cut short


def test_an_interrupt_and_the_rest(clean, path, tally):
    engine = echo(token_s=0.02, slots=2, tally=tally.file).load()
    prompts = [f"row {n}" for n in range(40)]
    kept = Kept()
    with (
        interrupt_when(lambda: len(kept.of(Finished)) >= 6),
        pytest.raises(RunInterrupted) as caught,
    ):
        engine.infer(prompts, output_path=path, progress=kept)
    stopped = caught.value.frame
    done = stopped[stopped["finish_reason"] == "stop"]
    same(nbinfer.read_rows(path), done)
    begun = len(tally())
    frame = engine.infer(prompts, output_path=path)
    assert frame["output"].tolist() == prompts
    assert resumed(frame) == len(done) >= 6
    assert len(tally()) - begun == 40 - len(done)
    same(frame.iloc[done.index], done)


def test_a_crash_and_the_rest(clean, path, tally):
    engine = echo(token_s=0.02, slots=2, tally=tally.file).load()
    prompts = [f"row {n}" for n in range(40)]
    kept = Kept()
    killer = threading.Thread(
        target=lambda: (
            eventually(lambda: len(kept.of(Finished)) >= 6)
            and os.kill(pid_of(engine), signal.SIGKILL)
        )
    )
    killer.start()
    with pytest.raises(EngineCrashed) as caught:
        engine.infer(prompts, output_path=path, progress=kept)
    killer.join()
    died = caught.value.frame
    done = died[died["finish_reason"] == "stop"]
    same(nbinfer.read_rows(path), done)
    frame = engine.infer(prompts, output_path=path)
    assert resumed(frame) == len(done)
    assert frame["output"].tolist() == prompts
    same(frame.iloc[done.index], done)


def test_a_load_that_fails_keeps_the_file(clean, path):
    engine = echo(load_fails="no")
    with pytest.raises(LoadError) as caught:
        engine.infer(["a"], output_path=path)
    assert caught.value.frame is None
    assert nbinfer.read_rows(path).empty
    with pytest.raises(LoadError):
        engine.infer(["a"], output_path=path)


def test_a_load_that_fails_has_the_rows_of_the_file(clean, path, monkeypatch):
    engine = echo()
    engine.infer(["a"], output_path=path)
    engine.unload()

    def fails(*_):
        raise LoadError("not today")

    monkeypatch.setattr(EchoInferenceEngine, "_prepare", fails)
    with pytest.raises(LoadError, match="not today") as caught:
        engine.infer(["a", "b"], output_path=path)
    assert caught.value.frame["finish_reason"].tolist() == ["stop", "error"]
    assert engine.infer(["a"], output_path=path)["output"].tolist() == ["a"]


def test_what_a_reader_of_records_raises(clean, path):
    class Broken(Silent):
        def __call__(self, record):
            if isinstance(record, Finished):
                raise ZeroDivisionError

    engine = echo(slots=1)
    with pytest.raises(ZeroDivisionError):
        engine.infer(["a", "b"], output_path=path, progress=Broken())
    assert nbinfer.read_rows(path)["output"].tolist() == ["a"]
    assert engine.infer(["a", "b"], output_path=path)["output"].tolist() == ["a", "b"]


RUN = """
import nbinfer
engine = nbinfer.EchoInferenceEngine(nbinfer.ModelParams(model_kwargs={options!r}))
prompts = ["the same words" if n % 5 == 0 else f"row {{n}}" for n in range(1000)]
frame = engine.infer(prompts, output_path={path!r}, progress=False)
"""


def test_a_kernel_that_is_killed_twice(clean, path, tally):
    """A thousand rows, two hundred of them equal: none that was kept is asked again."""
    options = {"prefill_s": 0.01, "token_s": 0.005, "slots": 4, "tally": tally.file}
    code = RUN.format(options=options, path=str(path))
    prompts = ["the same words" if n % 5 == 0 else f"row {n}" for n in range(1000)]
    kept, asked = [], []

    def rows_kept() -> int:
        with contextlib.suppress(ConfigurationError):
            return len(nbinfer.read_rows(path))
        return 0

    for rows in (300, 600):
        with Kernel(extension=False) as kernel:
            kernel.send(code)
            assert eventually(lambda n=rows: rows_kept() >= n, 60)
            kernel.kill9()
            assert not kernel.left()
        kept.append(nbinfer.read_rows(path))
        asked.append(tally())
    with Kernel(extension=False) as kernel:
        kernel.run(code, timeout=120).ok()
        assert kernel.value("frame.attrs['nbinfer']['rows_resumed']") == len(kept[1])
        facts = kernel.value("frame.attrs['nbinfer']")
    frame = nbinfer.read_rows(path)
    assert frame["id"].tolist() == list(range(1000))
    assert frame["prompt"].tolist() == frame["output"].tolist() == prompts
    assert facts["rows_failed"] == facts["rows_cancelled"] == 0
    third = tally()[len(asked[1]) :]
    second = asked[1][len(asked[0]) :]
    for before, later in ((kept[0], second + third), (kept[1], third)):
        # What the file had is not begun again, and comes out as it went in.
        ours = set(before["prompt"]) - {"the same words"}
        assert not ours & set(later)
        same(frame.iloc[before["id"]], before)
    expected = [prompts[n] for n in sorted(set(range(1000)) - set(kept[1]["id"]))]
    assert sorted(third) == sorted(expected)
    # A kill costs what finished in its last moments.
    assert len(asked[0]) - len(kept[0]) < 200


# ------------------------------------------------------------------------- refused

PROMPTS = ["a a", "b b", "c c"]


@pytest.fixture
def written(clean, path):
    echo().infer(PROMPTS, output_path=path)
    return path


def refused(engine, prompts, path, params=None, **more) -> ConfigurationError:
    """The error; the file is as it was, and nothing was loaded for it."""
    engine.unload()
    before = content(path) if path.is_file() else None
    with pytest.raises(ConfigurationError) as caught:
        engine.infer(prompts, params, output_path=path, **more)
    assert (content(path) if path.is_file() else None) == before
    assert engine.resident is None
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("params", "was", "is_now"),
    [
        ({"max_new_tokens": 7}, "max_new_tokens=512", "max_new_tokens=7"),
        ({"seed": 3}, "seed=None", "seed=3"),
        ({"n": 2}, "n=1", "n=2"),
    ],
)
def test_other_parameters(written, params, was, is_now):
    error = refused(echo(), PROMPTS, written, GenerationParams(**params))
    assert f"was written with {was}, and this run has {is_now}" in error.message


def test_another_model(written):
    error = refused(echo("other", token_s=0.5), PROMPTS, written)
    assert "model_name='echo', model_kwargs={}" in error.message
    assert "model_name='other', model_kwargs={'token_s': 0.5}" in error.message


def test_another_engine(written):
    known = Asked("echo", ModelParams("echo"), GenerationParams()).meta
    asked = Asked("vllm", ModelParams("echo"), GenerationParams())
    with pytest.raises(ConfigurationError, match="engine='echo', and this run has engine='vllm'"):
        asked.check(written, known)


def test_a_field_that_is_newer_than_the_file(written):
    """It counts as its default, which is what the file's rows were made with."""
    with contextlib.closing(sqlite3.connect(written)) as connection, connection:
        found = connection.execute("SELECT value FROM meta WHERE name='generation_params'")
        params = json.loads(found.fetchone()[0])
        del params["min_p"]
        connection.execute(
            "UPDATE meta SET value=? WHERE name='generation_params'", (json.dumps(params),)
        )
    assert resumed(echo().infer(PROMPTS, output_path=written)) == 3


def test_other_prompts(written):
    error = refused(echo(), ["a a", "other", "c c"], written)
    assert "id 1 was 'b b' and is 'other'" in error.message
    error = refused(echo(), PROMPTS, written, system="be brief")
    assert "another system message" in error.message
    error = refused(echo(), ["c c", "b b", "a a"], written)
    assert "id 0 was 'a a' and is 'c c'" in error.message


def test_fewer_prompts(written):
    error = refused(echo(), PROMPTS[:1], written)
    assert "2 rows that these prompts have not, of id 1, 2" in error.message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".CSV"])
def test_a_suffix_of_another_format(clean, path, suffix):
    error = refused(echo(), "x", path.with_suffix(suffix))
    assert "SQLite" in error.message
    assert "df.to_" in error.hint
    assert "-o" in error.hint


def test_what_is_no_database(clean, path):
    path.write_text("id,prompt\n0,hello\n" * 100)
    assert "is not SQLite" in refused(echo(), "x", path).message
    with pytest.raises(ConfigurationError, match="is not SQLite"):
        nbinfer.read_rows(path)


def test_another_programs_database(clean, path):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE rows (x)")
    assert "another program's" in refused(echo(), "x", path).message
    with pytest.raises(ConfigurationError, match="another program's"):
        nbinfer.read_rows(path)


def test_another_format(written):
    with contextlib.closing(sqlite3.connect(written)) as connection:
        connection.execute("PRAGMA user_version=9")
    assert "format is 9" in refused(echo(), PROMPTS, written).message


def test_an_empty_file_is_a_new_one(clean, path):
    path.touch()
    with pytest.raises(ConfigurationError, match="empty"):
        nbinfer.read_rows(path)
    assert echo().infer("x", output_path=path)["output"][0] == "x"
    assert len(nbinfer.read_rows(path)) == 1


def test_places_that_cannot_be(clean, path):
    assert "is a folder" in refused(echo(), "x", path.parent).message
    with pytest.raises(ConfigurationError, match="there is no folder"):
        echo().infer("x", output_path=path / "below" / "answers.db")
    with pytest.raises(ConfigurationError, match="cannot be read: unable to open"):
        nbinfer.read_rows(path)


def test_a_place_that_cannot_be_written(clean, mounted, monkeypatch):
    place = mounted("-o", "ro")
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match=r"cannot be written: .*[Rr]ead-only"):
        echo().infer("x", output_path=place / "answers.db")


def test_a_file_that_is_damaged(written):
    with written.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(ConfigurationError, match="malformed"):
        echo().infer(PROMPTS, output_path=written)


def test_a_file_that_another_process_writes_to(clean, path):
    options = {"token_s": 0.02, "slots": 1}
    code = RUN.format(options=options, path=str(path))
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert eventually(lambda: path.is_file() and readable(path) > 2, 30)
        with pytest.raises(ConfigurationError, match="another run is writing to") as caught:
            echo(**options).infer("the same words", output_path=path)
        assert "read_rows" in caught.value.hint
    finally:
        process.kill()
        process.wait()
    before = len(nbinfer.read_rows(path))
    prompts = ["the same words" if n % 5 == 0 else f"row {n}" for n in range(before + 3)]
    engine = echo("smollm2-135m", **options)
    assert resumed(engine.infer(prompts, output_path=path)) == before


def readable(path) -> int:
    with contextlib.suppress(ConfigurationError):
        return len(nbinfer.read_rows(path))
    return 0


def test_a_file_that_another_thread_writes_to(clean, path):
    engine = echo(token_s=0.02)
    frames = []
    thread = threading.Thread(
        target=lambda: frames.append(engine.infer(["w " * 20] * 4, output_path=path, wait=False))
    )
    thread.start()
    assert eventually(lambda: path.is_file() and engine.resident is not None)
    with pytest.raises(ConfigurationError, match="another run is writing to"):
        engine.infer(["w " * 20] * 4, output_path=path)
    assert list(nbinfer.read_rows(path).columns)  # a look on does no harm
    thread.join()
    assert frames[0]["finish_reason"].tolist() == ["stop"] * 4
    assert resumed(engine.infer(["w " * 20] * 4, output_path=path)) == 4


# ----------------------------------------------------------------- in the middle of it


def test_a_file_that_is_removed(clean, path):
    engine = echo(token_s=0.005, slots=4).load()

    class Removes(Kept):
        def __call__(self, record):
            super().__call__(record)
            if len(self.of(Finished)) == 20:
                path.unlink(missing_ok=True)

    with pytest.raises(OutputError, match="cannot be written") as caught:
        engine.infer(["a b c"] * 200, output_path=path, progress=Removes())
    assert len(caught.value.frame) == 200
    assert engine.infer(["a"], output_path=path)["output"].tolist() == ["a"]


def test_another_name_of_the_same_file(written):
    link = written.parent / "answers.db.link"
    link.symlink_to(written)
    engine = echo()
    place = rowfile.checked(written)
    with rowfile.locked(place), pytest.raises(ConfigurationError, match="another run is writing"):
        engine.infer(PROMPTS, output_path=link)
    assert resumed(engine.infer(PROMPTS, output_path=link)) == 3
    link.unlink()


@pytest.mark.parametrize("value", [7, "", b"answers.db", True])
def test_what_is_no_path(clean, value):
    with pytest.raises(ConfigurationError, match="output_path must be"):
        echo().infer("x", output_path=value)


def test_what_was_read_can_be_shown_and_summed_up(written):
    frame = nbinfer.read_rows(written)
    assert "3 rows" in frame_text(frame)
    line = frame.infer.summary().iloc[0]
    assert (line["rows"], line["output_tokens"]) == (3, 6)
    assert pd.isna(line["wall_s"])
    assert frame["model_memory_bytes"].isna().all()


@contextlib.contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def ends_in_the_middle(engine, prompts, path, what) -> None:
    """The run stops early, its rows are in the error's frame, and the file goes on later."""
    with pytest.raises(OutputError, match=what) as caught:
        engine.infer(prompts, output_path=path)
    frame = caught.value.frame
    assert nbinfer.last() is frame
    assert len(frame) == len(prompts)
    done = frame[frame["finish_reason"] == "stop"]
    assert 0 < len(done) < len(prompts)
    assert set(frame["finish_reason"]) == {"stop", "cancelled"}
    assert str(path) in caught.value.message


def test_a_disk_that_gets_full(clean, path):
    engine = echo(token_s=0.005, slots=4).load()
    prompts = [f"{n} " + "x" * 2000 for n in range(400)]
    with largest_file(300_000):
        ends_in_the_middle(engine, prompts, path, "cannot be written")
    had = len(nbinfer.read_rows(path))
    assert had > 0
    frame = engine.infer(prompts, output_path=path)
    assert resumed(frame) == had
    assert frame["output"].tolist() == prompts


def test_a_file_system_that_gets_full(clean, mounted, monkeypatch):
    place = mounted("-o", "size=500k")
    monkeypatch.undo()
    engine = echo(token_s=0.005, slots=4).load()
    prompts = [f"{n} " + "x" * 2000 for n in range(400)]
    ends_in_the_middle(engine, prompts, place / "answers.db", "full")
    assert len(nbinfer.read_rows(place / "answers.db")) > 0
    assert [p.name for p in place.iterdir()] == ["answers.db"]


def test_another_program_that_reads_for_long(clean, path, monkeypatch):
    """Rows wait for it; only one that stays to the end costs them their place in the file."""
    monkeypatch.setattr(rowfile, "BUSY_S", 0.05)
    engine = echo(token_s=0.01, slots=1)
    prompts = ["a b"] * 40
    engine.infer(prompts[:1], output_path=path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:

        class LooksOn(Kept):
            def __call__(self, record):
                super().__call__(record)
                ended = len(self.of(Finished))
                if ended == 5 and not reader.in_transaction:
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM rows").fetchall()
                if ended == 30 and reader.in_transaction:
                    reader.execute("COMMIT")

        frame = engine.infer(prompts, output_path=path, progress=LooksOn())
        assert frame["finish_reason"].eq("stop").all()
        assert len(nbinfer.read_rows(path)) == 40
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM rows").fetchall()
        with pytest.raises(ConfigurationError, match="locked"):
            engine.infer(prompts, output_path=path)


# ------------------------------------------------------------------- the other surfaces


def test_the_magic(shell, path):
    cell = f"%%infer -e echo -o rows --resume '{path}'\none\n---\ntwo"
    shell.cell(cell)
    shell.cell(cell)
    assert shell.user_ns["rows"]["output"].tolist() == ["one", "two"]
    assert resumed(shell.user_ns["rows"]) == 2


def test_the_magic_with_one_prompt_shows_the_row(shell, path):
    """Nothing is streamed: an answer from the file would print nothing."""
    for _ in range(2):
        cell = shell.cell(f"%%infer -e echo --resume '{path}'\none")
        assert cell.value["output"].tolist() == ["one"]
        assert cell.stdout.startswith("Out[")


def test_the_command_line(clean, path, capsys):
    from nbinfer.cli import main

    rows = path.parent.parent / "rows.csv"
    for _ in range(2):
        arguments = ["infer", "-e", "echo", "--resume", str(path), "-o", str(rows), "one", "two"]
        assert main(arguments) == 0
    assert resumed(nbinfer.last()) == 2
    assert pd.read_csv(rows)["output"].tolist() == ["one", "two"]
    assert main(["infer", "-e", "echo", "--resume", str(rows), "one"]) == 1
    assert "SQLite" in capsys.readouterr().err


def test_a_comparison_has_no_file(clean, path):
    with pytest.raises(ConfigurationError, match="one engine's"):
        nbinfer.compare([echo("a"), echo("b")], ["x"], output_path=path)
