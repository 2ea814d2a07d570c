"""The rows that a panel's runs have made: a DataFrame, and a page of it as a table."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ipywidgets

from ...frame import COLUMNS, OPTIONAL, build
from .parts import button, quiet, table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PAGE", "Results"]

# Rows of a page: however many rows there are, no more is formatted and sent.
PAGE = 20
# Of a row; ``df`` has all of it.
SHOWN = (
    *("engine", "model", "prompt", "output", "finish_reason", "output_tokens"),
    *("ttft_s", "latency_s", "error"),
)


class Results(ipywidgets.VBox):  # type: ignore[misc]
    """The rows so far, a page at a time. ``add`` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: list[pd.DataFrame] = []
        self.page = 0
        self._table = ipywidgets.HTML(quiet("No rows yet: they are in panel.df, too."))
        self._place = ipywidgets.HTML()
        self.back = button("Back", "the page before", lambda _: self.turn(-1), disabled=True)
        self.on = button("Next", "the next page", lambda _: self.turn(1), disabled=True)
        buttons = ipywidgets.HBox([self.back, self.on, self._place])
        super().__init__([self._table, buttons])

    @property
    def df(self) -> pd.DataFrame:
        """All rows, in the order in which they came."""
        import pandas as pd

        with self._lock:
            if not self._frames:
                return build((), {})
            if len(self._frames) > 1:
                self._frames = [pd.concat(self._frames, ignore_index=True)]
            return self._frames[0].copy()

    @property
    def pages(self) -> int:
        """How many there are, at least one."""
        return max(1, -(-sum(map(len, self._frames)) // PAGE))

    def add(self, frame: pd.DataFrame) -> None:
        """Keep a run's rows, in the columns that every run has."""
        ours = {*COLUMNS, *OPTIONAL, "sample"}
        part = frame[[name for name in frame.columns if name in ours]].copy()
        part.attrs = {}  # they are one run's; ``df.infer.summary()`` goes by run_id
        was_last = self.page >= self.pages - 1
        with self._lock:
            self._frames.append(part)
        if was_last:  # who looks at the newest goes on to
            self.page = self.pages - 1
        self.draw()

    def turn(self, by: int) -> None:
        """Go so many pages on."""
        self.page = min(max(self.page + by, 0), self.pages - 1)
        self.draw()

    def draw(self) -> None:
        """Show the page."""
        from ..display import frame_html

        rows = self.df
        first = self.page * PAGE
        shown = rows.iloc[first : first + PAGE][list(SHOWN)].reset_index(drop=True)
        place = f"rows {first + 1:,}–{first + len(shown):,} of {len(rows):,}"
        shown.attrs["nbinfer"] = {"caption": place}
        if self.comm is None:
            return
        self._table.value = table(frame_html(shown, max_rows=PAGE))
        self._place.value = quiet(f"page {self.page + 1:,} of {self.pages:,}")
        self.back.disabled = self.page == 0
        self.on.disabled = self.page >= self.pages - 1

    def snapshot(self) -> Any:
        """The page as static HTML."""
        return self._table.value
