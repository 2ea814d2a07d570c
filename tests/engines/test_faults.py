"""Broken files, dying processes, full caches: the real library must not take anything along."""

from __future__ import annotations

import random
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nbinfer import models

from ..conftest import eventually
from ..kernel import Kernel

SHORT = "GenerationParams(max_new_tokens=8)"
SETUP = """
import json, os, signal, threading, time
import psutil
import nbinfer
from nbinfer import GenerationParams, LlamaCppInferenceEngine, ModelParams
from nbinfer.residents import pool

def llama(model="smollm2-135m", **options):
    return LlamaCppInferenceEngine(ModelParams(model, model_kwargs=options))

def attempt(work):
    try:
        value = work()
    except nbinfer.NbinferError as error:
        frame = error.frame
        return {
            "error": type(error).__name__,
            "message": error.message,
            "signal": getattr(error, "signal", None),
            "peak": getattr(error, "peak_memory_bytes", None),
            "rows": None if frame is None else json.loads(frame.to_json(orient="records")),
        }
    return {"error": None, "value": str(value)}

def strike(engine, number, after_rows):
    "Send a signal to the engine's process once so many rows are done."
    def watch():
        while not progress.rows >= after_rows:
            time.sleep(0.005)
        os.kill(engine.resident.worker.pid, number)
    class Progress:
        rows = 0
        def __call__(self, record):
            self.rows += isinstance(record, nbinfer.records.Finished)
        def __enter__(self):
            return self
        def __exit__(self, *_):
            pass
    progress = Progress()
    threading.Thread(target=watch, daemon=True).start()
    return progress

import nbinfer.records
"""


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with Kernel() as started:
        started.run(SETUP).ok()
        yield started


@pytest.fixture(scope="module")
def real() -> Path:
    """The embedded model's file."""
    return models.resolve("smollm2-135m").path


def answers(kernel: Kernel, expression: str = "llama(n_ctx=2048)") -> dict:
    """One row from an engine of the kernel, required to be an answer."""
    kernel.run(f"frame = {expression}.infer('Name a colour.', {SHORT})").ok()
    (row,) = kernel.rows("frame")
    assert row["error"] is None
    assert row["finish_reason"] in ("stop", "length")
    assert row["output"].strip()
    return row


def resident(kernel: Kernel) -> list[dict]:
    return kernel.rows("get_ipython().run_line_magic('engine', '')")


def unload_all(kernel: Kernel) -> None:
    kernel.run("%engine unload").ok()
    assert kernel.left(1.0) == []


# --------------------------------------------------------------------- broken files


def noise(real: Path, path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(100_000))


def garbage_after_the_header(real: Path, path: Path) -> None:
    with real.open("rb") as file:
        head = file.read(24)
    assert struct.unpack("<4sI", head[:8]) == (b"GGUF", 3)
    path.write_bytes(head + random.Random(2).randbytes(100_000))


def truncated(real: Path, path: Path) -> None:
    with real.open("rb") as file:
        path.write_bytes(file.read(50_000_000))


def no_tensors(real: Path, path: Path) -> None:
    """A valid header of a file without anything in it."""
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))


def empty(real: Path, path: Path) -> None:
    path.write_bytes(b"")


def text(real: Path, path: Path) -> None:
    path.write_text("This is a shopping list: eggs, milk.\n")


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        (noise, "magic"),
        (garbage_after_the_header, "key|gguf|string|corrupt|bounds"),
        (truncated, "not within the file bounds"),
        (no_tensors, "architecture"),
        (empty, "magic"),
        (text, "magic"),
    ],
)
def test_a_broken_file_is_a_load_error_with_the_librarys_cause(
    kernel, real, tmp_path, broken, cause
):
    path = tmp_path / "broken.gguf"
    broken(real, path)
    found = kernel.value(f"attempt(llama({str(path)!r}).load)")
    assert found["error"] == "LoadError", found
    assert "broken.gguf" in found["message"]
    assert re.search(cause, found["message"].split("broken.gguf", 1)[1]), found["message"]
    assert kernel.left(1.0) == []
    states = [r["state"] for r in resident(kernel)]
    assert "ready" not in states
    kernel.run("%engine unload").ok()


