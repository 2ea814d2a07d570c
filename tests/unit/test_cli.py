"""The command line."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

import nbinfer
from nbinfer.cli import main
from nbinfer.residents import pool

from ..conftest import eventually
from .conftest import interrupt_when


@pytest.fixture
def run(clean, capsys):
    """Run ``nbinfer ...`` here: exit status, standard output, standard error."""

    def call(*arguments):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse's own way
            status = stop.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_prompts_as_arguments(run):
    status, out, err = run("infer", "-e", "echo", "hello there", "and you")
    assert status == 0
    assert "hello there" in out
    assert "and you" in out
    assert err == ""
    assert nbinfer.last()["output"].tolist() == ["hello there", "and you"]


def test_prompts_from_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("first line\n\n  \nsecond line\n"))
    status, _, _ = run("infer", "-e", "echo")
    assert status == 0
    assert nbinfer.last()["prompt"].tolist() == ["first line", "second line"]


def test_no_prompts_at_all(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, out, err = run("infer", "-e", "echo")
    assert status == 1
    assert out == ""
    assert err.startswith("ConfigurationError: there are no prompts")


def read_jsonl(path):
    return pd.read_json(path, lines=True)


@pytest.mark.parametrize(
    ("suffix", "read"),
    [(".csv", pd.read_csv), (".jsonl", read_jsonl), (".parquet", pd.read_parquet)],
)
def test_output_files(run, tmp_path, suffix, read):
    path = tmp_path / f"rows{suffix}"
    text = 'a, "b"; c שלום 🙂'
    status, out, err = run("infer", "-e", "echo", "-o", path, text, "second")
    assert status == 0
    assert out == ""
    assert err == f"2 rows in {path}\n"
    frame = read(path)
    assert frame["prompt"].tolist() == [text, "second"]
    assert frame["output"].tolist() == [text, "second"]
    assert list(frame.columns) == list(nbinfer.last().columns)


def test_a_row_that_fails_is_written_and_told_by_the_status(run, tmp_path):
    path = tmp_path / "rows.csv"
    status, _, _ = run("infer", "-e", "echo", "-o", path, "a", "!fail too long")
    assert status == 1
    assert pd.read_csv(path)["error"].tolist()[1] == "too long"


def test_a_crash_writes_what_was_done(run, tmp_path):
    path = tmp_path / "rows.csv"
    status, _, err = run("infer", "-e", "echo", "-o", path, "a", "!exit 3")
    assert status == 1
    assert "EngineCrashed" in err
    assert len(pd.read_csv(path)) == 2


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.CSVX"])
def test_a_suffix_that_is_not_written(run, tmp_path, name):
    status, out, err = run("infer", "-e", "echo", "-o", tmp_path / name, "a")
    assert status == 2
    assert out == ""
    assert ".csv, .jsonl, .parquet" in err
    assert pool.residents() == []


def test_parameters(run):
    arguments = ("--max-new-tokens", 2, "--seed", 5, "--set", "temperature=0.5", "--system", "s")
    status, _, _ = run("infer", "-e", "echo", *arguments, "a b c")
    assert status == 0
    facts = nbinfer.last().attrs["nbinfer"]
    params = facts["generation_params"]
    assert (params["max_new_tokens"], params["seed"], params["temperature"]) == (2, 5, 0.5)
    assert nbinfer.last()["output"][0] == "a b"
    assert nbinfer.last()["messages"][0][0]["role"] == "system"


def test_a_model_for_each_engine(run):
    models = ("-m", "llamacpp=a.gguf", "-m", "echo=mine")
    assert run("infer", "-e", "echo", *models, "a")[0] == 0
    assert nbinfer.last()["model"].tolist() == ["mine"]
    status, _, err = run("infer", *models, "a")
    assert (status, "a.gguf" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("-e", "lamacpp"), "did you mean 'llamacpp'?"),
        (("-e", "echo", "--set", "temprature=1"), "temperature"),
        (("-e", "echo", "--set", "top_p=0.5"), "echo cannot honour top_p=0.5"),
        (("-e", "echo", "--max-new-tokens", "0"), "max_new_tokens"),
        (("-e", "llamacpp", "-m", "nothing.gguf"), "nothing.gguf"),
    ],
)
def test_errors_are_two_lines_and_status_1(run, arguments, what):
    status, out, err = run("infer", *arguments, "x")
    assert status == 1
    assert out == ""
    assert what in err
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [(), ("bogus",), ("infer", "--bogus", "x"), ("infer", "--eng")]
)
def test_wrong_usage_is_status_2(run, arguments):
    status, _, err = run(*arguments)
    assert status == 2
    assert "usage: nbinfer" in err


def test_version_and_help(run):
    assert run("--version") == (0, f"nbinfer {nbinfer.__version__}\n", "")
    status, out, _ = run("infer", "--help")
    assert status == 0
    assert "--max-new-tokens" in out


def test_an_interrupt_is_status_130_and_shows_the_rows(run):
    arguments = ("infer", "-e", "echo", "a", "!hang")
    with interrupt_when(lambda: any(r.busy for r in pool.residents())):
        status, out, err = run(*arguments)
    assert status == 130
    assert "cancelled" in out
    assert "stopped with" in err
    assert "Traceback" not in err


def test_an_interrupt_before_any_run(run, monkeypatch):
    class Waiting:
        def read(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    monkeypatch.setattr("sys.stdin", Waiting())
    assert run("infer", "-e", "echo") == (130, "", "")


def test_an_interrupt_writes_what_was_done(run, tmp_path):
    path = tmp_path / "rows.csv"
    with interrupt_when(lambda: any(r.busy for r in pool.residents())):
        status, _, _ = run("infer", "-e", "echo", "-o", path, "a", "!hang")
    assert status == 130
    assert pd.read_csv(path)["finish_reason"].tolist()[1] == "cancelled"


def test_doctor(run):
    status, out, _ = run("doctor")
    lines = out.splitlines()
    assert lines[0] == f"nbinfer {nbinfer.__version__}"
    assert all(line.startswith(("ok  ", "FAIL", "     ")) for line in lines[1:])
    assert status == int(any(line.startswith("FAIL") for line in lines))
    assert any("NBINFER_HOME" in line for line in lines)
    assert any("engine llamacpp" in line for line in lines)


def test_doctor_says_what_to_do_about_a_home_that_cannot_be_written(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NBINFER_HOME", str(tmp_path / "file" / "home"))
    status, out, _ = run("doctor")
    assert status == 1
    assert "FAIL NBINFER_HOME" in out
    assert "set NBINFER_HOME to a folder that can be written" in out


# ------------------------------------------------------------------ the real command


NBINFER = [sys.executable, "-m", "nbinfer.cli"]


def test_the_installed_command():
    """In a shell's pipe: prompts in, a table out, nothing on standard error."""
    done = subprocess.run(
        ["nbinfer", "infer", "-e", "echo"],
        input="hello there\nשלום\n",
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "hello there" in done.stdout
    assert done.stderr == ""


def test_the_module_with_an_unknown_engine():
    done = subprocess.run(
        [*NBINFER, "infer", "-e", "bogus", "x"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ConfigurationError: no engine is called 'bogus'")
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_terminal():
    process = subprocess.Popen(
        [*NBINFER, "infer", "-e", "echo", "a", "!hang"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def worker_runs():
        path = f"/proc/{process.pid}/task/{process.pid}/children"
        with open(path) as children:  # noqa: PTH123
            return bool(children.read().split()) or _threads_have_children(process.pid)

    assert eventually(worker_runs, 30)
    time.sleep(1.0)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # the whole foreground group, as a terminal does
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert process.returncode == 130
    assert "cancelled" in out
    assert "Traceback" not in err


def _threads_have_children(pid):
    from pathlib import Path

    return any(p.read_text().split() for p in Path(f"/proc/{pid}/task").glob("*/children"))


def test_a_terminated_install_leaves_no_process(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that never answers
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = {**os.environ, "NBINFER_HOME": str(tmp_path), "UV_INDEX_URL": index}
        command = subprocess.Popen(
            [sys.executable, "-m", "nbinfer.cli", "install", "native"],
            env={**environment, "PIP_INDEX_URL": index},
            stderr=subprocess.DEVNULL,
        )
        process = psutil.Process(command.pid)
        eventually(lambda: any("uv" in child.name() for child in process.children()))
        children = process.children(recursive=True)
        command.terminate()
        assert command.wait(20) == 143
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_a_reader_that_has_seen_enough(clean):
    reading, writing = os.pipe()
    os.close(reading)  # as `| head` does, once it has its lines
    try:
        done = subprocess.run(
            [*NBINFER, "installed"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE
