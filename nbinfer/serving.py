"""Starting a server from a notebook, and waiting until it answers."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from . import environments, interrupts, models, settings
from .checks import Secret, integer, optional, text
from .config import ModelParams
from .engines import registry
from .engines.server_adapters import served_adapters
from .errors import ConfigurationError, LoadError, RunInterrupted
from .progress import Reporter, reporter
from .records import Stage
from .remote.service import is_loopback
from .residents import pool
from .server_records import Server
from .server_start import Starting
from .torch_build import gpu_vendor
from .worker.host import kernel_python

__all__ = ["ENGINES", "serve", "serve_for"]

PORTS_TRIED = 5
Progress = Callable[[str], None]


def _vllm(model: ModelParams, progress: Progress) -> tuple[dict[str, Any], int]:
    from .engines.vllm import VLLMInferenceEngine

    message, estimate = VLLMInferenceEngine(model)._prepare(progress)
    return {**message, "adapters": served_adapters(model)}, estimate


def _llamacpp(model: ModelParams, progress: Progress) -> tuple[dict[str, Any], int]:
    from .engines.llamacpp import LlamaCppInferenceEngine

    if model.adapters:
        raise ConfigurationError(
            "llama.cpp's server has no names for adapters, so it could not be asked for "
            f"{', '.join(map(repr, model.adapters))}",
            hint="adapter_model applies one to every request; the engine llamacpp switches",
        )
    return LlamaCppInferenceEngine(model, binding="xllamacpp")._prepare(progress)


def _sglang(model: ModelParams, progress: Progress) -> tuple[dict[str, Any], int]:
    found = models.resolve(
        model.model_name,
        forms=("safetensors",),
        engine="sglang",
        revision=model.model_revision,
        progress=progress,
    )
    message = {
        "path": str(found.path),
        "options": dict(model.model_kwargs),
        "adapters": served_adapters(model),
        "n_ctx": model.model_max_length,
        "trust_remote_code": model.trust_remote_code,
        "gpu": gpu_vendor() == "nvidia",
        "facts": found.to_dict(),
    }
    if found.derived_from:
        message["derive_from"] = found.derived_from
        message["mark"] = {"sha256": found.sha256}
    # Python, torch and SGLang in three processes, measured, beside the weights.
    return message, found.size_bytes + 2_400_000_000


# The module that serves, the environment that its library is in, what makes its load message.
ENGINES: Mapping[str, tuple[str, str, Callable[..., tuple[dict[str, Any], int]]]] = {
    "vllm": ("vllm", "vllm", _vllm),
    "sglang": ("sglang", "sglang", _sglang),
    "llamacpp": ("xllamacpp", "", _llamacpp),
}


def serve(
    engine: str,
    model: str | ModelParams | None = None,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    api_key: str | None = None,
    keep: bool = False,
    progress: bool | Reporter | None = None,
) -> Server:
    """Start an engine's own OpenAI-compatible server, and wait until it answers.

    Parameters
    ----------
    engine : str
        ``"vllm"``, ``"sglang"`` or ``"llamacpp"``.
    model : str or ModelParams, optional
        What it serves, under the name that is given here. Default: the settings' model.
        ``model_kwargs`` are those of the resident engine, or any of the server's own options;
        ``adapters`` are LoRA adapters that it serves from the start, by name.
    host : str, default "127.0.0.1"
        Where it listens: this machine alone, unless another address is given.
    port : int, optional
        Default: a free one.
    api_key : str, optional
        What its clients must send. Default: none on this machine alone, a random one beyond
        it, and always one for llama.cpp's server, which answers every web page otherwise.
        Engines of this user find it by themselves.
    keep : bool, default False
        Let it outlive this kernel; ``stop()`` ends it from any notebook.
    progress : bool or Reporter, optional
        By default shown in notebooks and terminals.

    Returns
    -------
    Server
        ``.url`` is its address; a context manager that stops it.

    Raises
    ------
    ConfigurationError
        For an engine that has no server, or a port that is taken.
    EngineNotInstalled, ModelNotFound, LoadError
        With the cause, and its log's last lines.
    RunInterrupted
        If the user stopped waiting; then the server is ended.
    """
    if engine not in ENGINES:
        registry.spec(engine)
        raise ConfigurationError(
            f"{engine} has no server to start", hint=f"these have: {', '.join(ENGINES)}"
        )
    name = text()("host", host)
    port = optional(integer(1, 65535))("port", port)
    if not isinstance(model, ModelParams):
        model = ModelParams(model or settings.current().default_model)
    backend, recipe, prepare = ENGINES[engine]
    with interrupts.guard() as guard, reporter(progress) as report:

        def say(line: str) -> None:
            if guard.take():
                raise RunInterrupted(f"the server of {engine} was stopped before it was ready")
            report(Stage(f"{engine} server: {line}"))

        python = _python(recipe, say)
        message, estimate = prepare(model, say)
        pool.make_room(f"a server of {engine} · {model.model_name}", estimate)
        key = api_key or _key(engine, name)
        where = {"host": name, "name": model.model_name, "key": key}
        for left in reversed(range(PORTS_TRIED)):
            where["port"] = _port(name, port)
            starting = Starting(engine, backend, python, {"model": message, "where": where}, keep)
            try:
                return starting.wait(say)
            except LoadError as error:
                starting.end()
                # Another program may have taken the port that was free a moment ago.
                if port is not None or "ddress already in use" not in str(error) or not left:
                    raise
            except BaseException:
                starting.end()
                raise
    raise AssertionError("unreachable")


def serve_for(options: argparse.Namespace, model: ModelParams) -> Server:
    """Start what a command line asks for.

    Raises
    ------
    ConfigurationError
        Where the variable that is to hold the key is not set, and as ``serve`` does.
    """
    key = None
    if options.api_key_env is not None:
        key = Secret(os.environ.get(options.api_key_env, ""))
        if not key:
            raise ConfigurationError(
                f"the environment variable {options.api_key_env!r} holds no API key",
                hint="set it first, or leave it out",
            )
    return serve(
        options.name,
        model,
        host=options.host,
        port=options.port,
        api_key=key,
        keep=options.keep,
    )


def _python(recipe: str, say: Progress) -> str:
    if not recipe:
        return kernel_python()
    if settings.current().auto_install and environments.available(recipe) is None:
        environments.install(recipe, progress=say)
    return environments.python_for(recipe)


def _key(engine: str, host: str) -> str | None:
    if engine == "llamacpp" or not is_loopback(f"http://{host}"):
        return Secret(secrets.token_urlsafe(24))
    return None


def _port(host: str, wanted: int | None) -> int:
    """A port that is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted or 0))
        except OSError as error:
            raise ConfigurationError(
                f"port {wanted or 'any'} of {host} cannot be had: {error.strerror or error}",
                hint="leave out the port for a free one, or stop what listens there (%engine stop)",
            ) from None
        return int(probe.getsockname()[1])
