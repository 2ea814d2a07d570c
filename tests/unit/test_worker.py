"""The worker process: what it imports, whose child it is, and how it ends."""

from __future__ import annotations

import ast
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import nbinfer
from nbinfer.residents import pool
from nbinfer.worker import protocol
from nbinfer.worker.host import MAIN, Worker
from nbinfer.worker.sessions import session_pids

from ..conftest import eventually, workers
from .conftest import echo, gone, pid_of

PACKAGE = Path(nbinfer.__file__).parent
ENGINES = {"xllamacpp", "torch", "transformers", "vllm", "llama_cpp"}
STACKS = [
    {"xllamacpp"},
    {"llama_cpp", "numpy"},
    {"transformers", "torch", "tokenizers", "llguidance", "numpy", "peft", "safetensors", "gguf"}
    | {"PIL"},
    {"vllm", "transformers"},
    {"sglang"},
]


# ------------------------------------------------------------------ what is imported


def imported(path: Path) -> set[str]:
    """Absolute names of everything that a module imports, anywhere in it."""
    found: set[str] = set()
    package = list(path.relative_to(PACKAGE.parent).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name in ("nbinfer", "nbinfer.worker", "nbinfer.worker.backends"):
                found.update(f"{name}.{alias.name}" for alias in node.names)
            else:
                found.add(name)
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


WORKER_SIDE = [
    p for p in (PACKAGE / "worker").glob("*.py") if p.name not in ("host.py", "sessions.py")
]
BACKENDS = list((PACKAGE / "worker" / "backends").glob("*.py"))


@pytest.mark.parametrize("path", [*WORKER_SIDE, *BACKENDS], ids=lambda p: p.stem)
def test_a_worker_needs_only_the_standard_library_and_its_engine(path):
    own = ("nbinfer.worker", "nbinfer.gguf")
    names = imported(path)
    foreign = {
        n
        for n in names
        if top(n) not in sys.stdlib_module_names
        and not any(n == o or n.startswith(o + ".") for o in own)
    }
    if path in BACKENDS:
        # One library each, with what it cannot be without.
        assert any({top(n) for n in foreign} <= stack for stack in STACKS)
    else:
        assert foreign == set()
    assert "nbinfer.worker.host" not in names


def test_the_gguf_reader_needs_only_the_standard_library():
    assert {top(n) for n in imported(PACKAGE / "gguf.py")} <= sys.stdlib_module_names


def test_only_backends_import_engines():
    for path in PACKAGE.rglob("*.py"):
        if path not in BACKENDS:
            assert not {top(n) for n in imported(path)} & ENGINES, path


class Wire:
    """A worker spoken to by hand, without the host."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *flags, str(MAIN), "echo", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
            cwd="/",
        )
        self._events: list[dict[str, Any]] = []

    def send(self, *messages: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        for message in messages:
            self.process.stdin.write(protocol.pack(message))
        self.process.stdin.flush()

    def next(self, kind: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            while self._events:
                event = self._events.pop(0)
                if event["ev"] == kind:
                    return event
            self._events += protocol.read(self.process.stdout)["events"]

    def end(self) -> int:
        self.process.communicate(timeout=20)
        return self.process.returncode


def test_it_runs_in_a_bare_python():
    """-I -S -E: no site-packages, no environment, nothing but the standard library."""
    wire = Wire("-I", "-S", "-E", environment={})
    wire.send({"op": "load", "model": {"options": {"clock": "virtual", "token_s": 0.5}}})
    assert wire.next("loaded")["report"]["library"] == "echo"
    row = {"row": 0, "prompt": "a b c", "params": {}, "stream": False}
    wire.send({"op": "begin", "run": "r"}, {"op": "rows", "run": "r", "rows": [row]})
    finished = wire.next("finished")
    assert finished["output"] == "a b c"
    assert finished["latency_s"] == 1.5
    wire.send({"op": "call", "call": 1, "method": "where"})
    assert not any("site-packages" in path for path in wire.next("answer")["value"]["path"])
    assert wire.end() == 0


def test_what_a_started_worker_has_imported():
    """In the kernel's own Python, where pandas and the rest could be imported."""
    probe = (
        "import sys, threading, runpy\n"
        f"sys.argv = [{str(MAIN)!r}, 'echo', sys.argv[1]]\n"
        "import os\n"
        "real = os._exit\n"
        "def leave(status):\n"
        "    sys.stderr.write('\\n'.join(sorted(sys.modules)))\n"
        "    sys.stderr.flush()\n"
        "    real(status)\n"
        "os._exit = leave\n"
        "before = set(sys.modules)\n"
        f"runpy.run_path({str(MAIN)!r}, run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", probe, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(protocol.pack({"op": "load", "model": {"options": {}}}))
    process.stdin.flush()
    while not any(e["ev"] == "loaded" for e in protocol.read(process.stdout)["events"]):
        pass
    _, err = process.communicate(timeout=20)
    modules = set(err.decode().split())
    ours = {m for m in modules if m.startswith("nbinfer")}
    assert "nbinfer.worker.backends.echo" in ours
    assert ours <= {"nbinfer"} | {m for m in ours if m.startswith("nbinfer.worker")}
    assert "nbinfer.worker.host" not in ours
    assert not {top(m) for m in modules} & {
        *ENGINES,
        "pandas",
        "numpy",
        "psutil",
        "IPython",
        "httpx",
        "tqdm",
        "ipywidgets",
    }


def ask(worker: Worker, method: str) -> dict[str, Any]:
    """One of the backend's extra methods."""
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    worker.subscribe("", answers.put)
    worker.send({"op": "call", "call": 1, "method": method})
    return answers.get(timeout=10)


def test_extra_methods_answer_or_say_why_not(clean):
    engine = echo().load()
    worker = engine.resident.worker
    where = ask(worker, "where")["value"]
    assert where["pid"] == worker.pid
    assert str(PACKAGE / "worker") not in where["path"]
    assert "KeyError" in ask(worker, "nothing")["error"]


# ---------------------------------------------------------------------- its session


def test_it_has_a_session_of_its_own(clean):
    pid = pid_of(echo().load())
    assert os.getsid(pid) == pid
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) != os.getsid(0)
    assert session_pids(pid) == [pid]


def test_an_interrupt_of_the_process_group_does_not_reach_it(clean):
    engine = echo().load()
    pid = pid_of(engine)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        os.killpg(os.getpgid(0), 0)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert engine.infer("still here", progress=False)["output"][0] == "still here"
    assert pid_of(engine) == pid


def test_sigint_to_an_idle_worker_does_not_end_it(clean):
    engine = echo().load()
    os.kill(pid_of(engine), signal.SIGINT)
    assert engine.infer("still here")["output"][0] == "still here"


def test_unload_leaves_no_process(clean):
    engine = echo().load()
    pid = pid_of(engine)
    log = engine.resident.worker.log
    assert log.exists()
    engine.unload()
    assert gone(pid)
    assert engine.resident is None
    assert not log.exists()
    assert workers() == []


def test_one_started_from_a_thread_lives_on_when_that_ends(clean):
    engine = echo()
    thread = threading.Thread(target=engine.load)
    thread.start()
    thread.join()
    pid = pid_of(engine)
    time.sleep(0.2)
    assert not gone(pid)
    assert engine.infer("x")["output"][0] == "x"
    assert pid_of(engine) == pid


def test_one_that_closes_in_a_hang_is_killed(clean):
    engine = echo(ignore_cancel=True)
    engine.load()
    pid = pid_of(engine)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            engine.infer("!hang")
        except nbinfer.EngineCrashed as error:
            errors.append(error)

    stream = threading.Thread(target=run)
    stream.start()
    assert eventually(lambda: engine.resident.busy)
    started = time.monotonic()
    engine.unload()
    assert time.monotonic() - started < 5
    assert gone(pid)
    stream.join(10)
    assert len(errors) == 1


# --------------------------------------------------------------------- how it ends


def test_the_end_of_its_input_ends_it():
    wire = Wire()
    wire.next("hello")
    assert wire.process.stdin is not None
    wire.process.stdin.close()
    assert wire.process.wait(10) == 0
    assert wire.process.stdout is not None
    assert wire.process.stderr is not None
    wire.process.stdout.close()
    wire.process.stderr.close()


def test_close_ends_it():
    wire = Wire()
    wire.send({"op": "load", "model": {"options": {}}})
    wire.next("loaded")
    wire.send({"op": "close"})
    assert wire.process.wait(10) == 0
    wire.process.communicate()


def test_sigterm_ends_it():
    wire = Wire()
    wire.next("hello")
    wire.process.send_signal(signal.SIGTERM)
    assert wire.process.wait(10) == 143
    wire.process.communicate()


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\x02[]", protocol.pack({"op": "?"})])
def test_what_is_no_message_ends_it(data):
    wire = Wire()
    wire.next("hello")
    assert wire.process.stdin is not None
    wire.process.stdin.write(data)
    wire.process.stdin.flush()
    assert wire.process.wait(10) == 1
    wire.process.communicate()


def test_a_load_that_fails_ends_it_and_says_why():
    wire = Wire()
    wire.send({"op": "load", "model": {"options": {"load_fails": "no such tensor"}}})
    refused = wire.next("refused")
    assert refused == {"ev": "refused", "message": "no such tensor", "kind": "load"}
    assert wire.process.wait(10) == 2
    wire.end()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_it_dies_with_its_kernel():
    code = (
        "import nbinfer, time\n"
        "engine = nbinfer.EchoInferenceEngine().load()\n"
        "print(engine.resident.worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert kernel.stdout is not None
    pid = int(kernel.stdout.readline())
    assert psutil.pid_exists(pid)
    kernel.kill()
    kernel.communicate()
    assert eventually(lambda: gone(pid))


def test_a_kernel_that_exits_leaves_nothing():
    code = (
        "import nbinfer\n"
        "engine = nbinfer.EchoInferenceEngine().load()\n"
        "print(engine.resident.worker.pid, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert gone(int(done.stdout))
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="needs a shell")
def test_its_children_end_with_it(clean, tmp_path):
    """What an engine started in the worker's session does not outlive it."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nsleep 600 &\nexec {sys.executable} "$@"\n')
    script.chmod(0o700)
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    worker = Worker("echo", str(script), tmp_path / "log")
    assert eventually(lambda: len(session_pids(worker.pid)) == 2)
    children = session_pids(worker.pid)
    worker.close()
    assert all(gone(pid) or psutil.Process(pid).status() == "zombie" for pid in children)
    assert other.poll() is None  # another session is nobody's business
    other.kill()
    other.wait()


# --------------------------------------------------------------------- its output


def test_what_an_engine_prints_goes_to_the_log(clean):
    engine = echo().load()
    frame = engine.infer(["a", "!flood 4096", "b c"])
    assert frame["output"].tolist() == ["a", "!flood 4096", "b c"]
    assert engine.resident.worker.log.read_bytes() == (b"x" * 1023 + b"\n") * 4


def test_what_is_written_to_standard_output_does_not_reach_the_protocol(clean):
    engine = echo().load()
    pid = pid_of(engine)
    assert Path(f"/proc/{pid}/fd/1").readlink() == engine.resident.worker.log
    assert Path(f"/proc/{pid}/fd/2").readlink() == engine.resident.worker.log
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull)
    with Path(f"/proc/{pid}/fd/1").open("ab") as out:
        out.write(b"\xff\xff\xff\xffgarbage\n")
    assert engine.infer("x")["output"][0] == "x"
    assert "garbage" in engine.resident.worker.log_tail()


def test_a_flood_is_bounded_and_blocks_nothing(clean):
    engine = echo().load()
    log = engine.resident.worker.log
    frame = engine.infer("!flood 40000000")
    assert frame["error"].isna().all()
    assert eventually(lambda: log.stat().st_size <= 17 * 2**20)
    assert engine.infer("x")["output"][0] == "x"
    assert eventually(lambda: b"the log was cut here" in log.read_bytes())
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_log_of_a_worker_is_shown_in_its_last_lines_only(clean):
    engine = echo().load()
    log = engine.resident.worker.log
    with log.open("ab") as out:
        out.write(b"".join(b"line %d\n" % n for n in range(1000)) + b"\xff broken")
    tail = engine.resident.worker.log_tail(3).splitlines()
    assert tail == ["line 998", "line 999", "\ufffd broken"]


# --------------------------------------------------------------------- the host


def test_subscribing_to_a_dead_worker_answers_at_once(clean, tmp_path):
    worker = Worker("echo", sys.executable, tmp_path / "log")
    worker.close()
    told: list[dict[str, Any]] = []
    worker.subscribe("r", told.append)
    assert told[0]["ev"] == "died"
    assert told[0]["death"].by_us
    worker.send({"op": "begin", "run": "r"})
    worker.cancel("r")
    assert worker.obeying
    worker.close()


def test_a_python_that_is_not_there(clean, tmp_path):
    with pytest.raises(FileNotFoundError):
        Worker("echo", str(tmp_path / "python"), tmp_path / "log")


def test_a_worker_that_sends_garbage_is_ended(clean, tmp_path, capfd):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nprintf 'garbage, and no length'\nsleep 60\n")
    script.chmod(0o700)
    worker = Worker("echo", str(script), tmp_path / "log")
    assert worker.wait_ended(20)
    assert gone(worker.pid)
    assert "is no message" in capfd.readouterr().err
    worker.close()
    assert pool.residents() == []
