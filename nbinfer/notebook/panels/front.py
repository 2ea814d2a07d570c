"""The few lines of JavaScript that a panel has, and its style sheet.

Where the front end of anywidget is not installed, the panel works without: what needs it is not
shown, and images are chosen with a button.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets

from .parts import TEXT

__all__ = ["Front", "styled"]

GONE = (
    "Disconnected: the kernel of this panel has ended or was started anew. What is shown is how it "
    "was; run the cell again for a panel that works."
)
# ipywidgets marks what has lost its kernel with a class: that needs no script. The script marks
# what has lost it otherwise: a kernel that was shut down. The last line is for where there is no
# script: the panel does without, and no box need say so.
_STYLE = """
.nbinfer-gone, .nbinfer-images, .nbinfer-copy, .nbinfer-insert {display: none}
.nbinfer-front :is(.nbinfer-images, .nbinfer-copy), .nbinfer-inserts .nbinfer-insert
  {display: inline-block}
.nbinfer-front .nbinfer-upload {display: none}
.nbinfer-over {outline: 2px dashed currentColor}
:is(.jupyter-widgets-disconnected, .nbinfer-ended) .nbinfer-gone {display: block}
.nbinfer-panel:is(.jupyter-widgets-disconnected, .nbinfer-ended) > :not(:first-child) {opacity: .5}
.nbinfer-panel:is(.jupyter-widgets-disconnected, .nbinfer-ended)
  :is(button:not(.nbinfer-copy), input, select) {pointer-events: none}
.nbinfer-panel .jupyter-widgets-disconnected::before {display: none}
.nbinfer-panel > :has(> .jupyter-widgets-error-widget) {display: none}
"""


def styled() -> Any:
    """The panel's style sheet, and the words that show where its kernel is gone."""
    return ipywidgets.HTML(
        f'<style>{_STYLE}</style><div class="nbinfer-gone" role="alert" style="{TEXT};'
        f'font-weight:600;border:1px solid;padding:.3em .6em"><span aria-hidden="true">⚠</span> '
        f"{GONE}</div>"
    )


class Front(anywidget.AnyWidget):  # type: ignore[misc]
    """What listens on the panel in the browser; it shows nothing.

    Parameters
    ----------
    given : callable
        Called with what the browser says of an image, and with its bytes where it has sent them.
    """

    _esm = Path(__file__).with_name("front.js").read_text(encoding="utf-8")

    def __init__(self, given: Callable[[dict[str, Any], bytes | None], None]) -> None:
        super().__init__()
        self._given = given
        self.on_msg(self._heard)

    def _heard(self, _widget: Any, content: Any, buffers: Sequence[Any]) -> None:
        if isinstance(content, dict):
            self._given(content, bytes(buffers[0]) if buffers else None)
