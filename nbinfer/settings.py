"""Settings of nbinfer itself: from ``configure()``, the environment, then pyproject.toml.

``configure()`` wins over the environment (``NBINFER_…``), and that over ``[tool.nbinfer]`` in
the nearest ``pyproject.toml`` above the working directory. All are read when they are needed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import threading
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import sizes
from .checks import Check, boolean, items, number, optional, shown, text, unknown_name
from .errors import ConfigurationError
from .validation import Params, checked, known_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import RemoteParams

__all__ = [
    "Settings",
    "aliases",
    "configure",
    "current",
    "home",
    "python_of",
    "python_variable",
    "remote",
    "reset",
]


def home() -> Path:
    """The folder of models, environments and logs: ``NBINFER_HOME`` or ``~/.cache/nbinfer``.

    It is absolute, and not made here.

    Raises
    ------
    ConfigurationError
        Where ``~`` stands for nothing, because the user has no home directory.
    """
    given = os.environ.get("NBINFER_HOME") or "~/.cache/nbinfer"
    try:
        return Path(given).expanduser().absolute()
    except (RuntimeError, OSError) as error:
        raise ConfigurationError(
            f"the folder {shown(given)} cannot be found: {error}",
            hint="set NBINFER_HOME to an absolute path",
        ) from None


def _steps(value: Any) -> tuple[float, ...]:
    steps: tuple[float, ...] = items(number(0), "").convert(value)
    if len(steps) != 3 or list(steps) != sorted(steps):
        raise ValueError
    return steps


def _aliases(value: Any) -> dict[str, str | dict[str, str]]:
    from .embedded import EMBEDDED

    name, key = text(), re.compile(r"[\w.-]+")
    if not isinstance(value, Mapping):
        raise TypeError
    found: dict[str, str | dict[str, str]] = {}
    for alias, given in value.items():
        if not isinstance(alias, str) or not key.fullmatch(alias):
            raise ValueError
        if alias in EMBEDDED:
            raise ConfigurationError(
                f"the alias {shown(alias)} has the name of an embedded model",
                hint="give it another name: that one always means the same model",
            )
        if isinstance(given, Mapping):
            if not all(isinstance(k, str) and key.fullmatch(k) for k in given):
                raise ValueError
            found[alias] = {k: name.convert(v) for k, v in given.items()}
        else:
            found[alias] = name.convert(given)
    return found


def _remotes(value: Any) -> dict[str, Any]:
    from .config import RemoteParams
    from .engines import registry

    if not isinstance(value, Mapping):
        raise TypeError
    for name, given in value.items():
        registry.spec(name)
        if not isinstance(given, Mapping | RemoteParams):
            raise TypeError
    return {
        name: given if isinstance(given, RemoteParams) else RemoteParams(**given)
        for name, given in value.items()
    }


@known_names
@dataclass(frozen=True, repr=False)
class Settings(Params):
    """What holds for every engine of this process.

    Parameters
    ----------
    memory_budget_bytes : int, optional
        What the resident engines may take together; ``"8GB"``, ``"500MiB"`` and ``"50%"`` of
        the machine's memory are taken too. Default: 90 % of the machine's memory, or of the
        control group's limit where that is lower. Environment: ``NBINFER_MEMORY_BUDGET``.
    device_memory_budget : str or int, default "90%"
        What the resident engines may take together of each GPU: ``"80%"`` of it, or a size.
        ``NBINFER_DEVICE_MEMORY_BUDGET``.
    cancel_grace_s : float, default 1.0
        How long an interrupted cell waits for its rows. ``NBINFER_CANCEL_GRACE_S``.
    escalation_s : tuple of three floats, default (10.0, 20.0, 30.0)
        Seconds of an ignored cancel after which a worker gets SIGINT, SIGTERM and SIGKILL, in
        rising order. ``NBINFER_ESCALATION``, such as ``1,2,3``.
    default_engine : str, default "llamacpp"
        ``NBINFER_DEFAULT_ENGINE``.
    default_model : str, default "smollm2-135m"
        ``NBINFER_DEFAULT_MODEL``.
    status_delay_s : float, default 0.5
        How long a run shows nothing. ``NBINFER_STATUS_DELAY_S``.
    auto_install : bool, default False
        Install a missing engine when it is first needed, without asking.
        ``NBINFER_AUTO_INSTALL``: ``1`` or ``0``.
    aliases : mapping, default {}
        Models by names of your own: each a model's name, or a mapping of engines and of
        ``"gguf"`` and ``"safetensors"`` to one. No environment variable.
    remote : mapping, default {}
        Where engines that are servers are: ``RemoteParams``, or a mapping of its fields, by the
        engine's name (``[tool.nbinfer.remote.remote-vllm]``). No environment variable; a key
        belongs into one, which ``api_key_env_varname`` names.

    Raises
    ------
    ConfigurationError
        For an unknown setting, or a value of the wrong type or range.
    """

    memory_budget_bytes: int | None = checked(
        None, optional(Check('a size above 0 such as "8GB", "500MiB" or "50%"', sizes.of_machine))
    )
    device_memory_budget: str | int = checked(
        "90%", Check('a size above 0 such as "20GB" or "80%"', sizes.share_or_size)
    )
    cancel_grace_s: float = checked(1.0, number(0))
    escalation_s: tuple[float, float, float] = checked(
        (10.0, 20.0, 30.0), Check("three numbers of seconds in rising order", _steps)
    )
    default_engine: str = checked("llamacpp", text())
    default_model: str = checked("smollm2-135m", text())
    status_delay_s: float = checked(0.5, number(0))
    auto_install: bool = checked(False, boolean())
    aliases: Mapping[str, str | Mapping[str, str]] = checked(
        {}, Check("a mapping of names to models, or to mappings of engines or forms", _aliases)
    )

    remote: Mapping[str, Any] = checked(
        {}, Check("a mapping of engines to RemoteParams or their fields", _remotes)
    )

    def budget_bytes(self) -> int:
        """What the resident engines may take together, in bytes."""
        if self.memory_budget_bytes is not None:
            return self.memory_budget_bytes
        return sizes.of_machine("90%")

    def device_budget_bytes(self, total: int) -> int:
        """What they may take together of a GPU with ``total`` bytes."""
        return min(sizes.part(self.device_memory_budget, total), total)


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _flag(value: str) -> Any:
    """What people write into a variable that is on or off."""
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    return words.get(value.strip().lower(), value)


_CHECKS: dict[str, Check] = {f.name: f.metadata["check"] for f in fields(Settings)}
_ENVIRONMENT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "NBINFER_MEMORY_BUDGET": ("memory_budget_bytes", str),
    "NBINFER_DEVICE_MEMORY_BUDGET": ("device_memory_budget", str),
    "NBINFER_CANCEL_GRACE_S": ("cancel_grace_s", _literal),
    "NBINFER_ESCALATION": ("escalation_s", _literal),
    "NBINFER_DEFAULT_ENGINE": ("default_engine", str),
    "NBINFER_DEFAULT_MODEL": ("default_model", str),
    "NBINFER_STATUS_DELAY_S": ("status_delay_s", _literal),
    "NBINFER_AUTO_INSTALL": ("auto_install", _flag),
}
# Tables of [tool.nbinfer] that other modules read.
_OTHER_TABLES = {"python"}

_configured: dict[str, Any] = {}
_lock = threading.Lock()


def current() -> Settings:
    """The settings that hold now.

    Raises
    ------
    ConfigurationError
        For a value in the environment or in pyproject.toml that cannot be right; the message
        names where it comes from.
    """
    return _gather(_configured)


def configure(**changes: Any) -> Settings:
    """Change settings for this process. They win over the environment and pyproject.toml.

    Parameters
    ----------
    **changes
        Fields of :class:`Settings`.

    Returns
    -------
    Settings
        The settings that hold now.

    Raises
    ------
    ConfigurationError
        For an unknown setting or a wrong value; then nothing is changed.
    """
    global _configured
    for name, value in changes.items():
        if name not in _CHECKS:
            raise unknown_name("Settings", name, _CHECKS)
        changes[name] = _CHECKS[name](name, value)
    with _lock:
        wanted = {**_configured, **changes}
        settings = _gather(wanted)
        _configured = wanted
    return settings


def aliases() -> Mapping[str, str | Mapping[str, str]]:
    """Models by the user's own names, of ``[tool.nbinfer.aliases]`` or ``configure()``."""
    return current().aliases


