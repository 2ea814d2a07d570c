"""Another engine or model than those that are listed: found here or on the hub, or typed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ipywidgets

from ... import hubclient, selection
from ...engines import registry
from ...errors import NbinferError, RunInterrupted
from ...interrupts import guard
from ..completion import model_names
from ..engine_rows import Row, State, key_of
from ..switcher import switcher
from .jobs import Job, Jobs
from .models import Found, found
from .parts import WIDE, button, quiet

__all__ = ["Chooser"]

FIRST = "a model that is here …"
# What is found is looked up anew so rarely, and with each model that is loaded or typed.
LOOK_S = 10.0


class Chooser(ipywidgets.VBox):  # type: ignore[misc]
    """Engine, model, and the buttons that ``%engine use`` and ``%engine load`` are.

    What it offers is what ``-m`` completes (aliases, embedded and resident models, files and
    folders below what is typed, the hub's cache), what was loaded here lately, the servers that
    were started here, and what the hub finds.

    Parameters
    ----------
    clicked : callable
        Called after each click: something may have changed.
    jobs : Jobs
        Where the hub is asked.
    """

    def __init__(self, clicked: Callable[[], None], jobs: Jobs) -> None:
        self._clicked = clicked
        self._jobs = jobs
        self._search: Job | None = None
        self._drawn: tuple[Any, ...] = ()
        self._looked = 0.0
        self._chosen: Found | None = None
        self._hub: tuple[Found, ...] = ()
        self.engine = ipywidgets.Dropdown(
            options=registry.names(),
            description="Engine",
            style={"description_width": "initial"},
            layout={"width": "14em"},
        )
        self.model = ipywidgets.Combobox(
            options=model_names(""),
            placeholder="a model: name, path or hub id",
            tooltip="Model: a name, a path or a hub id",
            ensure_option=False,
            continuous_update=False,
            layout={"flex": "1 1 12em", "width": "auto", "min_width": "8em"},
        )
        self.use = button("Use", "make it what a plain %%infer uses", lambda _: self._use())
        self.load = button("Load", "load it now, beside the kernel", lambda _: self._load())
        self.found = ipywidgets.Dropdown(
            options=[(FIRST, None)],
            description="Found",
            style={"description_width": "initial"},
            tooltip="Models found: embedded, recent, in files and folders, on servers",
            layout={"flex": "1 1 12em", "width": "auto", "min_width": "8em"},
        )
        self.search = button(
            "Search hub", "search the Hugging Face hub for what is typed", lambda _: self._ask()
        )
        self.told = ipywidgets.HTML()
        self.model.observe(self._typed, "value")
        self.found.observe(self._picked, "value")
        rows = [self.engine, self.model, self.use, self.load], [self.found, self.search]
        boxes = [ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        super().__init__([*boxes, self.told], layout=WIDE)

    def draw(self, state: State) -> None:
        """Offer the engines and models that there are, hidden engines where they are in use."""
        names = tuple(dict.fromkeys([*registry.names(), *(r.selection.engine for r in state.rows)]))
        if names != tuple(self.engine.options):
            before = self.engine.value
            self.engine.options = names
            self.engine.value = before if before in names else names[0]
        rows = tuple((row.key, row.state) for row in state.rows)
        if rows != self._drawn:
            self._drawn = rows
            self._offer()

    def look(self) -> None:
        """Look again for models, where that was long ago."""
        if time.monotonic() > self._looked + LOOK_S:
            self._offer()

    def _offer(self) -> None:
        self._looked = time.monotonic()
        every = [*self._hub, *found(self.model.value)]
        options = ((FIRST, None), *((one.label, one) for one in every))
        if options != self.found.options:
            self.found.options = options

    def _typed(self, _change: Any) -> None:
        self.model.options = tuple(model_names(self.model.value))
        self._offer()

    def _picked(self, change: Any) -> None:
        one = change["new"]
        if one is None:
            return
        if one.engine in self.engine.options:
            self.engine.value = one.engine
        self.model.value = one.model
        self._chosen = one
        self.found.value = None  # the list is there for the next

    def _row(self) -> Row:
        engine, model = self.engine.value, self.model.value.strip()
        one = self._chosen
        where = one is not None and one.url and (one.engine, one.model) == (engine, model)
        remote = {"api_url": one.url} if where and one is not None else None
        wanted = selection.for_engine(engine, model or None, None, remote)
        return Row(key_of(wanted), False, "not loaded", wanted)

    def _use(self) -> None:
        switcher.use(self._row())
        self._clicked()

    def _load(self) -> None:
        switcher.load(self._row())
        self._clicked()

    # ------------------------------------------------------------------------- the hub

    def _ask(self) -> None:
        text = self.model.value.strip()
        if not text:
            self._tell("write a part of a model's name above, then search")
            return
        if self._search is not None:
            return
        form = "gguf" if self.engine.value == "llamacpp" else "safetensors"
        self._search = Job(lambda: self._find(text, form), self._ended, lambda: self._ended(""))
        self.search.disabled = True
        self._tell("asking the hub")
        if not self._jobs.put(self._search):
            self._ended("")

    def _find(self, text: str, form: str) -> None:
        def goes_on(_line: str) -> None:
            with guard() as mine:
                if mine.take():
                    raise RunInterrupted("the search was stopped")

        try:
            names = hubclient.search(text, form, goes_on)
        except NbinferError as error:
            self._ended(f"the hub cannot be asked: {error.message}")
            return
        self._hub = tuple(Found("hub", name) for name in names)
        count = f"{len(names)} found" if names else "none found"
        self._ended(f"{count} on the hub for {text!r} with {form}, the most downloaded first")

    def _ended(self, text: str) -> None:
        self._search = None
        if self.comm is not None:
            self.search.disabled = False
            self._tell(text)
            self._offer()

    def _tell(self, text: str) -> None:
        self.told.value = quiet(text)
