"""What every part of a panel is made with: closing, styles, harmless text, bounded updates."""

from __future__ import annotations

import html
import time
from typing import Any

import ipywidgets

from ..text import visible

__all__ = [
    "CODE",
    "EDGE",
    "MOST_CHARS",
    "SCROLLS",
    "TEXT",
    "WIDE",
    "Shown",
    "block",
    "button",
    "close",
    "copying",
    "cut",
    "failed",
    "quiet",
    "table",
    "titled",
]

# Colours are the theme's own: ipywidgets' label colour, and parts of it.
TEXT = "color:var(--jp-widgets-label-color,currentColor);line-height:1.5;overflow-wrap:anywhere"
EDGE = "border-top:1px solid color-mix(in srgb,currentColor 25%,transparent)"
CODE = "font-family:var(--jp-code-font-family,monospace);font-size:90%;user-select:all"
# As wide as what is around it, however wide what is in it.
SCROLLS = "overflow-x:auto;width:0;min-width:100%"
WIDE = {"width": "auto", "min_width": "0"}
# Of one text; all of it is in the DataFrame.
MOST_CHARS = 20_000
# Between two updates of one widget, however fast an engine is: 10 a second at most. A browser on
# the same cores draws each, and takes that time from the engine: half as much as at 20 a second.
UPDATE_S = 0.1


def close(part: Any) -> None:
    """Close a widget with its children and what they are drawn with: ipywidgets keeps them all."""
    for child in getattr(part, "children", ()):
        close(child)
    for trait in ("layout", "style"):
        own = getattr(part, trait, None)
        if own is not None:
            own.close()
    ipywidgets.Widget.close(part)


def cut(text: str, most: int = MOST_CHARS) -> str:
    """At most the first so many characters of a text, and how many are left out."""
    left_out = len(text) - most
    if left_out <= 0:
        return text
    return f"{text[:most]}\n… {left_out:,} more characters; panel.df has all …"


def block(text: str, style: str = "", **attributes: str) -> str:
    """A text as a block of HTML in which nothing is obeyed, neither tags nor control characters."""
    extra = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items())
    safe = html.escape(visible(text))
    return f'<div{extra} style="{TEXT};white-space:pre-wrap;{style}">{safe}</div>'


def table(drawn: str) -> str:
    """A table's HTML with a panel's line height, scrolled where it is wider than the panel."""
    return f'<div style="{TEXT};{SCROLLS}">{drawn}</div>'


def quiet(text: str) -> str:
    """A remark: smaller and dimmer."""
    return block(text, "opacity:.8;font-size:90%") if text else ""


def failed(text: str) -> str:
    """What went wrong, said as such and read aloud at once; nothing for an empty text."""
    if not text:
        return ""
    said = block(text, "display:inline")
    return f'<div role="alert" style="{TEXT}"><strong>✕ Failed.</strong> {said}</div>'


def button(text: str, tooltip: str, act: Any, *, icon: str = "", disabled: bool = False) -> Any:
    """A button that is as wide as its word."""
    made = ipywidgets.Button(
        description=text,
        tooltip=tooltip,
        icon=icon,
        disabled=disabled,
        layout={"width": "auto", "flex": "0 0 auto"},
    )
    made.on_click(act)
    return made


def copying() -> Any:
    """Buttons that copy a cell, and insert it as one.

    The panel's script acts on them, in the browser: they are not shown without. The cell is the
    text area, or the code, in the box of the class ``nbinfer-cell`` around them.
    """
    copy = button("Copy", "Copy the cell that does the same", lambda _: None)
    insert = button("Insert cell", "Insert it below as a new cell", lambda _: None)
    copy.add_class("nbinfer-copy")
    insert.add_class("nbinfer-insert")
    return ipywidgets.HBox([copy, insert])


def system_message() -> Any:
    """The box of a system message."""
    return ipywidgets.Textarea(placeholder="none", rows=1, tooltip="System message", layout=WIDE)


def titled(title: str, *parts: Any) -> Any:
    """A heading with what belongs under it."""
    head = ipywidgets.HTML(f'<div style="{TEXT};font-weight:600">{html.escape(title)}</div>')
    return ipywidgets.VBox([head, *parts], layout=WIDE)


class Shown:
    """A value of a widget that changes fast: set 10 times a second at most.

    Whoever writes calls ``now()`` at the end, so that the last value is never left out.
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget
        self.updates = 0
        self._drawn = 0.0

    @property
    def due(self) -> bool:
        """Whether it may be set again."""
        return time.monotonic() - self._drawn >= UPDATE_S

    def now(self, value: str) -> None:
        """Set it, whatever the time."""
        self._drawn = time.monotonic()
        if self.widget.comm is not None and self.widget.value != value:
            self.updates += 1
            self.widget.value = value