def test_after_broken_files_a_good_one_loads(kernel):
    answers(kernel)
    assert [r["state"] for r in resident(kernel)] == ["ready"]
    unload_all(kernel)


def test_what_is_no_model_file_is_told_before_any_worker_starts(kernel, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for name, said in (
        ("/nowhere/model.gguf", "no model"),
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "notes.txt"), "is no .gguf file"),
    ):
        found = kernel.value(f"attempt(llama({name!r}).load)")
        assert found["error"] == "ModelNotFound", found
        assert said in found["message"]
        assert name in found["message"]
        assert resident(kernel) == []
    assert kernel.value("any('spawner' in t.name for t in threading.enumerate())") in (True, False)
    assert kernel.workers() == []


# ------------------------------------------------------------------ a dying worker


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_while_it_generates(kernel, number):
    kernel.run("engine = llama(n_ctx=2048).load(); before = engine.resident.worker.pid").ok()
    found = kernel.value(
        "attempt(lambda: engine.infer([f'Name {n} animals.' for n in range(40)],"
        " GenerationParams(max_new_tokens=24),"
        f" progress=strike(engine, {int(number)}, 3)))"
    )
    assert found["error"] == "EngineCrashed", found
    assert found["signal"] == number.name
    assert number.name in found["message"]
    assert found["peak"] > 50_000_000
    rows = found["rows"]
    assert [row["prompt"] for row in rows] == [f"Name {n} animals." for n in range(40)]
    done = [row for row in rows if row["finish_reason"] in ("stop", "length")]
    lost = [row for row in rows if row["finish_reason"] == "error"]
    assert len(done) >= 3
    assert len(done) + len(lost) == 40
    assert lost
    assert all(row["output"] and row["error"] is None for row in done)
    assert all(number.name in row["error"] for row in lost)
    (shown,) = resident(kernel)
    assert shown["state"] == "crashed"
    assert shown["pid"] is None
    assert kernel.left(1.0) == []
    answers(kernel)
    (shown,) = resident(kernel)
    assert shown["state"] == "ready"
    assert shown["pid"] != kernel.value("before")


def test_a_worker_that_is_killed_while_idle(kernel):
    answers(kernel)
    kernel.run("os.kill(llama(n_ctx=2048).resident.worker.pid, signal.SIGKILL); time.sleep(0.5)")
    assert [r["state"] for r in resident(kernel)] == ["crashed"]
    answers(kernel)
    unload_all(kernel)


def test_a_worker_that_is_killed_while_it_loads(kernel):
    kernel.run(
        "def kill():\n"
        "    while not (pool.residents() and pool.residents()[0].worker):\n"
        "        time.sleep(0.005)\n"
        "    time.sleep(0.25)\n"
        "    os.kill(pool.residents()[0].worker.pid, signal.SIGKILL)\n"
        "threading.Thread(target=kill, daemon=True).start()"
    ).ok()
    found = kernel.value("attempt(llama(n_ctx=2048).load)")
    assert found["error"] == "EngineCrashed", found
    assert "while it was loading" in found["message"]
    assert found["signal"] == "SIGKILL"
    answers(kernel)
    unload_all(kernel)


# ------------------------------------------------------------------ a dying kernel

LOADED = f"llama(n_ctx=2048).infer('Hi', {SHORT})"
LONG = "llama(n_ctx=2048).infer(['Tell me about the sea.'] * 50, GenerationParams())"
ECHO = "nbinfer.EchoInferenceEngine(ModelParams(model_kwargs={})).load()"


