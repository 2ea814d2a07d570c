"""The panel's first part: every engine with its state, and buttons that switch between them."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

import ipywidgets

from ...errors import ConfigurationError
from ..engine_rows import Row, Said, State, command, label, short
from ..switcher import switcher
from ..text import format_bytes, visible
from .chooser import Chooser
from .jobs import Job, Jobs
from .parts import CODE, EDGE, TEXT, block, button, close, copying, quiet

__all__ = ["Engines"]

# What the state is called stands beside it: no sign and no colour says anything alone.
SIGNS = {
    "not installed": "◌",
    "installing": "◍",
    "not loaded": "○",
    "loading": "◐",
    "ready": "●",
    "busy": "◉",
    "crashed": "✕",
    "server": "⇄",
}


ACTIONS = {
    "use": "Use",
    "install": "Install",
    "stop": "Stop",
    "load": "Load",
    "unload": "Unload",
    "restart": "Restart",
    "logs": "Logs",
}


class Engines(ipywidgets.VBox):  # type: ignore[misc]
    """What is loaded, and what a plain ``%%infer`` uses.

    Parameters
    ----------
    clicked : callable
        Called after each click: something may have changed.
    chores, installing, searches : Jobs
        Where a process is ended, where a library is installed, and where the hub is asked.
    """

    def __init__(
        self, clicked: Callable[[], None], chores: Jobs, installing: Jobs, searches: Jobs
    ) -> None:
        self._clicked = clicked
        self._chores, self._installing = chores, installing
        self._head = ipywidgets.HTML()
        self._table = ipywidgets.VBox()
        self._foot = ipywidgets.HTML()
        self._lines: dict[str, _Line] = {}
        self._logged = ""  # the key of the row whose log is open
        self.logs = ipywidgets.HTML()
        self.chooser = Chooser(clicked, searches)
        self._copying = copying()
        foot = ipywidgets.VBox([self._foot, self._copying])
        foot.add_class("nbinfer-cell")
        super().__init__([self._head, self._table, self.logs, self.chooser, foot])

    def draw(self, state: State) -> None:
        """Show a state."""
        self._head.value = _head(state)
        self._say(state.said)
        self.chooser.draw(state)
        for row in state.rows:
            if row.key not in self._lines:
                self._lines[row.key] = _Line(self._act)
            self._lines[row.key].show(row, state.budget_bytes, row.key == self._logged)
        gone = set(self._lines) - {row.key for row in state.rows}
        boxes = tuple(self._lines[row.key].box for row in state.rows)
        if boxes != self._table.children:
            self._table.children = boxes
        for key in gone:
            close(self._lines.pop(key).box)
        self._draw_log()

    def press(self, action: str, engine: str, model: str | None = None) -> None:
        """Click a row's button, from Python.

        Parameters
        ----------
        action : str
            ``"use"``, ``"install"``, ``"stop"`` (an installation), ``"load"``, ``"unload"``,
            ``"restart"`` or ``"logs"``. What takes long goes on beside; ``panel.wait()`` waits.
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
                if action not in row.actions:
                    raise ConfigurationError(f"{label(row.selection)} is {row.state}: no {action}")
                line.buttons[action].click()
                return
        raise ConfigurationError(f"the panel has no row of {engine} {model or ''}".rstrip())

    def fail(self, text: str) -> None:
        """Show why nothing can be shown."""
        self._say(Said(text, failed=True))

    def _say(self, said: Said) -> None:
        self._foot.value = _foot(said)
        self._copying.layout.display = None if said.command else "none"

    def look(self) -> None:
        """Show what may have changed though the engines have not: a log, the models found."""
        self.chooser.look()
        if self._logged:
            self._draw_log()

    @staticmethod
    def snapshot() -> str:
        """The engines as static HTML."""
        state = switcher.state()
        rows = "".join(_cells(row, state.budget_bytes) for row in state.rows)
        return _head(state) + rows

    def _act(self, action: str, row: Row) -> None:
        if action == "logs":
            self._logged = "" if self._logged == row.key else row.key
            for key, line in self._lines.items():
                line.opened(key == self._logged)
            self._draw_log()
        elif action == "install":
            switcher.install(row, self._installing)
        elif action in ("unload", "restart"):
            act = getattr(switcher, action)

            def work() -> None:
                act(row)
                self._clicked()

            self._chores.put(Job(work, self.fail, lambda: None))
        else:
            getattr(switcher, action)(row)
        self._clicked()

    def _draw_log(self) -> None:
        line = self._lines.get(self._logged)
        row = line.row if line is not None else None
        if row is None or "logs" not in row.actions:
            self._logged = self.logs.value = ""
        else:
            self.logs.value = _log(row)