def remote(engine: str) -> RemoteParams | None:
    """Where an engine that is a server is, by the settings."""
    found: RemoteParams | None = current().remote.get(engine)
    return found


def reset() -> None:
    """Forget what ``configure()`` has changed."""
    global _configured
    with _lock:
        _configured = {}


def _gather(configured: Mapping[str, Any]) -> Settings:
    values = {**_from_file(), **_from_environment()}
    return Settings(**{**values, **configured})


def _from_environment() -> dict[str, Any]:
    values = {}
    for variable, (name, read) in _ENVIRONMENT.items():
        given = os.environ.get(variable)
        if given:
            values[name] = _CHECKS[name](variable, read(given))
    return values


def python_variable(name: str) -> str:
    """The environment variable that names a recipe's interpreter."""
    return "NBINFER_PYTHON_" + name.upper().replace("-", "_")


def python_of(name: str) -> str | None:
    """The interpreter that the user has chosen for a recipe, or ``None``.

    ``NBINFER_PYTHON_<NAME>`` (upper case, ``-`` as ``_``) wins over the table
    ``[tool.nbinfer.python]``, where a relative path is relative to the file's folder.

    Raises
    ------
    ConfigurationError
        For a path that is no executable file; the message names where it comes from.
    """
    variable = python_variable(name)
    given: Any = os.environ.get(variable)
    source, folder = variable, Path()
    if not given:
        found = _nearest_file()
        if found is None:
            return None
        path, tables = found
        table = tables.get("python", {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"[tool.nbinfer.python] in {str(path)!r} must be a table")
        given = table.get(name)
        if given is None:
            return None
        source, folder = f"[tool.nbinfer.python] {name} in {str(path)!r}", path.parent
    with contextlib.suppress(OSError, RuntimeError, ValueError, TypeError):
        # Not resolved: an environment's python is a link, and the link is what is meant.
        path = (folder / Path(given).expanduser()).absolute()
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise ConfigurationError(
        f"{source}: {shown(given)} is no executable file",
        hint="give the path of a Python interpreter, such as /path/to/env/bin/python",
    )


def _from_file() -> dict[str, Any]:
    found = _nearest_file()
    if found is None:
        return {}
    path, given = found
    values = {}
    for key, value in given.items():
        if key in _OTHER_TABLES:
            continue
        name = "memory_budget_bytes" if key == "memory_budget" else key
        if name not in _CHECKS:
            raise unknown_name(f"[tool.nbinfer] in {str(path)!r}", key, _CHECKS)
        values[name] = _CHECKS[name](f"{key} in {str(path)!r}", value)
    return values


def _nearest_file() -> tuple[Path, dict[str, Any]] | None:
    """The nearest pyproject.toml and its ``[tool.nbinfer]``."""
    with contextlib.suppress(OSError):  # no working directory, or one that may not be read
        here = Path.cwd()
        for folder in (here, *here.parents):
            path = folder / "pyproject.toml"
            if path.is_file():
                found = path.stat()
                return path, _read_file(path, found.st_mtime_ns, found.st_size)
    return None


@functools.lru_cache(maxsize=8)
def _read_file(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:  # noqa: ARG001
    """``[tool.nbinfer]``; time and size are arguments so that a changed file is read again."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{str(path)!r} cannot be read: {error}") from None
    tool = tables.get("tool", {})
    given = tool.get("nbinfer", {}) if isinstance(tool, dict) else {}
    if not isinstance(given, dict):
        raise ConfigurationError(f"[tool.nbinfer] in {str(path)!r} must be a table")
    return given
