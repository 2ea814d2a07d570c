"""``%%engine_exec``: a cell in the engine's process, on the stand-in engine."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import nbinfer
from nbinfer import EchoInferenceEngine, ExecutionError, LlamaCppInferenceEngine, RunInterrupted
from nbinfer.engines.console import execute


@pytest.fixture
def engine(clean):
    return EchoInferenceEngine().load()


def test_the_last_value_and_names_that_live_on(engine):
    assert engine.execute("x = 40\nx + 2") == "42"
    assert engine.execute("x") == "40"
    assert engine.execute("x;") is None
    assert engine.execute("y = x") is None
    assert engine.execute("type(backend).__name__") == "'Backend'"
    assert engine.execute("import os; os.getpid()") == str(engine.resident.worker.pid)
    assert engine.execute("'a' * 100_000").endswith(" …")


def test_prints_come_back_in_order(engine):
    seen = []
    execute(
        engine,
        "import sys\nprint('one')\nprint('two', file=sys.stderr)\nprint('three', end='')",
        show=lambda text, stream: seen.append((stream, text)),
    )
    assert "".join(t for s, t in seen if s == "stdout") == "one\nthree"
    assert "".join(t for s, t in seen if s == "stderr") == "two\n"


def test_an_exception_has_the_cells_own_lines(engine):
    with pytest.raises(ExecutionError, match="ZeroDivisionError: division by zero") as caught:
        engine.execute("def f():\n    return 1 / 0\nf()")
    text = caught.value.worker_traceback
    assert "return 1 / 0" in text
    assert "console.py" not in text
    with pytest.raises(ExecutionError, match="SyntaxError"):
        engine.execute("def f(")
    with pytest.raises(ExecutionError, match="SystemExit"):
        engine.execute("raise SystemExit(3)")
    assert engine.execute("1") == "1"  # none of it ended the worker


def test_a_death_of_the_process_is_told(engine):
    with pytest.raises(nbinfer.EngineCrashed, match="while it ran a cell"):
        engine.execute("import os; os._exit(9)")
    assert engine.execute("1") == "1"


@pytest.mark.parametrize("code", ["import time\ntime.sleep(60)", "while True: pass"])
def test_the_stop_button(engine, code):
    pid = engine.resident.worker.pid
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(RunInterrupted):
        engine.execute(code)
    assert time.monotonic() - started < 1.5
    assert engine.execute("1") == "1"
    assert engine.infer("hello")["output"].tolist() == ["hello"]
    assert engine.resident.worker.pid == pid


def test_a_cell_that_ignores_the_stop_button_does_not_hold_the_kernel(engine):
    code = "import time\nend = time.time() + 4\nwhile time.time() < end:\n"
    code += "    try:\n        time.sleep(5)\n    except BaseException:\n        pass"
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(RunInterrupted, match="goes on"):
        engine.execute(code)
    assert time.monotonic() - started < 2.5


def test_rows_and_a_cell_at_once(engine):
    frames = []
    thread = threading.Thread(target=lambda: frames.append(engine.infer(["a b c"] * 50)))
    thread.start()
    assert engine.execute("sum(range(1000))") == "499500"
    thread.join()
    assert frames[0]["error"].isna().all()


def test_the_magic(shell):
    shell.cell("%load_ext nbinfer")
    assert shell.cell("%%engine_exec echo\nz = 7\nprint('printed')\nz").stdout == "printed\n7\n"
    assert "z" not in shell.user_ns
    assert shell.cell("%%nbinfer engine_exec echo\nz").stdout == "7\n"
    with pytest.raises(ExecutionError) as caught:
        shell.cell("%%engine_exec echo\nnothing_here")
    lines = caught.value._render_traceback_()
    assert lines[-1] == "NameError: name 'nothing_here' is not defined"
    assert not any("nbinfer" in line for line in lines)


def test_an_engine_without_a_model_in_python(clean):
    with pytest.raises(nbinfer.UnsupportedParameter, match="native"):
        LlamaCppInferenceEngine().execute("1")
