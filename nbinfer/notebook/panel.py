"""``%panel``: a widget that shows every engine and switches between them.

``switcher.py`` knows what is shown and done; here are the widgets, and the one thread that
draws all panels anew. It lives while a panel is displayed and ends with the last of them.
"""

from __future__ import annotations

import atexit
import html
import threading
import weakref
from collections.abc import Callable
from typing import Any

import ipywidgets

from .. import residents
from ..errors import brief_traceback
from ..progress import in_kernel
from .switcher import Row, Said, State, as_text, command, label, short, switcher
from .text import format_bytes, visible

__all__ = ["Panel", "panel"]

INTERVAL_S = 1.0
HINT = "buttons are in Jupyter; here: %engine use NAME, %engine load NAME, %engine unload NAME"
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
# Colours are the theme's own: ipywidgets' label colour, and parts of it.
TEXT = "color:var(--jp-widgets-label-color,currentColor);line-height:1.5;overflow-wrap:anywhere"
EDGE = "border-top:1px solid color-mix(in srgb,currentColor 25%,transparent)"
CODE = "font-family:var(--jp-code-font-family,monospace);font-size:90%;user-select:all"


def panel() -> Panel:
    """Show every engine, and switch between them.

    What ``%panel`` returns: a widget with each engine's state, its resident models with their
    memory, and buttons that do what ``%engine use``, ``load`` and ``unload`` do. It keeps itself
    up to date while it is displayed; all panels of a kernel show the same.

    Returns
    -------
    Panel
        An ``ipywidgets.VBox``; its text form is a table. ``close()`` takes it away.
    """
    return Panel()


class Panel(ipywidgets.VBox):  # type: ignore[misc]
    """The widget; make one with :func:`panel`."""

    def __init__(self) -> None:
        self._head = ipywidgets.HTML()
        self._table = ipywidgets.VBox()
        self._foot = ipywidgets.HTML()
        self._lines: dict[str, _Line] = {}
        self._drawn: State | None = None
        self._displayed = False
        # From 0 on the front end counts the views; with None it would not.
        super().__init__([self._head, self._table, self._foot], _view_count=0)
        self.observe(self._viewed, "_view_count")
        _refresher.add(self)

    @property
    def shown(self) -> bool:
        """Whether it is displayed, as far as the front end has told."""
        return self.comm is not None and (bool(self._view_count) or self._displayed)

    def draw(self, state: State) -> None:
        """Show a state; what is as before is not sent again."""
        if self.comm is None or state == self._drawn:
            return
        self._head.value = _head(state)
        self._foot.value = _foot(state.said)
        for row in state.rows:
            if row.key not in self._lines:
                self._lines[row.key] = _Line()
            self._lines[row.key].show(row)
        gone = set(self._lines) - {row.key for row in state.rows}
        boxes = tuple(self._lines[row.key].box for row in state.rows)
        if boxes != self._table.children:
            self._table.children = boxes
        for key in gone:
            self._lines.pop(key).close()
        self._drawn = state

    def fail(self, error: BaseException) -> None:
        """Show why nothing can be shown."""
        if self.comm is not None:
            self._foot.value = _foot(Said("\n".join(brief_traceback(error)), failed=True))
            self._drawn = None

    def close(self) -> None:
        """Take it out of the notebook, with all its parts."""
        _refresher.forget(self)
        for one in self._lines.values():
            one.close()
        for part in (self._head, self._table, self._foot):
            _close(part)
        _close(self)

    def _viewed(self, _change: Any) -> None:
        self._displayed = False  # from now on the front end tells
        _refresher.go_on()

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        # While the kernel is busy the front end's count has to wait, and the panel has not.
        self._displayed = in_kernel() and not self._view_count
        _refresher.go_on()
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": repr(self), "application/vnd.jupyter.widget-view+json": view}

    def __repr__(self) -> str:
        try:
            text = as_text(switcher.state())
        except Exception as error:  # a repr never raises
            text = visible("\n".join(brief_traceback(error)))
        return text if in_kernel() else f"{text}\n{HINT}"


