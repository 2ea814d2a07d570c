"""Stand-ins for what a recipe's packages import and the platform lacks."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from nbinfer import environments, recipes
from nbinfer.errors import DownloadError
from nbinfer.recipes import RECIPES, _sglang, _vllm

from .conftest import TINY, wheel

ROOT = Path(__file__).parents[2]
SHIMS = recipes.SHIMS / "sglang_cpu"
TORCHVISION = recipes.SHIMS / "torchvision_cpu"

# The real torch is in an environment of gigabytes, and it cannot show a torchvision whose own
# library loads: the two modules as far as the shim sees them.
TORCH = """
class Namespace: pass
class ops: torchvision = Namespace()
class Library:
    def __init__(self, name, kind): assert (name, kind) == ("torchvision", "FRAGMENT")
    def define(self, schema):
        print("declared", schema)
        setattr(ops.torchvision, schema.partition("(")[0], None)
class library: pass
library.Library = Library
"""
REGISTERS = """
import torch, torchvision.extension
print("registers", torch.ops.torchvision.nms, torch.ops.torchvision.qnms)
"""


@pytest.fixture
def tiny(home, monkeypatch):
    """The tiny recipe with SGLang's shims."""
    made = replace(TINY, shims=("torchvision_cpu", "sglang_cpu"))
    monkeypatch.setitem(RECIPES, "tiny", made)
    return made


def python(code: str, *, path: Path) -> list[str]:
    """The lines that a Python prints with the shims and a folder on its path."""
    places = [str(path), str(TORCHVISION), str(SHIMS)]
    shims = f"import sys; sys.path += {places}; import nbinfer_torchvision, nbinfer_hooks"
    command = [sys.executable, "-I", "-B", "-c", f"{shims}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture
def torchvision(tmp_path):
    """Makes a torchvision whose extension runs some code."""

    def make(extension: str) -> Path:
        package = tmp_path / "torchvision"
        package.mkdir()
        (tmp_path / "torch.py").write_text(TORCH)
        (package / "__init__.py").write_text(REGISTERS)
        (package / "extension.py").write_text(f"import torch\n{extension}\n")
        return tmp_path

    return make


def test_operators_that_no_library_declares_are_declared(torchvision):
    place = torchvision("print('no library')")
    code = "import torchvision; print([f.name for f in sys.meta_path if hasattr(f, 'then')])"
    assert python(code, path=place) == [
        "no library",
        "declared nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "declared qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "registers None None",
        "['sglang.srt.lora.layers', 'sglang.srt.lora.backend.torch_backend']",  # not asked for
    ]


def test_operators_of_torchvisions_own_library_are_left_alone(torchvision):
    place = torchvision("torch.ops.torchvision.nms = torch.ops.torchvision.qnms = 'its own'")
    assert python("import torchvision", path=place) == ["registers its own its own"]


PINS = """
class Tensor:
    def pin_memory(self, device=None): raise RuntimeError("Cannot access accelerator device")
class accelerator:
    is_available = staticmethod(lambda: {available})
def made(what, pin_memory=False, dtype=None):
    if pin_memory and not accelerator.is_available(): raise RuntimeError("pin_memory=True")
    print(what, pin_memory, dtype)
    return Tensor()
tensor = zeros = made
"""
LORA = """
import torch
def layer():
    torch.tensor([1], pin_memory=True, dtype="int32")
    return torch.zeros((2,), pin_memory=True)
"""


@pytest.mark.parametrize("available", [False, True])
def test_memory_is_pinned_where_there_is_a_gpu_to_copy_to(tmp_path, available):
    """In the real torch an accelerator cannot be had here: the calls as far as the shim goes."""
    package = tmp_path / "sglang" / "srt" / "lora"
    package.mkdir(parents=True)
    (tmp_path / "torch.py").write_text(PINS.replace("{available}", str(available)))
    (package / "layers.py").write_text(LORA)
    code = """
from sglang.srt.lora import layers
made = layers.layer()
try: print(made.pin_memory() is made)
except RuntimeError as error: print(error)
print(layers.torch.Tensor is sys.modules["torch"].Tensor)
"""
    assert python(code, path=tmp_path) == [
        f"[1] {available} int32",
        f"(2,) {available} None",
        "Cannot access accelerator device" if available else "True",
        "True",
    ]


def test_the_hooks_import_nothing_heavy_and_take_nothing_back(tmp_path, monkeypatch):
    """They run at each start of that Python, and a choice of the user's own comes first."""
    code = "import os; print('torch' in sys.modules, os.environ['SGLANG_USE_CPU_ENGINE'])"
    assert python(code, path=tmp_path) == ["False 1"]
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "0")
    assert python(code, path=tmp_path) == ["False 0"]


