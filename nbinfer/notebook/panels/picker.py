"""Engines to choose among, several at once: a checkbox for each row of the switcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from ...selection import Selection
from ..engine_rows import Row, State, label
from .parts import WIDE, close

__all__ = ["Picker"]


class Picker(ipywidgets.VBox):  # type: ignore[misc]
    """Checkboxes of engines and models; the order of the rows is the order of the runs.

    Parameters
    ----------
    changed : callable
        Called when another is chosen.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        super().__init__(layout=WIDE)
        self._changed = changed
        self._boxes: dict[str, Any] = {}
        self._rows: dict[str, Row] = {}
        self._shown: tuple[Any, ...] = ()

    def draw(self, state: State) -> None:
        """Show the engines that there are; what was chosen stays chosen."""
        rows = {row.key: row for row in state.rows}
        gone = [self._boxes.pop(key) for key in set(self._boxes) - set(rows)]
        for key, row in rows.items():
            if key not in self._boxes:
                made = ipywidgets.Checkbox(value=False, indent=False, layout=WIDE)
                made.observe(self._chosen, "value")
                self._boxes[key] = made
            self._boxes[key].description = f"{label(row.selection)} ({row.state})"
        self._rows = rows
        boxes = tuple(self._boxes[key] for key in rows)
        if boxes != self._shown:
            self.children = self._shown = boxes
        for box in gone:
            close(box)

    def choose(self, *engines: str) -> None:
        """Choose these engines, and no other."""
        for key, row in self._rows.items():
            self._boxes[key].value = row.selection.engine in engines

    @property
    def selections(self) -> tuple[Selection, ...]:
        """What is chosen, in order."""
        return tuple(row.selection for key, row in self._rows.items() if self._boxes[key].value)

    def _chosen(self, _change: Any) -> None:
        self._changed()
