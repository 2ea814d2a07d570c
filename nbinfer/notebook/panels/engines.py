"""The panel's first part: every engine with its state, and buttons that switch between them."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from ...errors import ConfigurationError
from ..switcher import Row, Said, State, command, label, short, switcher
from ..text import format_bytes, visible
from .chooser import Chooser
from .parts import CODE, EDGE, TEXT, button, close

__all__ = ["Engines"]

# What the state is called stands beside it: no sign and no colour says anything alone.
SIGNS = {
    "not installed": "◌",
    "not loaded": "○",
    "loading": "◐",
    "ready": "●",
    "busy": "◉",
    "crashed": "✕",
    "server": "⇄",
}


class Engines(ipywidgets.VBox):  # type: ignore[misc]
    """What is loaded, and what a plain ``%%infer`` uses.

    Parameters
    ----------
    clicked : callable
        Called after each click: something may have changed.
    """

    def __init__(self, clicked: Callable[[], None]) -> None:
        self._clicked = clicked
        self._head = ipywidgets.HTML()
        self._table = ipywidgets.VBox()
        self._foot = ipywidgets.HTML()
        self._lines: dict[str, _Line] = {}
        self.chooser = Chooser(clicked)
        super().__init__([self._head, self._table, self.chooser, self._foot])

    def draw(self, state: State) -> None:
        """Show a state."""
        self._head.value = _head(state)
        self._foot.value = _foot(state.said)
        self.chooser.draw(state)
        for row in state.rows:
            if row.key not in self._lines:
                self._lines[row.key] = _Line(self._clicked)
            self._lines[row.key].show(row, state.budget_bytes)
        gone = set(self._lines) - {row.key for row in state.rows}
        boxes = tuple(self._lines[row.key].box for row in state.rows)
        if boxes != self._table.children:
            self._table.children = boxes
        for key in gone:
            close(self._lines.pop(key).box)

    def press(self, action: str, engine: str, model: str | None = None) -> None:
        """Click a row's button, from Python.

        Parameters
        ----------
        action : str
            ``"use"``, ``"load"`` or ``"unload"``.
        engine, model : str
            Which row; the first of the engine's without a model.

        Raises
        ------
        ConfigurationError
            Where there is no such row, or the button is off.
        """
        for line in self._lines.values():
            row = line.row
            if row is None or row.selection.engine != engine:
                continue
            if model in (None, row.selection.model.model_name):
                if line.buttons[action].disabled:
                    raise ConfigurationError(f"{label(row.selection)} is {row.state}: no {action}")
                line.buttons[action].click()
                return
        raise ConfigurationError(f"the panel has no row of {engine} {model or ''}".rstrip())

    def fail(self, text: str) -> None:
        """Show why nothing can be shown."""
        self._foot.value = _foot(Said(text, failed=True))


class _Line:
    """One row: what is known of it, and its buttons. Kept while it changes, so focus stays."""

    def __init__(self, clicked: Callable[[], None]) -> None:
        self._clicked = clicked
        self.row: Row | None = None
        self._text = ipywidgets.HTML(layout={"flex": "1 1 auto", "min_width": "0"})
        self._use = self._button(switcher.use)
        self._load = self._button(switcher.load)
        self._unload = self._button(switcher.unload)
        self._load.description, self._unload.description = "Load", "Unload"
        self.buttons = {"use": self._use, "load": self._load, "unload": self._unload}
        self.box = ipywidgets.HBox(
            [self._text, *self.buttons.values()], layout={"align_items": "center"}
        )

    def _button(self, act: Callable[[Row], None]) -> Any:
        def clicked(_button: Any) -> None:
            if self.row is not None:
                act(self.row)
                self._clicked()

        return button("", "", clicked)

    def show(self, row: Row, budget: int) -> None:
        """Show a row."""
        self.row = row
        self._text.value = _cells(row, budget)
        self._use.description = "✓ In use" if row.chosen else "Use"
        self._load.disabled = not row.can_load
        self._unload.disabled = not row.can_unload
        for action, one in self.buttons.items():
            # Read aloud with the button's word: which of the many it is.
            one.tooltip = visible(command(action, row.selection))


# ------------------------------------------------------------------------------- HTML


def _head(state: State) -> str:
    memory = f"{format_bytes(state.used_bytes)} of {format_bytes(state.budget_bytes)}"
    return (
        f'<div style="{TEXT}">A plain <code>%%infer</code> uses '
        f"<strong>{html.escape(label(state.chosen))}</strong><br>"
        f'<span style="opacity:.8">Memory of resident models: {memory}</span></div>'
    )


def _cells(row: Row, budget: int) -> str:
    grid = "display:grid;grid-template-columns:6.5em minmax(6em,1fr) minmax(8em,1fr) 5em;gap:0 .8em"
    model = html.escape(short(row.selection.model.model_name))
    weight = ";font-weight:600" if row.chosen else ""
    note = f'<div style="opacity:.8;font-size:90%">{html.escape(short(row.note, 300))}</div>'
    return (
        f'<div style="{TEXT};{EDGE};{grid}{weight}">'
        f"<span>{html.escape(row.selection.engine)}</span><span>{model}</span>"
        f'<span><span aria-hidden="true">{SIGNS[row.state]}</span> {row.state}'
        f"{note if row.note else ''}</span>"
        f'<span style="text-align:right">{format_bytes(row.memory_bytes)}'
        f"{_bar(row, budget)}</span></div>"
    )


def _bar(row: Row, budget: int) -> str:
    """Its memory against the budget; the number stands above."""
    if row.held is None or not budget:
        return ""
    share = min(100.0, 100 * row.held.memory / budget)
    return (
        '<span aria-hidden="true" style="display:block;height:.3em;'
        'background:color-mix(in srgb,currentColor 15%,transparent)">'
        '<span style="display:block;height:100%;background:currentColor;opacity:.6;'
        f'width:{share:.1f}%"></span></span>'
    )


def _foot(said: Said) -> str:
    if not said.text:
        return ""
    text = html.escape(visible(said.text[:2000]))
    mark = "<strong>Failed.</strong> " if said.failed else ""
    same = html.escape(visible(said.command))
    return (
        f'<div role="status" style="{TEXT};{EDGE};white-space:pre-wrap">{mark}{text}\n'
        f'<span style="opacity:.8">In a cell:</span> <code style="{CODE}">{same}</code></div>'
    )