def test_a_kernel_can_be_imported_and_not_called(monkeypatch):
    monkeypatch.syspath_prepend(str(SHIMS))
    monkeypatch.delitem(sys.modules, "sgl_kernel", raising=False)
    from sgl_kernel import copy_all_layer_kv_cache_cpu as kernel

    monkeypatch.delitem(sys.modules, "sgl_kernel")
    with pytest.raises(NotImplementedError, match=r"sgl_kernel\.copy_all_layer_kv_cache_cpu needs"):
        kernel(1, out=2)


def test_a_kernel_has_none_of_pythons_own_names(monkeypatch):
    code = "import sgl_kernel; print(hasattr(sgl_kernel, '__path__'), hasattr(sgl_kernel, 'topk'))"
    assert python(code, path=SHIMS) == ["False True"]


def test_shims_are_on_the_path_of_an_environment(home, tiny):
    made = environments.install("tiny")
    code = "import os, sgl_kernel; print(sgl_kernel.__file__, os.environ['SGLANG_USE_CPU_ENGINE'])"
    command = [made.python, "-I", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert made.path in Path(said[0]).parents  # whole without us, and after the rename
    assert said[1] == "1"
    site = next(made.path.glob("lib/python*/site-packages"))
    there = {p.name for p in (site / "nbinfer_shims").iterdir()} - {"__pycache__"}
    given = {p.name for folder in (SHIMS, TORCHVISION) for p in folder.iterdir()}
    assert there == given - {"__pycache__"}
    hooks = (site / "nbinfer_shims.pth").read_text().splitlines()
    assert hooks == ["nbinfer_shims", "import nbinfer_torchvision", "import nbinfer_hooks"]


def test_the_real_one_comes_before_a_shim(home, tiny):
    wheel(home.parent / "wheels", "sgl_kernel", "REAL = True")
    made = environments.install("tiny", extras=["sgl-kernel"])
    code = "import sgl_kernel; print(sgl_kernel.REAL)"
    command = [made.python, "-I", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"


def test_what_is_behind_the_modules_is_checked(home, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, checked=("tinylib_server",)))
    with pytest.raises(DownloadError, match="tinylib_server cannot be imported there"):
        environments.install("tiny")
    assert environments.find("tiny") is None
    made = replace(TINY, checked=("sgl_kernel",), shims=("torchvision_cpu", "sglang_cpu"))
    monkeypatch.setitem(RECIPES, "tiny", made)
    assert environments.install("tiny").versions == {"tinylib": "1.0"}


def test_every_recipe_with_shims_has_the_hooks_that_are_run():
    for made in (*RECIPES.values(), _sglang("linux", ""), _vllm("linux", "")):
        for name in made.shims:
            assert list((recipes.SHIMS / name).glob("nbinfer_*.py"))


def test_shims_are_in_the_wheel():
    """Hatch takes every file of the package; nothing in the project leaves these out."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert build == {"targets": {"wheel": {"packages": ["nbinfer"]}}}
    assert ROOT / "nbinfer" in SHIMS.parents


def test_an_environment_with_other_shims_is_made_anew(home, tiny, monkeypatch):
    made = environments.install("tiny")
    assert made.shims == tiny.shims_digest
    assert made.is_for(tiny, ())
    assert environments.install("tiny").created == made.created
    less = replace(tiny, shims=("torchvision_cpu",))
    assert not made.is_for(less, ())
    monkeypatch.setitem(RECIPES, "tiny", less)
    assert environments.install("tiny").shims == less.shims_digest
    assert replace(tiny, shims=()).shims_digest == ""