@pytest.mark.parametrize(
    ("first", "then", "after"),
    [
        (LOADED, None, 0.0),
        (LOADED, LONG, 1.0),
        (None, ECHO.format("{'load_s': 30}"), 1.0),
        (None, ECHO.format("{'load_hangs': True}"), 1.0),
        (None, LOADED, 0.1),
        (None, LOADED, 0.5),
    ],
    ids=["idle", "generating", "loading", "hanging", "starting", "reading"],
)
def test_kill_9_of_the_kernel_leaves_nothing(first, then, after):
    with Kernel() as kernel:
        kernel.run(SETUP).ok()
        if first:
            kernel.run(first).ok()
        if then:
            kernel.began(kernel.send(then))
            assert eventually(kernel.workers, 5.0)
            kernel.pump(after)
        started = kernel.workers()
        assert len(started) == 1
        kernel.kill9()
        assert kernel.left(5.0) == []
        # A load that is killed cannot remove its socket's folder (0700, nobody listens); a
        # later load does. Nothing else of ours stays, and that only after a real load's death.
        folders = list(kernel.temporary.iterdir())
        assert len(folders) <= (then == LOADED), folders
        for folder in folders:
            assert folder.name.startswith("nbinfer-socket-")
            assert folder.stat().st_mode & 0o777 == 0o700
        if folders:
            # The later load goes by the owner's number, which init frees when it reaps it.
            assert eventually(lambda: not psutil.pid_exists(started[0]), 30.0)
            with Kernel(TMPDIR=str(kernel.temporary)) as later:
                later.run(SETUP).ok()
                later.run(LOADED).ok()
            assert list(kernel.temporary.iterdir()) == []


def test_a_worker_outlives_the_thread_that_asked_for_it(kernel):
    # Linux sends the parent-death signal when the forking thread ends, not the process.
    kernel.run(
        "engine = llama(n_ctx=2048)\n"
        "asker = threading.Thread(target=engine.load)\n"
        "asker.start(); asker.join(); time.sleep(0.5)\n"
        "before = engine.resident.worker.pid"
    ).ok()
    answers(kernel)
    assert [r["pid"] for r in resident(kernel)] == [kernel.value("before")]
    unload_all(kernel)


# ----------------------------------------------------------------- what it opens


def test_no_tcp_port_and_no_socket_that_could_be_found(kernel):
    before = set(kernel.temporary.iterdir())  # a load that was killed may have left its own
    answers(kernel)
    (pid,) = kernel.workers()
    sent = kernel.send("llama(n_ctx=2048).infer(['Tell me about it.'] * 8, progress=False)")
    kernel.began(sent)
    kernel.pump(0.5)
    process = psutil.Process(pid)
    internet = process.net_connections(kind="inet")
    unix = [c.laddr for c in process.net_connections(kind="unix") if c.laddr]
    kernel.interrupt()
    assert kernel.wait(sent).ename == "RunInterrupted"  # it was generating all the while
    assert internet == []
    assert unix, "llama.cpp's server listens somewhere else than on its socket"
    assert not [path for path in unix if Path(path).exists()]
    assert set(kernel.temporary.iterdir()) <= before
    unload_all(kernel)


# ------------------------------------------------------------------ the KV cache

SMALL = "llama(n_ctx=512, kv_tokens=512, n_parallel=4)"


def all_answered(kernel: Kernel, prompts: str, tokens: int, *, raw: bool = False) -> list[dict]:
    """Run prompts where few fit at once; each must be answered, by the library's log too."""
    params = f"GenerationParams(max_new_tokens={tokens}, raw={raw})"
    kernel.run(f"engine = {SMALL}\nframe = engine.infer({prompts}, {params})", 120).ok()
    rows = kernel.rows("frame")
    assert [row["error"] for row in rows] == [None] * len(rows)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert all(row["prompt_tokens"] for row in rows)
    log = kernel.value("engine.resident.worker.log_tail(1000)")
    assert "Context size has been exceeded" not in log
    return rows


