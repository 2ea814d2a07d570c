"""The pool of loaded engines."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

import nbinfer
from nbinfer import EngineCrashed, EngineNotInstalled, LoadError, notices, settings
from nbinfer.engines.echo import EchoInferenceEngine
from nbinfer.progress import Silent
from nbinfer.records import Stage
from nbinfer.residents import pool

from ..conftest import eventually, our_threads, workers
from .conftest import busy, echo, gone, hanging, pid_of


class Stages(Silent):
    def __init__(self):
        self.texts = []

    def __call__(self, record):
        if isinstance(record, Stage):
            self.texts.append(record.text)


def start(call, *args, **kwargs):
    thread = threading.Thread(target=call, args=args, kwargs=kwargs)
    thread.start()
    return thread


# ------------------------------------------------------------------------- sharing


def test_equal_engines_share_a_worker(clean):
    first, second = echo("m", slots=2), echo("m", slots=2)
    first.infer("a")
    assert second.resident is first.resident
    second.infer("b")
    assert len(workers()) == 1


def test_other_parameters_do_not(clean):
    engines = [echo("m"), echo("m", slots=2), echo("n")]
    for engine in engines:
        engine.load()
    assert len({pid_of(engine) for engine in engines}) == 3
    assert len(pool.residents()) == 3


def test_the_first_use_of_many_threads_loads_once(clean):
    engine = echo(load_s=0.3)
    frames = []
    threads = [start(lambda: frames.append(engine.infer("a", progress=False))) for _ in range(6)]
    threads += [start(engine.load) for _ in range(2)]
    for thread in threads:
        thread.join(20)
    assert len(frames) == 6
    assert len(workers()) == 1
    assert frames[0]["run_id"][0] != frames[1]["run_id"][0]


def test_load_twice_does_nothing(clean):
    engine = echo()
    assert engine.load() is engine
    pid = pid_of(engine)
    engine.load()
    assert pid_of(engine) == pid


def test_a_context_manager_loads_and_unloads(clean):
    with echo() as engine:
        pid = pid_of(engine)
    assert gone(pid)
    with pytest.raises(ZeroDivisionError), echo() as engine:
        pid = pid_of(engine)
        raise ZeroDivisionError
    assert gone(pid)


# ------------------------------------------------------------------------- loading


def test_a_load_that_fails_says_why_and_a_later_one_works(clean, monkeypatch):
    with pytest.raises(LoadError) as caught:
        echo(load_fails="the file has no tensor 'x'").load()
    assert "the file has no tensor 'x'" in caught.value.message
    assert "'echo'" in caught.value.message
    assert "%engine logs" in caught.value.hint
    assert "RuntimeError" in caught.value.log_tail
    assert eventually(lambda: workers() == [])
    assert echo().infer("a")["output"][0] == "a"


def test_everyone_who_waits_hears_of_a_failure(clean):
    engine = echo(load_fails="why not")
    errors = []

    def load():
        try:
            engine.load()
        except LoadError as error:
            errors.append(str(error))

    threads = [start(load) for _ in range(4)]
    for thread in threads:
        thread.join(20)
    assert len(errors) == 4
    assert all("why not" in e for e in errors)


def test_a_library_that_is_not_there(clean, monkeypatch):
    monkeypatch.setattr(EchoInferenceEngine, "backend", "no_such_backend")
    with pytest.raises(EngineNotInstalled) as caught:
        echo().load()
    assert sys.executable in caught.value.message
    assert "pip install" in caught.value.hint


def test_a_prepare_that_raises(clean, monkeypatch):
    def prepare(self, progress):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EchoInferenceEngine, "_prepare", prepare)
    with pytest.raises(LoadError, match="No space left"):
        echo().load()
    assert pool.residents() == []


def test_a_worker_that_dies_while_it_loads(clean):
    engine = echo(load_hangs=True)
    thread_errors = []

    def load():
        try:
            engine.load()
        except EngineCrashed as error:
            thread_errors.append(error)

    thread = start(load)
    assert eventually(lambda: bool(workers()) and engine.resident.stage == "allocating")
    workers()[0].kill()
    thread.join(10)
    assert thread_errors[0].signal == "SIGKILL"
    assert "while it was loading" in thread_errors[0].message


def test_unload_during_a_load_ends_it(clean):
    engine = echo(load_hangs=True)
    errors = []

    def load():
        try:
            engine.load()
        except LoadError as error:
            errors.append(error.message)

    thread = start(load)
    assert eventually(lambda: bool(workers()) and engine.resident.stage == "allocating")
    pid = pid_of(engine)
    engine.unload()
    assert gone(pid)
    thread.join(10)
    assert errors == ["echo · echo was unloaded while it was loading"]
    assert engine.resident is None
    assert echo().infer("a")["output"][0] == "a"


def test_stages_of_a_load_are_told(clean):
    stages = Stages()
    echo(load_s=0.3).infer("a", progress=stages)
    assert any(t == "loading echo · echo: loading" for t in stages.texts)
    again = Stages()
    echo(load_s=0.3).infer("a", progress=again)
    assert again.texts == []


# ----------------------------------------------------------------------- unloading


def test_unload_gives_the_memory_back(clean):
    engine = echo(memory_bytes=50_000_000).load()
    pid = pid_of(engine)
    memory = engine.memory()
    assert memory["memory_bytes"] > 50e6
    assert memory["peak_bytes"] >= memory["memory_bytes"]
    assert memory["idle_bytes"] > 50e6
    freed = engine.unload()
    assert abs(freed - memory["memory_bytes"]) < 10e6
    assert gone(pid)
    assert engine.unload() == 0
    assert engine.memory() == {"memory_bytes": None, "idle_bytes": None, "peak_bytes": None}


def test_shutdown_leaves_nothing(clean):
    for name in ("a", "b"):
        echo(name).load()
    nbinfer.shutdown()
    assert workers() == []
    assert our_threads() == []
    assert nbinfer.engines().empty
    nbinfer.shutdown()
    assert echo().infer("a")["output"][0] == "a"  # and all works again


# ------------------------------------------------------------------------- eviction


def test_the_least_recently_used_one_makes_room(clean, capfd):
    engines = [echo(name, memory_bytes=40_000_000) for name in ("a", "b", "c")]
    first, second, third = engines
    first.load()
    second.load()
    first.infer("x")  # now the second is the one not used for longest
    settings.configure(memory_budget_bytes=120_000_000)
    third.load()
    assert second.resident is None
    assert first.resident is not None
    err = capfd.readouterr().err
    assert err.count("unloading") == 1
    assert "unloading echo · b (" in err
    assert "to make room for echo · c" in err
    assert "120 MB" in err


def test_one_that_works_is_never_evicted(clean, capfd):
    settings.configure(memory_budget_bytes=21_000_000)  # enough for one by itself
    working = echo("working", token_s=0.02).load()
    thread = start(working.infer, "w " * 60, progress=False)
    assert eventually(lambda: busy(working))
    pid = pid_of(working)
    other = echo("other").load()
    assert pid_of(working) == pid
    assert "unloading" not in capfd.readouterr().err
    assert other.resident is not None
    thread.join()
    echo("third").load()
    assert working.resident is None
    assert other.resident is None
    assert capfd.readouterr().err.count("unloading") == 2


def test_evictions_reach_whoever_listens(clean, capfd):
    told = []
    notices.listeners.append(told.append)
    settings.configure(memory_budget_bytes=21_000_000)
    echo("a").load()
    echo("b").load()
    assert len(told) == 1
    assert told[0].startswith("unloading echo · a")


def test_one_that_cannot_fit_evicts_nobody_in_vain(clean, capfd):
    settings.configure(memory_budget_bytes=21_000_000)
    small = echo("small").load()
    large = echo("large", memory_bytes=30_000_000).load()
    assert small.resident is not None
    assert large.resident is not None
    err = capfd.readouterr().err
    assert "unloading" not in err
    assert "more than the memory budget of 21 MB" in err


def test_unloading_a_working_engine_is_not_called_a_crash_from_outside(clean):
    engine = echo().load()
    failed: list[BaseException] = []

    def run():
        try:
            engine.infer("!hang", progress=False)
        except EngineCrashed as error:
            failed.append(error)

    thread = start(run)
    assert eventually(lambda: hanging(engine))
    engine.unload()
    thread.join()
    assert "was ended by nbinfer" in failed[0].message
    assert "out-of-memory" not in failed[0].message


# --------------------------------------------------------------------------- lease


def test_another_engine_waits_and_says_for_whom(clean):
    first, second = echo("first", token_s=0.02).load(), echo("second").load()
    stages = Stages()
    thread = start(first.infer, "w " * 40, progress=False)
    assert eventually(lambda: busy(first))
    frame = second.infer("a", progress=stages)
    assert not busy(first)
    thread.join()
    assert "waiting for echo · first to finish on the cpu" in stages.texts
    assert frame["output"][0] == "a"


def test_the_same_engine_joins(clean):
    engine = echo(token_s=0.02, slots=1).load()
    thread = start(engine.infer, ["w w w w w"] * 12, progress=False)
    assert eventually(lambda: busy(engine))
    stages = Stages()
    frame = engine.infer("a", progress=stages)
    assert thread.is_alive(), "the long run ended first: this proved nothing"
    thread.join()
    assert stages.texts == []
    assert frame["output"][0] == "a"


def test_without_waiting(clean):
    first, second = echo("first", token_s=0.02).load(), echo("second").load()
    thread = start(first.infer, "w " * 50, progress=False)
    assert eventually(lambda: busy(first))
    assert second.infer("a", wait=False)["output"][0] == "a"
    assert "".join(second.stream("b", wait=False)) == "b"
    assert busy(first)
    thread.join()


def test_the_lease_is_free_again_after_a_crash(clean):
    first, second = echo("first"), echo("second")
    with pytest.raises(EngineCrashed):
        first.infer("!exit 1")
    stages = Stages()
    second.load()
    assert second.infer("a", progress=stages)["output"][0] == "a"
    assert stages.texts == []


# ------------------------------------------------------------------------ overview


def test_the_table(clean):
    empty = nbinfer.engines()
    kinds = {
        "engine": "str",
        "model": "str",
        "state": "str",
        "pid": "Int64",
        "memory_bytes": "Int64",
        "peak_bytes": "Int64",
        "loaded_s": "Float64",
        "uptime_s": "Float64",
        "python": "str",
        "address": "str",
    }
    assert {name: str(kind) for name, kind in empty.dtypes.items()} == kinds
    assert len(empty) == 0

    engine = echo("m", token_s=0.02).load()
    table = nbinfer.engines()
    assert {name: str(kind) for name, kind in table.dtypes.items()} == kinds
    row = table.loc[0]
    assert (row["engine"], row["model"], row["state"]) == ("echo", "m", "ready")
    assert row["pid"] == pid_of(engine)
    assert row["memory_bytes"] > 1e6
    assert row["peak_bytes"] >= row["memory_bytes"]
    assert row["loaded_s"] > 0
    assert row["uptime_s"] >= 0
    assert row["python"] == sys.executable
    # The function and the subpackage have one name; both must work, whichever came first.
    assert nbinfer.engines.registry.names()


def test_its_states(clean):
    loading = echo("loading", load_s=1.0)
    thread = start(loading.load)
    assert eventually(lambda: loading.resident is not None)
    row = nbinfer.engines().loc[0]
    assert row["state"] == "loading"
    assert pd.isna(row["loaded_s"])
    assert pd.isna(row["uptime_s"])
    thread.join()

    working = echo("working", token_s=0.02).load()
    thread = start(working.infer, "w " * 20, progress=False)
    assert eventually(lambda: busy(working))
    states = nbinfer.engines().set_index("model")["state"].to_dict()
    assert states == {"loading": "ready", "working": "busy"}
    thread.join()

    pool.find(working.plan().key).worker._signal(9)
    assert eventually(lambda: pool.find(working.plan().key).state == "crashed")
    row = nbinfer.engines().set_index("model").loc["working"]
    assert row["state"] == "crashed"
    assert pd.isna(row["pid"])
    assert pd.isna(row["memory_bytes"])
    assert row["peak_bytes"] > 0
    assert working.unload() == 0
    assert len(nbinfer.engines()) == 1


# ----------------------------------------------------------------------------- home


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A home on a file system that nobody can write to, root neither."""
    home = tmp_path / "home"
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=2m", "tmpfs", str(home)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a read-only home: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a read-only home: {done.stderr.strip()}")
    monkeypatch.setenv("NBINFER_HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield home
    subprocess.run(["umount", str(home)], check=True)


def test_a_read_only_home_stops_no_engine(clean, read_only, tmp_path):
    engine = echo()
    assert engine.infer("a")["output"][0] == "a"
    log = engine.resident.worker.log
    assert log.parent == tmp_path / "nbinfer-logs"
    assert list(read_only.iterdir()) == []
    nbinfer.shutdown()


def test_logs_lie_in_the_home_and_are_private(clean, tmp_path, monkeypatch):
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    engine = echo().load()
    log = engine.resident.worker.log
    assert log.parent == tmp_path / "logs"
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700
    engine.unload()
    assert list(log.parent.iterdir()) == []


def test_old_logs_are_dropped(clean, tmp_path, monkeypatch):
    import os

    monkeypatch.setenv("NBINFER_HOME", str(tmp_path))
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, age in (("old.log", 8), ("new.log", 6), ("old.txt", 8)):
        path: Path = logs / name
        path.touch()
        then = time.time() - age * 86400
        os.utime(path, (then, then))
    echo().load()
    assert not (logs / "old.log").exists()
    assert (logs / "new.log").exists()
    assert (logs / "old.txt").exists()