class _Line:
    """One row: what is known of it, and its buttons. Kept while it changes, so focus stays."""

    def __init__(self) -> None:
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
                _refresher.go_on()

        made = ipywidgets.Button(layout={"width": "auto", "flex": "0 0 auto"})
        made.on_click(clicked)
        return made

    def show(self, row: Row) -> None:
        """Show a row."""
        self.row = row
        self._text.value = _cells(row)
        self._use.description = "✓ In use" if row.chosen else "Use"
        self._load.disabled = not row.can_load
        self._unload.disabled = not row.can_unload
        for action, button in self.buttons.items():
            # Read aloud with the button's word: which of the many it is.
            button.tooltip = visible(command(action, row.selection))

    def close(self) -> None:
        """Close the row's widgets."""
        for part in (*self.box.children, self.box):
            _close(part)


def _close(part: Any) -> None:
    """Close a widget with what it is drawn with: ipywidgets keeps each one for ever."""
    for trait in ("layout", "style"):
        own = getattr(part, trait, None)
        if own is not None:
            own.close()
    ipywidgets.Widget.close(part)


# ------------------------------------------------------------------------------- HTML


def _head(state: State) -> str:
    memory = f"{format_bytes(state.used_bytes)} of {format_bytes(state.budget_bytes)}"
    return (
        f'<div style="{TEXT}">A plain <code>%%infer</code> uses '
        f"<strong>{html.escape(label(state.chosen))}</strong><br>"
        f'<span style="opacity:.8">Memory of resident models: {memory}</span></div>'
    )


def _cells(row: Row) -> str:
    grid = "display:grid;grid-template-columns:6.5em minmax(6em,1fr) minmax(8em,1fr) 5em;gap:0 .8em"
    model = html.escape(short(row.selection.model.model_name))
    weight = ";font-weight:600" if row.chosen else ""
    note = f'<div style="opacity:.8;font-size:90%">{html.escape(short(row.note, 300))}</div>'
    return (
        f'<div style="{TEXT};{EDGE};{grid}{weight}">'
        f"<span>{html.escape(row.selection.engine)}</span><span>{model}</span>"
        f'<span><span aria-hidden="true">{SIGNS[row.state]}</span> {row.state}'
        f"{note if row.note else ''}</span>"
        f'<span style="text-align:right">{format_bytes(row.memory_bytes)}</span></div>'
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


# -------------------------------------------------------------------------- refreshing


class _Refresher:
    """Draws all panels alike: once a second while one is shown, and at once after a click."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._panels: weakref.WeakSet[Panel] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        switcher.changed = self._wake.set

    def add(self, one: Panel) -> None:
        with self._lock:
            self._panels.add(one)
        self.draw()

    def forget(self, one: Panel) -> None:
        with self._lock:
            self._panels.discard(one)
            last = not any(p.shown for p in self._panels)
        if last:
            self.stop()

    def start(self) -> None:
        """Begin to refresh, if that has not begun."""
        with self._lock:
            if self._thread is None:
                made = threading.Thread(target=self._run, name="nbinfer-panel", daemon=True)
                self._thread = made
                made.start()

    def go_on(self) -> None:
        """Draw now, and go on refreshing, also after a shutdown."""
        self.draw()
        if any(one.shown for one in list(self._panels)):
            self.start()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        with self._lock:
            thread, self._thread = self._thread, None
        self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def draw(self) -> None:
        """Draw every panel now."""
        with self._lock:
            try:
                state = switcher.state()
                for one in list(self._panels):
                    one.draw(state)
            except Exception as error:  # broken settings, say: shown, and the thread goes on
                for one in list(self._panels):
                    one.fail(error)

    def _goes_on(self) -> bool:
        with self._lock:
            if self._thread is not threading.current_thread():
                return False
            if not any(one.shown for one in self._panels):
                self._thread = None
            return self._thread is not None

    def _run(self) -> None:
        while self._goes_on():
            self._wake.clear()
            self.draw()
            self._wake.wait(INTERVAL_S)

    def shut_down(self) -> None:
        """End the thread, and show what is left: panels can still be used."""
        self.stop()
        self.draw()

    def exit(self) -> None:
        """The interpreter ends: nothing is drawn any more."""
        self._panels.clear()
        self.stop()


_refresher = _Refresher()
residents.closing.append(_refresher.shut_down)
# After residents' own, so it runs before it.
atexit.register(_refresher.exit)
