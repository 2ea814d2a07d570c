"""One loaded engine: what was to be loaded, how far it is, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import measure
from .config import ModelParams
from .errors import EngineCrashed, NbinferError
from .worker.host import Death, Event, Worker

__all__ = ["Listener", "Plan", "Resident"]

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Plan:
    """What is to be loaded, and how.

    Attributes
    ----------
    key : tuple of str
        Engine, model and load parameters: equal keys share a resident.
    prepare : callable
        Called in the loading thread with a function that takes progress texts; returns the
        backend's load message and an estimate of the memory it will need, in bytes.
    python : callable
        Called in the loading thread with a function that takes progress texts; returns the
        interpreter that has the engine's library, or raises ``EngineNotInstalled``.
    recipe : str
        What to install where the library is missing, ``""`` for the base install.
    params : ModelParams, optional
        What the user asked for, so that it can be asked for again.
    """

    key: tuple[str, ...]
    engine: str
    model: str
    backend: str
    python: Callable[[Callable[[str], None]], str]
    prepare: Callable[[Callable[[str], None]], tuple[dict[str, Any], int]]
    library: str = ""
    device: str = "cpu"
    recipe: str = ""
    params: ModelParams | None = None


@dataclass(eq=False)
class Resident:
    """A loaded engine, or one that is being loaded.

    Attributes
    ----------
    state : str
        ``"loading"``, ``"ready"``, ``"crashed"`` or ``"unloaded"``.
    python : str
        Its interpreter; empty until it is known.
    idle_bytes : int or None
        Memory of its process tree when loaded and idle, GPUs included; ``None`` where unknown.
    peak_bytes : int
        Highest memory seen in any run.
    """

    plan: Plan
    state: str = "loading"
    stage: str = "starting"
    python: str = ""
    worker: Worker | None = None
    report: dict[str, Any] = field(default_factory=dict)
    loaded_s: float | None = None
    ready_at: float | None = None
    used_at: float = field(default_factory=time.monotonic)
    idle_bytes: int | None = None
    peak_bytes: int = 0
    seen: measure.Seen = field(default_factory=measure.Seen)
    runs: int = 0
    error: NbinferError | None = None
    model_facts: dict[str, Any] = field(default_factory=dict)
    _waiting: list[Listener] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.plan.engine} · {self.plan.model}"

    @property
    def busy(self) -> bool:
        return self.runs > 0

    def crashed(self, death: Death, doing: str) -> EngineCrashed:
        """The error that tells how this engine's process ended."""
        if death.by_us:
            return EngineCrashed(
                f"{self.label} was ended by nbinfer {doing}: it was unloaded, or ignored a cancel",
                hint="The finished rows are kept; the next use loads the model again.",
                signal=death.signal,
                exit_code=death.exit_code,
                peak_memory_bytes=self.peak_bytes or None,
            )
        how = death.signal or f"exit status {death.exit_code}"
        tail = self.worker.log_tail() if self.worker is not None else ""
        last = f"\nIts last words:\n{_indent(tail, 8)}" if tail else ""
        memory = f", after a peak of {self.peak_bytes / 1e6:,.0f} MB" if self.peak_bytes else ""
        why = ""
        if death.signal == "SIGKILL":
            why = " SIGKILL from outside is most often the system's out-of-memory killer."
        elif death.signal in ("SIGSEGV", "SIGILL"):
            # ggml's tile instructions on a machine that reports AMX and forbids it, for one.
            why = " It crashed in native code, as a library built for another processor does."
            if self.plan.recipe:
                why += f" %engine install {self.plan.recipe} --reinstall builds it for this one."
        return EngineCrashed(
            f"the process of {self.label} died {doing}: {how}{memory}.{why}{last}",
            hint="The kernel and the finished rows are safe; the next use loads the model again. "
            f"Its whole log: %engine logs {self.plan.engine}",
            signal=death.signal,
            exit_code=death.exit_code,
            peak_memory_bytes=self.peak_bytes or None,
            log_tail=tail,
        )


def _indent(text: str, lines: int) -> str:
    return "\n".join("  " + line[:200] for line in text.splitlines()[-lines:])