class _Line:
    """One row: what is known of it, and its buttons. Kept while it changes, so focus stays.

    A button that does not fit the row's state is not shown.
    """

    def __init__(self, act: Callable[[str, Row], None]) -> None:
        self._act = act
        self.row: Row | None = None
        self._text = ipywidgets.HTML(layout={"flex": "1 1 24em", "min_width": "0"})
        self.buttons = _Buttons(self._button)
        # As wide as the most that fit one state, so that the rows' columns stand below each other.
        self._buttons = ipywidgets.HBox(layout={"flex_flow": "row wrap", "flex": "0 0 24em"})
        self.box = ipywidgets.HBox(
            [self._text, self._buttons], layout={"align_items": "center", "flex_flow": "row wrap"}
        )

    def _button(self, action: str) -> Any:
        def clicked(_button: Any) -> None:
            if self.row is not None:
                self._act(action, self.row)

        return button(ACTIONS[action], "", clicked, disabled=True)

    def show(self, row: Row, budget: int, logged: bool) -> None:
        """Show a row."""
        self.row = row
        self._text.value = _cells(row, budget)
        for action in row.actions:
            self.buttons[action]  # made now, where it was not
        for action, one in self.buttons.items():
            fits = action in row.actions
            one.disabled = not fits
            one.layout.display = None if fits else "none"
            # Read aloud with the button's word: which of the many it is.
            one.tooltip = visible(_tooltip(action, row))
        self.buttons["use"].description = "✓ In use" if row.chosen else "Use"
        if "load" in self.buttons:  # what has crashed is loaded again
            self.buttons["load"].description = "Restart" if row.state == "crashed" else "Load"
        shown = tuple(self.buttons[action] for action in ACTIONS if action in self.buttons)
        if shown != self._buttons.children:
            self._buttons.children = shown
        self.opened(logged)

    def opened(self, logged: bool) -> None:
        """Whether its log is shown below."""
        if "logs" in self.buttons:
            self.buttons["logs"].description = "Hide logs" if logged else ACTIONS["logs"]


class _Buttons(dict[str, Any]):
    """A row's buttons by action, each made when it first fits: every widget is three messages."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, action: str) -> Any:
        made = self[action] = self._make(action)
        return made


def _tooltip(action: str, row: Row) -> str:
    if action == "install":
        return f"%engine install {row.recipe}"
    if action == "stop":
        return f"end the installation of {row.recipe}: nothing is left of it"
    return command(action, row.selection)


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
    cell = f'\n<span style="opacity:.8">In a cell:</span> <code style="{CODE}">{same}</code>'
    return (
        f'<div role="status" style="{TEXT};{EDGE};white-space:pre-wrap">{mark}{text}'
        f"{cell if same else ''}</div>"
    )


def _log(row: Row) -> str:
    """The last lines of a process's own words, the newest in sight."""
    name = f"The log of {label(row.selection)}"
    said = row.log_tail() or "it has said nothing yet"
    # Reversed, a box that is scrolled begins at its end; by keys, too.
    box = (
        "max-height:20em;overflow:auto;display:flex;flex-direction:column-reverse;"
        f"font-family:var(--jp-code-font-family,monospace);font-size:85%;{EDGE}"
    )
    words = {"role": "region", "aria-label": name, "tabindex": "0"}
    return quiet(name) + block(said, box, **words)
