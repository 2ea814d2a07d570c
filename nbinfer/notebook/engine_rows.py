"""What the panel shows of engines, as plain data and as words: no widget, nothing looked up."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field

from ..checks import Address
from ..config import parse_value
from ..measure import Seen
from ..resident import Resident
from ..selection import Selection
from ..server_records import Server
from .text import fit, format_bytes, visible

__all__ = ["Row", "Said", "State", "as_text", "command", "key_of", "label", "short"]


@dataclass(frozen=True)
class Row:
    """An engine with a model: a resident, or what could become one.

    Attributes
    ----------
    key : str
        Stays the same while the row is loaded, used and unloaded.
    state : str
        ``"not installed"``, ``"installing"``, ``"not loaded"``, ``"loading"``, ``"ready"``,
        ``"busy"``, ``"crashed"`` or, of an engine elsewhere, ``"server"``.
    note : str
        The stage of an installation or a load, how it crashed, what installs it, what a GPU holds
        of it, or where a server is.
    held : Seen or None
        Memory of its process tree.
    chosen : bool
        Whether a plain ``%%infer`` uses it.
    recipe : str
        What ``%engine install`` makes for it; ``""`` where it installs nothing.
    server : Server or None
        The server that it means, where it was started here.
    """

    key: str
    chosen: bool
    state: str
    selection: Selection
    note: str = ""
    held: Seen | None = None
    resident: Resident | None = None
    recipe: str = ""
    server: Server | None = None

    @property
    def memory_bytes(self) -> int | None:
        """All its memory, GPUs included, as ``%engine`` shows it."""
        return None if self.held is None else self.held.total

    @property
    def actions(self) -> tuple[str, ...]:
        """What can be done with it as it is now."""
        of_state = {
            "not installed": ("install",) if self.recipe else (),
            "installing": ("stop",),
            "not loaded": ("load",),
            "loading": ("unload", "logs"),
            "ready": ("unload", "restart", "logs"),
            "busy": ("unload", "restart", "logs"),
            "crashed": ("load", "unload", "logs"),
            "server": ("logs",) if self.server is not None else (),
        }
        return ("use", *of_state[self.state])

    def log_tail(self, lines: int = 200) -> str:
        """The last lines of its process's own words."""
        worker = self.resident.worker if self.resident is not None else None
        said = worker or self.server
        return said.log_tail(lines) if said is not None else ""


@dataclass(frozen=True)
class Said:
    """What the last click did, and the line that does the same in a cell."""

    text: str = ""
    command: str = ""
    failed: bool = False


@dataclass(frozen=True)
class State:
    """All that a panel shows."""

    rows: tuple[Row, ...]
    chosen: Selection
    used_bytes: int
    budget_bytes: int
    said: Said = field(default_factory=Said)


def key_of(wanted: Selection) -> str:
    """The same text for the same engine, model and load parameters."""
    return f"{wanted.engine} {json.dumps(wanted.model.to_dict(), sort_keys=True)}"


def label(wanted: Selection) -> str:
    """Engine and model, as one line of bounded length."""
    return f"{wanted.engine} · {short(wanted.model.model_name)}"


def short(text: str, most: int = 120) -> str:
    """One line of bounded length in which nothing is obeyed."""
    text = text if len(text) <= most else text[:most] + "…"
    return visible(text).replace("\n", "⏎").replace("\t", " ")


def command(action: str, wanted: Selection) -> str:
    """The line that does the same in a cell: ``%engine use native -m smollm2-135m``.

    Load parameters that no option of ``%engine`` sets are named after it, in parentheses.
    """
    values = wanted.model.to_dict(changed_only=True)
    words = ["%engine", action, wanted.engine, "-m", shlex.quote(wanted.model.model_name)]
    for name, value in wanted.model.to_dict()["model_kwargs"].items():
        plain = isinstance(value, str) and parse_value(value) == value
        words += ["-k", shlex.quote(f"{name}={value if plain else repr(value)}")]
    if wanted.remote is not None and wanted.remote.api_url is not None:
        given = wanted.remote.api_url
        for url in [given] if isinstance(given, str) else given:
            words += ["--url", shlex.quote(Address(url).masked)]
    others = sorted(set(values) - {"model_name", "model_kwargs"})
    if others:
        words.append(f"(and from Python: {', '.join(others)})")
    return " ".join(words)


def as_text(state: State) -> str:
    """The same as plain text, for a terminal and for a reader without widgets."""
    memory = f"{format_bytes(state.used_bytes)} of {format_bytes(state.budget_bytes)}"
    lines = [f"%%infer uses {label(state.chosen)} · memory {memory}"]
    for row in state.rows:
        cells = (
            "→" if row.chosen else " ",
            fit(row.selection.engine, 10, False),
            fit(short(row.selection.model.model_name, 60), 30, False),
            fit(row.state, 13, False),
            fit(format_bytes(row.memory_bytes), 8, True),
            short(row.note, 60),
        )
        lines.append(" ".join(cells).rstrip())
    return "\n".join(lines)
