"""What the panel knows of engines and does with them: the same functions as the magics."""

from __future__ import annotations

import contextlib
import importlib.metadata
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .. import environments, overview, selection, server_records, settings
from ..checks import Address
from ..config import ModelParams
from ..engines import registry
from ..engines.local import LocalEngine
from ..engines.remote import RemoteEngine
from ..errors import ConfigurationError, NbinferError, brief_traceback
from ..measure import Seen, seen
from ..resident import Resident
from ..residents import pool
from ..selection import Selection
from ..server_records import Server
from .engine_rows import Row, Said, State, command, key_of, label
from .installs import Installs
from .panels.jobs import Jobs
from .text import format_bytes

__all__ = ["Switcher", "switcher"]

# What costs more than a look at our own variables is looked up so rarely while nothing changes.
SLOW_S = 10.0
FAST_S = 1.0


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
        self.installs = Installs(self)
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
            place, server = self._lookup(("place", key), lambda: where_it_is(wanted), SLOW_S)
            return Row(key, chosen, "server", wanted, place, server=server)
        missing, recipe = self._lookup(("missing", key), lambda: what_is_missing(wanted), SLOW_S)
        stage = self.installs.stage(recipe) if recipe else ""
        state = "installing" if stage else "not installed" if missing else "not loaded"
        return Row(key, chosen, state, wanted, stage or missing, recipe=recipe)

    def forget(self) -> None:
        """Look up anew what is looked up rarely: something was installed, say."""
        with self._lock:
            self._known = {}

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

    def install(self, row: Row, jobs: Jobs) -> None:
        """Begin to install its library, as ``%engine install`` does, and return at once."""
        self.installs.begin(row.recipe, jobs)

    def stop(self, row: Row) -> None:
        """End its installation: nothing is left of it."""
        self.installs.stop(row.recipe)

    def load(self, row: Row, action: str = "load") -> None:
        """Begin to load it, as ``%engine load`` does, and return at once."""
        wanted = row.selection
        begun: list[Resident] = []

        def told(event: dict[str, Any]) -> None:
            if event["ev"] == "ready":
                self._say(f"{label(wanted)} is loaded", action, wanted)
            elif event["ev"] == "load_failed":
                if not begun or begun[0].state != "unloaded":  # that was said by who did it
                    self._fail(event["error"], action, wanted)
            else:
                self.changed()

        with self._telling(action, wanted):
            engine = registry.engine_class(wanted.engine)(wanted.model)
            if not isinstance(engine, LocalEngine):
                raise ConfigurationError(f"{wanted.engine} is not on this machine: nothing to load")
            self._say(f"loading {label(wanted)}", action, wanted)
            begun.append(pool.ensure(engine.plan(), told))

    def unload(self, row: Row) -> None:
        """End its process, as ``%engine unload`` does."""
        with self._telling("unload", row.selection):
            if row.resident is not None:
                freed = pool.unload(row.resident)
                text = f"{label(row.selection)} is unloaded: {format_bytes(freed)} came back"
                self._say(text, "unload", row.selection)

    def restart(self, row: Row) -> None:
        """End its process and load it again, as ``%engine restart`` does."""
        with self._telling("restart", row.selection):
            if row.resident is not None:
                pool.unload(row.resident)
            self.load(row, "restart")

    def tell(self, said: Said) -> None:
        """What is shown as the last that happened, in every panel."""
        self.said = said
        self.changed()

    @contextlib.contextmanager
    def _telling(self, action: str, wanted: Selection) -> Iterator[None]:
        try:
            yield
        except NbinferError as error:
            self._fail(error, action, wanted)

    def _say(self, text: str, action: str, wanted: Selection) -> None:
        self.tell(Said(text, command(action, wanted)))

    def _fail(self, error: BaseException, action: str, wanted: Selection) -> None:
        text = "\n".join(brief_traceback(error))
        self.tell(Said(text, command(action, wanted), failed=True))


switcher = Switcher()


# --------------------------------------------------------------------- what is looked up


def asked_for(resident: Resident) -> Selection:
    """The selection that finds this resident again."""
    plan = resident.plan
    return Selection(
        plan.engine, plan.params or ModelParams(plan.model), selection.current().others
    )


def where_it_is(wanted: Selection) -> tuple[str, Server | None]:
    """A server's addresses, without their passwords; what to do where it has none.

    And the server itself, where it was started here.
    """
    try:
        engine = wanted.make()
        assert isinstance(engine, RemoteEngine)
        started = (server_records.find(url) for url in engine.urls)
        places = ", ".join(Address(url).masked for url in engine.urls)
        return places, next(filter(None, started), None)
    except NbinferError as error:
        return error.hint or error.message, None


def held_by(resident: Resident) -> Seen | None:
    """What its process tree holds now."""
    worker = resident.worker
    return seen(worker.pid) if worker is not None and worker.alive else None


def what_is_missing(wanted: Selection) -> tuple[str, str]:
    """The command that installs an engine's library, and the recipe that it names.

    The first is ``""`` where it is installed, the second where it is no recipe.
    """
    try:
        recipe = getattr(registry.engine_class(wanted.engine)(wanted.model), "recipe", "")
        library = registry.spec(wanted.engine).library
        if recipe:
            there = environments.available(recipe) is not None
            return "" if there else f"%engine install {recipe}", recipe
        if library:
            importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return f"pip install {library}", ""
    except NbinferError as error:
        return error.message, ""
    return "", ""


def how_it_ended(resident: Resident) -> str:
    """Why a resident is no more, in a few words."""
    death = resident.worker.death if resident.worker is not None else None
    if death is not None and not death.by_us:
        how = death.signal or f"exit status {death.exit_code}"
        return f"{how}; %engine logs {resident.plan.engine}"
    return resident.error.message if resident.error is not None else ""
