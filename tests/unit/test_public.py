"""The public names, and what importing them costs."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import types

import pytest

import nbinfer

NAMES = [
    "AnthropicInferenceEngine",
    "ConfigurationError",
    "Conversation",
    "DownloadError",
    "EchoInferenceEngine",
    "EngineCrashed",
    "EngineNotInstalled",
    "ExecutionError",
    "GenerationParams",
    "GuidedDecodingParams",
    "ImagePart",
    "InferenceEngine",
    "LlamaCppInferenceEngine",
    "LoadError",
    "Message",
    "ModelNotFound",
    "ModelParams",
    "NativeTextInferenceEngine",
    "NbinferError",
    "OpenAICompatibleInferenceEngine",
    "OpenAIInferenceEngine",
    "OutputError",
    "RemoteParams",
    "RemoteVLLMInferenceEngine",
    "Role",
    "RunInterrupted",
    "SGLangInferenceEngine",
    "Server",
    "ServerError",
    "ServerUnreachable",
    "TemplateError",
    "TextPart",
    "ToolCall",
    "UnsupportedParameter",
    "VLLMInferenceEngine",
    "__version__",
    "benchmark",
    "compare",
    "configure",
    "conversations",
    "engines",
    "features",
    "install",
    "installed",
    "last",
    "load_ipython_extension",
    "manifest",
    "memory",
    "migrate",
    "panel",
    "plot",
    "read_rows",
    "recommend",
    "serve",
    "servers",
    "shutdown",
    "stop",
    "summary",
    "uninstall",
    "unload_ipython_extension",
]
HEAVY = [
    "anywidget",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "ipywidgets",
    "llama_cpp",
    "matplotlib",
    "numpy",
    "pandas",
    "pynvml",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "xllamacpp",
]
DOCUMENTED = [name for name in NAMES if name != "__version__"]


def test_the_names_are_these():
    assert nbinfer.__all__ == NAMES
    assert dir(nbinfer) == NAMES
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name):
    value = getattr(nbinfer, name)
    assert value is getattr(nbinfer, name)
    assert callable(value) or name == "__version__"


def test_star_import():
    space: dict[str, object] = {}
    exec("from nbinfer import *", space)
    assert set(NAMES) <= set(space)


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'Bogus'"):
        _ = nbinfer.Bogus
    with pytest.raises(ImportError):
        exec("from nbinfer import Bogus")


def test_every_module_says_what_it_exports():
    modules = ("config", "errors", "messages", "runstore", "settings", "residents")
    modules += ("hub", "hubcache", "hubclient", "models", "selection", "weights")
    for module in modules:
        loaded = importlib.import_module(f"nbinfer.{module}")
        assert all(hasattr(loaded, name) for name in loaded.__all__)
        assert loaded.__doc__


# --------------------------------------------------------------------- docstrings


def parameters(value: object) -> list[str]:
    """What a caller may pass, by name."""
    if isinstance(value, types.ModuleType):
        return []
    signature = inspect.signature(value)  # type: ignore[arg-type]
    return [
        name
        for name, p in signature.parameters.items()
        if name != "self" and not name.startswith("_") and p.kind is not p.VAR_KEYWORD
    ]


def documented(doc: str) -> set[str]:
    """Names in the numpy sections Parameters and Attributes."""
    found: set[str] = set()
    for section in re.findall(
        r"^(?:Parameters|Attributes)\n-{3,}\n(.*?)(?=^\w[^\n]*\n-{3,}|\Z)", doc, re.M | re.S
    ):
        for line in re.findall(r"^(\*{0,2}\w[\w, *]*?)(?: :|$)", section, re.M):
            found.update(part.strip(" *") for part in line.split(","))
    return found


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_name_is_documented(name):
    doc = inspect.getdoc(getattr(nbinfer, name))
    assert doc
    first = doc.splitlines()[0]
    assert len(first) < 100
    assert first.endswith((".", ":")) or ": what" in first


# What its name or its class says already, or nobody passes.
UNDOCUMENTED = {
    "Conversation": {"messages", "conversation_id", "metadata"},
    "EchoInferenceEngine": {"model_params", "generation_params", "remote_params"},
    "GuidedDecodingParams": {"model_class"},
    "LlamaCppInferenceEngine": {"remote_params"},
    "NativeTextInferenceEngine": {"remote_params"},
    "VLLMInferenceEngine": {"remote_params"},
    "TextPart": {"text"},
    **{name: {"df"} for name in ("conversations", "manifest", "plot", "summary")},
}


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in DOCUMENTED
        if n not in ("Role", "load_ipython_extension", "unload_ipython_extension")
        # Raised, not made by users; their fields are under Attributes.
        and not (
            inspect.isclass(getattr(nbinfer, n)) and issubclass(getattr(nbinfer, n), BaseException)
        )
    ],
)
def test_every_parameter_is_documented(name):
    value = getattr(nbinfer, name)
    missing = set(parameters(value)) - documented(inspect.getdoc(value) or "")
    assert missing == UNDOCUMENTED.get(name, set())


@pytest.mark.parametrize("method", ["infer", "stream", "load", "unload", "memory"])
def test_the_engines_methods_are_documented(method):
    for name in ("InferenceEngine", "LlamaCppInferenceEngine", "EchoInferenceEngine"):
        function = getattr(getattr(nbinfer, name), method)
        doc = inspect.getdoc(function)
        assert doc
        if method in ("infer", "stream"):
            wanted = set(parameters(function)) - {"prompt"}
            missing = wanted - documented(doc)
            assert method == "stream" or missing == set()


# ------------------------------------------------------------------------ imports


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh process has after some code."""
    code += "\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_it_imports_nothing_heavy():
    modules = loaded_by("import nbinfer")
    assert not modules & {*HEAVY, "IPython", "psutil"}


def test_the_extension_imports_nothing_heavy():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_line_magic('load_ext', 'nbinfer')\n"
        "assert shell.find_cell_magic('infer')\n"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_making_an_engine_imports_nothing_heavy_and_touches_no_file():
    code = (
        "import nbinfer\n"
        "nbinfer.LlamaCppInferenceEngine(nbinfer.ModelParams('/no/such/file.gguf'))\n"
        "nbinfer.GenerationParams(), nbinfer.Conversation([{'role': 'user', 'content': 'x'}])\n"
    )
    assert not loaded_by(code) & set(HEAVY)


def test_a_run_imports_no_engine_into_the_kernel():
    code = (
        "import nbinfer\n"
        "frame = nbinfer.EchoInferenceEngine().infer('a b')\n"
        "assert frame['output'][0] == 'a b'\n"
    )
    modules = loaded_by(code)
    assert not modules & {
        "torch",
        "transformers",
        "vllm",
        "xllamacpp",
        "llama_cpp",
        "httpx",
        "pynvml",
    }
    assert not any(name.startswith("nbinfer.worker.backends.") for name in modules)


@pytest.mark.parametrize(
    "code",
    [
        "import nbinfer; nbinfer.engines(); import nbinfer.engines.base; nbinfer.engines()",
        "import nbinfer.engines.base; import nbinfer; nbinfer.engines()",
        "import nbinfer; nbinfer.engines(); from nbinfer.engines import registry",
        "from nbinfer import engines; import nbinfer.engines.registry as r; engines(); r.names()",
        "import nbinfer; nbinfer.EchoInferenceEngine; assert nbinfer.engines().empty",
    ],
)
def test_engines_is_a_function_and_a_package(code):
    loaded_by(code)
