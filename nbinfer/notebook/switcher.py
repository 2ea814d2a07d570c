"""What the panel shows and does, as plain data: no widget, and the same functions as the magics."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .. import environments, overview, selection, settings
from ..checks import Address
from ..config import ModelParams, parse_value
from ..engines import registry
from ..engines.local import LocalEngine
from ..engines.remote import RemoteEngine
from ..errors import ConfigurationError, NbinferError, brief_traceback
from ..measure import Seen, seen
from ..resident import Resident
from ..residents import pool
from ..selection import Selection
from .text import fit, format_bytes, visible

__all__ = ["Row", "Said", "State", "Switcher", "as_text", "command", "label", "short", "switcher"]

# What costs more than a look at our own variables is looked up so rarely while nothing changes.
SLOW_S = 10.0
FAST_S = 1.0


@dataclass(frozen=True)
class Row:
    """An engine with a model: a resident, or what could become one.

    Attributes
    ----------
    key : str
        Stays the same while the row is loaded, used and unloaded.
    state : str
        ``"not installed"``, ``"not loaded"``, ``"loading"``, ``"ready"``, ``"busy"``,
        ``"crashed"`` or, of an engine elsewhere, ``"server"``.
    note : str
        The stage of a load, how it crashed, what installs it, what a GPU holds of it, or
        where a server is.
    held : Seen or None
        Memory of its process tree.
    chosen : bool
        Whether a plain ``%%infer`` uses it.
    """

    key: str
    chosen: bool
    state: str
    selection: Selection
    note: str = ""
    held: Seen | None = None
    resident: Resident | None = None

    @property
    def memory_bytes(self) -> int | None:
        """All its memory, GPUs included, as ``%engine`` shows it."""
        return None if self.held is None else self.held.total

    @property
    def can_load(self) -> bool:
        return self.state in ("not loaded", "crashed")

    @property
    def can_unload(self) -> bool:
        return self.resident is not None


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


class Switcher:
    """What every panel of this kernel shows and does. Thread-safe.

    Attributes
    ----------
    said : Said
        What happened last.
    changed : callable
        Called, from any thread, when something happened that a panel should show at once.
        It must not block: a lock of the pool may be held.
    """

    def __init__(self) -> None:
        self.said = Said()
        self.changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], tuple[float, Any]] = {}

    # ---------------------------------------------------------------- what there is

    def state(self) -> State:
        """What there is now.

        Raises
        ------
        ConfigurationError
            For broken settings.
        """
        chosen = selection.current()
        budget = settings.current().budget_bytes()
        residents = pool.residents()
        rows: list[Row] = []
        for spec in registry.specs(hidden=True):
            own = [self._resident(r, chosen) for r in residents if r.plan.engine == spec.name]
            if spec.name == chosen.engine and not any(row.chosen for row in own):
                own.append(self._absent(chosen, chosen=True))
            if not own and not spec.hidden:
                own.append(self._absent(selection.for_engine(spec.name), chosen=False))
            rows += own
        used = sum(row.held.memory for row in rows if row.held is not None)
        return State(tuple(rows), chosen, used, budget, self.said)

    def _resident(self, resident: Resident, chosen: Selection) -> Row:
        wanted = asked_for(resident)
        # Not more often because of a run: reading memory costs the engine time that it measures.
        held = self._lookup(
            ("memory", resident.plan.key, resident.state, id(resident.worker)),
            lambda: held_by(resident),
            FAST_S if resident.state == "loading" else SLOW_S,
        )
        note = ""
        if resident.state == "loading":
            note = resident.stage
        elif resident.state == "crashed":
            note = how_it_ended(resident)
        elif held is not None and held.device:
            note = f"{format_bytes(held.device)} of it on the GPU"
        return Row(
            key_of(wanted),
            key_of(wanted) == key_of(chosen),
            overview.state_of(resident),
            wanted,
            note,
            held,
            resident,
        )

    def _absent(self, wanted: Selection, *, chosen: bool) -> Row:
        key = key_of(wanted)
        if "server" in registry.spec(wanted.engine).capabilities.features:
            place = self._lookup(("place", key), lambda: where_it_is(wanted), SLOW_S)
            return Row(key, chosen, "server", wanted, place)
        missing = self._lookup(("missing", key), lambda: what_is_missing(wanted), SLOW_S)
        return Row(key, chosen, "not installed" if missing else "not loaded", wanted, missing)

    def _lookup(self, what: tuple[object, ...], read: Callable[[], Any], seconds: float) -> Any:
        now = time.monotonic()
        with self._lock:
            found = self._known.get(what)
            if found is None or now > found[0] + seconds:
                self._known = {k: v for k, v in self._known.items() if now < v[0] + 2 * SLOW_S}
                found = self._known[what] = (now, read())
        return found[1]

    # ---------------------------------------------------------------- what is done

    def use(self, row: Row) -> None:
        """Make it what a plain ``%%infer`` uses, as ``%engine use`` does."""
        with self._telling("use", row.selection):
            selection.use(row.selection)
            self._say(f"%%infer now uses {label(row.selection)}", "use", row.selection)

    def load(self, row: Row) -> None:
        """Begin to load it, as ``%engine load`` does, and return at once."""
        wanted = row.selection
        begun: list[Resident] = []

        def told(event: dict[str, Any]) -> None:
            if event["ev"] == "ready":
                self._say(f"{label(wanted)} is loaded", "load", wanted)
            elif event["ev"] == "load_failed":
                if not begun or begun[0].state != "unloaded":  # that was said by who did it
                    self._fail(event["error"], "load", wanted)
            else:
                self.changed()

        with self._telling("load", wanted):
            engine = registry.engine_class(wanted.engine)(wanted.model)
            if not isinstance(engine, LocalEngine):
                raise ConfigurationError(f"{wanted.engine} is not on this machine: nothing to load")
            self._say(f"loading {label(wanted)}", "load", wanted)
            begun.append(pool.ensure(engine.plan(), told))

    def unload(self, row: Row) -> None:
        """End its process, as ``%engine unload`` does."""
        with self._telling("unload", row.selection):
            if row.resident is not None:
                freed = pool.unload(row.resident)
                text = f"{label(row.selection)} is unloaded: {format_bytes(freed)} came back"
                self._say(text, "unload", row.selection)

    @contextlib.contextmanager
    def _telling(self, action: str, wanted: Selection) -> Iterator[None]:
        try:
            yield
        except NbinferError as error:
            self._fail(error, action, wanted)

    def _say(self, text: str, action: str, wanted: Selection) -> None:
        self.said = Said(text, command(action, wanted))
        self.changed()

    def _fail(self, error: BaseException, action: str, wanted: Selection) -> None:
        self.said = Said("\n".join(brief_traceback(error)), command(action, wanted), failed=True)
        self.changed()


switcher = Switcher()


# ------------------------------------------------------------------------------- words


def asked_for(resident: Resident) -> Selection:
    """The selection that finds this resident again."""
    plan = resident.plan
    return Selection(
        plan.engine, plan.params or ModelParams(plan.model), selection.current().others
    )


def where_it_is(wanted: Selection) -> str:
    """A server's addresses, without their passwords; what to do where it has none."""
    try:
        engine = wanted.make()
        assert isinstance(engine, RemoteEngine)
        return ", ".join(Address(url).masked for url in engine.urls)
    except NbinferError as error:
        return error.hint or error.message


def held_by(resident: Resident) -> Seen | None:
    """What its process tree holds now."""
    worker = resident.worker
    return seen(worker.pid) if worker is not None and worker.alive else None


def key_of(wanted: Selection) -> str:
    """The same text for the same engine, model and load parameters."""
    return f"{wanted.engine} {json.dumps(wanted.model.to_dict(), sort_keys=True)}"


def what_is_missing(wanted: Selection) -> str:
    """The command that installs an engine's library, ``""`` where it is installed."""
    try:
        recipe = getattr(registry.engine_class(wanted.engine)(wanted.model), "recipe", "")
        library = registry.spec(wanted.engine).library
        if recipe:
            return f"%engine install {recipe}" if environments.available(recipe) is None else ""
        if library:
            importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return f"pip install {library}"
    except NbinferError as error:
        return error.message
    return ""


def how_it_ended(resident: Resident) -> str:
    """Why a resident is no more, in a few words."""
    death = resident.worker.death if resident.worker is not None else None
    if death is not None and not death.by_us:
        how = death.signal or f"exit status {death.exit_code}"
        return f"{how}; %engine logs {resident.plan.engine}"
    return resident.error.message if resident.error is not None else ""


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
