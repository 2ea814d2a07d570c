"""The status line of a cell, made so that a saved notebook holds no trace of it.

The display begins empty, is updated while the run goes on, and ends empty. nbclient stores
the last state and nbval compares the first; both are the empty bundle, which has nothing to
compare and nothing to draw. So a cell that took long and one that did not are the same cell,
also under strict nbval. ``clear_output`` would not do: nbval ignores it, and it would wipe
what the user's own code printed.
"""

from __future__ import annotations

import html
import sys
from typing import Any

from ..progress import StatusLine
from ..records import Delta, Record
from .text import visible

__all__ = ["CellStream", "NotebookStatus"]


class NotebookStatus(StatusLine):
    """One line under the cell."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    def draw(self, text: str) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display({}, raw=True, display_id=True)
        shown = visible(text)
        style = "opacity:.7;font-family:var(--jp-code-font-family,monospace);font-size:90%"
        bundle = {
            "text/plain": shown,
            "text/html": f'<div style="{style}">{html.escape(shown)}</div>',
        }
        self._handle.update(bundle, raw=True)

    def clear(self) -> None:
        """Take the line away, once: JupyterLab cannot empty what is empty already."""
        if self._handle is not None:
            self._handle.update({}, raw=True)
            self._handle = None

    def __exit__(self, *error: object) -> None:
        self.clear()


class CellStream(NotebookStatus):
    """Prints one answer as it is made; the status line shows the load and the prefill.

    What is stored is one stream output: the answer's text and a newline. Control characters
    are made visible, since the text is a model's.
    """

    def __init__(self, in_kernel: bool = True) -> None:
        super().__init__()
        self._in_kernel = in_kernel
        self._wrote = False

    def draw(self, text: str) -> None:
        if self._in_kernel and not self._wrote:
            super().draw(text)

    def __call__(self, record: Record) -> None:
        super().__call__(record)
        if isinstance(record, Delta) and record.text:
            self.clear()
            self._wrote = True
            sys.stdout.write(visible(record.text))
            sys.stdout.flush()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._wrote:
            sys.stdout.write("\n")
            sys.stdout.flush()
