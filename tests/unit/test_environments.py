"""Managed environments, with the real uv, real environments and wheels made on the spot."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nbinfer import (
    EchoInferenceEngine,
    ModelParams,
    cli,
    doctor,
    environments,
    installing,
    packages,
    settings,
)
from nbinfer.errors import (
    ConfigurationError,
    DownloadError,
    EngineNotInstalled,
    RunInterrupted,
)
from nbinfer.notebook.completion import candidates
from nbinfer.overview import describe
from nbinfer.progress import Silent
from nbinfer.recipes import RECIPES, Recipe
from nbinfer.residents import pool

from .conftest import TINY, interrupt_when, wheel


def left(home: Path) -> list[str]:
    """What is under envs beside the environments and their locks."""
    return sorted(p.name for p in (home / "envs").glob(".*-install-*"))


IN_PROCESS = """
import sys, time
from nbinfer import environments, packages
from nbinfer.recipes import RECIPES, Recipe
RECIPES["tiny"] = Recipe("tiny", ("tinylib",), ("tinylib>=1",), "")
def say(line):
    print(line, flush=True)
    {each}
print(environments.install("tiny", progress=say).created, flush=True)
"""


def start(each: str = "") -> subprocess.Popen[str]:
    code = IN_PROCESS.format(each=each)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


# ---------------------------------------------------------------- which Python


def test_nothing_is_installed(home):
    with pytest.raises(EngineNotInstalled, match="tiny is not installed") as caught:
        environments.python_for("tiny")
    assert caught.value.hint == "run %engine install tiny (or: nbinfer install tiny)"
    assert environments.available("tiny") is None
    assert environments.installed() == []
    assert not home.exists()


@pytest.mark.parametrize(("name", "hint"), [("nativ", "did you mean 'native'?"), ("", "native")])
def test_what_is_no_recipe(home, name, hint):
    for ask in (environments.python_for, environments.install, environments.uninstall):
        with pytest.raises(ConfigurationError) as caught:
            ask(name)
        assert hint in str(caught.value.hint)


def test_the_kernels_own_python_comes_before_the_managed_one(home, monkeypatch):
    made = environments.install("tiny")
    assert environments.python_for("tiny") == made.python
    assert Path(made.python).parents[1] == home / "envs" / "tiny"
    found = home.parent / "site"
    found.mkdir()
    (found / "tinylib.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(found))
    assert environments.python_for("tiny") == sys.executable
    assert "tinylib" not in sys.modules


def test_every_module_must_be_there_and_a_folder_is_none(home, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", Recipe("tiny", ("json", "tinylib"), ("x",), ""))
    assert environments.available("tiny") is None
    (home.parent / "site" / "tinylib").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(home.parent / "site"))
    assert environments.available("tiny") is None


def test_a_chosen_python_comes_first(home, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", Recipe("tiny", ("json",), ("x",), ""))
    assert environments.python_for("tiny") == sys.executable
    (home.parent / "own").symlink_to(sys.executable)
    project = home.parent / "pyproject.toml"
    project.write_text('[tool.nbinfer.python]\ntiny = "own"\n')
    assert environments.python_for("tiny") == str(home.parent / "own")
    settings.current()  # the table is no unknown setting
    (home.parent / "other").symlink_to(sys.executable)
    monkeypatch.setenv("NBINFER_PYTHON_TINY", str(home.parent / "other"))
    assert environments.python_for("tiny") == str(home.parent / "other")


def test_the_variable_of_a_name_with_dashes(home, monkeypatch):
    monkeypatch.setenv("NBINFER_PYTHON_LLAMA_CPP_PYTHON", sys.executable)
    assert environments.python_for("llama-cpp-python") == sys.executable


@pytest.mark.parametrize("value", ["/no/such/python", "tiny.txt", "x\\u0000y"])
def test_a_chosen_python_that_is_none(home, monkeypatch, value):
    (home.parent / "tiny.txt").touch()
    (home.parent / "pyproject.toml").write_text(f'[tool.nbinfer.python]\ntiny = "{value}"\n')
    with pytest.raises(ConfigurationError, match="is no executable file") as caught:
        environments.python_for("tiny")
    assert "pyproject.toml" in str(caught.value)
    monkeypatch.setenv("NBINFER_PYTHON_TINY", "/nowhere")
    with pytest.raises(ConfigurationError, match="NBINFER_PYTHON_TINY: '/nowhere'"):
        environments.available("tiny")


def test_a_table_that_is_none(home):
    (home.parent / "pyproject.toml").write_text("[tool.nbinfer]\npython = 3\n")
    with pytest.raises(ConfigurationError, match="must be a table"):
        environments.python_for("tiny")


# ---------------------------------------------------------------- install


def test_an_installation(home):
    lines: list[str] = []
    made = environments.install("tiny", progress=lines.append)
    assert made.versions == {"tinylib": "1.0"}
    assert made.size_bytes > 0
    manifest = json.loads((made.path / "nbinfer.json").read_text())
    assert manifest["requirements"] == ["tinylib>=1"]
    assert manifest["recipe"] == "tiny"
    assert all(line.startswith("installing tiny: ") and line.endswith(" s") for line in lines)
    assert any("tinylib can be imported" in line for line in lines)
    assert environments.installed() == [made]
    assert left(home) == []
    # It sees nothing of the kernel's environment, and nothing is done twice.
    code = "import importlib.util as u; print(u.find_spec('pandas'), u.find_spec('nbinfer'))"
    done = subprocess.run([made.python, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "None None\n"
    assert environments.install("tiny", progress=lambda line: pytest.fail(line)) == made
    # A program of it works after the rename: the environment is relocatable.
    assert Path(made.python).is_file()


def test_a_recipe_that_has_changed_and_a_wish_make_it_anew(home, monkeypatch):
    first = environments.install("tiny")
    (first.path / "old").touch()
    assert environments.install("tiny", reinstall=True).path == first.path
    assert not (first.path / "old").exists()
    (first.path / "old").touch()
    monkeypatch.setitem(RECIPES, "tiny", Recipe("tiny", ("tinylib",), ("tinylib==1.0",), ""))
    environments.install("tiny")
    assert not (first.path / "old").exists()
    assert left(home) == []


def test_an_environment_whose_python_is_gone_is_replaced(home):
    made = environments.install("tiny")
    python = Path(made.python)
    python.unlink()
    python.symlink_to("/no/such/base/python3")
    assert environments.available("tiny") is None
    assert environments.installed() == []
    again = environments.install("tiny")
    assert environments.python_for("tiny") == again.python
    python.unlink()
    python.write_text("#!/bin/sh\nexit 1\n")  # there, and it does not run
    python.chmod(0o755)
    environments.install("tiny")
    assert subprocess.run([python, "-c", ""]).returncode == 0


def test_an_environment_without_its_manifest_is_not_complete(home):
    made = environments.install("tiny")
    (made.path / "nbinfer.json").write_text("{")
    assert environments.available("tiny") is None


def test_a_killed_installation(home):
    process = start("if 'import' in line: time.sleep(600)")
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "imported" in line:
                break
        assert left(home)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert environments.available("tiny") is None
    made = environments.install("tiny")
    assert environments.python_for("tiny") == made.python
    assert left(home) == []


def test_two_processes_at_once_install_once(home):
    processes = [start() for _ in range(2)]
    outputs = [process.communicate()[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    made = [any(line.startswith("installing") for line in lines) for lines in outputs]
    assert sorted(made) == [False, True]
    assert left(home) == []


KILLED_BETWEEN_RENAMES = """
import os, pathlib, signal
from nbinfer import environments
from nbinfer.recipes import RECIPES, Recipe
RECIPES["tiny"] = Recipe("tiny", ("tinylib",), ("tinylib>=1",), "")
rename = pathlib.Path.replace
def replace(path, target):
    rename(path, target)
    if pathlib.Path(target).name == "old":
        os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.replace = replace
