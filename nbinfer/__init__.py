"""All LLM engines side by side in one notebook.

``%load_ext nbinfer`` and then ``%%infer`` in a notebook; or, from Python::

    import nbinfer

    engine = nbinfer.LlamaCppInferenceEngine()
    frame = engine.infer(["What is a KV cache?", "What is TTFT?"])

Public names are loaded when they are first used: importing this package imports no engine,
no torch and no pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import accessor as _accessor

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from .accessor import conversations, manifest, plot, summary
    from .comparison import compare
    from .config import GenerationParams, GuidedDecodingParams, ModelParams, RemoteParams
    from .engines.anthropic import AnthropicInferenceEngine
    from .engines.base import InferenceEngine
    from .engines.echo import EchoInferenceEngine
    from .engines.llamacpp import LlamaCppInferenceEngine
    from .engines.native import NativeTextInferenceEngine
    from .engines.openai import OpenAICompatibleInferenceEngine, OpenAIInferenceEngine
    from .engines.remote_vllm import RemoteVLLMInferenceEngine
    from .engines.sglang import SGLangInferenceEngine
    from .engines.vllm import VLLMInferenceEngine
    from .env_table import installed
    from .environments import install, uninstall
    from .errors import (
        ConfigurationError,
        DownloadError,
        EngineCrashed,
        EngineNotInstalled,
        ExecutionError,
        LoadError,
        ModelNotFound,
        NbinferError,
        OutputError,
        RunInterrupted,
        ServerError,
        ServerUnreachable,
        TemplateError,
        UnsupportedParameter,
    )
    from .guide.benchmark import benchmark
    from .guide.features import features
    from .guide.memory import memory
    from .guide.migrate import migrate
    from .guide.recommend import recommend
    from .messages import Conversation, ImagePart, Message, Role, TextPart
    from .notebook.panel import panel
    from .overview import engines
    from .residents import shutdown
    from .rowstore import read_rows
    from .runstore import last
    from .server_records import Server, servers, stop
    from .serving import serve
    from .settings import configure
    from .tool_calls import ToolCall

__version__ = "0.1.0"

_HOMES = {
    "accessor": ("conversations", "manifest", "plot", "summary"),
    "comparison": ("compare",),
    "config": ("GenerationParams", "GuidedDecodingParams", "ModelParams", "RemoteParams"),
    "engines.anthropic": ("AnthropicInferenceEngine",),
    "engines.base": ("InferenceEngine",),
    "engines.echo": ("EchoInferenceEngine",),
    "engines.llamacpp": ("LlamaCppInferenceEngine",),
    "engines.native": ("NativeTextInferenceEngine",),
    "engines.openai": ("OpenAICompatibleInferenceEngine", "OpenAIInferenceEngine"),
    "engines.remote_vllm": ("RemoteVLLMInferenceEngine",),
    "engines.sglang": ("SGLangInferenceEngine",),
    "engines.vllm": ("VLLMInferenceEngine",),
    "env_table": ("installed",),
    "environments": ("install", "uninstall"),
    "overview": ("engines",),
    "errors": (
        "ConfigurationError",
        "DownloadError",
        "EngineCrashed",
        "EngineNotInstalled",
        "ExecutionError",
        "LoadError",
        "ModelNotFound",
        "NbinferError",
        "OutputError",
        "RunInterrupted",
        "ServerError",
        "ServerUnreachable",
        "TemplateError",
        "UnsupportedParameter",
    ),
    "guide.benchmark": ("benchmark",),
    "guide.features": ("features",),
    "guide.memory": ("memory",),
    "guide.recommend": ("recommend",),
    "guide.migrate": ("migrate",),
    "messages": ("Conversation", "ImagePart", "Message", "Role", "TextPart"),
    "tool_calls": ("ToolCall",),
    "notebook.panel": ("panel",),
    "residents": ("shutdown",),
    "rowstore": ("read_rows",),
    "runstore": ("last",),
    "server_records": ("Server", "servers", "stop"),
    "serving": ("serve",),
    "settings": ("configure",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
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


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'nbinfer' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nbinfer.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def load_ipython_extension(ip: InteractiveShell) -> None:
    """Register the magics: what ``%load_ext nbinfer`` calls."""
    from .notebook import extension

    extension.load(ip)


def unload_ipython_extension(ip: InteractiveShell) -> None:
    """Take the magics away and unload every engine: what ``%unload_ext nbinfer`` calls."""
    from .notebook import extension

    extension.unload(ip)


_accessor.install()