def test_long_rows_run_fewer_at_a_time(kernel):
    prompts = "[f'{n}: ' + 'word ' * 170 + 'What comes next?' for n in range(8)]"
    rows = all_answered(kernel, prompts, 120)
    assert all(150 < row["prompt_tokens"] < 392 for row in rows)
    assert len({row["id"] for row in rows}) == 8


@pytest.mark.parametrize("text", ["'ꙮ' * 60", "'🙂' * 60", "'?!;:' * 60", "'1234567890' * 16"])
def test_prompts_of_more_tokens_than_their_bytes_suggest(kernel, text):
    # The reservation is too small until llama.cpp tells the true length: rows that were let in
    # do not fit beside each other, and some are taken out and sent again.
    rows = all_answered(kernel, f"[f'{{n}} ' + {text} for n in range(5)]", 16, raw=True)
    assert len(rows) == 5
    for row in rows:
        assert row["prompt_tokens"] > len(row["prompt"].encode()) // 3 + 8
        assert row["prompt_tokens"] + 16 > 512 // 4
    assert "cancel task" in kernel.value("engine.resident.worker.log_tail(1000)")


def test_mixed_lengths_lose_nothing(kernel):
    prompts = "[('?!;:' * (10 * (n % 8)) + ' ' + str(n)) for n in range(16)]"
    rows = all_answered(kernel, prompts, 16)
    assert len(rows) == 16
    unload_all(kernel)


def test_a_prompt_longer_than_the_context_fails_alone(kernel):
    engine = "llama(n_ctx=512, kv_tokens=1024, n_parallel=4)"
    prompts = "['Name a colour.', 'word ' * 700, 'Name a fruit.', '?!;:' * 300]"
    kernel.run(f"frame = {engine}.infer({prompts}, {SHORT})").ok()
    rows = kernel.rows("frame")
    assert [row["finish_reason"] == "error" for row in rows] == [False, True, False, True]
    assert all("tokens and the context is 512" in rows[n]["error"] for n in (1, 3)), rows
    answers(kernel, engine)
    unload_all(kernel)


# ------------------------------------------------------------------------- memory


def test_two_engines_at_once_and_their_memory_comes_back(kernel):
    answers(kernel, "llama(n_ctx=1024)")
    answers(kernel, "llama(n_ctx=2048)")
    answers(kernel, "llama(n_ctx=1024)")
    shown = resident(kernel)
    pids = [r["pid"] for r in shown]
    assert [r["state"] for r in shown] == ["ready", "ready"]
    assert sorted(pids) == sorted(kernel.workers())
    assert all(r["memory_bytes"] > 100_000_000 for r in shown)
    unload_all(kernel)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert resident(kernel) == []


def test_the_kernel_does_not_grow_over_load_and_unload(kernel):
    """Its memory settles: the first threads each leave a heap of the C library's behind."""
    process = psutil.Process(kernel.pid)
    sizes, files, threads = [], [], []
    while len(sizes) < 5 or sizes[-1] - sizes[-5] > 1_000_000:
        answers(kernel)
        unload_all(kernel)
        kernel.run("import gc; _ = gc.collect()").ok()
        sizes.append(process.memory_info().rss)
        files.append(process.num_fds())
        threads.append(process.num_threads())
        assert len(sizes) < 20, f"it grows in every five cycles: {sizes}"
    assert sizes[-1] - sizes[0] < 30_000_000, sizes
    # The least of three: a look may meet a file or a thread that is just being closed.
    assert min(files[-3:]) <= min(files[:3])
    assert min(threads[-3:]) <= min(threads[:3])


def test_a_script_that_ends_leaves_nothing(tmp_path):
    code = (
        "import nbinfer, os\n"
        "e = nbinfer.LlamaCppInferenceEngine(nbinfer.ModelParams(model_kwargs={'n_ctx': 512}))\n"
        "e.load()\n"
        "print(e.resident.worker.pid)\n"
        "raise SystemExit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert not psutil.pid_exists(int(done.stdout.strip()))
