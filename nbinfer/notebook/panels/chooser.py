"""Another engine or model than those that are listed: a name to choose or to type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from ... import selection
from ...engines import registry
from ..completion import model_names
from ..engine_rows import Row, State, key_of
from ..switcher import switcher
from .parts import button

__all__ = ["Chooser"]


class Chooser(ipywidgets.HBox):  # type: ignore[misc]
    """Engine, model, and the buttons that ``%engine use`` and ``%engine load`` are.

    What it offers is what ``-m`` completes: aliases, embedded and resident models, files and
    folders below what is typed, and the hub's cache.
    """

    def __init__(self, clicked: Callable[[], None]) -> None:
        self._clicked = clicked
        self.engine = ipywidgets.Dropdown(
            options=registry.names(), tooltip="Engine", layout={"width": "10em"}
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
        self.model.observe(self._typed, "value")
        super().__init__(
            [self.engine, self.model, self.use, self.load], layout={"flex_flow": "row wrap"}
        )

    def draw(self, state: State) -> None:
        """Offer the engines that there are, hidden ones where they are in use."""
        names = tuple(dict.fromkeys([*registry.names(), *(r.selection.engine for r in state.rows)]))
        if names != tuple(self.engine.options):
            before = self.engine.value
            self.engine.options = names
            self.engine.value = before if before in names else names[0]

    def _typed(self, _change: Any) -> None:
        self.model.options = tuple(model_names(self.model.value))

    def _row(self) -> Row:
        wanted = selection.for_engine(self.engine.value, self.model.value.strip() or None)
        return Row(key_of(wanted), False, "not loaded", wanted)

    def _use(self) -> None:
        switcher.use(self._row())
        self._clicked()

    def _load(self) -> None:
        switcher.load(self._row())
        self._clicked()