environments.install("tiny", reinstall=True)
"""


def test_a_kill_between_two_renames_loses_nothing(home):
    made = environments.install("tiny")
    done = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES])
    assert done.returncode == -signal.SIGKILL
    assert environments.available("tiny") is None
    lines: list[str] = []
    assert environments.install("tiny", progress=lines.append) == made
    assert lines == []  # brought back, and not made again
    assert left(home) == []


def test_a_removal_that_is_cut_short_is_not_undone(home, monkeypatch):
    made = environments.install("tiny")
    with monkeypatch.context() as patch:
        patch.setattr("nbinfer.env_store.shutil.rmtree", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            environments.uninstall("tiny")
    assert environments.available("tiny") is None
    lines: list[str] = []
    assert environments.install("tiny", progress=lines.append).path == made.path
    assert lines  # made anew
    assert left(home) == []


def test_a_rename_that_fails_leaves_what_was_there(home, monkeypatch):
    made = environments.install("tiny")
    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if path.name == "env":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(DownloadError, match="Permission denied"):
        environments.install("tiny", reinstall=True)
    assert environments.find("tiny") == made
    assert environments.python_for("tiny") == made.python
    assert left(home) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_exception_from_progress_leaves_nothing(home, error):
    def say(line: str) -> None:
        if "imported" in line:
            raise error

    with pytest.raises(error):
        environments.install("tiny", progress=say)
    assert environments.available("tiny") is None
    assert left(home) == []


def test_a_library_that_cannot_be_imported(home):
    wheel(home.parent / "wheels", "tinylib", "raise ImportError('libfoo.so.1: no such file')", "2")
    with pytest.raises(DownloadError, match=r"tinylib cannot be imported") as caught:
        environments.install("tiny")
    assert "libfoo.so.1: no such file" in str(caught.value)
    assert environments.available("tiny") is None
    assert sorted(p.name for p in (home / "envs").iterdir()) == [".tiny.lock"]


def test_an_import_that_hangs(home, monkeypatch):
    wheel(home.parent / "wheels", "tinylib", "import time; time.sleep(600)", "2")
    monkeypatch.setattr("nbinfer.env_build._IMPORT_S", 1.0)
    with pytest.raises(DownloadError, match="after 1 s it was still at it"):
        environments.install("tiny")
    assert left(home) == []


def test_a_package_that_is_nowhere(home, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadError, match="tiny could not be installed") as caught:
        environments.install("tiny")
    assert "PIP_FIND_LINKS" in str(caught.value.hint)
    assert left(home) == []


def test_no_index_is_reachable_and_secrets_stay_secret(home, monkeypatch):
    for name in ("UV_NO_INDEX", "UV_OFFLINE", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://user:sk-secret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9") as caught:
        environments.install("tiny")
    assert "No package index could be reached" in str(caught.value.hint)
    assert "sk-secret" not in str(caught.value)
    assert left(home) == []


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("error: failed to write: No space left on device (os error 28)", "disk"),
        ("CMake Error: CMAKE_CXX_COMPILER not set, after EnableLanguage", "compiler"),
        ("error: Failed to fetch: `https://x/simple/y/`\n dns error", "index"),
        ("depends on torch==2.13.0+cpu and there is no version of torch==2.13.0+cpu", "torch"),
        ("error: something else", ""),
    ],
)
def test_why_uv_failed(words, cause):
    assert packages.cause(words) == cause


def test_a_home_that_is_a_file(home):
    home.touch()
    with pytest.raises(DownloadError) as caught:
        environments.install("tiny")
    assert "NBINFER_HOME" in str(caught.value.hint)


def test_uninstall_frees(home, monkeypatch):
    monkeypatch.setenv("UV_LINK_MODE", "copy")
    assert environments.uninstall("tiny") == 0
    made = environments.install("tiny")
    assert environments.uninstall("tiny") > 0
    assert not made.path.exists()
    assert environments.available("tiny") is None
    assert left(home) == []


# ---------------------------------------------------------------- the surface


@pytest.fixture
def tiny_engine(home, clean, monkeypatch):
    """The echo engine as if its library were in the tiny environment."""
    monkeypatch.setattr(EchoInferenceEngine, "recipe", "tiny")
    return EchoInferenceEngine(ModelParams("echo"))


def test_a_missing_engine_is_the_loads_failure(tiny_engine):
    with pytest.raises(EngineNotInstalled, match="tiny is not installed"):
        tiny_engine.load()
    with pytest.raises(EngineNotInstalled):
        tiny_engine.infer("x")
    assert pool.residents() == []


def test_the_worker_runs_in_the_environment_and_uninstalling_unloads_it(tiny_engine, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/kernels/own")
    made = environments.install("tiny")
    assert tiny_engine.infer("a b")["output"].tolist() == ["a b"]
    resident = tiny_engine.resident
    assert describe(resident)["python"] == resident.python == made.python
    environ = Path(f"/proc/{resident.worker.pid}/environ")
    if environ.exists():
        assert b"PYTHONPATH" not in environ.read_bytes()
    first, second = installing.run_uninstall("tiny")
    assert first.startswith("echo · echo is unloaded: ")
    assert second.startswith("tiny is uninstalled: ")
    assert tiny_engine.resident is None
    assert installing.run_uninstall("tiny") == ["tiny has no managed environment"]


def test_the_magics(home, shell):
    done = shell.cell("%engine install tiny")
    assert done.stdout.startswith("tiny is installed: tinylib 1.0, ")
    assert done.stdout.count("\n") == 1
    assert (done.stderr, done.outputs) == ("", [])
    assert environments.available("tiny")
    assert "tiny is uninstalled" in shell.cell("%engine uninstall tiny").stdout


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("%engine install", "%engine install needs a name"),
        ("%engine install nothing", "nothing to install is called 'nothing'"),
        ("%engine uninstall", "%engine uninstall needs a name"),
    ],
)
def test_the_magics_errors(home, shell, line, what):
    with pytest.raises(ConfigurationError, match=what):
        shell.cell(line)


def test_an_interrupt_of_an_installation(home, shell):
    wheel(home.parent / "wheels", "tinylib", "import time; time.sleep(600)", "2")
    with interrupt_when(lambda: left(home)), pytest.raises(RunInterrupted, match="nothing is left"):
        shell.cell("%engine install tiny")
    assert left(home) == []
    assert environments.available("tiny") is None


def test_what_is_there_already(home, monkeypatch):
    silent = Silent()
    monkeypatch.setitem(RECIPES, "tiny", Recipe("tiny", ("json",), ("tinylib",), ""))
    (line,) = installing.run_install("tiny", silent)
    assert "in the kernel's own environment already" in line
    assert not environments.folder("tiny").exists()
    (line,) = installing.run_install("tiny", silent, dry_run=True)
    assert "--reinstall makes a managed environment all the same" in line
    line, unused = installing.run_install("tiny", silent, reinstall=True)
    assert line.startswith("tiny is installed: tinylib 1.0")
    assert unused.startswith("it is not used as long as tiny is in the kernel's own environment")
    (line,) = installing.run_install("llamacpp", silent)
    assert line.startswith("llamacpp is part of nbinfer's own install: xllamacpp ")
    assert "nothing to remove" in installing.run_uninstall("llamacpp")[0]


def test_the_command_line(home, clean, capsys):
    assert cli.main(["install", "tiny"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("tiny is installed: tinylib 1.0, ")
    assert "checking that tinylib can be imported" in said.err
    assert cli.main(["uninstall", "tiny"]) == 0
    assert "tiny is uninstalled" in capsys.readouterr().out
    assert cli.main(["install", "tinny"]) == 1
    assert "did you mean 'tiny'?" in capsys.readouterr().err


def test_completion():
    assert candidates("%engine install ", {}) == list(RECIPES)
    assert candidates("%engine uninstall nat", {}) == ["native"]


def test_doctor_says_where_it_is_or_what_to_run(home, monkeypatch):
    def line() -> tuple[str, ...]:
        ((good, text, advice),) = [c for c in doctor._recipes() if c[1].startswith("tiny: ")]
        return good, text, advice

    assert "run nbinfer install tiny" in line()[1]
    made = environments.install("tiny")
    assert line()[0]
    assert made.python in line()[1]
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, requirements=("tinylib>=0.5",)))
    good, _, advice = line()
    assert (good, "nbinfer install tiny makes it anew" in advice) == (False, True)
    monkeypatch.setenv("NBINFER_PYTHON_TINY", "/nowhere")
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    checks = list(doctor._recipes())
    assert any(not good and "NBINFER_PYTHON_TINY" in text for good, text, _ in checks)
    shutil.rmtree(home)
